"""The HTTP server: thin routes over admission, generation and answers. It knows nothing of Ray."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments import failures, gate, protocol, tenants
from deployments.about import About
from deployments.admission import Admission
from deployments.answers import Answer
from deployments.bodies import Bodies, Body, until_disconnected
from deployments.dialect import Completions, Dialect
from deployments.dialects.routes import Dialects
from deployments.generation import Generation
from deployments.handle import EngineHandle
from deployments.job import Job
from deployments.keys import load_keys
from deployments.objectives import answer_within_s
from deployments.observatory import Observatory
from deployments.operations import operation_at
from deployments.protocol import ChatBody, CompletionBody
from deployments.responses import Sent, send_stream, send_whole
from deployments.resuming import place_of
from deployments.text import Text
from deployments.text_answer import TextAnswer
from deployments.tokenization import Tokenization
from deployments.tool_answer import chat_answer
from medha_actors.config import MedhaConfig
from medha_actors.errors import (
    MedhaError,
    NotFoundError,
    RequestError,
    RequestTimeoutError,
)

log = logging.getLogger(__name__)
# JSON values that any body may have, however short the context is
_LEAST_VALUES: Final = 2**20
Handler = Callable[[Request], Awaitable[Response]]
Admit = Callable[[Request, bytes, float], Awaitable[tuple[Job, Answer, Dialect]]]


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
        model_vocabulary: int | None = None,
    ) -> None:
        """`context_tokens`: the longest prompt plus output; None: as configured, else what the
        model's files say. `echo_request_id`: False behind a proxy that puts x-request-id on every
        answer, as Ray Serve's does. `model_vocabulary`: see Admission."""
        self.config = config
        self.engine = engine
        self.text = text
        self._echo_request_id = echo_request_id
        context = (
            context_tokens
            or config.model_loading_config.max_model_len_tokens
            or text.context_tokens
            or 2048
        )
        self.admission = Admission(config, text, context, model_vocabulary)
        self.dialects = Dialects(self.admission, text)
        self.bodies = Bodies(config.limits, max(_LEAST_VALUES, 2 * context))
        self.tokens = Tokenization(
            text,
            self.admission,
            self.dialects,
            self.bodies,
            config.limits.max_tokenize_tokens,
        )
        self.observatory = observatory
        self._keys = load_keys(config.api_keys)
        self.open_requests = 0  # of the routes that generate
        self.about = About(
            config, engine, text, self.admission, lambda: self.open_requests
        )

    def asgi(self) -> Starlette:
        routes = [
            *self._routes(),
            *(self.observatory.routes() if self.observatory else []),
        ]
        operations = [operation_at(route.path) for route in routes]
        self.about.describe(operations, with_keys=self._keys is not None)
        return Starlette(
            routes=routes,
            middleware=gate.middlewares(self.config.cors, self._keys, self.own_headers),
            exception_handlers={404: _no_route, 405: _no_method},
            lifespan=self._life,
        )

    def _routes(self) -> list[Route]:
        about = self.about
        tokens = self.tokens
        plain: dict[str, Handler] = {
            "/health": about.health,
            "/ping": about.health,
            "/version": about.version,
            "/load": about.load,
            "/openapi.json": about.api,
            "/favicon.ico": about.icon,
            "/": about.home,
            "/v1/models": about.models,
            "/v1/models/{model:path}": about.model,
            "/tokenizer_info": about.tokenizer_info,
            "/tokenize": tokens.tokenize,
            "/detokenize": tokens.detokenize,
            "/v1/messages/count_tokens": tokens.message_tokens,
            "/v1/responses/input_tokens": tokens.response_tokens,
        }
        return [
            self._generating("/v1/completions", self.complete),
            self._generating("/v1/chat/completions", self.chat),
            self._generating("/v1/responses", self.dialects.responses),
            self._generating("/v1/messages", self.dialects.messages),
            *[self._plain(path, handler) for path, handler in plain.items()],
        ]

    @contextlib.asynccontextmanager
    async def _life(self, app: Starlette) -> AsyncIterator[None]:
        yield
        if self.observatory is not None:
            await self.observatory.close()

    def _generating(self, path: str, admit: Admit) -> Route:
        app: ASGIApp = _Generating(self, admit)
        return Route(
            path,
            self.observatory.wrap(app, path) if self.observatory else app,
            methods=["POST"],
        )

    async def complete(
        self, request: Request, body: bytes, arrived_at: float
    ) -> tuple[Job, Answer, Dialect]:
        job = await self.admission.completion(
            protocol.decode(body, CompletionBody), request.headers, arrived_at
        )
        await self._resume(job, request)
        return job, TextAnswer(job, self.text.table), _dialect(job)

    async def chat(
        self, request: Request, body: bytes, arrived_at: float
    ) -> tuple[Job, Answer, Dialect]:
        job = await self.admission.chat(
            protocol.decode(body, ChatBody), request.headers, arrived_at
        )
        await self._resume(job, request)
        return job, chat_answer(job, self.text.table), _dialect(job)

    async def _resume(self, job: Job, request: Request) -> None:
        """If the client asks to go on with a cut answer, make the job do that."""
        place = place_of(request.headers)
        if place is None:
            return
        if len(job.choices) > 1:
            raise RequestError(
                f"{place.header}: an answer of several choices cannot be resumed",
                param=place.header,
                code="unsupported",
            )
        record = await self.engine.record(place.answer_id)
        if record is None:
            raise NotFoundError(
                f"{place.header}: there is no answer {place.answer_id[:80]!r} that could be"
                f" resumed; they are kept for {self.config.stream.resume_s:g} s, and those whose"
                " id was used twice are not",
                param=place.header,
                code="resume_not_found",
            )
        self.admission.resume(job, place, record)

    def _plain(self, path: str, handler: Handler) -> Route:
        """A route that answers at once: errors become the error object of its API."""

        async def guarded(request: Request) -> Response:
            headers = self.own_headers(request)
            try:
                response = await handler(request)
            except MedhaError as error:
                return failures.response(error, headers, path)
            response.headers.update(headers)
            return response

        return Route(path, guarded, methods=operation_at(path).methods)

    def own_headers(self, request: Request) -> dict[str, str]:
        """What every answer carries."""
        if not self._echo_request_id:
            return {}
        return {"x-request-id": request.headers.get("x-request-id") or uuid.uuid4().hex}


class _Generating:
    """The routes that generate: one flow, and an end as soon as the client has gone or its
    time is over."""

    def __init__(self, server: Server, admit: Admit) -> None:
        self._server = server
        self._admit = admit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived_at = time.time()
        request = Request(scope, receive)
        headers = self._server.own_headers(request)
        sent = Sent(send, request.url.path)
        self._server.open_requests += 1
        try:
            limit_s = answer_within_s(request.headers, self._server.config.objectives)
            async with asyncio.timeout(limit_s):
                async with self._server.bodies.read(request) as body:
                    await self._watched(request, body, arrived_at, headers, sent)
        except MedhaError as error:
            await failures.send(error, headers, send, request.url.path)
        except TimeoutError:
            await sent.end(
                RequestTimeoutError("the request's time limit passed"), headers
            )
        finally:
            self._server.open_requests -= 1

    async def _watched(
        self,
        request: Request,
        body: Body,
        arrived_at: float,
        headers: dict[str, str],
        sent: Sent,
    ) -> None:
        """Work until the answer is out or the client has gone."""
        work = asyncio.ensure_future(
            self._work(request, body, arrived_at, headers, sent)
        )
        gone = asyncio.ensure_future(until_disconnected(request.receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            work.cancel()  # harmless if it is done
            await asyncio.wait({work, gone})
        for task in (work, gone):
            if not task.cancelled():
                task.result()

    async def _work(
        self,
        request: Request,
        body: Body,
        arrived_at: float,
        headers: dict[str, str],
        sent: Sent,
    ) -> None:
        server = self._server
        path = request.url.path
        try:
            body_at = time.time()
            tenant = tenants.tenant_of(request, server.config.scheduler.fairness)
            job, answer, dialect = await self._admit(request, body.data, arrived_at)
            tenants.assign(job, tenant)
            body.release()
            sent.failure = dialect.failure
            if (record := request.scope.get("medha")) is not None:
                record.admitted(job, body_at)
            async with Generation(
                server.engine,
                server.text,
                job,
                server.config.stream.max_buffered_events,
            ) as live:
                respond = send_stream if job.body.stream else send_whole
                await respond(
                    live, answer, dialect, server.config.stream, headers, sent
                )
        except MedhaError as error:
            # Only before the first byte: once a stream has begun, send_stream writes
            # errors into it.
            await failures.send(error, headers, sent, path)
        except OSError:
            return  # the client has gone
        except Exception:
            log.exception("a request failed in a way that should not happen")
            internal = MedhaError("internal error; see the server's log")
            await failures.send(internal, headers, sent, path)


def _dialect(job: Job) -> Dialect:
    options = job.body.stream_options
    return Completions(tells_usage=bool(options and options.include_usage))


async def _no_route(request: Request, error: Exception) -> Response:
    return failures.response(
        NotFoundError(f"there is no {request.url.path}", code="no_such_route")
    )


async def _no_method(request: Request, error: Exception) -> Response:
    wrong = RequestError(
        f"{request.url.path} does not answer {request.method}",
        code="method_not_allowed",
    )
    wrong.status = 405
    headers = dict(getattr(error, "headers", None) or {})
    return failures.response(wrong, headers, request.url.path)
