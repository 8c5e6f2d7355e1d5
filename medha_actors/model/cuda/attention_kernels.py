"""The Triton kernels of attention: one for all kinds of rows, and one that merges pieces.

Their inputs are described in attention.py and attention_work.py.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _pages(table, start, stop, KEYS: tl.constexpr, PAGE: tl.constexpr):
    """Pages of the tokens [start, start + KEYS), 0 from `stop` on: one number, where they lie in
    one page, else one of each token."""
    if PAGE % KEYS == 0:
        pages = tl.load(table + start // PAGE, mask=start < stop, other=0)
    else:
        tokens = start + tl.arange(0, KEYS)
        pages = tl.load(table + tokens // PAGE, mask=tokens < stop, other=0)
    return pages


@triton.jit
def _places(
    pages, start, stride_page, stride_token, KEYS: tl.constexpr, PAGE: tl.constexpr
):
    """Where in the pool the tokens [start, start + KEYS) lie: int64 [KEYS, 1]."""
    tokens = tl.arange(0, KEYS)
    if PAGE % KEYS == 0:
        first = pages.to(tl.int64) * stride_page + (start % PAGE) * stride_token
        places = first + tokens * stride_token
    else:
        in_page = (start + tokens) % PAGE
        places = pages.to(tl.int64) * stride_page + in_page * stride_token
    return places[:, None]


@triton.jit
def _read(
    numbers,
    places,
    start,
    stop,
    dims,
    HEAD_DIM: tl.constexpr,
    HEAD: tl.constexpr,
    KEYS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Keys or values [KEYS, HEAD] of the tokens from `start` on; 0 from `stop` on: there may be
    NaN."""
    there = (start + tl.arange(0, KEYS) < stop)[:, None]
    if HEAD != HEAD_DIM:
        there = there & (dims < HEAD_DIM)[None, :]
    found = tl.load(numbers + places, mask=there, other=0.0)
    if WIDEN:
        found = found.to(tl.float32)
    return found


@triton.jit
def _hide(scores, start, seen, KEYS: tl.constexpr):
    """Scores of the tokens from `start` on, -inf where a row does not see them."""
    tokens = start + tl.arange(0, KEYS)
    return tl.where(tokens[None, :] < seen[:, None], scores, float("-inf"))


@triton.jit
def _weigh(scores, peak, scale):
    """Weights of keys, relative to the largest score so far; what becomes of older weights; that
    score."""
    new_peak = tl.maximum(peak, tl.max(scores, 1) * scale)
    finite = tl.where(
        new_peak == float("-inf"), 0.0, new_peak
    )  # of rows that saw nothing yet
    weights = tl.exp2(scores * scale - finite[:, None])
    return weights, tl.exp2(peak - finite), new_peak


@triton.jit
def _queries(
    q, at, dims, real, HEAD_DIM: tl.constexpr, HEAD: tl.constexpr, WIDEN: tl.constexpr
):
    """The tile of queries [ROWS, HEAD] that lie at `at` [ROWS]."""
    if HEAD == HEAD_DIM:
        tile = tl.load(q + at[:, None] + dims[None, :])
    else:
        tile = tl.load(q + at[:, None] + dims[None, :], mask=real[None, :], other=0.0)
    if WIDEN:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def _over_keys(
    tile, keys, values, table, first_key, stop_key, seen, seen_by_all, dims, scale,
    stride_page, stride_token, HEAD_DIM: tl.constexpr, HEAD: tl.constexpr,
    PAGE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """What a tile finds in a stretch of keys: the weighted sum of values [ROWS, HEAD], the sum of
    weights [ROWS], and the largest score [ROWS], which weights are relative to."""
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, HEAD], tl.float32)
    # page numbers are read a turn before they are needed, so that the loads of keys and
    # values, which run ahead themselves, need not wait for them
    pages = _pages(table, first_key, stop_key, KEYS, PAGE)
    for start in tl.range(first_key, stop_key, KEYS):
        places = _places(pages, start, stride_page, stride_token, KEYS, PAGE)
        pages = _pages(table, start + KEYS, stop_key, KEYS, PAGE)
        k = _read(keys, places, start, stop_key, dims, HEAD_DIM, HEAD, KEYS, WIDEN)
        scores = tl.dot(tile, tl.trans(k), input_precision="ieee")
        if start + KEYS > seen_by_all:
            scores = _hide(scores, start, seen, KEYS)
        weights, fading, peak = _weigh(scores, peak, scale)
        total = total * fading + tl.sum(weights, 1)
        acc = acc * fading[:, None]
        v = _read(values, places, start, stop_key, dims, HEAD_DIM, HEAD, KEYS, WIDEN)
        acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee")
    return acc, total, peak


@triton.jit
def _store(
    acc, row_lse, out, lse, partial_out, partial_lse, slot, tile_first, first_row, row,
    query_head, mine, dims, real, stride_out, HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr, LSE: tl.constexpr,
):  # fmt: skip
    """The results of a tile: into `out` and `lse` where they are whole (slot -1), else into their
    slots."""
    stored = mine[:, None] & real[None, :]
    if slot < 0:
        out_at = (first_row + row).to(tl.int64) * stride_out + query_head * HEAD_DIM
        into_out = out + out_at[:, None] + dims[None, :]
        tl.store(into_out, acc.to(out.dtype.element_ty), mask=stored)
        if LSE:
            lse_at = (first_row + row) * HEADS + query_head
            tl.store(lse + lse_at, row_lse * 0.6931471805599453, mask=mine)
    else:
        slot_at = (slot + row - tile_first).to(tl.int64) * HEADS + query_head
        into_slots = partial_out + (slot_at * HEAD_DIM)[:, None] + dims[None, :]
        tl.store(into_slots, acc, mask=stored)
        tl.store(partial_lse + slot_at, row_lse, mask=mine)


@triton.jit
def _attend(
    q, keys, values, out, lse, partial_out, partial_lse, work, sequences, table_starts,
    tables, item, head, scale, stride_q_row, stride_q_head, stride_page, stride_head,
    stride_token, stride_out, SHARE: tl.constexpr, KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr, HEAD: tl.constexpr, PAGE: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, LSE: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One item: a tile of rows over a stretch of keys, for one key head."""
    sequence = tl.load(work + item * 5)
    tile_first = tl.load(work + item * 5 + 1)
    first_key = tl.load(work + item * 5 + 2)
    stop_key = tl.load(work + item * 5 + 3)
    slot = tl.load(work + item * 5 + 4)
    first_row = tl.load(sequences + sequence * 4)
    rows = tl.load(sequences + sequence * 4 + 1)
    cached = tl.load(sequences + sequence * 4 + 2)
    writes = tl.load(sequences + sequence * 4 + 3)
    table = tables + tl.load(table_starts + sequence)

    packed = tl.arange(0, ROWS)
    row = tile_first + packed // SHARE
    # a tile is of whole rows; what is left over computes its last row again and is not stored
    tile_rows: tl.constexpr = ROWS // SHARE
    mine = (packed < tile_rows * SHARE) & (row < rows)
    row = tl.minimum(row, rows - 1)
    query_head = head * SHARE + packed % SHARE
    dims = tl.arange(0, HEAD)
    real = dims < HEAD_DIM
    q_at = (first_row + row).to(tl.int64) * stride_q_row + query_head * stride_q_head
    tile = _queries(q, q_at, dims, real, HEAD_DIM, HEAD, WIDEN)

    # of each row, in tokens of the piece
    seen = tl.minimum(cached + writes * (row + 1), stop_key)
    seen_by_all = tl.minimum(cached + writes * (tile_first + 1), stop_key)
    head_keys = keys + head * stride_head + dims[None, :]
    head_values = values + head * stride_head + dims[None, :]
    acc, total, peak = _over_keys(
        tile, head_keys, head_values, table, first_key, stop_key, seen, seen_by_all,
        dims, scale, stride_page, stride_token, HEAD_DIM, HEAD, PAGE, ROWS, KEYS, WIDEN,
    )  # fmt: skip

    some = total > 0
    acc = acc / tl.where(some, total, 1.0)[:, None]
    row_lse = tl.where(some, peak + tl.log2(tl.where(some, total, 1.0)), float("-inf"))
    _store(
        acc, row_lse, out, lse, partial_out, partial_lse, slot, tile_first, first_row,
        row, query_head, mine, dims, real, stride_out, KV_HEADS * SHARE, HEAD_DIM, LSE,
    )  # fmt: skip


@triton.jit
def attend(
    q, keys, values, out, lse, partial_out, partial_lse, work, sequences, table_starts,
    tables, scale, stride_q_row, stride_q_head, stride_page, stride_head, stride_token,
    stride_out, SHARE: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    HEAD: tl.constexpr, PAGE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    LSE: tl.constexpr, WIDEN: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Items of one kind of tiles, as the header of `work` counts them. KIND 0: the wide ones, on a
    grid of at least (items x kv_heads,), the longest of all heads first. 1, 2: the middle ones,
    the narrow ones, on any grid (programs,), each program taking its share: a recorded launch
    fits every step."""
    wide = tl.load(work + 1)
    if KIND == 0:
        item = tl.program_id(0) // KV_HEADS
        if item < wide:
            _attend(
                q, keys, values, out, lse, partial_out, partial_lse,
                work, sequences, table_starts, tables,
                1 + item, tl.program_id(0) % KV_HEADS, scale,
                stride_q_row, stride_q_head,
                stride_page, stride_head, stride_token, stride_out,
                SHARE, KV_HEADS, HEAD_DIM, HEAD, PAGE, ROWS, KEYS, LSE, WIDEN,
            )  # fmt: skip
    else:
        first = wide
        stop = wide + tl.load(work + 3)
        if KIND == 2:
            first = stop
            stop = tl.load(work)
        count = (stop - first) * KV_HEADS
        for number in tl.range(
            tl.program_id(0), count, tl.num_programs(0), num_stages=1
        ):
            _attend(
                q, keys, values, out, lse, partial_out, partial_lse,
                work, sequences, table_starts, tables,
                1 + first + number // KV_HEADS, number % KV_HEADS, scale,
                stride_q_row, stride_q_head,
                stride_page, stride_head, stride_token, stride_out,
                SHARE, KV_HEADS, HEAD_DIM, HEAD, PAGE, ROWS, KEYS, LSE, WIDEN,
            )  # fmt: skip


@triton.jit
def _over_pieces(
    partial_out, partial_lse, first_slot, pieces, rows, row, head, dims,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD: tl.constexpr,
    PIECES: tl.constexpr,
):  # fmt: skip
    """What the pieces of a row come to for one head: the weighted sum of their results [HEAD], the
    sum of weights, and the largest log-sum-exp, which weights are relative to."""
    real = dims < HEAD_DIM
    peak = float("-inf")
    total = 0.0
    acc = tl.zeros([HEAD], tl.float32)
    for start in tl.range(0, pieces, PIECES, num_stages=1):
        piece = start + tl.arange(0, PIECES)
        slots = (first_slot + piece * rows + row).to(tl.int64) * HEADS + head
        lses = tl.load(partial_lse + slots, mask=piece < pieces, other=float("-inf"))
        there = (piece < pieces)[:, None] & real[None, :]
        at = (slots * HEAD_DIM)[:, None] + dims[None, :]
        outs = tl.load(partial_out + at, mask=there, other=0.0)
        new_peak = tl.maximum(peak, tl.max(lses, 0))
        finite = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weights = tl.exp2(lses - finite)
        fading = tl.exp2(peak - finite)
        total = total * fading + tl.sum(weights, 0)
        acc = acc * fading + tl.sum(outs * weights[:, None], 0)
        peak = new_peak
    return acc, total, peak


@triton.jit
def merge(
    out,
    lse,
    partial_out,
    partial_lse,
    work,
    merges,
    stride_out,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD: tl.constexpr,
    PIECES: tl.constexpr,
    LSE: tl.constexpr,
):
    """All of `merges` on any grid (programs, Z): each program takes its share of (entry, head), and
    rows z, z + Z ... of it. The order of summation is fixed."""
    count = tl.load(work + 2) * HEADS
    dims = tl.arange(0, HEAD)
    real = dims < HEAD_DIM
    for number in tl.range(tl.program_id(0), count, tl.num_programs(0), num_stages=1):
        entry = number // HEADS
        head = number % HEADS
        first_row = tl.load(merges + entry * 4)
        rows = tl.load(merges + entry * 4 + 1)
        first_slot = tl.load(merges + entry * 4 + 2)
        pieces = tl.load(merges + entry * 4 + 3)
        for row in tl.range(tl.program_id(1), rows, tl.num_programs(1), num_stages=1):
            acc, total, peak = _over_pieces(
                partial_out, partial_lse, first_slot, pieces, rows, row, head, dims,
                HEADS, HEAD_DIM, HEAD, PIECES,
            )  # fmt: skip
            some = total > 0
            divisor = tl.where(some, total, 1.0)
            done = (acc / divisor).to(out.dtype.element_ty)
            out_at = (first_row + row).to(tl.int64) * stride_out + head * HEAD_DIM
            tl.store(out + out_at + dims, done, mask=real)
            if LSE:
                natural = (peak + tl.log2(divisor)) * 0.6931471805599453
                merged = tl.where(some, natural, float("-inf"))
                tl.store(lse + (first_row + row) * HEADS + head, merged)


# On a CPU, where the products take raw bits for numbers if they have 16 bits.
INTERPRETED = not isinstance(attend, triton.JITFunction)
