"""What tools sent, kept as files: tests replay it without the tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

FOLDER: Final = Path(__file__).parent / "recorded"
_HEADERS: Final = (
    "accept",
    "anthropic-version",
    "x-request-id",
    "x-correlation-id",
    "x-session-id",
)
_MOST_CHARS: Final = 4_000  # of one body; long ones teach nothing more


class Recorded(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request, and the status of its answer."""

    method: str
    path: str  # with the query
    headers: dict[str, str] = {}
    body: Any = None  # of JSON
    status: int = 200


class Recorder:
    """An application around another one; remembers one request of each shape."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._seen: dict[str, Recorded] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body: list[bytes] = []

        async def heard() -> Message:
            message = await receive()
            body.append(message.get("body", b""))
            return message

        async def said(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._keep(scope, b"".join(body), message["status"])
            await send(message)

        await self._app(scope, heard, said)

    def _keep(self, scope: Scope, raw: bytes, status: int) -> None:
        if len(raw) > _MOST_CHARS:
            return
        try:
            body = msgspec.json.decode(raw) if raw else None
        except msgspec.DecodeError:
            return
        query = f"?{scope['query_string'].decode()}" if scope["query_string"] else ""
        given = {name.decode(): value.decode() for name, value in scope["headers"]}
        recorded = Recorded(
            method=scope["method"],
            path=scope["path"] + query,
            headers={name: given[name] for name in _HEADERS if name in given},
            body=body,
            status=status,
        )
        self._seen.setdefault(f"{recorded.path} {status} {shape(body)}", recorded)

    def take(self) -> list[Recorded]:
        """What was recorded since the last call."""
        recorded = list(self._seen.values())
        self._seen.clear()
        return recorded


def shape(value: Any) -> Any:
    """What a body looks like, whatever its texts and numbers are."""
    if isinstance(value, dict):
        return sorted([(key, repr(shape(inner))) for key, inner in value.items()])
    if isinstance(value, list):
        return [len(value) > 1, *sorted({repr(shape(inner)) for inner in value})]
    return type(value).__name__


def save(name: str, requests: list[Recorded]) -> None:
    """As JSON, a request a line."""
    FOLDER.mkdir(exist_ok=True)
    lines = ",\n".join([msgspec.json.encode(request).decode() for request in requests])
    (FOLDER / f"{name}.json").write_text(f"[\n{lines}\n]\n")


def load(path: Path) -> list[Recorded]:
    return msgspec.json.decode(path.read_bytes(), type=list[Recorded])
