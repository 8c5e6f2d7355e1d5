"""What a batch in the making carries in every KV group, and how long that will take."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from medha_actors.core.group_load import GroupLoad
from medha_actors.core.kv_plan import KvPlan
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.request import Piece

# The pieces that a span touches, each with the tokens cached in it (core.kv_plan.holders).
Touched = Sequence[tuple[Piece, int]]


class BatchLoads:
    """The load of every group. Seconds in it are uncorrected."""

    def __init__(self, model: ExecutionModel, kv: KvPlan, most_tokens: int) -> None:
        """`most_tokens`: of a batch."""
        groups = kv.grid.groups
        self._model = model
        self._kv = kv
        self.by_group = [GroupLoad()] * groups
        # without those that pages take to and from the second tier
        self.seconds = [0.0] * groups
        self._decode_s = [0.0] * groups  # of the decodes alone
        # groups in which a page that is taken may push out another, to the second tier
        self._pushing = [kv.pushes(group, most_tokens) for group in range(groups)]

    def add_decode(self, touched: Touched) -> None:
        """One more decode; `value_decodes` counts its time."""
        writer = touched[-1][0]
        for piece, cached in touched:
            load = self.by_group[piece.group]
            load = load.with_decode(cached, piece is writer, len(touched))
            self.by_group[piece.group] = load

    def value_decodes(self) -> None:
        """The time of the decodes in the groups that have nothing else."""
        for group, load in enumerate(self.by_group):
            if load.rows and not load.prefill_rows:
                self._decode_s[group] = self.seconds[group] = self._model.base(load)
                if self._kv.store.tiered:
                    pending = len(self._kv.store.slots[group].pending)
                    self.by_group[group] = load.with_moves(pending, 0)

    def value_alone(self) -> None:
        """No other batch will be in the grid meanwhile."""
        for group, load in enumerate(self.by_group):
            load = msgspec.structs.replace(load, alone=True)
            self.by_group[group] = load
            self.seconds[group] = self._model.base(load)
            self._decode_s[group] = self._model.base(load.decodes())

    def quicker_alone(self) -> bool:
        """Whether the batch takes less time with no other one in the grid."""
        alone_s = 0.0
        for load in self.by_group:
            whole = msgspec.structs.replace(load, alone=True)
            alone_s = max(alone_s, self._model.base(whole))
        return alone_s < max(self.seconds)

    def with_chunk(
        self, touched: Touched, goal: int, start: int, tokens: int, extend: bool = False
    ) -> list[tuple[int, GroupLoad]]:
        """The loads of the touched groups with `tokens` more from `start`, for `take`; `extend`: of
        a chunk that has been taken already."""
        sample = start + tokens == goal
        count = len(touched)
        writer = touched[-1][0]
        loads = []
        for piece, cached in touched:
            writes = piece is writer
            before = start - piece.start if writes else cached
            load = self.by_group[piece.group]
            load = load.with_prefill(tokens, before, writes, count, sample, extend)
            if writes and self._pushing[piece.group]:
                load = load.with_moves(load.saved + self._pages(tokens), load.loaded)
            loads.append((piece.group, load))
        return loads

    def with_pages(self, group: int, pages: int) -> list[tuple[int, GroupLoad]]:
        """The load of a group with so many pages more from its second tier, for `take`."""
        load = self.by_group[group]
        pushed = pages if self._pushing[group] else 0
        return [(group, load.with_moves(load.saved + pushed, load.loaded + pages))]

    def corrected_s(
        self, loads: list[tuple[int, GroupLoad]], alone: bool = False
    ) -> float:
        """Seconds that the slowest of these loads with prefill would take; `alone`: with no other
        batch in the grid."""
        slowest_s = 0.0
        for _, load in loads:
            if alone:
                load = msgspec.structs.replace(load, alone=True)
            slowest_s = max(slowest_s, self._model.mixed(load))
        return slowest_s

    def take(self, loads: list[tuple[int, GroupLoad]]) -> None:
        """These are the loads of their groups from now on."""
        for group, load in loads:
            self.by_group[group] = load
            self.seconds[group] = self._model.base(load)

    def moved(self, group: int, saved: int, loaded: int) -> None:
        """How many pages the group really moves."""
        self.by_group[group] = self.by_group[group].with_moves(saved, loaded)

    def rows(self, touched: Touched) -> int:
        """Rows of the fullest of these groups."""
        return max(self.by_group[piece.group].rows for piece, _ in touched)

    def prefill_rows(self, touched: Touched) -> int:
        """The same, of prefills alone."""
        return max(self.by_group[piece.group].prefill_rows for piece, _ in touched)

    def predicted_s(self) -> float:
        """Seconds of the batch in its slowest stage and group, as ExecutionModel.predict would have
        it."""
        mixed = self._model.prefill.scale
        alone = self._model.decode.scale
        moves = self._model.moves.scale
        slowest_s = 0.0
        for group, load in enumerate(self.by_group):
            seconds = self._decode_s[group] * alone
            if load.prefill_rows:
                seconds = max(seconds, self.seconds[group] * mixed)
            slowest_s = max(slowest_s, seconds + self._model.moving(load) * moves)
        return slowest_s

    def decodes_s(self) -> float:
        """Corrected seconds of the decodes in the group that has the most."""
        return max(self._decode_s) * self._model.decode.scale

    def base_s(self) -> float:
        """Seconds of the batch in its slowest stage and group, uncorrected."""
        return max(self.seconds)

    def moving_s(self) -> float:
        """Of the pages to and from the second tier, in the slowest stage and group."""
        return max([self._model.moving(load) for load in self.by_group])

    def calibrated_s(self) -> float:
        """Of all that, in all stages and groups together."""
        return sum([self._model.work(load) for load in self.by_group])

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self._kv.page_tokens)
