"""How one API writes answers: whole ones, and the events of streams.

All of them are written from the replies of completions and chats (deployments.answers and its
kin): an API of another kind says the same in other words.
"""

from __future__ import annotations

from typing import Any, Protocol

from deployments import failures, sse
from deployments.replies import Reply, UsageReply
from medha_actors.errors import MedhaError


class Dialect(Protocol):
    """The words of one answer. What it returns are whole events, or nothing."""

    def whole(self, reply: Reply) -> Any:
        """The body of a complete answer."""
        ...

    def beginning(self, usage: UsageReply) -> bytes:
        """Before the first token."""
        ...

    def chunk(self, reply: Reply, event_id: str | None) -> bytes:
        """New text. `event_id`: for the event that tells it, where the client wants one."""
        ...

    def ending(self, reply: Reply) -> bytes:
        """After the last token; the reply has the usage, and no choices."""
        ...

    def failure(self, error: MedhaError) -> bytes:
        """After an error, instead of the ending."""
        ...


class Completions:
    """Completions and chat completions: replies as they are, and `[DONE]`."""

    def __init__(self, tells_usage: bool) -> None:
        """`tells_usage`: in an event of its own, at the end."""
        self._tells_usage = tells_usage

    def whole(self, reply: Reply) -> Reply:
        return reply

    def beginning(self, usage: UsageReply) -> bytes:
        return b""

    def chunk(self, reply: Reply, event_id: str | None) -> bytes:
        return sse.data(reply, event_id=event_id)

    def ending(self, reply: Reply) -> bytes:
        return sse.data(reply) + sse.DONE if self._tells_usage else sse.DONE

    def failure(self, error: MedhaError) -> bytes:
        return failures.last_frame(error)
