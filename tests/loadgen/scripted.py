"""An OpenAI-compatible server that does what a test tells it to, in a thread with a loop of its
own."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable

from aiohttp import web

Answer = Callable[["Call"], Awaitable[None]]


def event(text=" x", finish=None, **more):
    choice = {"index": 0, "text": text, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice], **more}).encode() + b"\n\n"


def usage(prompt, completion):
    counts = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    return b"data: " + json.dumps({"choices": [], "usage": counts}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


class Call:
    """One request to the server, as the answering function sees it."""

    def __init__(self, request, body, number):
        self.request = request
        self.body = body
        self.number = number
        self.response = web.Response()

    @property
    def prompt_tokens(self):
        prompt = self.body.get("prompt")
        if prompt is None:
            prompt = self.body["messages"][0]["content"]
        return len(prompt) if isinstance(prompt, list) else len(prompt.split())

    @property
    def max_tokens(self):
        return self.body.get("max_tokens") or self.body.get("max_completion_tokens")

    async def stream(self, *pieces):
        self.response = response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream"}
        )
        await response.prepare(self.request)
        for piece in pieces:
            await response.write(piece)
        await response.write_eof()

    def whole(self, extra_prompt_tokens=0):
        """The bytes of a complete answer."""
        last = self.max_tokens - 1
        tokens = b"".join(
            event(finish="length" if i == last else None)
            for i in range(self.max_tokens)
        )
        return (
            tokens
            + usage(self.prompt_tokens + extra_prompt_tokens, self.max_tokens)
            + DONE
        )

    async def error(self, status, message):
        self.response = web.json_response(
            {"error": {"message": message, "type": "x", "code": None}}, status=status
        )

    def hang_up(self):
        self.request.transport.abort()


async def complete(call):
    """Answer at once and in full."""
    await call.stream(call.whole())


class ScriptedServer:
    """`with ScriptedServer(answer) as server:`; `server.calls` are the requests it got (trial
    requests included)."""

    def __init__(
        self,
        answer: Answer = complete,
        *,
        models=("scripted",),
        tokenize=False,
        max_model_len=None,
    ):
        self.answer = answer
        self.models = models
        self.tokenize = tokenize
        self.max_model_len = max_model_len
        self.calls = []

    def __enter__(self):
        started = threading.Event()
        self.thread = threading.Thread(target=self._main, args=(started,), daemon=True)
        self.thread.start()
        started.wait()
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join()

    def _main(self, started):
        async def serve():
            self.loop = asyncio.get_running_loop()
            self.stop = asyncio.Event()
            app = web.Application(client_max_size=2**30)
            app.router.add_get("/v1/models", self._models)
            app.router.add_post("/v1/completions", self._complete)
            app.router.add_post("/v1/chat/completions", self._complete)
            if self.tokenize:
                app.router.add_post("/tokenize", self._tokenize)
            runner = web.AppRunner(
                app, shutdown_timeout=0.01, handler_cancellation=True
            )
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            started.set()
            await self.stop.wait()
            await runner.cleanup()

        asyncio.run(serve())

    async def _models(self, request):
        limit = {"max_model_len": self.max_model_len} if self.max_model_len else {}
        models = [{"id": name, "object": "model", **limit} for name in self.models]
        return web.json_response({"object": "list", "data": models})

    async def _tokenize(self, request):
        words = (await request.json())["prompt"].split()
        return web.json_response(
            {
                "tokens": [sum(map(ord, word)) + 100 for word in words],
                "count": len(words),
            }
        )

    async def _complete(self, request):
        call = Call(request, await request.json(), len(self.calls))
        self.calls.append(call)
        if not call.body.get("stream"):
            counts = {"prompt_tokens": call.prompt_tokens, "completion_tokens": 1}
            return web.json_response(
                {"choices": [{"text": "x", "finish_reason": "length"}], "usage": counts}
            )
        await self.answer(call)
        return call.response
