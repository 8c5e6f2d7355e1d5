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

from medha_actors.core.regime import Regime
from medha_actors.messages import StepMessage

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


class Profile(msgspec.Struct, frozen=True):
    """All stages, first to last. JSON-able."""

    stages: tuple[StageProfile, ...]


class GroupLoad(msgspec.Struct, frozen=True):
    """What one KV group has to do in one batch."""

    rows: int = 0
    prefill_rows: int = 0
    spans: int = 0
    pairs: float = 0.0
    prefill_kv: int = 0
    decode_kv: int = 0
    exchanged: int = 0
    sampled: int = 0
    saved: int = 0  # pages
    loaded: int = 0

    def with_moves(self, saved: int, loaded: int) -> GroupLoad:
        """The same with so many pages to and from the second tier."""
        return msgspec.structs.replace(self, saved=saved, loaded=loaded)

    def with_decode(
        self, cached: int, writes: bool = True, groups: int = 1
    ) -> GroupLoad:
        """One more decode, over `cached` tokens of this group."""
        return GroupLoad(
            self.rows + 1,
            self.prefill_rows,
            self.spans + 1,
            self.pairs,
            self.prefill_kv,
            self.decode_kv + cached,
            self.exchanged + groups - 1,
            self.sampled + writes,
            self.saved,
            self.loaded,
        )

    def with_prefill(
        self,
        rows: int,
        cached: int,
        writes: bool = True,
        groups: int = 1,
        sample: bool = False,
        extend: bool = False,
    ) -> GroupLoad:
        """One more prefill span of `rows` over `cached` tokens of this group; `extend`: a longer
        last span."""
        return GroupLoad(
            self.rows + rows,
            self.prefill_rows + rows,
            self.spans + (not extend),
            self.pairs + rows * cached + (rows * rows / 2 if writes else 0),
            self.prefill_kv + (0 if extend else cached),
            self.decode_kv,
            self.exchanged + rows * (groups - 1),
            self.sampled + (sample and writes),
            self.saved,
            self.loaded,
        )

    def decodes(self) -> GroupLoad:
        """The decodes alone."""
        rows = self.rows - self.prefill_rows
        return GroupLoad(
            rows=rows,
            spans=rows,
            decode_kv=self.decode_kv,
            sampled=min(rows, self.sampled),
        )


def load_of(message: StepMessage | None) -> GroupLoad:
    """The load of a step message, as a profiler or a simulator sees it."""
    load = GroupLoad()
    for span in () if message is None else message.spans:
        rows = span.stop - span.start
        groups = max(1, len(span.groups))
        if rows == 1 and (span.sample or not span.writes):
            load = load.with_decode(span.piece_tokens, span.sample, groups)
        else:
            load = load.with_prefill(
                rows, span.piece_tokens, span.writes, groups, span.sample
            )
    if message is not None and message.moves:
        loaded = sum([move.load for move in message.moves])
        load = load.with_moves(len(message.moves) - loaded, loaded)
    return load


class _Stage:
    """A profile made ready for evaluation: a dense, monotone row table."""

    def __init__(self, profile: StageProfile) -> None:
        costs = [
            getattr(profile, name)
            for name in profile.__struct_fields__
            if name != "rows"
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
        return seconds

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
        return (
            self.base(load) * self.prefill.scale + self.moving(load) * self.moves.scale
        )

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
