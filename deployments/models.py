"""Several models behind one address: an ASGI application over one for each model.

Requests with a body go to the model that it names; what is asked of the server as a whole is asked
of all of them. Each application keeps its own limits and API keys, so a key opens the models whose
configuration has it, and /v1/models lists those.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, NamedTuple
from urllib.parse import parse_qs

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from deployments import failures
from deployments.asking import Said, ask, replaying, say
from deployments.bodies import Bodies
from deployments.operations import WITH_BODY
from deployments.replies import LoadReply, ModelList, ModelReply
from deployments.server import Server
from medha_actors.errors import MedhaError, NotFoundError, RequestError

_LIST: Final = "/v1/models"
_HEALTH: Final = ("/health", "/ping")
_TRACE: Final = "/medha/trace/"


class _Named(msgspec.Struct):
    """What of a body says whose it is; the rest is skipped."""

    model: str | None = None


class _Model(NamedTuple):
    server: Server
    app: Starlette


class Models:
    """`servers` by model id, in the order in which they are listed."""

    def __init__(self, servers: Mapping[str, Server]) -> None:
        self.models = {
            name: _Model(server, server.asgi()) for name, server in servers.items()
        }
        self._first = next(iter(self.models.values()))
        # reads those whose model is not known yet
        self._bodies = Bodies.widest([server.bodies for server in servers.values()])
        self._lifespan = Router(lifespan=self._life)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            app = self._lifespan if scope["type"] == "lifespan" else self._first.app
            await app(scope, receive, send)
            return
        path: str = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        if scope["method"] == "POST" and path in WITH_BODY:
            await self._by_body(scope, receive, send, path)
            return
        try:
            said = await self._said(scope, path)
        except MedhaError as error:
            headers = self._first.server.own_headers(Request(scope))
            await failures.send(error, headers, send, path)
            return
        if isinstance(said, Said):
            await say(said, send)
        else:
            await said(scope, receive, send)

    @asynccontextmanager
    async def _life(self, app: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for model in self.models.values():
                await stack.enter_async_context(
                    model.app.router.lifespan_context(model.app)
                )
            yield

    async def _by_body(
        self, scope: Scope, receive: Receive, send: Send, path: str
    ) -> None:
        request = Request(scope, receive)
        async with AsyncExitStack() as stack:
            try:
                body = await stack.enter_async_context(self._bodies.read(request))
                app = self._chosen(body.data)
            except MedhaError as error:
                headers = self._first.server.own_headers(request)
                await failures.send(error, headers, send, path)
                return
            whole = body.data
            body.release()
            await app(scope, replaying(whole, receive), send)

    def _chosen(self, body: bytes) -> Starlette:
        """Raises RequestError where no model is named. What is no body at all is told so by the
        first."""
        try:
            name = msgspec.json.decode(body, type=_Named).model
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return self._first.app
        if name is None:
            raise RequestError(
                f"this server has several models, say which: {self._names()}",
                param="model",
                code="model_missing",
            )
        return self._app(name)

    def _app(self, name: str) -> Starlette:
        model = self.models.get(name)
        if model is None:
            raise NotFoundError(
                f"the model {name[:100]!r} does not exist; this server has {self._names()}",
                param="model",
                code="model_not_found",
            )
        return model.app

    def _names(self) -> str:
        return ", ".join([repr(name) for name in self.models])

    # ---------------------------------------------------------------- what all are asked

    async def _said(self, scope: Scope, path: str) -> Said | Starlette:
        """An answer, or whose it is."""
        if scope["method"] == "GET":
            if path == _LIST:
                return _together(await self._all(scope), _listed)
            if path == "/load":
                return _together(await self._all(scope), _loads)
            if path == "/metrics":
                return _together(await self._all(scope), _figures)
        if path in _HEALTH or path.startswith(_TRACE):
            return _best(await self._all(scope))
        if path.startswith(f"{_LIST}/"):
            return self._app(path.removeprefix(f"{_LIST}/"))
        asked = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("model")
        return self._app(asked[0]) if asked else self._first.app

    async def _all(self, scope: Scope) -> list[Said]:
        return [await ask(model.app, scope) for model in self.models.values()]


def _best(answers: list[Said]) -> Said:
    """One that is well serves; else what the first one says."""
    return next((said for said in answers if said.status < 400), answers[0])


Join = Callable[[list[bytes]], bytes]


def _together(answers: list[Said], join: Join) -> Said:
    """Of those who may be asked and answer."""
    good = [said for said in answers if said.status == 200]
    if not good:
        return answers[0]
    return good[0].with_body(join([said.body for said in good]))


def _listed(bodies: list[bytes]) -> bytes:
    models = list[ModelReply]()
    for body in bodies:
        models += msgspec.json.decode(body, type=ModelList).data
    return msgspec.json.encode(
        ModelList(data=models, first_id=models[0].id, last_id=models[-1].id)
    )


def _loads(bodies: list[bytes]) -> bytes:
    loads = [msgspec.json.decode(body, type=LoadReply).server_load for body in bodies]
    return msgspec.json.encode(LoadReply(server_load=sum(loads)))


def _figures(pages: list[bytes]) -> bytes:
    """Each family once, with the series of all models (which have their names as a label)."""
    heads: dict[bytes, bytes] = {}
    series: dict[bytes, list[bytes]] = {}
    for page in pages:
        for family in (b"\n" + page.rstrip(b"\n")).split(b"\n# HELP ")[1:]:
            text, kind, *lines = family.split(b"\n")
            name = text.partition(b" ")[0]
            heads.setdefault(name, b"# HELP " + text + b"\n" + kind)
            series.setdefault(name, []).extend(lines)
    blocks = [b"\n".join([head, *series[name]]) for name, head in heads.items()]
    return b"\n".join(blocks) + b"\n"
