"""Whole transformer layers on the CPU in one call without the GIL: no dispatch between their thirty
operations.

A `model` record and tables of addresses describe the layers, a `step` record the rows; cpu.py
fills them. The residual stream is float32. Rows pass the dense parts in blocks that stay in the
second-level cache.
"""

# ruff: noqa: ANN001, ANN201, ANN202  (compiled functions take integers, records and arrays)
from __future__ import annotations

import numpy as np

from medha_actors.model.kernels.attention import BLOCK_TOKENS, attend
from medha_actors.model.kernels.attention_tile import TILE
from medha_actors.model.kernels.experts import choose, mix
from medha_actors.model.kernels.glue import (
    clear,
    norm,
    plus,
    rotate,
    silu_mul,
)
from medha_actors.model.kernels.ir import address, compiled
from medha_actors.model.kernels.products import ROWS, apply, width
from medha_actors.model.kernels.storing import store

QKV, OUT, GATE_UP, DOWN = range(4)  # a layer's rows in `linears`
# in `vectors`
(
    ATTENTION_NORM,
    MLP_NORM,
    QKV_BIAS,
    OUT_BIAS,
    GATE_UP_BIAS,
    DOWN_BIAS,
    Q_NORM,
    K_NORM,
) = range(8)
FIRST, COUNT, CACHED, WRITES, TABLE = range(5)  # columns of `spans`

MODEL = np.dtype(
    [
        *(
            (name, np.int64)
            for name in (
                "hidden",
                "intermediate",
                "heads",
                "kv_heads",
                "head_dim",
                "page_tokens",
            )
        ),
        # of a mixture: how many, how many a row takes, whether their weights sum to 1,
        # whether there is a shared one too
        *((name, np.int64) for name in ("experts", "used", "normalised", "shared")),
        ("tile_code", np.int64),  # attention.tile_address
        ("bfloat", np.int64),  # keys and values have 16 bits, else float32
        ("integers", np.int64),  # those are attention_rounding.py's, and so are queries
        ("query_bytes", np.int64),  # of a value of a query: 2, bfloat16, or 4
        ("keys", np.int64),  # addresses of layer 0's pools
        ("values", np.int64),
        ("layer_bytes", np.int64),
        # addresses of scratch, ROWS rows each
        *((name, np.int64) for name in ("plain", "packed", "scales", "wide")),
        ("eps", np.float32),
        ("scale", np.float32),  # log2(e) / sqrt(head_dim)
        ("one", np.float32),
    ],
    align=True,
)
assert MODEL.fields is not None, "a record"
MODEL_EPS = int(MODEL.fields["eps"][1])  # offset of (eps, scale, one)
# addresses but for `rows`
STEP = np.dtype([(name, np.int64) for name in ("rows", "x", "q", "out", "cos", "sin")])


@compiled
def add_bias(bias, rows, count, x):
    if bias:
        for r in range(rows):
            plus(x + r * count * 4, bias, count)


@compiled
def norm_rows(rows, x, gain, count, constants, out):
    """The norm of contiguous rows of `count` values each; x and out are addresses."""
    for r in range(rows):
        norm(x + r * count * 4, gain, count, constants, out + r * count * 4)


@compiled
def _turn(model, vectors, step, row, first, start, stop, constants):
    """Normalise (if the model does) and rotate the heads [start, stop) of one row of queries and
    keys."""
    half = model.head_dim // 2
    cos = step.cos + row * half * 4
    sin = step.sin + row * half * 4
    for head in range(start, stop):
        place = first + head * model.head_dim * 4
        gain = vectors[Q_NORM] if head < model.heads else vectors[K_NORM]
        if gain:
            norm(place, gain, model.head_dim, constants, place)
        rotate(place, cos, sin, half)


@compiled
def turn_head(model, vectors, layer, step, row, first, head, slot, constants):
    """What lies between the projections and the attention of one key head of a row, whose queries,
    keys and values lie at `first`: norms, RoPE, and where they are read."""
    share = model.heads // model.kv_heads
    key = model.heads + head
    v = vectors[layer]
    _turn(model, v, step, row, first, head * share, (head + 1) * share, constants)
    _turn(model, v, step, row, first, key, key + 1, constants)
    store(model, layer, step, row, first, head, slot, constants)


@compiled
def before_rows(model, linears, vectors, layer, step, slots, first, last):
    """See before(); of the rows [first, last)."""
    constants = address(model) + MODEL_EPS
    m = model[0]
    s = step[0]
    v = vectors[layer]
    outputs = (m.heads + 2 * m.kv_heads) * m.head_dim
    for start in range(first, last, ROWS):
        count = min(ROWS, last - start)
        source = s.x + start * m.hidden * 4
        norm_rows(count, source, v[ATTENTION_NORM], m.hidden, constants, m.plain)
        apply(m, linears[layer, QKV], count, m.plain, m.wide, 0, constants)
        add_bias(v[QKV_BIAS], count, outputs, m.wide)
        for r in range(count):
            place = m.wide + r * outputs * 4
            row = start + r
            for head in range(m.kv_heads):
                turn_head(m, vectors, layer, s, row, place, head, slots[row], constants)


@compiled
def before(model, linears, vectors, layer, step, slots):
    """Norm, query, key and value projections, RoPE, and the writing of keys and values; slots int64
    [rows]."""
    before_rows(model, linears, vectors, layer, step, slots, 0, step[0].rows)


@compiled
def attend_part(model, layer, step, span, part, head, most, pages, scratch, out, lse):
    """Attention of at most `most` rows of a span, from its row `part` on, for one key head; out and
    lse as in between()."""
    m = model[0]
    s = step[0]
    share = m.heads // m.kv_heads
    dims = m.head_dim
    size = 2 if m.bfloat else 4
    count = min(most, span[COUNT] - part)
    row = span[FIRST] + part
    skip = layer * m.layer_bytes + head * m.page_tokens * dims * size
    rows = slice(row, row + count)
    heads = slice(head * share, head * share + share)
    attend(
        m.tile_code,
        s.q + (head * s.rows + row) * share * dims * m.query_bytes,
        m.query_bytes,
        count,
        share,
        dims,
        m.bfloat,
        m.keys + skip,
        m.values + skip,
        m.kv_heads * m.page_tokens * dims * size,
        m.page_tokens // TILE,
        pages[span[TABLE] :],
        span[CACHED] + part * span[WRITES],
        span[WRITES],
        scratch,
        out[rows, heads],
        lse[rows, heads],
    )


@compiled
def between(model, layer, step, spans, pages, scratch, out, lse):
    """Attention of all spans: out float32 [rows, heads, head_dim], lse float32 [rows, heads]."""
    for span in spans:
        for part in range(0, span[COUNT], BLOCK_TOKENS):
            for head in range(model[0].kv_heads):
                attend_part(
                    model,
                    layer,
                    step,
                    span,
                    part,
                    head,
                    BLOCK_TOKENS,
                    pages,
                    scratch,
                    out,
                    lse,
                )


@compiled
def project(model, linears, vectors, experts, layer, step, start, count, out, add):
    """out = (out +) the output projection of `count` rows from `start` on; out: their address."""
    constants = address(model) + MODEL_EPS
    m = model[0]
    wide = m.heads * m.head_dim
    bias = vectors[layer, OUT_BIAS]
    for first in range(0, count, ROWS):
        rows = min(ROWS, count - first)
        source = step[0].out + (start + first) * wide * 4
        place = out + first * m.hidden * 4
        apply(m, linears[layer, OUT], rows, source, place, add, constants)
        add_bias(bias, rows, m.hidden, place)


@compiled
def _mlp(m, linears, v, count, out, add, constants):
    """out = (out +) the gated MLP of the normed rows in `plain`."""
    apply(m, linears[GATE_UP], count, m.plain, m.wide, 0, constants)
    add_bias(v[GATE_UP_BIAS], count, 2 * m.intermediate, m.wide)
    for r in range(count):
        gate = m.wide + r * 2 * m.intermediate * 4
        silu_mul(
            gate,
            gate + m.intermediate * 4,
            m.intermediate,
            m.plain + r * m.intermediate * 4,
        )
    apply(m, linears[DOWN], count, m.plain, out, add, constants)
    add_bias(v[DOWN_BIAS], count, m.hidden, out)


@compiled
def feed(model, linears, vectors, experts, layer, step, start, count, out, add):
    """out = (out +) the gated MLP or the experts of `count` rows of the residual stream from
    `start` on.

    experts: tables of the routers and of the experts, and room for a step's rows: normed, ratings,
    numbers of experts and their weights (see experts.py).
    """
    routers, table, normed, ratings, numbers, weights = experts
    constants = address(model) + MODEL_EPS
    m = model[0]
    v = vectors[layer]
    for first in range(0, count, ROWS):
        rows = min(ROWS, count - first)
        source = step[0].x + (start + first) * m.hidden * 4
        place = (
            address(normed) + (start + first) * m.hidden * 4 if m.experts else m.plain
        )
        norm_rows(rows, source, v[MLP_NORM], m.hidden, constants, place)
        if m.experts:
            rated = address(ratings) + (start + first) * ratings.shape[1] * 4
            apply(m, routers[layer], rows, place, rated, 0, constants)
        else:
            _mlp(m, linears[layer], v, rows, out + first * m.hidden * 4, add, constants)
    if m.experts:
        mine = slice(start, start + count)
        choose(m, ratings[mine], numbers[mine], weights[mine])
        if not add:
            clear(out, count * m.hidden)
        mix(m, table[layer], normed[mine], numbers[mine], weights[mine], out, constants)


@compiled
def after_rows(model, linears, vectors, experts, layer, step, start, count):
    """See after(); of `count` rows from `start` on."""
    x = step[0].x + start * model[0].hidden * 4
    project(model, linears, vectors, experts, layer, step, start, count, x, 1)
    feed(model, linears, vectors, experts, layer, step, start, count, x, 1)


@compiled
def after(model, linears, vectors, experts, layer, step):
    """Output projection and gated MLP or experts, both added to the residual stream."""
    rows = step[0].rows
    # an expert is read once for all its rows
    block = max(ROWS, rows) if model[0].experts else ROWS
    for start in range(0, rows, block):
        count = min(block, rows - start)
        after_rows(model, linears, vectors, experts, layer, step, start, count)


@compiled
def layers(
    model, linears, vectors, experts, step, slots, spans, pages, scratch, out, lse
):
    """All layers of a stage, where no span is shared between KV groups."""
    for layer in range(len(linears)):
        before(model, linears, vectors, layer, step, slots)
        between(model, layer, step, spans, pages, scratch, out, lse)
        after(model, linears, vectors, experts, layer, step)


@compiled
def head(model, parts, gain, rows, x, out):
    """Final norm and LM head of chosen rows: x float32 [rows, hidden] and out [rows, vocabulary] by
    address."""
    constants = address(model) + MODEL_EPS
    m = model[0]
    for start in range(0, rows, ROWS):
        count = min(ROWS, rows - start)
        norm_rows(count, x + start * m.hidden * 4, gain, m.hidden, constants, m.plain)
        apply(m, parts, count, m.plain, out + start * width(parts) * 4, 0, constants)
