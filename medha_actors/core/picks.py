"""Picks: what a batch in the making has taken, and what that amounts to in every group."""

from __future__ import annotations

from typing import NamedTuple

from medha_actors.core.kv_plan import KvPlan, holders
from medha_actors.core.loads import BatchLoads
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.request import RequestState


class Pick(NamedTuple):
    """A span of the next batch: from what the request has dispatched so far up to `stop`."""

    state: RequestState
    stop: int
    loaded: bool = False  # it comes from the second tier: nothing is computed


class Picks:
    """Decodes, and spans of prefills. Whoever takes one has seen that it fits."""

    def __init__(self, model: ExecutionModel, kv: KvPlan, most_tokens: int) -> None:
        """`most_tokens`: of a batch."""
        self.loads = BatchLoads(model, kv, most_tokens)
        self.decodes: list[Pick] = []
        self.prefills: list[Pick] = []
        self._kv = kv

    @property
    def chunk_tokens(self) -> int:
        """Of prefills, and of decodes with forced tokens."""
        picks = (*self.prefills, *self.decodes)
        sizes = [pick.stop - pick.state.dispatched for pick in picks]
        return sum(sizes) - self.decode_tokens

    @property
    def decode_tokens(self) -> int:
        """Of decodes of one token."""
        return sum([pick.stop - pick.state.dispatched == 1 for pick in self.decodes])

    def add_decode(self, state: RequestState) -> None:
        """Of one token. Its time counts from `loads.value_decodes` on."""
        self.loads.add_decode(holders(state, state.dispatched))
        self.decodes.append(Pick(state, state.known))

    def add_chunk(self, state: RequestState, tokens: int) -> None:
        """The next tokens of a prefill, to be computed."""
        touched = holders(state, state.dispatched)
        self.loads.take(
            self.loads.with_chunk(touched, state.goal, state.dispatched, tokens)
        )
        state.stored = 0
        self.prefills.append(Pick(state, state.dispatched + tokens))

    def add_pages(self, state: RequestState, stored: int, tokens: int) -> None:
        """The next tokens of a prefill, from the second tier, which has it up to `stored`."""
        state.stored = max(state.stored, stored)
        group = holders(state, state.dispatched)[-1][0].group
        stop = self._kv.load(state, state.dispatched + tokens)
        pages = (stop - state.dispatched) // self._kv.page_tokens
        self.loads.take(self.loads.with_pages(group, pages))
        self.prefills.append(Pick(state, stop, loaded=True))

    def extend(self, index: int, more: int) -> None:
        """So many more tokens for the chunk of a prefill that has been taken already."""
        state, stop, _ = self.prefills[index]
        touched = holders(state, state.dispatched)
        self.loads.take(
            self.loads.with_chunk(touched, state.goal, stop, more, extend=True)
        )
        self.prefills[index] = Pick(state, stop + more)
