"""The kernels of KernelChoice for what few rows ask: tokens of rows that are too flat to be decided
by some hundred candidates, penalties, log-probabilities (Triton). See choice_kernels.py."""

from __future__ import annotations

import triton
import triton.language as tl

from medha_actors.model.cuda.choice_kernels import (
    best_key,
    logit_of,
    order_of,
    weights_of,
)

_LOW = tl.constexpr(2**32 - 1)
_LEAST_KEY = tl.constexpr(-(2**63))
_LEAST = tl.constexpr(-(2**31))
_DEEPEST = tl.constexpr(30.0)
_UNIT = tl.constexpr(2.0**40)


@triton.jit
def _quarter(low, high, at_first, at_second, at_third, wanted, step):
    """The part of [low, high] in which the answer lies."""
    second = tl.minimum(low + 2 * step, high)
    third = tl.minimum(low + 3 * step, high)
    new_low = tl.where(at_first >= wanted, low + step, low)
    new_low = tl.where(at_second >= wanted, second, new_low)
    new_low = tl.where(at_third >= wanted, third, new_low)
    new_high = tl.where(at_third >= wanted, high, third - 1)
    new_high = tl.where(at_second >= wanted, new_high, second - 1)
    new_high = tl.where(at_first >= wanted, new_high, low + step - 1)
    return new_low, new_high


@triton.jit
def _count_down(line, vocabulary, low, high, wanted, BLOCK: tl.constexpr):
    """The largest order in [low, high] that `wanted` tokens reach; low if so many never do. A pass
    over the row for each two bits."""
    while low < high:
        step = (high - low + 3) // 4
        second = tl.minimum(low + 2 * step, high)
        third = tl.minimum(low + 3 * step, high)
        one = tl.zeros((BLOCK,), tl.int32)
        two = tl.zeros((BLOCK,), tl.int32)
        three = tl.zeros((BLOCK,), tl.int32)
        for start in range(0, vocabulary, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = columns < vocabulary
            order = order_of(tl.load(line + columns, mask=inside, other=-float("inf")))
            order = tl.where(inside, order, _LEAST).to(tl.int64)
            one += (order >= low + step).to(tl.int32)
            two += (order >= second).to(tl.int32)
            three += (order >= third).to(tl.int32)
        low, high = _quarter(
            low, high, tl.sum(one, 0).to(tl.int64), tl.sum(two, 0).to(tl.int64),
            tl.sum(three, 0).to(tl.int64), wanted, step,
        )  # fmt: skip
    return low


@triton.jit
def _weights_from(
    line, start, vocabulary, temperature, peak, floor, low, BLOCK: tl.constexpr
):
    """The weights of a block, of orders from `low` on; and the orders, both int64."""
    columns = start + tl.arange(0, BLOCK)
    x = tl.load(line + columns, mask=columns < vocabulary, other=-float("inf"))
    order = order_of(x).to(tl.int64)
    scaled = tl.div_rn(x, tl.zeros_like(x) + temperature)
    return tl.where(order >= low, weights_of(scaled, peak, floor), 0), order


@triton.jit
def _weight(line, vocabulary, temperature, peak, floor, low, BLOCK: tl.constexpr):
    """The weight of a row's orders from `low` on."""
    held = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, vocabulary, BLOCK):
        each, _ = _weights_from(
            line, start, vocabulary, temperature, peak, floor, low, BLOCK
        )
        held += each
    return tl.sum(held, 0)


@triton.jit
def _weigh_down(
    line, vocabulary, temperature, peak, floor, low, high, wanted, BLOCK: tl.constexpr
):
    """The largest order in [low, high] from which on tokens weigh `wanted`; low if they never
    do."""
    while low < high:
        step = (high - low + 3) // 4
        second = tl.minimum(low + 2 * step, high)
        third = tl.minimum(low + 3 * step, high)
        one = tl.zeros((BLOCK,), tl.int64)
        two = tl.zeros((BLOCK,), tl.int64)
        three = tl.zeros((BLOCK,), tl.int64)
        for start in range(0, vocabulary, BLOCK):
            each, order = _weights_from(
                line, start, vocabulary, temperature, peak, floor, low, BLOCK
            )
            one += tl.where(order >= low + step, each, 0)
            two += tl.where(order >= second, each, 0)
            three += tl.where(order >= third, each, 0)
        low, high = _quarter(
            low, high, tl.sum(one, 0), tl.sum(two, 0), tl.sum(three, 0), wanted, step
        )
    return low


@triton.jit
def _draw_from(
    line, vocabulary, temperature, peak, floor, low, shot, BLOCK: tl.constexpr
):
    """The token at which the cumulative weight of orders from `low` on exceeds the shot."""
    total = _weight(line, vocabulary, temperature, peak, floor, low, BLOCK)
    target = tl.minimum((shot * total.to(tl.float64)).to(tl.int64), total - 1)
    passed = tl.zeros((), tl.int64)
    hit = tl.zeros((), tl.int32)
    before = tl.zeros((), tl.int64)
    for start in range(0, vocabulary, BLOCK):
        each, _ = _weights_from(
            line, start, vocabulary, temperature, peak, floor, low, BLOCK
        )
        here = (passed <= target) & (passed + tl.sum(each, 0) > target)
        hit = tl.where(here, start, hit)
        before = tl.where(here, passed, before)
        passed += tl.sum(each, 0)
    each, _ = _weights_from(line, hit, vocabulary, temperature, peak, floor, low, BLOCK)
    token = hit + tl.sum(((tl.cumsum(each, 0) + before) <= target).to(tl.int32), 0)
    return tl.minimum(token, vocabulary - 1)


@triton.jit(do_not_specialize=["asks", "keys", "found", "settled", "rows"])
def search_all(
    logits,
    stride,
    asks,
    keys,
    found,
    settled,
    rows,
    vocabulary,
    chunks,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (rows): the tokens of rows that `pick` has not settled. Exact, however flat a row is: it
    is read twenty to forty times."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(settled + row) == 0:
        line = logits + row * stride
        temperature = tl.load(asks + row).to(tl.float32)
        top_k = tl.load(asks + 2 * rows + row).to(tl.int64)
        top_p = tl.load(asks + 3 * rows + row)
        high = best_key(keys, row, chunks, CHUNKS) >> 32
        largest = logit_of(high.to(tl.int32))
        peak = tl.div_rn(largest, temperature)
        floor = (peak.to(tl.float64) + tl.load(asks + rows + row)).to(tl.float32)
        low = tl.zeros((), tl.int64) + _LEAST
        if top_k > 0:
            low = _count_down(line, vocabulary, low, high, top_k, BLOCK)
        if top_p < 1:
            total = _weight(line, vocabulary, temperature, peak, floor, low, BLOCK)
            wanted = tl.maximum(tl.ceil(top_p * total.to(tl.float64)).to(tl.int64), 1)
            deepest = order_of(largest - _DEEPEST * temperature).to(tl.int64)
            low = tl.maximum(low, tl.minimum(deepest, high))
            low = _weigh_down(
                line, vocabulary, temperature, peak, floor, low, high, wanted, BLOCK
            )
        shot = tl.load(asks + 4 * rows + row)
        token = _draw_from(line, vocabulary, temperature, peak, floor, low, shot, BLOCK)
        tl.store(found + row, token)


@triton.jit(do_not_specialize=["places", "slots", "penalties", "count"])
def take_penalties(
    logits,
    stride,
    places,
    counts,
    slots,
    penalties,
    count,
    vocabulary,
    CHUNK: tl.constexpr,
):
    """Grid (count, chunks): see Choice.penalise; `places`: the rows."""
    number = tl.program_id(0)
    columns = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    inside = columns < vocabulary
    line = logits + tl.load(places + number) * stride
    seen = tl.load(
        counts + tl.load(slots + number) * vocabulary + columns, mask=inside, other=0
    )
    repetition = tl.load(penalties + number).to(tl.float32)
    presence = tl.load(penalties + count + number).to(tl.float32)
    frequency = tl.load(penalties + 2 * count + number).to(tl.float32)
    x = tl.load(line + columns, mask=inside, other=0.0)
    moved = tl.where(x > 0, tl.div_rn(x, tl.zeros_like(x) + repetition), x * repetition)
    x = tl.where(seen > 0, moved, x)
    output = (seen >> 1).to(tl.float32)
    x = x - frequency * output
    x = x - presence * (output > 0).to(tl.float32)
    tl.store(line + columns, x, mask=inside)


@triton.jit(do_not_specialize=["cells", "count", "prompts"])
def add_counts(table, cells, count, prompts, BLOCK: tl.constexpr):
    """Grid (blocks): see Choice.count. Cells int64 [count]."""
    numbers = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = numbers < count
    places = table + tl.load(cells + numbers, mask=inside, other=0)
    prompt = numbers < prompts
    tl.atomic_or(places, tl.full((BLOCK,), 1, tl.int32), mask=inside & prompt)
    tl.atomic_add(places, tl.full((BLOCK,), 2, tl.int32), mask=inside & (prompt == 0))


@triton.jit(do_not_specialize=["keys", "sums"])
def best_of_chunks(
    logits,
    stride,
    keys,
    vocabulary,
    chunks,
    CHUNK: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Grid (rows, chunks): the COUNT largest keys of each chunk, int64 [rows, chunks, COUNT]."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    columns = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = columns < vocabulary
    x = tl.load(logits + row * stride + columns, mask=inside, other=-float("inf"))
    held = (order_of(x).to(tl.int64) << 32) | (columns.to(tl.int64) ^ _LOW)
    held = tl.where(inside, held, _LEAST_KEY)
    out = keys + (row * chunks + chunk) * COUNT
    for number in range(COUNT):
        best = tl.max(held, 0)
        tl.store(out + number, best)
        held = tl.where(held == best, _LEAST_KEY, held)


@triton.jit(do_not_specialize=["keys", "sums"])
def spread_of_chunks(
    logits,
    stride,
    keys,
    sums,
    vocabulary,
    chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Grid (rows, chunks): the weight of each chunk, int64 [rows, chunks]; `keys` from
    best_of_chunks."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    peak = logit_of((_best_of(keys, row, chunks, CHUNKS, COUNT) >> 32).to(tl.int32))
    columns = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(
        logits + row * stride + columns, mask=columns < vocabulary, other=-float("inf")
    )
    tl.store(sums + row * chunks + chunk, tl.sum(weights_of(x, peak, -float("inf")), 0))


@triton.jit
def _best_of(keys, row, chunks, CHUNKS: tl.constexpr, COUNT: tl.constexpr):
    numbers = tl.arange(0, CHUNKS)
    places = keys + (row * chunks + numbers) * COUNT
    return tl.max(tl.load(places, mask=numbers < chunks, other=_LEAST_KEY), 0)


@triton.jit(do_not_specialize=["token_ids", "keys", "sums", "scores", "count"])
def score_rows(
    logits,
    stride,
    token_ids,
    keys,
    sums,
    scores,
    count,
    vocabulary,
    chunks,
    CHUNKS: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Grid (rows): see answers.score; int32 [rows, 1 + 2 * count], count at most COUNT."""
    row = tl.program_id(0).to(tl.int64)
    numbers = tl.arange(0, CHUNKS)
    parts = tl.load(sums + row * chunks + numbers, mask=numbers < chunks, other=0)
    shares = tl.sum(parts, 0).to(tl.float64) / _UNIT
    peak = logit_of((_best_of(keys, row, chunks, CHUNKS, COUNT) >> 32).to(tl.int32))
    offset = peak.to(tl.float64) + tl.log(shares)
    out = scores + row * (1 + 2 * count)
    token = tl.load(token_ids + row).to(tl.int64)
    given = tl.load(logits + row * stride + token)
    logprob = (given.to(tl.float64) - offset).to(tl.float32)
    tl.store(out, logprob.to(tl.int32, bitcast=True))
    every = tl.arange(0, CHUNKS * COUNT)
    held = tl.load(
        keys + row * chunks * COUNT + every,
        mask=every < chunks * COUNT,
        other=_LEAST_KEY,
    )
    for number in range(count):
        best = tl.max(held, 0)
        held = tl.where(held == best, _LEAST_KEY, held)
        logit = logit_of((best >> 32).to(tl.int32))
        logprob = (logit.to(tl.float64) - offset).to(tl.float32)
        tl.store(out + 1 + number, ((best & _LOW) ^ _LOW).to(tl.int32))
        tl.store(out + 1 + count + number, logprob.to(tl.int32, bitcast=True))
