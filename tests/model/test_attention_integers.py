"""Attention in 16-bit integers against float64: how numbers are rounded and laid out, that no sum
leaves its 32 bits, and that a row's bits depend on no other row."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medha_actors.model.kernels import attention, ir
from medha_actors.model.kernels.attention import (
    attend,
    form_of,
    scratch_of,
    tile_address,
)
from medha_actors.model.kernels.attention_rounding import (
    LARGEST_SUM,
    put_key_and_value,
    put_query,
)
from medha_actors.model.kernels.attention_tile import TILE
from medha_actors.model.kernels.ir import V16I, Emit, compiled, kernel
from medha_actors.model.kernels.pack import aligned

LARGEST = 2**15  # that a key or a value stays below
SHAPES = [(16, 1), (48, 4), (64, 3), (128, 8)]


@compiled
def put_tokens(pages, count, dims, keys, values, key_pool, value_pool):
    """Float32 rows into the tiles of a pool whose pages are tiles, as the layers do."""
    for token in range(count):
        tile = pages[token // TILE] * TILE * dims * 2
        place = token % TILE
        pair = place // 32 * 16 + place % 16
        put_key_and_value(
            keys + token * dims * 4,
            values + token * dims * 4,
            dims,
            key_pool + tile + place * 4,
            value_pool + tile + pair * dims * 4 + place // 16 % 2 * 2,
        )


@compiled
def put_queries(rows, dims, x, factor, out):
    for row in range(rows):
        put_query(x + row * dims * 4, dims, factor, out + row * dims * 4)


@compiled
def attend_to(
    code, q, tokens, share, dims, keys, values, page_bytes, pages, cached, writes, scratch,
    out, lse,
):  # fmt: skip
    attend(
        code, q, 4, tokens, share, dims, 1, keys, values, page_bytes, 1, pages, cached,
        writes, scratch, out, lse,
    )  # fmt: skip


def single(x):
    return np.ascontiguousarray(x, np.float32)


def pools(keys, values, pages):
    """The tiles of keys and of values, uint8 [pages, bytes]; unwritten places hold whatever is
    there."""
    count, dims = keys.shape
    keys, values = single(keys), single(values)
    found = [aligned(len(pages) * TILE * dims, np.int16) for _ in range(2)]
    for pool in found:
        pool[:] = np.random.default_rng(1).integers(-(2**15), 2**15, pool.size) & ~1
    addresses = [part.ctypes.data for part in (keys, values, *found)]
    put_tokens(pages, count, dims, *addresses)
    return [pool.reshape(len(pages), -1) for pool in found]


def rounded_queries(q, factor):
    """float32 [rows, dims], of which each row holds integers and a step."""
    q = single(q)
    out = aligned(q.size, np.float32).reshape(q.shape)
    scale = np.array([factor], np.float32)
    put_queries(*q.shape, q.ctypes.data, scale.ctypes.data, out.ctypes.data)
    return out


def attended(q, pool, pages, cached, writes):
    """Output and lse of queries [tokens, share, dims], which are the last keys' where they write
    theirs."""
    tokens, share, dims = q.shape
    factor = math.log2(math.e) / math.sqrt(dims)
    queries = rounded_queries(q.reshape(-1, dims), factor)
    out = np.zeros(q.shape, np.float32)
    lse = np.zeros(q.shape[:2], np.float32)
    scratch = scratch_of(tokens * share, dims)
    scratch[0].fill(np.nan)  # whatever the step before left there
    attend_to(
        tile_address("integers"),
        queries.ctypes.data,
        tokens,
        share,
        dims,
        pool[0].ctypes.data,
        pool[1].ctypes.data,
        pool[0].strides[0],
        pages,
        cached,
        writes,
        scratch,
        out,
        lse,
    )
    return out, lse


def exact(q, k, v, cached, writes):
    """The same in float64."""
    scores = np.einsum("tsd,kd->tsk", q, k) / math.sqrt(q.shape[-1])
    if writes:
        hidden = np.arange(len(k)) > cached + np.arange(len(q))[:, None]
        scores[np.broadcast_to(hidden[:, None], scores.shape)] = -np.inf
    tops = scores.max(-1, keepdims=True)
    weights = np.exp(scores - tops)
    totals = weights.sum(-1)
    return weights @ v / totals[..., None], np.log(totals) + tops[..., 0]


@pytest.mark.parametrize(("dims", "share"), SHAPES)
@pytest.mark.parametrize(
    ("cached", "tokens", "writes"),
    [(0, 1, 1), (0, 200, 1), (63, 70, 1), (130, 1, 1), (77, 9, 0)],
)
def test_attention_over_scattered_pages(dims, share, cached, tokens, writes):
    generator = np.random.default_rng(dims + tokens)
    length = cached + tokens * writes
    k, v = generator.standard_normal((2, length, dims))
    q = generator.standard_normal((tokens, share, dims))
    k *= np.linspace(0.5, 4, length)[:, None]  # the highest score keeps rising
    k[:, 3] *= 8  # as models have them
    v[:, 5] *= 8
    pages = generator.permutation(-(-length // TILE)).astype(np.int32)
    out, lse = attended(q, pools(k, v, pages), pages, cached, writes)
    expected, expected_lse = exact(q, k, v, cached, writes)
    error = np.abs(out - expected)
    assert error.max() < 0.05
    assert math.sqrt((error**2).mean()) < 4e-3
    assert np.abs(lse - expected_lse).max() < 2e-2


def test_a_token_takes_15_bits_and_its_steps():
    generator = np.random.default_rng(3)
    dims = 48
    k, v = generator.standard_normal((2, 100, dims)) * np.exp2(
        generator.integers(-90, 90, (2, 100, 1))
    )
    k[7] = v[8] = 0
    k[9] = np.float32(1.99999)  # would be rounded up to 2**15 steps
    pages = np.array([1, 0], np.int32)
    keys, values = pools(k, v, pages)
    keys = keys.reshape(2, dims // 2, TILE, 2)[pages]
    values = values.reshape(2, 2, 16, dims, 2)[pages]
    keys = keys.transpose(0, 2, 1, 3).reshape(-1, dims)[:100].astype(int)
    values = values.transpose(0, 1, 4, 2, 3).reshape(-1, dims)[:100].astype(int)
    first = [*range(0, 8, 2), *range(1, 9, 2)]
    for x, whole, skip in ((k, keys, 0), (v, values, 8)):
        assert np.abs(whole).max() < LARGEST
        bits = keys[:, [place + skip for place in first]] & 1
        step = np.exp2((bits << np.arange(8)).sum(1) - 127.0)[:, None]
        error = np.abs(whole * step - single(x)) / step
        assert error[:, 16:].max() <= 0.5
        assert error.max() <= 1.5
        tops = np.abs(whole).max(1)[np.abs(x).max(1) > 0]
        assert tops.min() >= LARGEST // 2 - 1


@pytest.mark.parametrize("dims", [16, 64, 256])
@pytest.mark.parametrize("kind", ["equal", "one", "random", "none"])
def test_magnitudes_of_a_query_add_up_to_no_more_than_they_may(dims, kind):
    q = np.random.default_rng(dims).standard_normal((20, dims))
    if kind == "equal":
        q[:] = np.sign(q) * 3.7
    elif kind == "one":
        q[:, 1:] *= 1e-6
    elif kind == "none":
        q[:] = 0
    factor = 0.37
    found = rounded_queries(q, factor)
    whole = found.view(np.int16)[:, :dims].astype(int)
    step = found[:, dims // 2 :][:, :1]
    assert np.abs(whole).sum(1).max() <= LARGEST_SUM
    error = np.abs(whole * step.astype(float) - q * factor)
    assert (error <= 0.5001 * step).all()
    assert (step <= np.abs(q).max() * factor / 250 + 1e-30).all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dims", [16, 64, 256])
def test_the_largest_sums_stay_in_32_bits(dims, sign):
    """All numbers as large as they get, and all weights equal, or one alone."""
    pages = np.array([0, 1], np.int32)
    k = np.full((2 * TILE, dims), np.float32(1.9998))
    v = np.full((2 * TILE, dims), np.float32(sign * 1.9998))
    q = np.full((6, 1, dims), 0.5 * sign)
    for alone in (False, True):
        if alone:
            k[1:] = 0
            q *= 20
        out, lse = attended(q, pools(k, v, pages), pages, 2 * TILE, 0)
        expected, expected_lse = exact(q, k, v, 2 * TILE, 0)
        assert np.abs(out - expected).max() < 2e-3
        assert np.abs(lse - expected_lse).max() < 1e-3 * max(1, np.abs(lse).max())


@pytest.mark.parametrize(("dims", "share"), SHAPES)
def test_a_row_is_the_same_bits_alone_and_in_a_chunk(dims, share):
    """What is written behind it into its tile is nothing to it."""
    generator = np.random.default_rng(share)
    length = 150
    k, v = generator.standard_normal((2, length, dims))
    k[-1], v[-1] = 50, 900
    q = generator.standard_normal((length, share, dims)) * 3
    pages = np.arange(3, dtype=np.int32)
    whole = attended(q, pools(k, v, pages), pages, 0, 1)
    for first, last in ((0, 1), (60, 69), (63, 64), (64, 65), (100, 150)):
        pool = pools(k[:last], v[:last], pages)
        part = attended(q[first:last], pool, pages, first, 1)
        for some, every in zip(part, whole, strict=True):
            assert np.array_equal(some, every[first:last])


def test_values_that_are_no_numbers_are_found():
    pages = np.zeros(1, np.int32)
    k, v, q = np.random.default_rng(0).standard_normal((3, TILE, 64))
    for wrong in (np.nan, np.inf):
        v[40, 7] = wrong
        out, _ = attended(q[:, None], pools(k, v, pages), pages, 0, 1)
        assert not np.isfinite(out[40:]).any()


def test_integers_are_for_processors_with_nothing_faster(monkeypatch):
    def chosen(*instructions):
        for name in ("HAS_VNNI", "QUICK_BF16", "PERMITTED"):
            monkeypatch.setattr(attention, name, name in instructions)
        return form_of(bfloat=True, head_dim=64), form_of(bfloat=False, head_dim=64)

    assert chosen() == ("widened", "float")
    assert chosen("HAS_VNNI") == ("integers", "float")
    assert chosen("HAS_VNNI", "QUICK_BF16") == ("pairs", "float")
    assert chosen("HAS_VNNI", "PERMITTED") == ("registers", "float")


@pytest.mark.parametrize("native", sorted({ir.HAS_VNNI, False}))
def test_products_of_pairs_are_exact(native):
    from numba import njit  # numba cannot cache what is defined in a function

    def emit(e: Emit, x, y, sums):
        words = [e.load(place, V16I) for place in (x, y)]
        e.store(e.dot_int16(e.load(sums, V16I), *words, native=native), sums)

    inner = kernel(3, emit)
    run = njit(lambda a, b, c: inner(a, b, c))
    x, y = np.random.default_rng(2).integers(-32767, 32768, (2, 16, 2)).astype(np.int16)
    x[0], y[0] = 32767, (32767, -32767)
    begun = np.arange(16, dtype=np.int32)
    sums = begun.copy()
    run(x.ctypes.data, y.ctypes.data, sums.ctypes.data)
    assert sums.tolist() == (begun + (x.astype(int) * y).sum(1)).tolist()
