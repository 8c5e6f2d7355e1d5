"""The kernels of KernelChoice that lead from logits to tokens (Triton).

Weights are whole numbers (see choice.py), so that it does not matter which program adds what. A
logit's `order` is an int32 that compares as the float does; a `key` has the order above, and below
a number that is larger for earlier tokens. Nothing is compiled anew for other numbers of rows.

`asks`: float64 [5, rows]: see Asks. A row is `cut` if it has a top_k or top_p.
"""

from __future__ import annotations

import triton
import triton.language as tl

_UNIT = tl.constexpr(2.0**40)
_LOW = tl.constexpr(2**32 - 1)
_LEAST_KEY = tl.constexpr(-(2**63))
_LEAST = tl.constexpr(-(2**31))
_NO_NUMBER = tl.constexpr(2**31 - 1)  # the order of what is no number
# so far below the largest logit over temperature a weight is 0
_DEEPEST = tl.constexpr(30.0)
_BROKEN = tl.constexpr(1)
_COLD = tl.constexpr(2)


@triton.jit
def order_of(x):
    """int32, like x; of the two zeros the positive one."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(x == x, order, _NO_NUMBER)


@triton.jit
def logit_of(order):
    """The float of an order."""
    bits = order ^ ((order >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def weights_of(scaled, peak, floor):
    """int64: of logits over temperature."""
    shares = tl.exp(scaled - peak)
    passes = (scaled >= floor) & (shares <= 1.0)  # what is no number does not
    return tl.where(passes, shares * _UNIT + 0.5, 0.0).to(tl.int64)


@triton.jit
def best_key(keys, row, chunks, CHUNKS: tl.constexpr):
    """The largest of a row's keys [rows, chunks]."""
    numbers = tl.arange(0, CHUNKS)
    held = tl.load(
        keys + row * chunks + numbers, mask=numbers < chunks, other=_LEAST_KEY
    )
    return tl.max(held, 0)


@triton.jit
def is_finite(x):
    """Whether x is a number."""
    return (x > -float("inf")) & (x < float("inf"))


@triton.jit
def _target(shot, total):
    return tl.minimum((shot * total.to(tl.float64)).to(tl.int64), total - 1)


@triton.jit
def _share(top_p, total):
    return tl.maximum(tl.ceil(top_p * total.to(tl.float64)).to(tl.int64), 1)


@triton.jit
def _search(order, each, low, high, wanted):
    """The largest order in [low, high] at which and above `each` adds up to `wanted`; low if it
    never does. All int64."""
    while low < high:
        middle = (low + high + 1) >> 1
        enough = tl.sum(tl.where(order >= middle, each, 0), 0) >= wanted
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    return low


@triton.jit(do_not_specialize=["keys", "bests"])
def look_over(
    logits,
    stride,
    keys,
    bests,
    vocabulary,
    chunks,
    CHUNK: tl.constexpr,
    PART: tl.constexpr,
    CUT: tl.constexpr,
):
    """Grid (rows, chunks): the largest key of each chunk, int64 [rows, chunks]; if CUT the largest
    order of each part of it, int32 [rows, chunks * CHUNK / PART]."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    columns = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = columns < vocabulary
    x = tl.load(logits + row * stride + columns, mask=inside, other=-float("inf"))
    order = order_of(x)
    held = (order.to(tl.int64) << 32) | (columns.to(tl.int64) ^ _LOW)
    tl.store(keys + row * chunks + chunk, tl.max(tl.where(inside, held, _LEAST_KEY), 0))
    if CUT:
        parts = tl.max(tl.reshape(order, (CHUNK // PART, PART)), 1)
        numbers = (row * chunks + chunk) * (CHUNK // PART) + tl.arange(0, CHUNK // PART)
        tl.store(bests + numbers, parts)


@triton.jit(do_not_specialize=["bests", "asks", "bars", "counters", "rows"])
def set_bars(
    bests,
    asks,
    bars,
    counters,
    rows,
    vocabulary,
    parts,
    full_parts,
    PARTS: tl.constexpr,
):
    """Grid (rows): an order that at least top_k tokens reach, since as many parts do (for top_p
    three quarters of the parts); int32 [rows]. Counters are set to 0."""
    row = tl.program_id(0)
    tl.store(counters + row, 0)
    numbers = tl.arange(0, PARTS)
    held = tl.load(bests + row * parts + numbers, mask=numbers < parts, other=_LEAST)
    order = held.to(tl.int64)
    top_k = tl.load(asks + 2 * rows + row).to(tl.int64)
    has_k = (top_k > 0) & (top_k < vocabulary)
    wanted = tl.where(has_k, top_k, tl.maximum(full_parts * 3 // 4, 1).to(tl.int64))
    one = (numbers < full_parts).to(tl.int32)
    low = tl.zeros((), tl.int64) + _LEAST
    bar = _search(order, one, low, tl.max(order, 0), wanted)
    bar = tl.where(wanted <= full_parts, bar, _NO_NUMBER)
    tl.store(bars + row, bar.to(tl.int32))


@triton.jit(
    do_not_specialize=["asks", "keys", "bars", "counters", "candidates", "sums", "rows"]
)
def weigh(
    logits,
    stride,
    asks,
    keys,
    bars,
    counters,
    candidates,
    sums,
    rows,
    vocabulary,
    chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    MANY: tl.constexpr,
    CUT: tl.constexpr,
):
    """Grid (rows, chunks), for rows that are drawn: the weight of each chunk that min_p lets pass,
    int64 [rows, chunks]; and of rows that are cut the tokens that reach the bar, int32
    [rows, MANY], in any order."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    temperature = tl.load(asks + row).to(tl.float32)
    if temperature > 0:
        key = best_key(keys, row, chunks, CHUNKS)
        peak = tl.div_rn(logit_of((key >> 32).to(tl.int32)), temperature)
        floor = (peak.to(tl.float64) + tl.load(asks + rows + row)).to(tl.float32)
        columns = chunk * CHUNK + tl.arange(0, CHUNK)
        inside = columns < vocabulary
        x = tl.load(logits + row * stride + columns, mask=inside, other=-float("inf"))
        scaled = tl.div_rn(x, tl.zeros_like(x) + temperature)
        tl.store(
            sums + row * chunks + chunk, tl.sum(weights_of(scaled, peak, floor), 0)
        )
        if CUT:
            top_k = tl.load(asks + 2 * rows + row)
            top_p = tl.load(asks + 3 * rows + row)
            if (top_k > 0) | (top_p < 1):
                passes = (
                    inside & (order_of(x) >= tl.load(bars + row)) & (scaled >= floor)
                )
                count = tl.sum(passes.to(tl.int32), 0)
                if count > 0:
                    first = tl.atomic_add(counters + row, count)
                    places = first + tl.cumsum(passes.to(tl.int32), 0) - 1
                    kept = passes & (places < MANY)
                    tl.store(candidates + row * MANY + places, columns, mask=kept)


@triton.jit
def _draw_from_all(logits, row, stride, sums, temperature, peak, floor, shot, vocabulary, chunks,
                   CHUNK: tl.constexpr, CHUNKS: tl.constexpr):  # fmt: skip
    """The token at which the cumulative weight exceeds the shot."""
    numbers = tl.arange(0, CHUNKS)
    parts = tl.load(sums + row * chunks + numbers, mask=numbers < chunks, other=0)
    target = _target(shot, tl.sum(parts, 0))
    before = tl.cumsum(parts, 0) <= target
    hit = tl.minimum(tl.sum(before.to(tl.int32), 0), chunks - 1)
    start = tl.sum(tl.where(before, parts, 0), 0)
    columns = hit * CHUNK + tl.arange(0, CHUNK)
    inside = columns < vocabulary
    x = tl.load(logits + row * stride + columns, mask=inside, other=-float("inf"))
    scaled = tl.div_rn(x, tl.zeros_like(x) + temperature)
    passed = (tl.cumsum(weights_of(scaled, peak, floor), 0) + start) <= target
    token = hit * CHUNK + tl.sum(passed.to(tl.int32), 0)
    return tl.minimum(token, vocabulary - 1).to(tl.int64)


@triton.jit
def _draw_from_some(logits, row, stride, candidates, count, bar, key, whole, temperature, peak,
                    floor, top_k, top_p, shot, vocabulary, MANY: tl.constexpr):  # fmt: skip
    """The token of a row that is cut, and whether its candidates were enough to tell. `whole`: the
    weight of all tokens that min_p lets pass."""
    numbers = tl.arange(0, MANY)
    inside = numbers < count
    tokens = tl.load(candidates + row * MANY + numbers, mask=inside, other=0)
    x = tl.load(logits + row * stride + tokens, mask=inside, other=-float("inf"))
    scaled = tl.div_rn(x, tl.zeros_like(x) + temperature)
    weights = tl.where(inside, weights_of(scaled, peak, floor), 0)
    order = tl.where(inside, order_of(x), _LEAST).to(tl.int64)
    lowest = tl.div_rn(logit_of(bar), temperature)
    complete = floor >= lowest  # all that min_p lets pass are here
    enough = count <= MANY
    low = tl.zeros((), tl.int64) + _LEAST
    high = key >> 32
    has_k = (top_k > 0) & (top_k < vocabulary)
    if has_k:
        low = _search(order, inside.to(tl.int32), low, high, top_k)
        enough = enough & (complete | (count >= top_k))
    held = tl.sum(tl.where(order >= low, weights, 0), 0)
    if top_p < 1:
        wanted = _share(top_p, tl.where(has_k, held, whole))
        enough = enough & (has_k | complete | (held >= wanted))
        low = _search(order, weights, low, high, wanted)
    else:
        enough = enough & (has_k | complete)
    kept = tl.where(order >= low, weights, 0)
    target = _target(shot, tl.sum(kept, 0))
    first = tl.zeros((), tl.int64)
    last = tl.zeros((), tl.int64) + vocabulary - 1
    while first < last:
        middle = (first + last) >> 1
        passed = tl.sum(tl.where(tokens <= middle, kept, 0), 0) > target
        last = tl.where(passed, middle, last)
        first = tl.where(passed, first, middle + 1)
    return first, enough


@triton.jit
def _draw(
    logits, row, stride, asks, bars, counters, candidates, sums, key, token, enough, flag,
    temperature, peak, rows, vocabulary, chunks, CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr, MANY: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    """The token of a row that is drawn, and whether that settles it. `token` and `enough`: the
    largest one, and that it does."""
    floor = (peak.to(tl.float64) + tl.load(asks + rows + row)).to(tl.float32)
    shot = tl.load(asks + 4 * rows + row)
    cut = flag != flag
    if CUT:
        top_k = tl.load(asks + 2 * rows + row).to(tl.int64)
        top_p = tl.load(asks + 3 * rows + row)
        cut = (flag == 0) & ((top_k > 0) | (top_p < 1))
        if cut:
            numbers = tl.arange(0, CHUNKS)
            inside = numbers < chunks
            parts = tl.load(sums + row * chunks + numbers, mask=inside, other=0)
            token, enough = _draw_from_some(
                logits, row, stride, candidates, tl.load(counters + row),
                tl.load(bars + row), key, tl.sum(parts, 0), temperature, peak, floor,
                top_k, top_p, shot, vocabulary, MANY,
            )  # fmt: skip
    if cut == False:  # noqa: E712  (a tensor)
        token = _draw_from_all(
            logits, row, stride, sums, temperature, peak, floor, shot, vocabulary,
            chunks, CHUNK, CHUNKS,
        )  # fmt: skip
    return token, enough


@triton.jit(
    do_not_specialize=[
        "asks", "keys", "bars", "counters", "candidates", "sums", "found", "settled", "rows"
    ]
)  # fmt: skip
def pick(
    logits, stride, asks, keys, bars, counters, candidates, sums, found, settled, rows,
    vocabulary, chunks, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, MANY: tl.constexpr,
    DRAWN: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    """Grid (rows): token and flag of each row, int32 [2, rows]; if CUT also whether that settles
    it, int32 [rows]."""
    row = tl.program_id(0).to(tl.int64)
    key = best_key(keys, row, chunks, CHUNKS)
    logit = logit_of((key >> 32).to(tl.int32))
    token = (key & _LOW) ^ _LOW
    flag = tl.where(is_finite(logit), 0, _BROKEN)
    enough = flag == flag
    if DRAWN:
        temperature = tl.load(asks + row).to(tl.float32)
        if temperature > 0:
            peak = tl.div_rn(logit, temperature)
            flag = flag | tl.where(is_finite(peak), 0, _COLD)
            token, enough = _draw(
                logits, row, stride, asks, bars, counters, candidates, sums, key, token,
                enough, flag, temperature, peak, rows, vocabulary, chunks, CHUNK, CHUNKS,
                MANY, CUT,
            )  # fmt: skip
    tl.store(found + row, token.to(tl.int32))
    tl.store(found + rows + row, flag)
    if CUT:
        tl.store(settled + row, enough.to(tl.int32))
