"""The layers of a stage by several threads of its process (threads.py), to the same bits as by one.

A few rows: the threads share the columns of every matrix, so each reads a part of the weights, and
in the attention the key heads of each span. Many rows: they share the rows, and meet twice a layer,
before and after the attention. A thread has a `model` record of its own, whose scratch is its own.

A call returns False when others keep this thread waiting, and goes on when it is made again: what
is done is told by the phases' counters alone.
"""

# ruff: noqa: ANN001, ANN201, ANN202  (compiled functions take integers, records and arrays)
from __future__ import annotations

from medha_actors.model.kernels.glue import plus, silu_mul
from medha_actors.model.kernels.ir import address, compiled
from medha_actors.model.kernels.layers import (
    ATTENTION_NORM,
    COUNT,
    DOWN,
    DOWN_BIAS,
    FIRST,
    GATE_UP,
    GATE_UP_BIAS,
    MLP_NORM,
    MODEL_EPS,
    OUT,
    OUT_BIAS,
    QKV,
    QKV_BIAS,
    after_rows,
    attend_part,
    before_rows,
    norm_rows,
    turn_head,
)
from medha_actors.model.kernels.products import ROWS, apply_columns, width
from medha_actors.model.kernels.threads import all_done, done, take

FEW_PHASES = 5  # of a layer
MANY_PHASES = 2  # of a layer; and one before the first


@compiled
def _plus_columns(bias, rows, first, last, out, out_row):
    if bias:
        for r in range(rows):
            plus(out + r * out_row + first * 64, bias + first * 64, (last - first) * 16)


@compiled
def _product(
    m, parts, rows, x, gain, bias, out, add, pieces, phases, phase, spins, constants
):
    """Pieces of out = (out +) norm(x) W^T + bias for a few rows (gain 0: of x as it is), then the
    wait for all; False: it takes long."""
    columns = width(parts) // 16
    source = m.plain if gain else x
    begun = False
    ready = -1
    while True:
        piece = take(phases, phase, pieces)
        if piece < 0:
            return all_done(phases, phase, pieces, spins)
        if gain and not begun:
            norm_rows(rows, x, gain, m.hidden, constants, source)
            begun = True
        first = columns * piece // pieces
        last = columns * (piece + 1) // pieces
        out_row = columns * 64
        ready = apply_columns(
            m, parts, rows, source, out, out_row, first, last, add, ready, constants
        )
        _plus_columns(bias, rows, first, last, out, out_row)
        done(phases, phase)


@compiled
def _gate_up(
    m, parts, rows, x, gain, bias, wide, out, pieces, phases, phase, spins, constants
):
    """The same of the gated product that down takes: a gate's columns go with those of its up."""
    half = m.intermediate // 16
    wide_row = half * 128
    ready = -1
    while True:
        piece = take(phases, phase, pieces)
        if piece < 0:
            return all_done(phases, phase, pieces, spins)
        if ready < 0:
            norm_rows(rows, x, gain, m.hidden, constants, m.plain)
        first = half * piece // pieces
        last = half * (piece + 1) // pieces
        for start in (first, half + first):
            stop = start + last - first
            ready = apply_columns(
                m,
                parts,
                rows,
                m.plain,
                wide,
                wide_row,
                start,
                stop,
                0,
                ready,
                constants,
            )
            _plus_columns(bias, rows, start, stop, wide, wide_row)
        for r in range(rows):
            gate = wide + r * wide_row + first * 64
            place = out + r * half * 64 + first * 64
            silu_mul(gate, gate + half * 64, (last - first) * 16, place)
        done(phases, phase)


@compiled
def _parts_of(spans, part_rows):
    """In how many parts the spans' rows attend."""
    parts = 0
    for span in spans:
        parts += -(-span[COUNT] // part_rows)
    return parts


@compiled
def _part(spans, number, part_rows):
    """A part's span, and its first row there; the last parts come first, which see most."""
    left = number
    for which in range(len(spans) - 1, -1, -1):
        parts = -(-spans[which, COUNT] // part_rows)
        if left < parts:
            return which, (parts - 1 - left) * part_rows
        left -= parts
    return -1, 0


@compiled
def _turn_span(model, vectors, layer, step, slots, span, head, projected):
    """What comes before the attention of a span's rows, for one key head; `projected`: address of
    all rows' queries, keys and values."""
    m = model[0]
    constants = address(model) + MODEL_EPS
    outputs = (m.heads + 2 * m.kv_heads) * m.head_dim
    for row in range(span[FIRST], span[FIRST] + span[COUNT]):
        place = projected + row * outputs * 4
        turn_head(m, vectors, layer, step[0], row, place, head, slots[row], constants)


@compiled
def _attend(
    model, vectors, layer, step, slots, spans, pages, scratch, out, lse, projected,
    part_rows, pieces, phases, phase, spins,
):  # fmt: skip
    """The same of the attention: a part of a span, at most `part_rows` of it, by a key head.
    `projected`: see _turn_span; 0: that has been done."""
    heads = model[0].kv_heads
    while True:
        piece = take(phases, phase, pieces)
        if piece < 0:
            return all_done(phases, phase, pieces, spins)
        which, part = _part(spans, piece // heads, part_rows)
        head = piece % heads
        span = spans[which]
        if projected:
            _turn_span(model, vectors, layer, step, slots, span, head, projected)
        attend_part(
            model, layer, step, span, part, head, part_rows, pages, scratch, out, lse
        )
        done(phases, phase)


@compiled
def few_rows(
    model, linears, vectors, step, slots, spans, pages, scratch, out, lse, part_rows, wide,
    gated, pieces, phases, spins,
):  # fmt: skip
    """All layers of a dense model for at most ROWS rows, no span of more than `part_rows`: who
    attends for a span turns its queries and keys before, once. `wide`, `gated`: addresses of room
    for these rows' widest outputs and for what down takes; pieces: of a matrix."""
    m = model[0]
    constants = address(model) + MODEL_EPS
    rows = step[0].rows
    x = step[0].x
    attended = step[0].out
    heads = _parts_of(spans, part_rows) * m.kv_heads
    for layer in range(len(linears)):
        v = vectors[layer]
        w = linears[layer]
        phase = layer * FEW_PHASES
        if not _product(
            m, w[QKV], rows, x, v[ATTENTION_NORM], v[QKV_BIAS], wide, 0,
            pieces, phases, phase, spins, constants,
        ):  # fmt: skip
            return False
        if not _attend(
            model, vectors, layer, step, slots, spans, pages, scratch, out, lse, wide,
            part_rows, heads, phases, phase + 1, spins,
        ):  # fmt: skip
            return False
        if not _product(
            m, w[OUT], rows, attended, 0, v[OUT_BIAS], x, 1,
            pieces, phases, phase + 2, spins, constants,
        ):  # fmt: skip
            return False
        if not _gate_up(
            m, w[GATE_UP], rows, x, v[MLP_NORM], v[GATE_UP_BIAS], wide, gated,
            pieces, phases, phase + 3, spins, constants,
        ):  # fmt: skip
            return False
        if not _product(
            m, w[DOWN], rows, gated, 0, v[DOWN_BIAS], x, 1,
            pieces, phases, phase + 4, spins, constants,
        ):  # fmt: skip
            return False
    return True


@compiled
def many_rows(
    model, linears, vectors, experts, step, slots, spans, pages, scratch, out, lse,
    part_rows, block, phases, spins,
):  # fmt: skip
    """All layers, `block` rows at a time, and `part_rows` of a span in the attention."""
    rows = step[0].rows
    blocks = -(-rows // block)
    heads = _parts_of(spans, part_rows) * model[0].kv_heads
    for layer in range(len(linears) + 1):
        phase = layer * MANY_PHASES
        while True:
            piece = take(phases, phase, blocks)
            if piece < 0:
                break
            start = piece * block
            count = min(block, rows - start)
            if layer > 0:
                after_rows(
                    model, linears, vectors, experts, layer - 1, step, start, count
                )
            if layer < len(linears):
                stop = start + count
                before_rows(model, linears, vectors, layer, step, slots, start, stop)
            done(phases, phase)
        if not all_done(phases, phase, blocks, spins):
            return False
        if layer < len(linears) and not _attend(
            model, vectors, layer, step, slots, spans, pages, scratch, out, lse, 0,
            part_rows, heads, phases, phase + 1, spins,
        ):  # fmt: skip
            return False
    return True


@compiled
def head_by_columns(model, parts, gain, rows, x, out, pieces, phases, spins):
    """See layers.head(); a phase for each ROWS rows."""
    m = model[0]
    constants = address(model) + MODEL_EPS
    out_row = width(parts) * 4
    for start in range(0, rows, ROWS):
        count = min(ROWS, rows - start)
        phase = start // ROWS
        source = x + start * m.hidden * 4
        place = out + start * out_row
        if not _product(
            m, parts, count, source, gain, 0, place, 0,
            pieces, phases, phase, spins, constants,
        ):  # fmt: skip
            return False
    return True
