"""How long a batch takes: a performance model fed by profiles, kept true by what batches really
took (paper, 4.3).

For one stage and one KV group, with c rows of a prefill span over n cached tokens,

    seconds = step + linear(rows) + span * spans + pair * sum(c n + c^2 / 2) + prefill_kv * sum(n)
              + decode_kv * (cached tokens read by decodes) + exchange * (rows merged with other
              groups) + head * (sampled rows)

(on a GPU the longer of the pairs and of reading their cache counts, not the sum; and layers are
never done before they are launched).

A batch takes as long as its slowest stage and group. Every term grows with every span, so bisection
is sound.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Self

import msgspec

from medha_actors.core.group_load import GroupLoad
from medha_actors.core.regime import Regime

ERRORS = 512  # batches in the error statistics


class StageProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One stage's costs in seconds. `rows`: (rows, seconds of all linear layers), increasing, from
    1 row on."""

    rows: tuple[tuple[int, float], ...]
    step_s: float = 0.0
    span_s: float = 0.0
    pair_s: float = 0.0
    prefill_kv_s: float = 0.0
    decode_kv_s: float = 0.0
    exchange_s: float = 0.0
    head_s: float = 0.0
    # fixed, in steps in which rows are merged with other groups
    exchange_step_s: float = 0.0
    # a chunk's cache is read while it computes (GPUs): the longer of the two counts
    overlapped: bool = False
    save_s: float = 0.0  # a page to the second tier
    load_s: float = 0.0  # and back
    # what launching all layers takes on a GPU, and what each span adds: their work takes at least
    # as long. `replay_s`: where there are only decodes, whose launches may be recorded
    launch_s: float = 0.0
    launch_span_s: float = 0.0
    replay_s: float = 0.0
    head_step_s: float = 0.0  # fixed, in steps that sample
    # (rows, part of its time that a batch takes in which the stage has the cores of all stages), of
    # decodes and of prefills, increasing; empty: it never has
    alone_decode: tuple[tuple[int, float], ...] = ()
    alone_prefill: tuple[tuple[int, float], ...] = ()


class Profile(msgspec.Struct, frozen=True):
    """All stages, first to last. JSON-able."""

    stages: tuple[StageProfile, ...]


class _Stage:
    """A profile made ready for evaluation: a dense, monotone row table."""

    def __init__(self, profile: StageProfile) -> None:
        costs = [
            getattr(profile, name)
            for name in profile.__struct_fields__
            if name not in ("rows", "alone_decode", "alone_prefill")
        ]
        if not profile.rows or min(costs) < 0:
            raise ValueError(
                f"a profile needs a row table and no negative costs: {profile}"
            )
        points = sorted({0: 0.0, **dict(profile.rows)}.items())
        table = [0.0]
        for (low, low_s), (high, high_s) in pairwise(points):
            slope = (high_s - low_s) / (high - low)
            floor_s = table[-1]
            for rows in range(1, high - low + 1):
                table.append(max(floor_s, low_s + slope * rows))
        self.table = table
        self.slope = max(0.0, table[-1] - table[-2]) if len(table) > 1 else 0.0
        self.profile = profile
        self.launch_s = max(profile.launch_s, profile.replay_s)

    def seconds(self, load: GroupLoad) -> float:
        rows = load.rows
        if not rows:
            return 0.0
        table = self.table
        if rows < len(table):
            linear = table[rows]
        else:
            linear = table[-1] + self.slope * (rows - len(table) + 1)
        profile = self.profile
        pairs = profile.pair_s * load.pairs
        read = profile.prefill_kv_s * load.prefill_kv
        attention = max(pairs, read) if profile.overlapped else pairs + read
        work = linear + attention + profile.decode_kv_s * load.decode_kv
        floor = profile.replay_s
        if load.prefill_rows:
            floor = self.launch_s + profile.launch_span_s * load.spans
        seconds = (
            profile.step_s
            + max(work, floor)
            + profile.span_s * load.spans
            + profile.head_s * load.sampled
        )
        if load.sampled:
            seconds += profile.head_step_s
        if load.exchanged:
            seconds += profile.exchange_step_s + profile.exchange_s * load.exchanged
        return seconds * self._alone_part(load) if load.alone else seconds

    def _alone_part(self, load: GroupLoad) -> float:
        """As of the most rows that were measured of those that are no more."""
        profile = self.profile
        parts = profile.alone_prefill if load.prefill_rows else profile.alone_decode
        part = 1.0
        for rows, measured in parts:
            if rows > load.rows:
                break
            part = measured
        return part

    def moving_s(self, load: GroupLoad) -> float:
        return self.profile.save_s * load.saved + self.profile.load_s * load.loaded


class ExecutionModel:
    """Seconds of a batch. Two regimes are corrected apart: batches with prefill, and decodes
    alone."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        by_profile = {stage: _Stage(stage) for stage in profile.stages}
        self._unique = list(by_profile.values())
        kinds = list(by_profile)
        # the profile of each stage, in _unique
        self._kinds = [kinds.index(stage) for stage in profile.stages]
        self._counted = [
            (profile.stages.count(stage), by_profile[stage]) for stage in kinds
        ]
        # whether a batch that has the grid to itself is any quicker
        self.lends = any(
            stage.alone_decode or stage.alone_prefill for stage in profile.stages
        )
        self.prefill = Regime()
        self.decode = Regime()
        self.moves = Regime()
        # how much longer than predicted one batch with prefill in ten takes
        self.margin = 1.0
        self._errors: deque[float] = deque(maxlen=ERRORS)

    @classmethod
    def analytic(
        cls,
        stages: int = 1,
        *,
        token_s: float = 1e-3,
        step_s: float = 0.0,
        pair_s: float = 0.0,
        kv_s: float = 0.0,
        page_s: float = 0.0,
    ) -> Self:
        """A model without calibration: whole-model costs per row, per (query, key) pair, per cached
        token read, per page to or from the second tier."""
        stage = StageProfile(
            rows=((1, token_s / stages),),
            step_s=step_s / stages,
            pair_s=pair_s / stages,
            prefill_kv_s=kv_s / stages,
            decode_kv_s=kv_s / stages,
            save_s=page_s / stages,
            load_s=page_s / stages,
        )
        return cls(Profile((stage,) * stages))

    def base(self, load: GroupLoad) -> float:
        """Uncorrected seconds of the slowest stage, computing."""
        if len(self._unique) == 1:
            return self._unique[0].seconds(load)
        return max([stage.seconds(load) for stage in self._unique])

    def moving(self, load: GroupLoad) -> float:
        """Uncorrected seconds of the slowest stage with pages to and from the second tier."""
        if not load.saved and not load.loaded:
            return 0.0
        return max([stage.moving_s(load) for stage in self._unique])

    def loading_s(self, pages: int) -> float:
        """Corrected seconds until so many pages are back from the second tier."""
        return self.moving(GroupLoad(loaded=pages)) * self.moves.scale

    def mixed(self, load: GroupLoad) -> float:
        """Corrected seconds of a batch with prefill (what the packer bisects)."""
        seconds = self.base(load) * self.prefill.scale
        if load.saved or load.loaded:
            seconds += self.moving(load) * self.moves.scale
        return seconds

    def predict(self, load: GroupLoad) -> float:
        """Corrected seconds of one group's part of a batch; never less than its decodes alone would
        take."""
        moving_s = self.moving(load) * self.moves.scale
        alone = self.base(load.decodes()) * self.decode.scale + moving_s
        return max(self.mixed(load), alone) if load.prefill_rows else alone

    def stage_seconds(self, load: GroupLoad) -> tuple[float, ...]:
        """Uncorrected seconds of every stage, first to last."""
        seconds = [stage.seconds(load) + stage.moving_s(load) for stage in self._unique]
        return tuple([seconds[kind] for kind in self._kinds])

    def work(self, load: GroupLoad) -> float:
        """Uncorrected seconds of all stages together."""
        seconds = 0.0
        for count, stage in self._counted:
            seconds += count * (stage.seconds(load) + stage.moving_s(load))
        return seconds

    def observe(
        self,
        base_s: float,
        predicted_s: float,
        actual_s: float,
        prefill: bool,
        moving_s: float = 0.0,
    ) -> None:
        """A batch took `actual_s`: move the ratio of its regime (a median: outliers do not pull
        it).

        `base_s`, `moving_s`: what computing and moving pages were to take, uncorrected. A batch
        teaches one of the two: it is taken as known what the smaller part took.
        """
        if base_s + moving_s <= 0 or actual_s <= 0:
            return
        self._errors.append(abs(predicted_s - actual_s) / actual_s)
        moved_s = moving_s * self.moves.scale
        if moved_s > predicted_s / 2:
            self.moves.learn((actual_s - predicted_s + moved_s) / moving_s)
            return
        regime = self.prefill if prefill else self.decode
        regime.learn((actual_s - moved_s) / base_s)
        if prefill:
            self.margin = regime.margin()

    def account(self, calibrated_s: float, worked_s: float, prefill: bool) -> None:
        """All stages together worked so long on a batch."""
        regime = self.prefill if prefill else self.decode
        regime.calibrated_s += calibrated_s
        regime.worked_s += worked_s

    def errors(self) -> tuple[float | None, float | None]:
        """P50 and P90 of the relative error of recent predictions; None: nothing observed yet."""
        if not self._errors:
            return None, None
        ranked: Sequence[float] = sorted(self._errors)
        count = len(ranked)
        return ranked[count // 2], ranked[min(count - 1, count * 9 // 10)]
