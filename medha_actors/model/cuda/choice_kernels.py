"""The kernels of KernelChoice (Triton): each reads a row's logits where they lie, once a pass.

Weights are whole numbers (see choice.py), so that it does not matter which program adds what. A
logit's `order` is an int32 that compares as the float does. Nothing is compiled anew for other
numbers of rows: only what a model's vocabulary fixes is specialised.
"""

from __future__ import annotations

import triton
import triton.language as tl

_UNIT = tl.constexpr(2.0**40)
_NONE = tl.constexpr(-(2**63))
_LOW = tl.constexpr(2**32 - 1)
# below this distance from the largest logit a weight is 0
_DEEPEST = tl.constexpr(29.0)


@triton.jit
def _order(x):
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _unorder(order):
    bits = order ^ ((order >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _weights(scaled, peak, floor):
    shares = tl.exp(scaled - peak)
    passes = (scaled >= floor) & (shares <= 1.0)  # what is no number does not
    return tl.where(passes, shares * _UNIT + 0.5, 0.0).to(tl.int64)


@triton.jit
def _scaled(row, columns, vocabulary, temperature):
    x = tl.load(row + columns, mask=columns < vocabulary, other=-float("inf"))
    return tl.div_rn(x, tl.zeros_like(x) + temperature)


@triton.jit(do_not_specialize=["rows", "temperatures", "peaks", "floors", "sums"])
def sum_weights(
    logits, stride, rows, temperatures, peaks, floors, sums, vocabulary, chunks, CHUNK: tl.constexpr
):
    """Grid (n, chunks): the weight of each chunk of a row, int64 [n, chunks]."""
    place = tl.program_id(0)
    chunk = tl.program_id(1)
    row = logits + tl.load(rows + place) * stride
    columns = chunk * CHUNK + tl.arange(0, CHUNK)
    scaled = _scaled(row, columns, vocabulary, tl.load(temperatures + place))
    weights = _weights(scaled, tl.load(peaks + place), tl.load(floors + place))
    tl.store(sums + place * chunks + chunk, tl.sum(weights, 0))


@triton.jit(
    do_not_specialize=["rows", "temperatures", "peaks", "floors", "shots", "sums", "tokens"]
)
def pick_tokens(
    logits,
    stride,
    rows,
    temperatures,
    peaks,
    floors,
    shots,
    sums,
    tokens,
    vocabulary,
    chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Grid (n): the token at which the cumulative weight exceeds the shot, int64 [n]. `CHUNKS`: a
    power of two, `chunks` at least."""
    place = tl.program_id(0)
    numbers = tl.arange(0, CHUNKS)
    parts = tl.load(sums + place * chunks + numbers, mask=numbers < chunks, other=0)
    total = tl.sum(parts, 0)
    shot = tl.load(shots + place)
    target = tl.minimum((shot * total.to(tl.float64)).to(tl.int64), total - 1)
    before = tl.cumsum(parts, 0) <= target
    hit = tl.minimum(tl.sum(before.to(tl.int32), 0), chunks - 1)
    start = tl.sum(tl.where(before, parts, 0), 0)
    row = logits + tl.load(rows + place) * stride
    columns = hit * CHUNK + tl.arange(0, CHUNK)
    scaled = _scaled(row, columns, vocabulary, tl.load(temperatures + place))
    weights = _weights(scaled, tl.load(peaks + place), tl.load(floors + place))
    passed = (tl.cumsum(weights, 0) + start) <= target
    token = hit * CHUNK + tl.sum(passed.to(tl.int32), 0)
    tl.store(tokens + place, tl.minimum(token, vocabulary - 1).to(tl.int64))


@triton.jit
def _least(low, high, at_low, at_middle, at_high, wanted, step):
    """The part of [low, high] in which the answer lies."""
    first = low + step
    second = tl.minimum(low + 2 * step, high)
    third = tl.minimum(low + 3 * step, high)
    new_low = tl.where(at_low >= wanted, first, low)
    new_low = tl.where(at_middle >= wanted, second, new_low)
    new_low = tl.where(at_high >= wanted, third, new_low)
    new_high = tl.where(at_high >= wanted, high, third - 1)
    new_high = tl.where(at_middle >= wanted, new_high, second - 1)
    new_high = tl.where(at_low >= wanted, new_high, first - 1)
    return new_low, new_high


@triton.jit
def _search(
    row,
    vocabulary,
    temperature,
    peak,
    low,
    high,
    wanted,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The largest order in [low, high] such that tokens there and above are `wanted`, or weigh as
    much; low if they never do. Each pass tries three orders and leaves a quarter of the range."""
    while low < high:
        step = (high - low + 3) // 4
        first = low + step
        second = tl.minimum(low + 2 * step, high)
        third = tl.minimum(low + 3 * step, high)
        if WEIGHTED:
            one = tl.zeros((BLOCK,), tl.int64)
            two = tl.zeros((BLOCK,), tl.int64)
            three = tl.zeros((BLOCK,), tl.int64)
        else:
            one = tl.zeros((BLOCK,), tl.int32)
            two = tl.zeros((BLOCK,), tl.int32)
            three = tl.zeros((BLOCK,), tl.int32)
        for start in range(0, vocabulary, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            scaled = _scaled(row, columns, vocabulary, temperature)
            order = _order(scaled).to(tl.int64)
            if WEIGHTED:
                each = _weights(scaled, peak, -float("inf"))
            else:
                each = (columns < vocabulary).to(tl.int32)
            one += tl.where(order >= first, each, 0)
            two += tl.where(order >= second, each, 0)
            three += tl.where(order >= third, each, 0)
        at_low = tl.sum(one, 0).to(tl.int64)
        at_middle = tl.sum(two, 0).to(tl.int64)
        at_high = tl.sum(three, 0).to(tl.int64)
        low, high = _least(low, high, at_low, at_middle, at_high, wanted, step)
    return low


@triton.jit(
    do_not_specialize=[
        "rows",
        "temperatures",
        "peaks",
        "floors",
        "places",
        "top_ks",
        "top_ps",
        "settled",
        "found",
    ]
)
def find_floors(
    logits,
    stride,
    rows,
    temperatures,
    peaks,
    floors,
    places,
    top_ks,
    top_ps,
    settled,
    found,
    vocabulary,
    BLOCK: tl.constexpr,
):
    """Grid (n): the floors of `places`, float32 [n], where `settled` [n] is not 1. Exact, however
    flat a row is: it is read about thirty times."""
    number = tl.program_id(0)
    if tl.load(settled + number) == 0:
        place = tl.load(places + number)
        row = logits + tl.load(rows + place) * stride
        temperature = tl.load(temperatures + place)
        peak = tl.load(peaks + place)
        floor = tl.load(floors + place)
        top_k = tl.load(top_ks + number)
        top_p = tl.load(top_ps + number)
        low = _order(floor).to(tl.int64)
        high = _order(peak).to(tl.int64)
        sound = (peak > -float("inf")) & (peak < float("inf"))
        high = tl.where(sound, high, low)
        if (top_k > 0) & (top_k < vocabulary):
            low = _search(row, vocabulary, temperature, peak, low, high, top_k, False, BLOCK)
        if top_p < 1.0:
            held = tl.zeros((BLOCK,), tl.int64)
            for start in range(0, vocabulary, BLOCK):
                columns = start + tl.arange(0, BLOCK)
                scaled = _scaled(row, columns, vocabulary, temperature)
                weights = _weights(scaled, peak, -float("inf"))
                held += tl.where(_order(scaled).to(tl.int64) >= low, weights, 0)
            total = tl.sum(held, 0)
            wanted = tl.ceil(top_p * total.to(tl.float64)).to(tl.int64)
            wanted = tl.maximum(wanted, 1)
            deepest = _order(peak - _DEEPEST).to(tl.int64)
            deepest = tl.where(sound, tl.maximum(low, deepest), low)
            low = _search(row, vocabulary, temperature, peak, deepest, high, wanted, True, BLOCK)
        tl.store(found + number, _unorder(low.to(tl.int32)))


@triton.jit(do_not_specialize=["rows", "slots", "penalties", "count"])
def take_penalties(
    logits, stride, rows, counts, slots, penalties, count, vocabulary, CHUNK: tl.constexpr
):
    """Grid (count, chunks): see Choice.penalise. `penalties` [3, count]."""
    number = tl.program_id(0)
    columns = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    inside = columns < vocabulary
    row = logits + tl.load(rows + number) * stride
    seen = tl.load(counts + tl.load(slots + number) * vocabulary + columns, mask=inside, other=0)
    repetition = tl.load(penalties + number)
    presence = tl.load(penalties + count + number)
    frequency = tl.load(penalties + 2 * count + number)
    x = tl.load(row + columns, mask=inside, other=0.0)
    moved = tl.where(x > 0, tl.div_rn(x, tl.zeros_like(x) + repetition), x * repetition)
    x = tl.where(seen > 0, moved, x)
    output = (seen >> 1).to(tl.float32)
    x = x - frequency * output
    x = x - presence * (output > 0).to(tl.float32)
    tl.store(row + columns, x, mask=inside)


@triton.jit(do_not_specialize=["keys"])
def best_of_chunks(
    logits, stride, keys, vocabulary, chunks, CHUNK: tl.constexpr, COUNT: tl.constexpr
):
    """Grid (rows, chunks): the keys of the COUNT most likely tokens of each chunk, int64
    [rows, chunks, COUNT]; a key orders by logit, and of equals the first token is the largest."""
    row = tl.program_id(0)
    chunk = tl.program_id(1)
    columns = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = columns < vocabulary
    x = tl.load(logits + row.to(tl.int64) * stride + columns, mask=inside, other=-float("inf"))
    held = (_order(x).to(tl.int64) << 32) | (_LOW - columns.to(tl.int64))
    held = tl.where(inside, held, _NONE)
    out = keys + (row.to(tl.int64) * chunks + chunk) * COUNT
    for number in range(COUNT):
        best = tl.max(held, 0)
        tl.store(out + number, best)
        held = tl.where(held == best, _NONE, held)
