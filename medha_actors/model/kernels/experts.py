"""The experts of a layer: each is run for the rows that take it, and for no other, from its own
matrices as they are stored.

A row is added to in the order of its experts, so that its result does not depend on the rows beside
it. What a router says is read as model/experts.py reads it.
"""

# ruff: noqa: ANN001, ANN201, ANN202  (compiled functions take integers, records and arrays)
from __future__ import annotations

import math

import numpy as np

from medha_actors.model.kernels.glue import plus_scaled, scaled, silu_mul
from medha_actors.model.kernels.ir import address, compiled
from medha_actors.model.kernels.products import ROWS, apply, width

EXPERT_GATE_UP, EXPERT_DOWN = range(2)  # an expert's rows in the table


@compiled
def choose(model, ratings, numbers, weights):
    """The experts that each row takes and their weights, from the router's float32 ratings
    [rows, experts and more]; a shared expert, the last, is taken by every row."""
    count = model.experts
    used = model.used
    for row in range(len(numbers)):
        rating = ratings[row]
        highest = np.max(rating[:count])
        total = 0.0
        for expert in range(count):
            total += math.exp(np.float64(rating[expert] - highest))
        taken = 0.0
        for place in range(used):
            best = 0
            for expert in range(1, count):
                if rating[expert] > rating[best]:
                    best = expert
            chance = math.exp(np.float64(rating[best] - highest)) / total
            taken += chance
            numbers[row, place] = best
            weights[row, place] = chance
            rating[best] = -np.inf
        if model.normalised:
            for place in range(used):
                weights[row, place] /= taken
        if model.shared:
            numbers[row, used] = count
            weights[row, used] = 1 / (1 + math.exp(-np.float64(rating[count])))


@compiled
def _sorted_places(numbers, experts):
    """The places in `numbers`, row after row, in the order of the experts that are there; and where
    each expert's begin."""
    starts = np.zeros(experts + 1, np.int64)
    for number in numbers.flat:
        starts[number + 1] += 1
    starts = np.cumsum(starts)
    following = starts.copy()
    places = np.empty(numbers.size, np.int64)
    for place, number in enumerate(numbers.flat):
        places[following[number]] = place
        following[number] += 1
    return places, starts


@compiled
def mix(model, table, normed, numbers, weights, x, constants):
    """Add to each row of x (float32 [rows, hidden], by address) what its experts make of its normed
    row. table: int64 [experts, 2, parts of a matrix, columns of a part]."""
    plain = model.plain
    wide = model.wide
    taken = numbers.shape[1]
    size = model.hidden * 4
    places, starts = _sorted_places(numbers, len(table))
    for expert in range(len(table)):
        half = width(table[expert, EXPERT_GATE_UP]) // 2
        for first in range(starts[expert], starts[expert + 1], ROWS):
            mine = places[first : min(first + ROWS, starts[expert + 1])]
            count = len(mine)
            for r in range(count):
                source = address(normed) + mine[r] // taken * size
                scaled(source, model.hidden, constants + 8, plain + r * size)
            apply(
                model, table[expert, EXPERT_GATE_UP], count, plain, wide, 0, constants
            )
            for r in range(count):
                gate = wide + r * 2 * half * 4
                silu_mul(gate, gate + half * 4, half, plain + r * half * 4)
            apply(model, table[expert, EXPERT_DOWN], count, plain, wide, 0, constants)
            for r in range(count):
                weight = address(weights) + mine[r] * 4
                row = x + mine[r] // taken * size
                plus_scaled(row, wide + r * size, model.hidden, weight)
