"""What the results of a batch make of the requests in it: tokens, progress and ends, as events."""

from __future__ import annotations

from collections.abc import Sequence

from medha_actors.core.announcing import Announcing
from medha_actors.core.assembly import Flight, Flown
from medha_actors.core.chunking import DRIFT, PrefillTable
from medha_actors.core.live import LiveRequests
from medha_actors.core.outcome import outcome_of
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.request import RequestState
from medha_actors.core.stats import Totals
from medha_actors.core.suspects import Suspects
from medha_actors.messages import (
    Event,
    FinishReason,
    ProgressEvent,
    PromptLogprobs,
    SampledToken,
    StepResult,
    TokenEvent,
)


class Completion:
    """The other end of `Scheduler.next_batch`."""

    def __init__(
        self,
        live: LiveRequests,
        suspects: Suspects,
        announcing: Announcing,
        totals: Totals,
        model: ExecutionModel,
        table: PrefillTable,
        max_model_len_tokens: int,
    ) -> None:
        self._live = live
        self._suspects = suspects
        self._announcing = announcing
        self._totals = totals
        self._model = model
        self._table = table
        self._max_model_len_tokens = max_model_len_tokens
        self._valued_at = model.prefill.scale

    def landed(
        self, flight: Flight, results: Sequence[StepResult], now: float
    ) -> list[Event]:
        """A flight is back, with the results of all its groups."""
        outcome = outcome_of(results)
        prefill = flight.batch.prefill_tokens > 0
        self._live.kv.store.settle(flight.batch)
        seconds = (flight.base_s, flight.batch.predicted_s, outcome.longest_s)
        self._model.observe(*seconds, prefill, flight.moving_s)
        self._model.account(flight.calibrated_s, outcome.work_s, prefill)
        events: list[Event] = []
        for flown in flight.spans:
            name = flown.state.id
            if flown.epoch != flown.state.epoch:
                continue
            if name in outcome.failed:
                events.append(
                    self.finish(flown.state, "error", outcome.failed[name], now)
                )
            else:
                token = outcome.drawn.get(name)
                events += self._arrived(flown, token, outcome.scored.get(name), now)
        self._follow_drift()
        return events

    def finish(
        self, state: RequestState, reason: FinishReason, message: str | None, now: float
    ) -> Event:
        """End a request, whatever it is doing."""
        self._announcing.ended(state, now)
        self._live.remove(state, sound=reason != "error")
        self._suspects.forget(state)
        return state.finished(reason, message, now)

    def _arrived(
        self,
        flown: Flown,
        drawn: SampledToken | None,
        scored: PromptLogprobs | None,
        now: float,
    ) -> list[Event]:
        """A span that still counts has been computed, or a load been carried out."""
        state = flown.state
        events = list[Event]()
        self._live.computed(state, flown.stop, flown.loaded)
        if state.danger:
            self._suspects.passed(state)
        if state.milestones.prefilled_at is None and state.computed >= state.prompt:
            state.milestones.prefilled_at = now
            self._totals.prompt_tokens += state.prompt
        if scored is not None:
            events += state.scored(scored)
        if flown.sample:
            events += self._sampled(state, drawn, now)
        elif not state.output:
            left_s = self._table.seconds(state.computed, state.goal, state.stored)
            events.append(ProgressEvent(state.id, state.computed, state.goal, left_s))
        return events

    def _sampled(
        self, state: RequestState, drawn: SampledToken | None, now: float
    ) -> list[Event]:
        """A span has drawn a token."""
        if drawn is None or drawn.index != state.output:
            raise ValueError(
                f"request {state.id}: expected token {state.output}, got {drawn}"
            )
        if state.milestones.first_token_at is None:
            state.milestones.first_token_at = now
            self._announcing.first_token(state, now)
        scores = (drawn.logprob, drawn.top_logprobs)
        events: list[Event] = [
            TokenEvent(state.id, drawn.index, drawn.token_id, now, *scores)
        ]
        reason = self._appended(state, drawn.token_id)
        forced = drawn.forced
        if forced:
            forced = forced[: self._live.kv.room_beside(state)]
        for token_id in forced:
            if reason is not None:
                break
            events.append(TokenEvent(state.id, state.output, token_id, now))
            reason = self._appended(state, token_id)
        if reason is None:
            self._live.ready[state.id] = state
        else:
            events.append(self.finish(state, reason, None, now))
        return events

    def _appended(self, state: RequestState, token_id: int) -> FinishReason | None:
        """One more token is known; why the request ends with it, if it does."""
        state.append(token_id)
        self._totals.generated_tokens += 1
        return state.ending(token_id, self._max_model_len_tokens)

    def _follow_drift(self) -> None:
        """Value the waiting work anew when the machine has become much faster or slower."""
        scale = self._model.prefill.scale
        if not 1 / DRIFT < scale / self._valued_at < DRIFT:
            self._valued_at = scale
            self._live.revalue()
