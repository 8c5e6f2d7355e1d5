"""What a forecast of waiting times learns from what happens: how long work really takes, who comes,
who goes.

- `drag`: while prefills wait, so many seconds pass for each second of predicted work that goes
  out: decodes ride along, batches are short, chunks are smaller than a lone prefill's.
- `steady_drag`: the same, learned more slowly and bounded, for deadlines.
- `newcomers`: which work arrives how often, and where the order puts it behind its arrival. A
  request is overtaken by those of them whose place is before its own.
- `truth`: what came of the last forecasts (core/truth.py): of those that found nobody at all; of
  prefills of a batch that found no other that waits, of those that did; of prefills of several
  batches; of long ones; and of those that go before other tenants' (core/shares.py).
- `departures`: how often a running request ends, and makes room where room is short.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from medha_actors.core.request import Milestones, RequestState
from medha_actors.core.truth import ALONE, BESIDE, Truth

MEMORY = 0.985  # of what is learned of the drag, from one batch to the next
PRIOR_DRAG = 1.0
PRIOR_S = 0.2  # of work that the prior is worth
# the same for admission, which must not give away in its first second what it cannot keep
CAREFUL_DRAG = 1.5
CAREFUL_S = 1.0
DRAGS = (0.5, 20.0)  # beyond these it is a fault of the clock
# of the steady drag, which deadlines are made of: longer, so that those of equal requests are near
STEADY = 0.997
STEADY_PRIOR_S = 2.0
MOST_DRAG = 2.0
WINDOW = 128  # arrivals and departures that count
KINDS_PER_OCTAVE = 1  # arrivals are counted by their work
# kinds of forecasts, and how many of each count
IDLE, FREE, WAITING, SEVERAL, LONG, PAID = range(6)
FORECASTS = (127, 127, 127, 127, 127, 31)
BEFORE = (ALONE, BESIDE, BESIDE, BESIDE, BESIDE, ALONE)
FEWEST = 8  # arrivals that are no rate yet
RECENT = 16  # of the arrivals: whether anybody still comes
FIRST_S = 1.0  # so long nobody may have come before the first of the window
Place = Callable[[RequestState], tuple[float, float]]


class Newcomer(NamedTuple):
    """Arrivals of a tenant with about the same work: how many a second, their mean seconds of work,
    how far their place lies behind their arrival, and the width of their lane (as in
    core/policies.py)."""

    per_s: float
    load_s: float
    behind_s: float
    width: float
    tenant: str = ""


class _Kind:
    """Sums over the arrivals of one kind in the window, and the last of them as it came, with its
    place: what is learned of an order moves the places of all."""

    __slots__ = ("_moves", "_place", "_sample", "count", "load_s")

    def __init__(self) -> None:
        self.count = 0
        self.load_s = 0.0

    def came(self, state: RequestState) -> None:
        """One more."""
        self.count += 1
        self.load_s += state.load_s
        self._sample = as_it_came(state)
        self._moves: int | None = None

    def place(self, place: Place, moves: int) -> tuple[float, float]:
        """Where the order puts it, as long as nothing that is learned has moved."""
        if self._moves != moves:
            self._place = place(self._sample)
            self._moves = moves
        return self._place


class _Arrival(NamedTuple):
    kind: tuple[str, int]
    at: float
    load_s: float


class Pace:
    """Learns from the scheduler's own instants; no clock."""

    def __init__(self) -> None:
        # beside others, and of prefills that others make way for
        self._passed_s = [PRIOR_S * PRIOR_DRAG, PRIOR_S * PRIOR_DRAG]
        self._worked_s = [PRIOR_S, PRIOR_S]
        self._carefully_passed_s = CAREFUL_S * CAREFUL_DRAG
        self._carefully_worked_s = CAREFUL_S
        self._steadily_passed_s = STEADY_PRIOR_S
        self._steadily_worked_s = STEADY_PRIOR_S
        self._arrivals = deque[_Arrival]()
        self._kinds: dict[tuple[str, int], _Kind] = {}
        self._departures = deque[float](maxlen=WINDOW)
        self._truths = [
            Truth(before, count)
            for before, count in zip(BEFORE, FORECASTS, strict=True)
        ]

    def drag(self, hurried: bool = False) -> float:
        """Seconds that pass for a second of predicted work, while there is more than one batch
        holds. `hurried`: of prefills that other tenants make way for."""
        low, high = DRAGS
        return min(high, max(low, self._passed_s[hurried] / self._worked_s[hurried]))

    def lasting_drag(self, now: float) -> float:
        """The drag of a prefill that takes many batches: as far as those still come whose decodes
        will ride along with it. At least 1."""
        recent = [
            arrival.at for arrival in itertools.islice(reversed(self._arrivals), RECENT)
        ]
        if len(recent) < FEWEST:
            return 1.0
        span_s = recent[0] - recent[-1]
        idle_s = max(0.0, now - recent[0])
        presence = span_s / max(span_s + idle_s, 1e-6)
        return 1.0 + presence * max(0.0, self.drag() - 1.0)

    def dispatched(self, load_s: float, passed_s: float, hurried: bool = False) -> None:
        """A batch with so much prefill kept those who wait waiting for so long."""
        self._passed_s[hurried] = MEMORY * self._passed_s[hurried] + passed_s
        self._worked_s[hurried] = MEMORY * self._worked_s[hurried] + load_s
        if not hurried:
            self._carefully_passed_s = MEMORY * self._carefully_passed_s + passed_s
            self._carefully_worked_s = MEMORY * self._carefully_worked_s + load_s
        self._steadily_passed_s = STEADY * self._steadily_passed_s + passed_s
        self._steadily_worked_s = STEADY * self._steadily_worked_s + load_s

    @property
    def care(self) -> float:
        """What admission multiplies a forecast by until the drag is known, at least 1."""
        careful = self._carefully_passed_s / self._carefully_worked_s
        return max(1.0, careful / self.drag())

    @property
    def steady_drag(self) -> float:
        """Seconds that pass for a second of a prefill's own work under the present load, from 1 to
        MOST_DRAG. It says nothing of how much is waiting: a fuller queue makes fuller batches,
        which lower it."""
        return min(
            MOST_DRAG, max(1.0, self._steadily_passed_s / self._steadily_worked_s)
        )

    def arrived(self, state: RequestState, at: float) -> None:
        """Somebody was admitted."""
        load_s = state.load_s
        name = state.tenant, round(math.log2(max(load_s, 1e-6)) * KINDS_PER_OCTAVE)
        kind = self._kinds.get(name)
        if kind is None:
            kind = self._kinds[name] = _Kind()
        kind.came(state)
        self._arrivals.append(_Arrival(name, at, load_s))
        if len(self._arrivals) > WINDOW:
            self._forget(self._arrivals.popleft())

    def _forget(self, gone: _Arrival) -> None:
        kind = self._kinds[gone.kind]
        kind.count -= 1
        kind.load_s -= gone.load_s
        if not kind.count:
            del self._kinds[gone.kind]

    def newcomers(self, now: float, place: Place, moves: int = 0) -> list[Newcomer]:
        """Who is expected, by kind. `place`: how far the place of a request lies behind its
        arrival, and the width of its lane; `moves`: how often what it is made of has changed."""
        if len(self._arrivals) < FEWEST:
            return []
        span_s = FIRST_S + max(0.0, now - self._arrivals[0].at)
        return [
            Newcomer(
                kind.count / span_s,
                kind.load_s / kind.count,
                *kind.place(place, moves),
                tenant,
            )
            for (tenant, _), kind in self._kinds.items()
        ]

    def truth(self, kind: int) -> float:
        """What to multiply a forecast by."""
        return self._truths[kind].factor

    def came_true(self, kind: int, expected_s: float, actual_s: float) -> None:
        """A first token is there that was expected after so many seconds."""
        self._truths[kind].came_true(actual_s / max(expected_s, 1e-6))

    def departed(self, now: float) -> None:
        """A request has ended that held a place among those that run."""
        self._departures.append(now)

    def room_in_s(self, places: int, now: float) -> float:
        """In how many seconds so many more will have ended."""
        if places <= 0 or len(self._departures) < 2:
            return 0.0
        span_s = max(0.0, now - self._departures[0])
        return places * span_s / len(self._departures)


def as_it_came(state: RequestState) -> RequestState:
    """A request that waits, for what orders look at."""
    milestones = state.milestones
    return RequestState(
        request=state.request,
        serial=state.serial,
        milestones=Milestones(milestones.arrived_at, milestones.deadline_at),
        tpot_s=state.tpot_s,
        timeout_at=state.timeout_at,
        prompt=state.prompt,
        goal=state.goal,
        tenant=state.tenant,
        total_work_s=state.total_work_s,
        remaining_s=state.remaining_s,
        load_s=state.load_s,
        drag=state.drag,
        grace_s=state.grace_s,
    )
