"""How much of a prefill fits into the rest of a batch."""

from __future__ import annotations

from medha_actors.config import SchedulerConfig
from medha_actors.core.chunking import UNIT, PrefillTable, largest_chunk, largest_number
from medha_actors.core.kv_plan import holders, piece_end
from medha_actors.core.loads import BatchLoads
from medha_actors.core.request import RequestState


class Room:
    """Counts tokens that a batch with these loads can take in `limit_s` seconds, in every group
    that they touch. It takes none."""

    def __init__(
        self, config: SchedulerConfig, loads: BatchLoads, table: PrefillTable
    ) -> None:
        self._config = config
        self._loads = loads
        self._table = table

    def chunk(
        self,
        state: RequestState,
        limit_s: float,
        *,
        only: bool,
        first: bool,
        alone: bool = False,
    ) -> int:
        """Tokens of the next chunk; 0: none fit.

        `only`: nobody else waits; `alone`: there is nobody else, and nothing is on its way;
        `first`: the batch has no prefill yet, so this one gets `min_chunk_tokens` even if they do
        not fit.
        """
        config = self._config
        start = state.dispatched
        touched = holders(state, start)
        wanted = min(self._end(state) - start, config.max_chunk_tokens)
        cap = min(wanted, config.max_batch_tokens - self._loads.rows(touched))
        if cap < wanted:  # the batch is nearly full: whole units, no crumbs
            cap -= cap % UNIT
        if config.fixed_chunk_tokens is not None:
            used = self._loads.prefill_rows(touched)
            return max(0, min(cap, config.fixed_chunk_tokens - used))
        if only:
            cut = self._table.lone_cut(state.goal)
            cap = min(cap, cut.chunk)
            alone = alone and cut.alone

        def fits(tokens: int) -> bool:
            loads = self._loads.with_chunk(touched, state.goal, start, tokens)
            return self._loads.corrected_s(loads, alone) <= limit_s

        tokens = largest_chunk(cap, fits, fine=first)  # no crumbs beside others
        if first and not tokens:
            return max(0, min(cap, config.min_chunk_tokens))
        return tokens

    def more(
        self, state: RequestState, stop: int, limit_s: float, *, first: bool
    ) -> int:
        """Tokens from `stop` on that a chunk in the batch, which ends there, can grow by: what it
        is then is of the sizes of `chunk`."""
        config = self._config
        touched = holders(state, state.dispatched)
        size = stop - state.dispatched
        chunk_left = config.max_chunk_tokens - size
        rows_left = config.max_batch_tokens - self._loads.rows(touched)
        cap = min(self._end(state) - stop, chunk_left, rows_left)

        def fits(tokens: int) -> bool:
            if tokens <= size:
                return True
            loads = self._loads.with_chunk(
                touched, state.goal, stop, tokens - size, extend=True
            )
            return self._loads.corrected_s(loads) <= limit_s

        return max(0, largest_chunk(size + cap, fits, fine=first) - size)

    def pages(self, group: int, most: int, limit_s: float, *, first: bool) -> int:
        """Pages up to `most` that the group can load from its second tier; one at least if the
        batch has no prefill yet (`first`)."""

        def fits(pages: int) -> bool:
            return (
                self._loads.corrected_s(self._loads.with_pages(group, pages)) <= limit_s
            )

        return largest_number(most, fits) or int(first)

    def _end(self, state: RequestState) -> int:
        """Where the piece that grows is full, or the prefill is through."""
        return min(piece_end(state.pieces, state.dispatched, state.goal), state.edge)
