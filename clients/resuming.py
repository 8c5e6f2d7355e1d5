"""When a cut stream is asked for again, and from where. Pure: time is passed in."""

from __future__ import annotations

import random
from typing import Final

from clients.errors import ApiError, ClientError, ServerDownError, StreamCutError

EVENT_IDS_HEADER: Final = "x-medha-event-ids"
RESUME_HEADER: Final = "x-medha-resume"
_MAX_WAIT_S: Final = 2.0
_AWAY: Final = (502, 503, 504)  # the server, or what it needs, is being started again


class Resuming:
    """One answer on its way: where it is, and how much patience is left.

    `place` is the id of the last event, `ANSWER:TOKENS` or `ANSWER:end`; a server that sends no ids
    leaves it None, and then nothing can be resumed.
    """

    def __init__(self, limit: int, patience_s: float, first_wait_s: float) -> None:
        """`limit`: of resumptions in all. `patience_s`: how long after a cut it is tried."""
        self._limit = limit
        self._patience_s = patience_s
        self._first_wait_s = first_wait_s
        self.place: str | None = None
        self.times = 0  # how often it was resumed
        self._lost_at: float | None = None
        self._lost_place: str | None = None
        self._tries = 0

    @property
    def tokens(self) -> int | None:
        """Of how many tokens the text has come; None: of all."""
        number = (self.place or "").rpartition(":")[2]
        return int(number) if number.isdecimal() else None

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.place is None else {RESUME_HEADER: self.place}

    def opened(self) -> None:
        """The server goes on with the answer."""
        self.times += 1

    def pause_s(self, error: ClientError, now: float) -> float:
        """How long to wait before asking again; raises the error if that is of no use."""
        if self._lost_at is None or self.place != self._lost_place:  # it had moved on
            self._lost_at = now
            self._lost_place = self.place
            self._tries = 0
        if not self._can_help(error):
            raise error
        self._tries += 1
        wait_s = min(_MAX_WAIT_S, self._first_wait_s * 2.0 ** (self._tries - 1))
        wait_s *= random.uniform(0.5, 1.0)  # many are cut at once: not all back at once
        if self.times >= self._limit or now + wait_s > self._lost_at + self._patience_s:
            raise StreamCutError(f"{error}; resumed {self.times} times, then given up")
        return wait_s

    def _can_help(self, error: ClientError) -> bool:
        if self.place is None or self._limit == 0:
            return False
        if isinstance(error, ApiError):
            # A 404 that is not the server's own: a proxy that has just begun knows no routes yet.
            return error.status in _AWAY or (error.status == 404 and not error.kind)
        return isinstance(error, StreamCutError | ServerDownError)
