"""Overload is a matter of admission: who cannot have its first token in time is told at once.

In time is what a client asks for, or what the class of the request stands for (`patience_s` and so
many times its own work). Who is late is refused with the time until such a request would be in
time, or accepted behind those who can (its deadline becomes what it is told), or accepted all the
same, as the client says or else the configuration.
"""

from __future__ import annotations

from collections.abc import Callable

from medha_actors.core.announcing import Announcing
from medha_actors.core.appointments import Appointments
from medha_actors.core.request import RequestState
from medha_actors.errors import LateError
from medha_actors.messages import Late
from medha_actors.tuning import AdmissionConfig

# of its objective, that may be announced to who comes without an appointment
FRESH = 0.9
AIM = 0.75  # that an appointment aims at
AMPLE = 0.4  # announced so early, capacity is ample whatever was promised of it
BOOKS = 256  # of tenants, before those are dropped in which nothing stands
KEPT = 1.1  # of the work of those who are to return: so that lateness does not pass from one to all


class Shedding:
    """What becomes of requests that are late."""

    def __init__(self, config: AdmissionConfig) -> None:
        self._config = config
        self._books: dict[
            str, Appointments
        ] = {}  # by tenant: none keeps the others out

    def promised_s(
        self,
        state: RequestState,
        announcing: Announcing,
        expected: Callable[[RequestState], float],
        now: float,
    ) -> float:
        """In how many seconds a new request will have its first token; raises LateError if it is
        refused for that. `expected`: its `first_token_s`."""
        first_s = expected(state)
        mode = self.mode(state)
        if mode == "shed":
            room_s = announcing.tokens_in_time_s(state, now)
            if room_s > first_s:
                raise LateError(
                    "with one more request the tokens of those that run would come late",
                    retry_after_s=min(room_s, self._config.longest_retry_s),
                )
            pace = announcing.pace
            self._check(state, first_s * pace.care, pace.drag() * pace.care, now)
        elif mode == "queue" and self._put_behind(state, first_s, now):
            return expected(state)
        return first_s

    def appointments(self, tenant: str, now: float) -> Appointments:
        """Those of one tenant."""
        book = self._books.get(tenant)
        if book is None:
            if len(self._books) >= BOOKS:
                self._books = {
                    name: one for name, one in self._books.items() if one.left(now)
                }
            book = self._books[tenant] = Appointments()
        return book

    def objective_s(self, state: RequestState) -> float:
        """How long after its arrival a request's first token is in time."""
        if state.request.objectives.ttft_s is not None:
            return state.milestones.deadline_at - state.milestones.arrived_at
        return (
            self._config.patience_s + self._config.patience_works * state.total_work_s
        )

    def mode(self, state: RequestState) -> Late:
        """What is done with a request if it is late."""
        if state.request.resumed is not None:
            return "accept"
        if state.request.objectives.late is not None:
            return state.request.objectives.late
        document = state.total_work_s > self._config.document_s
        return (
            "queue" if document and self._config.late == "shed" else self._config.late
        )

    def _put_behind(self, state: RequestState, first_s: float, now: float) -> bool:
        """Give one that is late the deadline that can be kept; whether it was late."""
        due_at = now + first_s
        if due_at - state.milestones.arrived_at <= self.objective_s(state):
            return False
        state.milestones.deadline_at = max(state.milestones.deadline_at, due_at)
        return True

    def _check(
        self, state: RequestState, first_s: float, drag: float, now: float
    ) -> None:
        """Raise LateError for one that is to be refused. `drag`: seconds for one of work."""
        objective_s = self.objective_s(state)
        request = state.request
        told_s = max(0.0, now - request.arrived_at) + first_s + request.way_s
        key = hash(
            (request.prompt_token_ids, request.cache_salt, request.sampling.max_tokens)
        )
        book = self.appointments(state.tenant, now)
        left_s = book.kept(key, now)
        returns = left_s == 0.0
        early = 0.0 < left_s < self._config.longest_retry_s
        ahead_s = 0.0 if returns else book.ahead_s(state.load_s, now)
        if told_s + ahead_s <= objective_s * (1.0 if returns else FRESH):
            return
        if told_s <= AMPLE * objective_s:
            return
        if not early:
            in_s = told_s + ahead_s - AIM * objective_s
            if returns:  # all that is left beside the others' appointments
                in_s *= KEPT / (KEPT - 1)
            left_s = in_s
            if in_s <= self._config.longest_retry_s:
                cost_s = KEPT * drag * state.load_s
                left_s = book.book(key, state.load_s, cost_s, in_s, now)
        raise LateError(
            _why(told_s, ahead_s, objective_s),
            retry_after_s=min(left_s, self._config.longest_retry_s),
        )


def _why(told_s: float, ahead_s: float, objective_s: float) -> str:
    """What a client that is refused is told. `ahead_s`: of those who were asked to come back."""
    expected_s = told_s + ahead_s
    those = ", behind those who were asked to come back" if ahead_s > 0.0 else ""
    how = "later than" if expected_s > objective_s else "too close to"
    return (
        f"the first token would come in {expected_s:.3g} s{those}, {how} the "
        f"{objective_s:.3g} s within which it is wanted"
    )
