"""What a token costs in an ingress replica: `python -m deployments.bench_tokens`.

From the engine's packed message of a step to the frames of 64 streams: the real RayEngine,
Generation, answers and frames; a controller that is played in this process, and no HTTP. A
message is sent when all frames of the one before are out, so that no stream joins its tokens.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from statistics import median
from typing import Any, Final

import msgspec

from deployments import protocol
from deployments.admission import Admission
from deployments.answers import Answer, ChatAnswer
from deployments.control_tokens import Prompt
from deployments.dialect import Completions
from deployments.generation import Generation
from deployments.job import Job
from deployments.protocol import ChatBody, CompletionBody
from deployments.responses import send_stream
from deployments.text import Text
from deployments.text_answer import TextAnswer
from deployments.text_sources import load_text
from medha_actors.actors.engine import RayEngine
from medha_actors.bench.played import PlayedController
from medha_actors.bench.table import command
from medha_actors.config import MedhaConfig, ModelLoadingConfig, StreamConfig
from medha_actors.messages import FinishedEvent, TokenEvent

_STREAMS: Final = 64
_STEPS: Final = 256
_CONTEXT: Final = 4096
_SAID: Final = (
    "The quick brown fox jumps over the lazy dog, and nobody waits for a long prompt. "
)
_MESSAGES: Final = [{"role": "user", "content": "Say something."}]
_BODIES: Final[dict[str, dict[str, Any]]] = {
    "completion": {"prompt": "Say something."},
    "chat": {"messages": _MESSAGES},
    "chat, logprobs": {"messages": _MESSAGES, "logprobs": True, "top_logprobs": 2},
}


class Frames:
    """Counts the frames of all streams, and tells when a step's are out."""

    def __init__(self) -> None:
        self._missing = 0
        self._out = asyncio.Event()

    async def send(self, message: Any) -> None:
        """The `send` of every stream: each body is one token's frame."""
        if message["type"] == "http.response.body":
            self._missing -= 1
            if self._missing == 0:
                self._out.set()

    def expect(self, frames: int) -> None:
        """From now on, so many."""
        self._missing = frames
        self._out.clear()

    async def out(self) -> None:
        await self._out.wait()


async def run(repeats: int = 7) -> list[dict[str, Any]]:
    """Microseconds of CPU per token of each kind of stream: the median and the least of all."""
    config = MedhaConfig(model_loading_config=ModelLoadingConfig(model_id="bench"))
    text = load_text(config.model_loading_config)
    admission = Admission(config, text, _CONTEXT)
    rows: list[dict[str, Any]] = []
    for name, body in _BODIES.items():
        await _round(admission, text, body)  # warms up
        costs = [await _round(admission, text, body) for _ in range(repeats)]
        row: dict[str, Any] = {"streams": f"{_STREAMS} {name}", "steps": _STEPS}
        row["us_per_token"] = median(costs)
        row["least_us"] = min(costs)
        rows.append(row)
    return rows


async def _round(admission: Admission, text: Text, body: dict[str, Any]) -> float:
    """Microseconds per token of 64 streams that get a token in every step."""
    controller = PlayedController(_CONTEXT)
    engine = RayEngine(lambda: controller)
    await engine.start()
    frames = Frames()
    jobs = [await _admitted(admission, body) for _ in range(_STREAMS)]
    try:
        async with AsyncExitStack() as stack:
            sending = [
                await _streaming(stack, engine, text, job, frames) for job in jobs
            ]
            messages = await _messages(jobs, text)
            spent = await _spent(controller, messages, frames)
            controller.say([_end(job) for job in jobs])
            await asyncio.gather(*sending)
    finally:
        await engine.stop()
    return 1e6 * spent / (_STREAMS * _STEPS)


async def _spent(
    controller: PlayedController, messages: list[bytes], frames: Frames
) -> float:
    """Seconds of CPU from the first message to the last frame."""
    began = time.process_time()
    for message in messages:
        frames.expect(_STREAMS)
        controller.say_packed(message)
        await frames.out()
    return time.process_time() - began


async def _admitted(admission: Admission, fields: dict[str, Any]) -> Job:
    """The job of one body."""
    body = {
        **fields,
        "stream": True,
        "max_tokens": _STEPS,
        "ignore_eos": True,
        "temperature": 0,
    }
    packed = msgspec.json.encode(body)
    if "messages" in body:
        return await admission.chat(protocol.decode(packed, ChatBody), {}, time.time())
    return await admission.completion(
        protocol.decode(packed, CompletionBody), {}, time.time()
    )


async def _streaming(
    stack: AsyncExitStack, engine: RayEngine, text: Text, job: Job, frames: Frames
) -> asyncio.Future[None]:
    """Submits one job; what sends its answer."""
    stream = StreamConfig()
    live = await stack.enter_async_context(
        Generation(engine, text, job, stream.max_buffered_events)
    )
    is_chat = isinstance(job.body, ChatBody)
    answer: Answer = (
        ChatAnswer(job, text.table) if is_chat else TextAnswer(job, text.table)
    )
    dialect = Completions(tells_usage=False)
    return asyncio.ensure_future(
        send_stream(live, answer, dialect, stream, {}, frames.send)
    )


async def _messages(jobs: list[Job], text: Text) -> list[bytes]:
    """One message a step, with a token of every job."""
    said = await text.encode(Prompt(_SAID), False, limit=_CONTEXT)
    messages = []
    for step in range(_STEPS):
        token_id = said[step % len(said)]
        events = [_token(job, step, token_id) for job in jobs]
        messages.append(msgspec.msgpack.encode(events))
    return messages


def _token(job: Job, step: int, token_id: int) -> TokenEvent:
    [choice] = job.choices
    sampling = choice.request.sampling
    event = TokenEvent(choice.request.id, step, token_id, time.time())
    if sampling.logprobs is None:
        return event
    top = ((token_id, -0.25), (token_id + 1, -1.5))
    return msgspec.structs.replace(event, logprob=-0.25, top_logprobs=top)


def _end(job: Job) -> FinishedEvent:
    [choice] = job.choices
    return FinishedEvent(
        request_id=choice.request.id, reason="length", generated_tokens=_STEPS
    )


def main() -> None:
    """Run it and print its table."""
    command(
        "deployments.bench_tokens",
        "CPU per token from the engine's message to the frames of 64 streams",
        7,
        run,
    )


if __name__ == "__main__":
    main()
