"""How large a chunk may be, and what whole prefills cost when they are cut in such chunks (paper,
3.2 and 4.3).

`PrefillTable` is the remaining-work estimate of LARS: one cumulative table, built by simulating a
lone prefill with adaptive chunking, shared by all requests and grown as far as the longest one
needs.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple

from medha_actors.config import SchedulerConfig
from medha_actors.core.group_load import GroupLoad
from medha_actors.core.kv_plan import Grid, KvPlan
from medha_actors.core.predictor import ExecutionModel

UNIT = 16  # chunks are multiples of this, unless they end a prefill
# below two units, a batch's first chunk is one of this: late in a long context few
# tokens fill a budget
FINE = 4
# the only live request may use so many: there is nobody whose tokens it delays
LONE_BUDGETS = 1.5
SMALLEST_SHARE = 32  # a prompt is not cut below this many tokens to fill the pipeline
SHARES = 10_000  # remembered, at most
MOST_ALONE = 16  # chunks of a lone prompt that each have all processors
# of the predicted time in the pipeline, what such a prompt may take at most: between its stages the
# pipeline loses some 10% that no profile of a stage shows
STREAMING_LOSS = 1.05
EXACT_CHUNKS = 64  # simulated one by one; beyond, the table goes in strides
STRIDE = 1.03  # context growth per stride
ONE_ROW = GroupLoad(rows=1, spans=1)
# of a prefill, that is its own even if nearly all of it is the cost of a batch
LEAST_LOAD = 0.1
DRIFT = 1.25  # rebuild when the model's correction has moved this far


def whole_units(tokens: int) -> int:
    """So many tokens or a few more."""
    return -(-tokens // UNIT) * UNIT


def batch_budget(tpot_s: float, stages: int) -> float:
    """Seconds one batch may take in one stage: a token passes all, and first waits for a batch that
    has just left."""
    return tpot_s / (stages + 1)


def largest_chunk(cap: int, fits: Callable[[int], bool], fine: bool = False) -> int:
    """The largest chunk up to `cap` tokens that fits: `cap` itself or a multiple of UNIT; 0 if none
    does.

    `fine`: of FINE, if that is less than two units.
    """
    if cap <= 0 or fits(cap):
        return max(0, cap)
    step = UNIT
    if fine and (cap <= 2 * UNIT or not fits(2 * UNIT)):
        step = FINE
        cap = min(cap, 2 * UNIT)
    return step * _largest_below(-(-cap // step), lambda steps: fits(steps * step))


def largest_number(cap: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `cap` that fits; 0 if none does."""
    return cap if fits(cap) else _largest_below(cap, fits)


def _largest_below(high: int, fits: Callable[[int], bool]) -> int:
    """0 fits, `high` does not."""
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def pipeline_share(
    tokens: int, stages: int, cap: int, chunk_s: Callable[[int, int], float]
) -> int:
    """Chunk size for a prompt that has the pipeline to itself. `chunk_s`: seconds of a stage for so
    many rows behind so many.

    The prompt is through when one stage has done all chunks and the others the last one: large
    chunks leave stages idle, small ones cost more a token. So it is cut in equal chunks, as few as
    there may be, or a third more, and so on, with whichever it is through first, while they
    are large enough.
    """
    if stages == 1:
        return cap
    count = max(-(-tokens // cap), 1)
    best = cap
    least_s = math.inf
    while least_s == math.inf or tokens >= count * SMALLEST_SHARE:
        share = min(cap, whole_units(-(-tokens // count)))
        through_s = pipelined_s(tokens, share, stages, chunk_s)
        if through_s < least_s:
            best = share
            least_s = through_s
        count += max(1, count // 3)
    return best


def pipelined_s(
    tokens: int, share: int, stages: int, chunk_s: Callable[[int, int], float]
) -> float:
    """Until such a prompt is through, in chunks of `share`."""
    last = max(0, tokens - share)
    all_s = -(-tokens // share) * chunk_s(share, last // 2)
    return all_s + (stages - 1) * chunk_s(share, last)


class LoneCut(NamedTuple):
    """How a prompt is cut that has the grid to itself. `alone`: each chunk is computed by all
    processors in every stage, and the next one follows when it is back; `part`: of the time that
    it would take otherwise."""

    chunk: int
    alone: bool = False
    part: float = 1.0


class PrefillTable:
    """Predicted seconds of the rest of a prefill that runs alone, in chunks that fit LONE_BUDGETS
    times `budget_s`.

    `cutoff` and `groups`: where the KV cache is split over groups (paper, 3.3), a chunk late in a
    long context costs what its longest piece costs, and the merging of all.
    """

    def __init__(
        self,
        model: ExecutionModel,
        *,
        stages: int,
        budget_s: float,
        max_chunk: int,
        cutoff: int,
        groups: int,
        page_tokens: int,
    ) -> None:
        self._model = model
        self._stages = stages
        self._budget_s = budget_s
        self._max_chunk = max_chunk
        self._cutoff = cutoff
        self._groups = groups
        self._page_tokens = page_tokens
        self._one_row_s = model.base(ONE_ROW)
        self._clear()

    @property
    def lends(self) -> bool:
        """Whether a batch that has the grid to itself is any quicker."""
        return self._model.lends

    def worth(self, done: int, stored: int, total: int) -> int:
        """Up to where a prefill had better load from the second tier, which has [done, stored):
        `stored`, or `done` if computing that is quicker."""
        if stored <= done:
            return done
        computed_s = self.seconds(done, total) - self.seconds(stored, total)
        return stored if self._loading_s(stored - done) < computed_s else done

    def seconds(self, done: int, total: int, stored: int = 0) -> float:
        """Seconds until position `total` is prefilled, from `done` on; 0 when nothing is left.
        What lies before `stored` is loaded from the second tier."""
        if done < stored <= total:
            return self._loading_s(stored - done) + self.seconds(stored, total)
        left = total - done
        if left <= 0:
            return 0.0
        return self._dispatch_s(done, total) + self._model.prefill.scale * self._drain(
            left, total
        )

    def load_s(self, done: int, total: int, stored: int = 0) -> float:
        """The part of it that the first stage has to do, less what one batch costs that has other
        work as well: how long it keeps others waiting."""
        loading_s = 0.0
        if done < stored <= total:
            loading_s = self._loading_s(stored - done)
            done = stored
        whole_s = loading_s + self._dispatch_s(done, total)
        return max(whole_s - self.batch_s(), LEAST_LOAD * whole_s)

    def batch_s(self) -> float:
        """What every batch costs, whatever is in it."""
        return self._model.prefill.scale * self._one_row_s

    def decodes_s(self, rows: int, cached: int) -> float:
        """What so many decodes, with so many tokens cached in all, add to a batch."""
        load = GroupLoad(rows=rows, spans=rows, decode_kv=cached, sampled=rows)
        return max(
            0.0, self._model.decode.scale * self._model.base(load) - self.batch_s()
        )

    def lone_cut(self, total: int) -> LoneCut:
        """Of a prefill of so many that has the grid to itself, if a batch may take that long:
        whichever way it is through first."""
        cut = self._cuts.get(total)
        if cut is None:
            if len(self._cuts) >= SHARES:
                self._cuts.clear()
            cut = self._cuts[total] = self._best_cut(total)
        return cut

    def _best_cut(self, total: int) -> LoneCut:
        share = self.lone_chunk(total)
        if not self.lends:
            return LoneCut(share)
        budget_s = self._budget_s * LONE_BUDGETS / self._scale
        through_s = pipelined_s(total, min(share, total), self._stages, self._chunk_s)
        for count in range(1, MOST_ALONE + 1):
            chunk = min(self._max_chunk, whole_units(-(-total // count)))
            last = max(0, total - chunk)
            if self._chunk_s(chunk, last, alone=True) > budget_s:
                continue
            batches = self._stages * -(-total // chunk)
            alone_s = batches * self._chunk_s(chunk, last // 2, alone=True)
            if alone_s < STREAMING_LOSS * through_s:
                return LoneCut(chunk, True, alone_s / through_s)
            break
        return LoneCut(share)

    def lone_chunk(self, total: int) -> int:
        """Tokens of a chunk of a prefill of so many that has the pipeline to itself, if a batch may
        take that long and none has all processors."""
        share = self._shares.get(total)
        if share is None:
            if len(self._shares) >= SHARES:
                self._shares.clear()
            share = pipeline_share(total, self._stages, self._max_chunk, self._chunk_s)
            self._shares[total] = share
        return share

    def _dispatch_s(self, done: int, total: int) -> float:
        left = total - done
        if left <= 0:
            return 0.0
        scale = self._model.prefill.scale
        if not 1 / DRIFT < scale / self._scale < DRIFT:
            self._clear()
        while self._ends[-1] < total:
            self._grow()
        if left <= self._chunk_at(total):  # one chunk, whose overhead matters
            return scale * self._chunk_s(left, done)
        return scale * (self._until(total) - self._until(done))

    def _loading_s(self, tokens: int) -> float:
        return self._model.loading_s(-(-tokens // self._page_tokens))

    def _clear(self) -> None:
        self._scale = self._model.prefill.scale
        self._shares: dict[int, int] = {}  # by total
        self._cuts: dict[int, LoneCut] = {}
        # positions, cumulative seconds, chunk sizes
        self._ends = [0]
        self._costs = [0.0]
        self._chunks = [0]
        self._grow()

    def _grow(self) -> None:
        start = self._ends[-1]
        budget_s = self._budget_s * LONE_BUDGETS / self._scale

        def fits(tokens: int) -> bool:
            return self._chunk_s(tokens, start) <= budget_s

        chunk = max(FINE, largest_chunk(self._max_chunk, fits, fine=True))
        step = chunk
        if len(self._ends) > EXACT_CHUNKS:
            step = max(chunk, int(start * (STRIDE - 1)))
        seconds = self._chunk_s(chunk, start + (step - chunk) // 2) * step / chunk
        self._ends.append(start + step)
        self._costs.append(self._costs[-1] + seconds)
        self._chunks.append(chunk)

    def _until(self, position: int) -> float:
        """Uncorrected seconds of the prefill of [0, position)."""
        # one chunk: its overhead and the shape of the row table matter
        if position <= self._ends[1]:
            return self._chunk_s(position, 0)
        return interpolate(self._ends, self._costs, position)

    def _drain(self, left: int, total: int) -> float:
        """The last chunk still passes the other stages when the first has done all."""
        if self._stages == 1:
            return 0.0
        chunk = min(left, self._chunk_at(total), self.lone_chunk(total))
        return (self._stages - 1) * self._chunk_s(chunk, total - chunk)

    def _chunk_at(self, total: int) -> int:
        """Tokens of the chunk that position `total` ends, at most."""
        index = bisect_right(self._ends, total - 1)
        return self._chunks[min(index, len(self._chunks) - 1)]

    def _chunk_s(self, rows: int, start: int, alone: bool = False) -> float:
        if rows <= 0:
            return 0.0
        before_last = (self._groups - 1) * self._cutoff
        piece = max(min(start, self._cutoff), start - before_last)
        touched = min(self._groups, start // self._cutoff + 1)
        load = GroupLoad(alone=alone).with_prefill(rows, piece, groups=touched)
        return self._model.base(load)


def table_of(
    settings: SchedulerConfig, grid: Grid, model: ExecutionModel, budget_s: float
) -> PrefillTable:
    """For this grid; `budget_s`: of a batch."""
    return PrefillTable(
        model,
        stages=grid.stages,
        budget_s=budget_s,
        max_chunk=settings.max_chunk_tokens,
        cutoff=KvPlan(grid).cutoff,
        groups=grid.groups,
        page_tokens=grid.page_tokens,
    )


def interpolate(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """Piecewise linear through the points (xs increasing), constant slope outside the last two."""
    index = min(max(1, bisect_right(xs, x)), len(xs) - 1)
    x0 = xs[index - 1]
    x1 = xs[index]
    y0 = ys[index - 1]
    y1 = ys[index]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
