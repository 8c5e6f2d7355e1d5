"""What lies between the matrix products of a layer, as Triton kernels: one launch each.

They compute in float32 whatever they read, and round once, where they store.
"""

# ruff: noqa: ANN001, ANN201, ANN202  (kernels take pointers, integers and constants)
from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from medha_actors.model.cuda.launch import Launcher

_HEADS_AT_ONCE: Final = 8
_COLUMNS: Final = 1024  # of a gated MLP, or of an embedding, that one program does


@triton.jit(do_not_specialize=["eps"])
def add_norm_kernel(
    x, delta, weight, summed, normed, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    ADDS: tl.constexpr,
):  # fmt: skip
    """A program for each row: summed = x + delta (if ADDS); normed = summed / rms(summed) *
    weight."""
    row = tl.program_id(0).to(tl.int64) * WIDTH
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    values = tl.load(x + row + columns, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        values += tl.load(delta + row + columns, mask=inside, other=0.0).to(tl.float32)
        rounded = values.to(summed.dtype.element_ty)
        tl.store(summed + row + columns, rounded, mask=inside)
        values = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 0) / WIDTH + eps)
    weights = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    result = values * scale * weights
    tl.store(normed + row + columns, result.to(normed.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["scale", "rows"])
def turns_kernel(
    positions, frequencies, turns, rows, scale, HALF: tl.constexpr, BLOCK: tl.constexpr
):
    """A program for each row: turns [2, rows, HALF] float32, the cosines and sines of position *
    frequency, times scale."""
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < HALF
    position = tl.load(positions + row).to(tl.float32)
    angles = position * tl.load(frequencies + columns, mask=inside, other=0.0)
    place = turns + row.to(tl.int64) * HALF + columns
    tl.store(place, tl.cos(angles) * scale, mask=inside)
    tl.store(place + rows.to(tl.int64) * HALF, tl.sin(angles) * scale, mask=inside)


@triton.jit
def _weights(norm, columns, inside):
    """Weights of an RMSNorm, as a row: float32 [1, BLOCK]."""
    return tl.load(norm + columns, mask=inside, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _normed(
    left, right, heads, is_value, q_norm, k_norm, eps, columns, HEADS: tl.constexpr,
    HALF: tl.constexpr,
):  # fmt: skip
    """Both halves of heads [AT_ONCE, BLOCK], queries and keys normalised, values as they are."""
    narrow = columns < HALF
    squares = tl.sum(left * left, 1) + tl.sum(right * right, 1)
    scale = tl.rsqrt(squares / (2 * HALF) + eps)[:, None]
    q_left = _weights(q_norm, columns, narrow)
    q_right = _weights(q_norm + HALF, columns, narrow)
    k_left = _weights(k_norm, columns, narrow)
    k_right = _weights(k_norm + HALF, columns, narrow)
    is_query = (heads < HEADS)[:, None]
    left = tl.where(is_value, left, left * scale * tl.where(is_query, q_left, k_left))
    right = tl.where(
        is_value, right, right * scale * tl.where(is_query, q_right, k_right)
    )
    return left, right


@triton.jit
def _places_in_pool(
    slot, heads, KV: tl.constexpr, PAGE: tl.constexpr, HEAD: tl.constexpr,
    TOKEN: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
):  # fmt: skip
    """Where the keys and values among `heads` lie in the pool, of the token of a slot: int64
    [AT_ONCE]."""
    page = (slot // PAGE_TOKENS).to(tl.int64)
    token = slot % PAGE_TOKENS
    is_second = (heads >= HEADS + KV_HEADS).to(tl.int64)
    kv_head = heads - HEADS - is_second * KV_HEADS
    return is_second * KV + page * PAGE + kv_head * HEAD + token * TOKEN


@triton.jit(do_not_specialize=["eps", "rows"])
def store_heads_kernel(
    qkv, turns, slots, pool, q_norm, k_norm, rows, eps, KV: tl.constexpr, PAGE: tl.constexpr,
    HEAD: tl.constexpr, TOKEN: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    HALF: tl.constexpr, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr, PAGE_TOKENS: tl.constexpr,
    NORMS: tl.constexpr,
):  # fmt: skip
    """A program for AT_ONCE heads of a row of qkv [rows, (HEADS + 2 * KV_HEADS) * 2 * HALF].

    Queries are normalised (if NORMS) and turned in place; keys too, but go to the row's slot of
    the pool (of the strides KV, PAGE, HEAD and TOKEN), as values do as they are. A row with the
    slot -1 stores neither.
    """
    row = tl.program_id(0)
    heads = tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE)
    columns = tl.arange(0, BLOCK)
    every = HEADS + 2 * KV_HEADS
    inside = (heads < every)[:, None] & (columns < HALF)[None, :]
    first = row.to(tl.int64) * (every * 2 * HALF)
    place = qkv + first + heads[:, None] * (2 * HALF) + columns[None, :]
    left = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(place + HALF, mask=inside, other=0.0).to(tl.float32)
    is_value = (heads >= HEADS + KV_HEADS)[:, None]
    if NORMS:
        left, right = _normed(
            left, right, heads, is_value, q_norm, k_norm, eps, columns, HEADS, HALF
        )
    narrow = columns < HALF
    angle = turns + row.to(tl.int64) * HALF + columns
    cos = tl.load(angle, mask=narrow, other=1.0)[None, :]
    sin = tl.load(angle + rows.to(tl.int64) * HALF, mask=narrow, other=0.0)[None, :]
    new_left = tl.where(is_value, left, left * cos - right * sin)
    new_right = tl.where(is_value, right, right * cos + left * sin)
    new_left = new_left.to(qkv.dtype.element_ty)
    new_right = new_right.to(qkv.dtype.element_ty)
    queries = inside & (heads < HEADS)[:, None]
    tl.store(place, new_left, mask=queries)
    tl.store(place + HALF, new_right, mask=queries)
    slot = tl.load(slots + row)
    there = _places_in_pool(
        slot, heads, KV, PAGE, HEAD, TOKEN, HEADS, KV_HEADS, PAGE_TOKENS
    )
    stop = tl.where(slot >= 0, every, HEADS)
    kept = inside & ((heads >= HEADS) & (heads < stop))[:, None]
    into = pool + there[:, None] + columns[None, :]
    tl.store(into, new_left, mask=kept)
    tl.store(into + HALF, new_right, mask=kept)


@triton.jit
def gated_kernel(gate_up, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """A program for a row and BLOCK columns: out [rows, WIDTH] = silu(gate) * up, of gate_up
    [rows, 2 * WIDTH]."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    place = gate_up + row * (2 * WIDTH) + columns
    gate = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(place + WIDTH, mask=inside, other=0.0).to(tl.float32)
    result = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * WIDTH + columns, result.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["first", "tokens"])
def embed_kernel(
    table, token_ids, out, first, tokens, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """A program for a row and BLOCK columns: its token's row of the table, which has those of
    `tokens` tokens from `first` on; zeros for all others."""
    row = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    place = tl.load(token_ids + row) - first
    there = tl.where(place >= 0, tl.where(place < tokens, WIDTH, 0), 0)
    row_of_table = table + place.to(tl.int64) * WIDTH
    values = tl.load(row_of_table + columns, mask=columns < there, other=0.0)
    tl.store(out + row.to(tl.int64) * WIDTH + columns, values, mask=inside)


_ADD_NORM: Final = [
    Launcher(add_norm_kernel, num_warps=warps) for warps in (1, 2, 4, 8, 16)
]
_TURNS: Final = Launcher(turns_kernel, num_warps=1)
_STORE_HEADS: Final = Launcher(store_heads_kernel, num_warps=2)
_GATED: Final = Launcher(gated_kernel, num_warps=4)
_EMBED: Final = Launcher(embed_kernel, num_warps=4)


def add_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """x + delta (x itself where there is no delta) and its RMSNorm, each [rows, width]."""
    rows, width = x.shape
    normed = torch.empty_like(x)
    summed = x if delta is None else torch.empty_like(x)
    if rows:
        block = _power(width)
        launch = _ADD_NORM[min(4, max(0, (block // 512).bit_length() - 1))]
        tensors = (x, x if delta is None else delta, weight, summed, normed)
        launch((rows, 1, 1), tensors, (eps,), (width, block, delta is not None))
    return summed, normed


def turns_of(positions: Tensor, frequencies: Tensor, scale: float) -> Tensor:
    """Positions int32 [rows], frequencies float32 [half] -> float32 [2, rows, half]: cosines and
    sines."""
    rows = len(positions)
    half = len(frequencies)
    turns = torch.empty(2, rows, half, dtype=torch.float32, device=positions.device)
    if rows:
        tensors = (positions, frequencies, turns)
        _TURNS((rows, 1, 1), tensors, (rows, scale), (half, _power(half)))
    return turns


def store_heads(
    qkv: Tensor,
    turns: Tensor,
    slots: Tensor,
    pool: Tensor,
    heads: int,
    norms: tuple[Tensor, Tensor, float] | None,
) -> None:
    """Turn (and before it normalise: weights of queries and keys, epsilon) the queries of qkv
    [rows, heads + 2 * kv_heads, head_dim] in place, and store keys and values in a layer's pool [2,
    pages, kv_heads, page_tokens, head_dim] at the rows' slots."""
    rows, every, head_dim = qkv.shape
    if not rows:
        return
    q_norm, k_norm, eps = norms or (qkv, qkv, 0.0)
    half = head_dim // 2
    kv_heads = (every - heads) // 2
    grid = (rows, -(-every // _HEADS_AT_ONCE), 1)
    sizes = (heads, kv_heads, half, _power(half), _HEADS_AT_ONCE, pool.shape[3])
    constants = (*pool.stride()[:4], *sizes, norms is not None)
    _STORE_HEADS(
        grid, (qkv, turns, slots, pool, q_norm, k_norm), (rows, eps), constants
    )


def gated(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of [rows, 2 * width] -> [rows, width]."""
    rows, both = gate_up.shape
    width = both // 2
    out = gate_up.new_empty(rows, width)
    if rows:
        _GATED((rows, -(-width // _COLUMNS), 1), (gate_up, out), (), (width, _COLUMNS))
    return out


def embed(table: Tensor, token_ids: Tensor, first: int) -> Tensor:
    """Rows of a table [tokens, width] for int32 [rows]; zeros for tokens outside [first, first +
    tokens)."""
    tokens, width = table.shape
    rows = len(token_ids)
    out = table.new_empty(rows, width)
    if rows:
        grid = (rows, -(-width // _COLUMNS), 1)
        _EMBED(grid, (table, token_ids, out), (first, tokens), (width, _COLUMNS))
    return out


def _power(size: int) -> int:
    """The next power of 2."""
    return 1 << (size - 1).bit_length()
