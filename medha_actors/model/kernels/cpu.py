"""Transformer layers and LM head on the CPU, run by the kernels of layers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from medha_actors.model.kernels import layers as code
from medha_actors.model.kernels.attention import BLOCK_TOKENS, STATE_EXTRA, TILE, tile_address
from medha_actors.model.kernels.dot import FORM
from medha_actors.model.kernels.pack import Packed, aligned

Merge = Callable[[Tensor, Tensor], None]


def native() -> bool:
    """Whether this machine has the instructions that the kernels are made for (they are right, but
    slow, elsewhere)."""
    return FORM != "plain"


def fits(head_dim: int, page_tokens: int, hidden: int, intermediate: int) -> bool:
    """Whether the kernels can take a model of these dimensions with pages of this size."""
    return (
        head_dim % 16 == 0
        and page_tokens % TILE == 0
        and hidden % 32 == 0
        and intermediate % 32 == 0
    )


class Dimensions(NamedTuple):
    """Of one stage; eps is the norms'."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float


class LayerWeights(NamedTuple):
    """One layer: packed matrices and float32 vectors (None where the model has none)."""

    qkv: Packed
    out: Packed
    gate_up: Packed
    down: Packed
    attention_norm: Tensor
    mlp_norm: Tensor
    qkv_bias: Tensor | None = None
    out_bias: Tensor | None = None
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None


class SpanRows(NamedTuple):
    """Rows of a step that belong to one request, and the keys they may see in this group's pool."""

    first: int
    rows: int
    cached: int  # tokens in the piece before the span
    writes: bool  # the span's own keys are stored behind them
    pages: Sequence[int]


class CpuLayers:
    """The layers of a stage with their KV cache: pages * page_tokens tokens a layer, bfloat16 or
    float32.

    The pool's layout is attention.py's; memory is taken when a page is first written.
    """

    def __init__(
        self,
        shape: Dimensions,
        weights: Sequence[LayerWeights],
        pages: int,
        page_tokens: int,
        bfloat: bool,
    ) -> None:
        self.shape = shape
        self.weights = _together(weights)
        self.page_tokens = page_tokens
        layer_bytes = pages * page_tokens * shape.kv_heads * shape.head_dim * (2 if bfloat else 4)
        self.keys = aligned(layer_bytes * len(self.weights), np.uint8)
        self.values = aligned(layer_bytes * len(self.weights), np.uint8)
        self.linears = np.array(
            [[matrix.row() for matrix in layer[:4]] for layer in self.weights], np.int64
        ).reshape(-1, 4, 5)
        self.vectors = np.array(
            [
                [0 if vector is None else vector.data_ptr() for vector in layer[4:]]
                for layer in self.weights
            ],
            np.int64,
        ).reshape(-1, 8)
        self._allocate(bfloat, layer_bytes)

    def _allocate(self, bfloat: bool, layer_bytes: int) -> None:
        s = self.shape
        widest = max(s.hidden, s.intermediate, s.heads * s.head_dim)
        out = max(2 * s.intermediate, (s.heads + 2 * s.kv_heads) * s.head_dim)
        self.buffers = [
            aligned(code.ROWS * n, np.float32) for n in (widest, widest, widest // 16, out)
        ]
        share = s.heads // s.kv_heads
        states = aligned(BLOCK_TOKENS * share * (s.head_dim + STATE_EXTRA), np.float32)
        self.scratch = (
            states.reshape(-1, s.head_dim + STATE_EXTRA),
            np.zeros(BLOCK_TOKENS * share, np.int64),
            aligned(6 * TILE, np.float32),
        )
        self.model = np.zeros(1, code.MODEL)
        numbers = (
            s.hidden,
            s.intermediate,
            s.heads,
            s.kv_heads,
            s.head_dim,
            self.page_tokens,
            tile_address(bfloat),
            int(bfloat),
        )
        addresses = (self.keys.ctypes.data, self.values.ctypes.data, layer_bytes)
        scratch = tuple(buffer.ctypes.data for buffer in self.buffers)
        self.model[0] = (
            *numbers,
            *addresses,
            *scratch,
            s.eps,
            math.log2(math.e) / math.sqrt(s.head_dim),
            1.0,
        )

    def step(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        spans: Sequence[SpanRows],
        merge: Merge | None = None,
    ) -> None:
        """Run all layers on x, float32 [rows, hidden], in place.

        cos, sin: float32 [rows, head_dim / 2]. merge(out, lse), if given, is called in every layer
        with the attention over this group's pieces, float32 [rows, heads, head_dim] and [rows,
        heads] (-inf: nothing seen), and replaces rows of `out` by what they are over all groups.
        """
        s = self.shape
        rows = len(x)
        q = aligned(rows * s.heads * s.head_dim, np.float32)
        out = aligned(rows * s.heads * s.head_dim, np.float32).reshape(rows, s.heads, s.head_dim)
        lse = np.empty((rows, s.heads), np.float32)
        table, pages, slots = self._tables(rows, spans)
        step = np.zeros(1, code.STEP)
        step[0] = (
            rows,
            x.data_ptr(),
            q.ctypes.data,
            out.ctypes.data,
            cos.data_ptr(),
            sin.data_ptr(),
        )
        if merge is None:
            code.layers(
                self.model,
                self.linears,
                self.vectors,
                step,
                slots,
                table,
                pages,
                self.scratch,
                out,
                lse,
            )
            return
        for layer in range(len(self.weights)):
            code.before(self.model, self.linears, self.vectors, layer, step, slots)
            code.between(self.model, layer, step, table, pages, self.scratch, out, lse)
            merge(torch.from_numpy(out), torch.from_numpy(lse))
            code.after(self.model, self.linears, self.vectors, layer, step)

    def _tables(
        self, rows: int, spans: Sequence[SpanRows]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The step's spans, page numbers and the slot (page * page_tokens + offset, or -1) of each
        row."""
        table = np.zeros((len(spans), 5), np.int64)
        slots = np.full(rows, -1, np.int64)
        pages = []
        start = 0
        for number, span in enumerate(spans):
            held = np.asarray(span.pages, np.int32)
            table[number] = (span.first, span.rows, span.cached, span.writes, start)
            pages.append(held)
            start += len(held)
            if span.writes:
                places = np.arange(span.cached, span.cached + span.rows)
                slots[span.first : span.first + span.rows] = (
                    held[places // self.page_tokens].astype(np.int64) * self.page_tokens
                    + places % self.page_tokens
                )
        return table, np.concatenate(pages) if pages else np.zeros(1, np.int32), slots

    def logits(self, x: Tensor, norm: Tensor, matrix: Packed) -> Tensor:
        """Final norm and LM head: x float32 [rows, hidden] -> float32 [rows, vocabulary]."""
        out = torch.empty(len(x), matrix.outputs)
        linear = np.array(matrix.row(), np.int64)
        code.head(self.model, linear, norm.data_ptr(), len(x), x.data_ptr(), out.data_ptr())
        return out


def _together(weights: Sequence[LayerWeights]) -> list[LayerWeights]:
    """Move all matrices into one block of memory, which the system maps with huge pages."""
    matrices = list(itertools.chain.from_iterable([layer[:4] for layer in weights]))
    store = aligned(sum(matrix.data.size for matrix in matrices), np.uint8)
    moved = []
    start = 0
    for layer in weights:
        mine = []
        for matrix in layer[:4]:
            place = store[start : start + matrix.data.size].reshape(matrix.data.shape)
            place[...] = matrix.data
            mine.append(matrix._replace(data=place))
            start += place.size
        moved.append(LayerWeights(*mine, *layer[4:]))
    return moved
