"""Fitting: a stage's coefficients from measured steps of any kind, mixed ones included, by least
squares of the relative errors.

The predictor's form is linear but for two choices: whether a chunk's pairs or its reading count
(on a GPU the longer), and whether launching or work does. They are made from the coefficients so
far, then these are fitted anew. All coefficients are at least zero, and the table of rows rises.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from typing import NamedTuple

import msgspec
import numpy as np

from medha_actors.core.group_load import GroupLoad
from medha_actors.core.predictor import ExecutionModel, Profile, StageProfile

_ROUNDS = 8
_NEAR = (1.03, 1.1, 1.3)  # times the quickest step, and launching may be what counted
_CHUNKS = (24.0, 96.0, 192.0)  # rows up to which a chunk's reading may be what counted
_WORTH = 0.98  # of the error: what a more complicated form has to come down to
# columns of the design matrix before those of the table: launching (with prefill, for
# each of its spans, of decodes alone), what comes to it or to work, then work
_LAUNCH, _LAUNCH_SPAN, _REPLAY, _SPAN, _HEAD, _HEAD_STEP, _PAIR, _READ, _DECODE = range(
    9
)
_FIRST_KNOT = _DECODE + 1
_LAUNCHING = slice(_REPLAY + 1)
_OUTSIDE = slice(_SPAN, _PAIR)
_WORK = slice(_PAIR, None)

Array = np.ndarray


class _Form(NamedTuple):
    """`chunk`: the longer of pairs and reading counts, at first reading in chunks of so many rows
    at most; 0: both count. `near`: so many times the quickest step are at first taken as bound by
    launching; 0: none."""

    chunk: float
    near: float


class _Found(NamedTuple):
    error: float
    profile: StageProfile


def fit(loads: Sequence[GroupLoad], seconds: Sequence[float]) -> StageProfile:
    """The profile whose predictions are closest. `loads`: some of them decodes alone, some of one
    chunk."""
    knots = sorted(
        {load.rows for load in loads if load.spans == 1 or not load.prefill_rows}
    )
    design = _design(loads, knots)
    measured = np.array(seconds)
    best: _Found | None = None
    for near, chunk in product((0.0, *_NEAR), (*_CHUNKS, 0.0)):
        profile = _fitted(_Form(chunk, near), loads, knots, design, measured)
        error = float(np.sqrt(np.mean(np.square(errors(profile, loads, seconds)))))
        if best is None or error < _WORTH * best.error:
            best = _Found(error, profile)
    assert best is not None
    return best.profile


def errors(
    profile: StageProfile, loads: Sequence[GroupLoad], seconds: Sequence[float]
) -> list[float]:
    """Of each prediction, relative to what was measured."""
    model = ExecutionModel(Profile((profile,)))
    return [
        model.base(load) / measured - 1
        for load, measured in zip(loads, seconds, strict=True)
    ]


def _design(loads: Sequence[GroupLoad], knots: Sequence[int]) -> Array:
    """What each coefficient is multiplied with in each step."""
    rows = [
        (
            float(load.prefill_rows > 0),
            float(load.spans if load.prefill_rows else 0),
            float(load.prefill_rows == 0),
            load.spans,
            load.sampled,
            float(load.sampled > 0),
            load.pairs,
            load.prefill_kv,
            load.decode_kv,
            *_ramps(load.rows, knots),
        )
        for load in loads
    ]
    return np.array(rows, float)


def _ramps(rows: int, knots: Sequence[int]) -> list[float]:
    """How much of each rise of the table counts at so many rows; beyond it the last one goes
    on."""
    found = [1.0]
    for low, high in pairwise(knots):
        found.append(max(0.0, (rows - low) / (high - low)))
    last = len(found) - 1
    return [
        min(1.0, share) if place < last else share for place, share in enumerate(found)
    ]


def _fitted(
    form: _Form,
    loads: Sequence[GroupLoad],
    knots: Sequence[int],
    design: Array,
    measured: Array,
) -> StageProfile:
    """The coefficients of one form, of the round with the smallest error: choices may swing."""
    launched = _near_the_quickest(form.near, loads, measured)
    found = np.zeros(design.shape[1])
    best = found
    least = np.inf
    for _ in range(_ROUNDS):
        columns = _counted(form, design, found)
        columns[launched, _WORK] = 0
        columns[~launched, _LAUNCHING] = 0
        found = nonnegative(columns / measured[:, None], np.ones(len(measured)))
        work = _counted(form, design, found)[:, _WORK] @ found[_WORK]
        floor = design[:, _LAUNCHING] @ found[_LAUNCHING]
        outside = design[:, _OUTSIDE] @ found[_OUTSIDE]
        error = float(
            np.square((np.maximum(work, floor) + outside) / measured - 1).sum()
        )
        if error < least:
            best = found
            least = error
        if form.near:
            launched = work < floor
    return _profile(form, knots, best)


def _counted(form: _Form, design: Array, found: Array) -> Array:
    """The design with what counts of pairs and reading, as the coefficients so far have it."""
    columns = design.copy()
    if form.chunk:
        pair_s, read_s = (
            (found[_PAIR], found[_READ]) if found.any() else (1.0, form.chunk)
        )
        reading = design[:, _READ] * read_s > design[:, _PAIR] * pair_s
        columns[reading, _PAIR] = 0
        columns[~reading, _READ] = 0
    return columns


def _near_the_quickest(
    near: float, loads: Sequence[GroupLoad], measured: Array
) -> Array:
    """Which steps took about as long as the quickest of their kind, whatever their size; those that
    sample are as those that do not."""
    plain = {
        load: s for load, s in zip(loads, measured, strict=True) if not load.sampled
    }
    decodes = [s for load, s in plain.items() if not load.prefill_rows]
    prefills = [s for load, s in plain.items() if load.prefill_rows]
    quickest = (min(decodes, default=0.0), min(prefills, default=0.0))
    found = []
    for load, own in zip(loads, measured, strict=True):
        alike = plain.get(msgspec.structs.replace(load, sampled=0), own)
        found.append(alike <= near * quickest[load.prefill_rows > 0])
    return np.array(found)


def _profile(form: _Form, knots: Sequence[int], found: Array) -> StageProfile:
    table = np.cumsum(found[_FIRST_KNOT:])
    return StageProfile(
        rows=tuple([(rows, float(s)) for rows, s in zip(knots, table, strict=True)]),
        span_s=float(found[_SPAN]),
        pair_s=float(found[_PAIR]),
        prefill_kv_s=float(found[_READ]),
        decode_kv_s=float(found[_DECODE]),
        head_s=float(found[_HEAD]),
        head_step_s=float(found[_HEAD_STEP]),
        overlapped=form.chunk > 0,
        launch_s=float(found[_LAUNCH]),
        launch_span_s=float(found[_LAUNCH_SPAN]),
        replay_s=float(found[_REPLAY]),
    )


def nonnegative(matrix: Array, target: Array) -> Array:
    """x >= 0 with the smallest |matrix x - target| (Lawson and Hanson's active sets)."""
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1.0
    matrix = matrix / scale
    count = matrix.shape[1]
    x = np.zeros(count)
    free = np.zeros(count, bool)
    tolerance = 1e-10 * float(np.linalg.norm(target))
    for _ in range(3 * count):
        gradient = matrix.T @ (target - matrix @ x)
        gradient[free] = -np.inf
        if gradient.max() <= tolerance:
            break
        free[gradient.argmax()] = True
        x, free = _within(matrix, target, x, free)
    return np.asarray(x / scale)


def _within(matrix: Array, target: Array, x: Array, free: Array) -> tuple[Array, Array]:
    """From x towards the best of the free coefficients, those that would become negative fixed at
    zero."""
    while True:
        goal = np.zeros_like(x)
        goal[free] = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
        falling = free & (goal <= 0)
        if not falling.any():
            return goal, free
        steps = x[falling] / np.maximum(x[falling] - goal[falling], 1e-300)
        x = x + float(steps.min()) * (goal - x)
        free = free & (x > 1e-14)
        x = np.where(free, x, 0.0)
        if not free.any():
            return x, free
