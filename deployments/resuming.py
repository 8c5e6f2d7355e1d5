"""Going on with an answer whose stream was cut.

x-medha-event-ids: 1        the stream's events get `id: ANSWER:TOKENS`, the text of how many tokens
                            is out by then; `ANSWER:end` once the last text is
x-medha-resume: ANSWER:N    the same body again: what comes after the N-th token
last-event-id: ANSWER:N     the same, as browsers do it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from deployments.outbox import Addition
from medha_actors.errors import RequestError
from medha_actors.record import Record

EVENT_IDS_HEADER: Final = "x-medha-event-ids"
RESUME_HEADERS: Final = ("x-medha-resume", "last-event-id")
_END: Final = "end"
_MAX_DIGITS: Final = 10


@dataclass(frozen=True, slots=True)
class Place:
    """Where a client was when its stream was cut."""

    header: str  # which said so
    answer_id: str
    tokens: int | None  # the text of how many it has; None: it has the whole text

    def has(self, addition: Addition) -> bool:
        """Whether the client has what this addition says."""
        if self.tokens is None:
            return True
        return addition.finish_reason is None and addition.generated <= self.tokens


@dataclass(frozen=True, slots=True)
class Past:
    """What an answer said before its stream was cut, and how much of it the client has."""

    record: Record
    place: Place


def wants_ids(headers: Mapping[str, str]) -> bool:
    return headers.get(EVENT_IDS_HEADER) == "1"


def event_id(answer_id: str, addition: Addition) -> str:
    """The id of the event that shows this addition of an answer with one choice."""
    return f"{answer_id}:{_END if addition.finish_reason is not None else addition.generated}"


def place_of(headers: Mapping[str, str]) -> Place | None:
    """Where the client wants to go on; None: it asks anew. Raises RequestError naming the
    header."""
    for name in RESUME_HEADERS:
        value = headers.get(name, "").strip()
        if value:
            return _parse(name, value)
    return None


def _parse(header: str, value: str) -> Place:
    answer_id, _, tokens = value.rpartition(":")
    if answer_id and tokens == _END:
        return Place(header, answer_id, None)
    if (
        answer_id
        and tokens.isascii()
        and tokens.isdigit()
        and len(tokens) <= _MAX_DIGITS
    ):
        return Place(header, answer_id, int(tokens))
    raise RequestError(
        f"{header} must be the id of an answer, a colon and a number of tokens or {_END!r},"
        f" not {value[:80]!r}",
        param=header,
        code="invalid_value",
    )
