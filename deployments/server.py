"""The HTTP server: thin routes over admission, generation and answers. It knows nothing of Ray."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments import failures, protocol
from deployments.admission import Admission, Job
from deployments.answers import Answer, ChatAnswer, TextAnswer
from deployments.bodies import read_body, until_disconnected
from deployments.generation import Generation
from deployments.handle import EngineHandle
from deployments.limits import check_ids
from deployments.observatory import Observatory
from deployments.protocol import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from deployments.replies import DetokenizeReply, ModelList, ModelReply, TokenizeReply
from deployments.responses import send_stream, send_whole
from deployments.text import Text
from medha_actors.config import MedhaConfig
from medha_actors.errors import MedhaError, NotFoundError, RequestError, UnavailableError

log = logging.getLogger(__name__)
Admit = Callable[[Request, bytes, float], Awaitable[tuple[Job, Answer]]]


class Server:
    """One ingress replica. `asgi()` is a Starlette application."""

    def __init__(
        self,
        config: MedhaConfig,
        engine: EngineHandle,
        text: Text,
        context_tokens: int | None = None,
        echo_request_id: bool = True,
        observatory: Observatory | None = None,
    ) -> None:
        """`context_tokens`: the longest prompt plus output; None: as configured, else what the
        model's files say. `echo_request_id`: False behind a proxy that puts x-request-id on every
        answer, as Ray Serve's does."""
        self.config, self.engine, self.text = config, engine, text
        self._echo_request_id = echo_request_id
        context = (
            context_tokens
            or config.model_loading_config.max_model_len_tokens
            or text.context_tokens
            or 2048
        )
        self.admission = Admission(config, text, context)
        self.started_at = int(time.time())
        self.observatory = observatory

    def asgi(self) -> Starlette:
        routes: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
            ("GET", "/health", self.health),
            ("GET", "/v1/models", self.models),
            ("GET", "/v1/models/{model:path}", self.model),
            ("POST", "/tokenize", self.tokenize),
            ("POST", "/detokenize", self.detokenize),
        ]
        return Starlette(
            routes=[
                self._generating("/v1/completions", self.complete),
                self._generating("/v1/chat/completions", self.chat),
                *[
                    Route(path, self._guarded(handler), methods=[method])
                    for method, path, handler in routes
                ],
                *(self.observatory.routes() if self.observatory else []),
            ],
            exception_handlers={404: _no_route, 405: _no_method},
            lifespan=self._life,
        )

    @contextlib.asynccontextmanager
    async def _life(self, app: Starlette) -> AsyncIterator[None]:
        yield
        if self.observatory is not None:
            await self.observatory.close()

    def _generating(self, path: str, admit: Admit) -> Route:
        app: ASGIApp = _Generating(self, admit)
        return Route(
            path, self.observatory.wrap(app, path) if self.observatory else app, methods=["POST"]
        )

    async def complete(
        self, request: Request, body: bytes, arrived_at: float
    ) -> tuple[Job, Answer]:
        job = await self.admission.completion(
            protocol.decode(body, CompletionBody), request.headers, arrived_at
        )
        return job, TextAnswer(job, self.text.table)

    async def chat(self, request: Request, body: bytes, arrived_at: float) -> tuple[Job, Answer]:
        job = await self.admission.chat(
            protocol.decode(body, ChatBody), request.headers, arrived_at
        )
        return job, ChatAnswer(job, self.text.table)

    def _guarded(
        self, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """A plain route: errors become OpenAI's error object."""

        async def guarded(request: Request) -> Response:
            headers = self.own_headers(request)
            try:
                response = await handler(request)
            except MedhaError as error:
                return failures.response(error, headers)
            response.headers.update(headers)
            return response

        return guarded

    def own_headers(self, request: Request) -> dict[str, str]:
        """What every answer carries."""
        if not self._echo_request_id:
            return {}
        return {"x-request-id": request.headers.get("x-request-id") or uuid.uuid4().hex}

    async def health(self, request: Request) -> Response:
        if not self.engine.ready():
            raise UnavailableError("the engine is not ready", retry_after_s=2.0)
        return _json({"status": "ok"})

    async def models(self, request: Request) -> Response:
        return _json(ModelList(data=[self._model()]))

    async def model(self, request: Request) -> Response:
        self.admission.check_model(request.path_params["model"])
        return _json(self._model())

    def _model(self) -> ModelReply:
        loading = self.config.model_loading_config
        return ModelReply(
            id=loading.model_id,
            root=loading.model_source,
            created=self.started_at,
            max_model_len=self.admission.context_tokens,
        )

    async def tokenize(self, request: Request) -> Response:
        body = protocol.decode(
            await read_body(request, self.config.limits.max_body_bytes), TokenizeBody
        )
        self.admission.check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise RequestError(
                "give either prompt or messages", param="prompt", code="missing_field"
            )
        if body.messages is not None:
            ids = await self.admission.chat_tokens(
                body.messages, body.add_generation_prompt, body.chat_template_kwargs
            )
        else:
            ids = await self.text.encode(body.prompt or "", body.add_special_tokens is not False)
        names = (
            [self.text.tokenizer.id_to_token(i) or "" for i in ids]
            if body.return_token_strs
            else None
        )
        length = self.admission.context_tokens
        return _json(
            TokenizeReply(count=len(ids), max_model_len=length, tokens=ids, token_strs=names)
        )

    async def detokenize(self, request: Request) -> Response:
        body = protocol.decode(
            await read_body(request, self.config.limits.max_body_bytes), DetokenizeBody
        )
        self.admission.check_model(body.model)
        check_ids("tokens", body.tokens, self.text.vocabulary)
        return _json(DetokenizeReply(prompt=await self.text.decode(body.tokens)))


class _Generating:
    """The two routes that generate: one flow, and an end as soon as the client has gone."""

    def __init__(self, server: Server, admit: Admit) -> None:
        self._server, self._admit = server, admit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived_at = time.time()
        request = Request(scope, receive)
        headers = self._server.own_headers(request)
        try:
            body = await read_body(request, self._server.config.limits.max_body_bytes)
        except MedhaError as error:
            await failures.response(error, headers)(scope, receive, send)
            return
        work = asyncio.ensure_future(self._work(request, body, arrived_at, headers, send))
        gone = asyncio.ensure_future(until_disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            work.cancel()  # harmless if it is done
        for task in (work, gone):
            if task.done() and not task.cancelled():
                task.result()

    async def _work(
        self, request: Request, body: bytes, arrived_at: float, headers: dict[str, str], send: Send
    ) -> None:
        server = self._server
        try:
            body_at = time.time()
            job, answer = await self._admit(request, body, arrived_at)
            if (record := request.scope.get("medha")) is not None:
                record.admitted(job, body_at)
            async with Generation(
                server.engine, server.text, job, server.config.stream.max_buffered_events
            ) as live:
                respond = send_stream if job.body.stream else send_whole
                await respond(live, answer, server.config.stream, arrived_at, headers, send)
        except MedhaError as error:
            # Only before the first byte: once a stream has begun, send_stream writes errors into
            # it.
            await failures.response(error, headers)(request.scope, request.receive, send)
        except OSError:
            return  # the client has gone
        except Exception:
            log.exception("a request failed in a way that should not happen")
            internal = MedhaError("internal error; see the server's log")
            await failures.response(internal, headers)(request.scope, request.receive, send)


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


async def _no_route(request: Request, error: Exception) -> Response:
    return failures.response(NotFoundError(f"there is no {request.url.path}", code="no_such_route"))


async def _no_method(request: Request, error: Exception) -> Response:
    wrong = RequestError(
        f"{request.url.path} does not answer {request.method}", code="method_not_allowed"
    )
    wrong.status = 405
    return failures.response(wrong, dict(getattr(error, "headers", None) or {}))
