"""Transformer layers and LM head on the CPU, run by the kernels of layers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medha_actors.model.kernels import layers as code
from medha_actors.model.kernels.attention import (
    BLOCK_TOKENS,
    SPARE_ROWS,
    form_of,
    scratch_of,
    tile_address,
)
from medha_actors.model.kernels.attention_tile import TILE, weight_bytes
from medha_actors.model.kernels.counters import SPINS
from medha_actors.model.kernels.dot import FORM
from medha_actors.model.kernels.layouts import LANES
from medha_actors.model.kernels.pack import Packed, Stack, aligned
from medha_actors.model.kernels.products import FIELDS, PARTS, ROWS
from medha_actors.model.kernels.shared_layers import after_shared, layers_shared
from medha_actors.model.kernels.shared_team import SharedTeam
from medha_actors.model.kernels.threads import ONE_THREAD, Threads
from medha_actors.model.kernels.together import Together
from medha_actors.model.merge import Exchange, merge_shared
from medha_actors.model.step_plan import StepPlan
from medha_actors.model.team import Team
from medha_actors.model_spec import Experts


def native() -> bool:
    """Whether this machine has the instructions that the kernels are made for (they are right, but
    slow, elsewhere)."""
    return FORM != "plain"


def fits(head_dim: int, page_tokens: int, widths: Sequence[int]) -> bool:
    """Whether the kernels can take a model whose matrices have so many inputs, with pages of this
    size."""
    return (
        head_dim % 16 == 0
        and page_tokens % TILE == 0
        and not any(width % 32 for width in widths)
    )


class Dimensions(NamedTuple):
    """Of one stage; eps is the norms'."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    experts: Experts | None = None


class ExpertWeights(NamedTuple):
    """Of one layer; a shared expert is the last, and its gate the router's last output."""

    router: Stack  # outputs filled up to a multiple of 16
    mlps: Sequence[tuple[Stack, Stack]]  # gate and up side by side, down


class LayerWeights(NamedTuple):
    """One layer: packed matrices and float32 vectors (None where the model has none)."""

    qkv: Stack
    out: Stack
    gate_up: Stack  # no parts where there are experts
    down: Stack
    attention_norm: Tensor
    mlp_norm: Tensor
    qkv_bias: Tensor | None = None
    out_bias: Tensor | None = None
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    experts: ExpertWeights | None = None


class CpuLayers:
    """The layers of a stage with their KV cache: pages * page_tokens tokens a layer, of 16 bits
    (`bfloat`: bfloat16, or where `form` is "integers" attention_rounding.py's) or float32.

    The pool's layout is attention.py's; memory is taken when a page is first written.
    """

    def __init__(
        self,
        shape: Dimensions,
        weights: Sequence[LayerWeights],
        pages: int,
        page_tokens: int,
        bfloat: bool,
        threads: Threads = ONE_THREAD,
    ) -> None:
        self.shape = shape
        self.weights = _together(weights)
        self.page_tokens = page_tokens
        self.form = form_of(bfloat, shape.head_dim)
        layer_bytes = (
            pages * page_tokens * shape.kv_heads * shape.head_dim * (2 if bfloat else 4)
        )
        self.keys = aligned(layer_bytes * len(self.weights), np.uint8)
        self.values = aligned(layer_bytes * len(self.weights), np.uint8)
        linears = []
        vectors = []
        for layer in self.weights:
            linears.append([_table(stack) for stack in layer[:4]])
            vectors.append([_address(vector) for vector in layer[4:12]])
        self.linears = np.array(linears, np.int64).reshape(-1, 4, PARTS, FIELDS)
        self.vectors = np.array(vectors, np.int64).reshape(-1, 8)
        self.routing = _Routing(shape, self.weights)
        self._head: tuple[Stack, NDArray[np.int64]] = ((), _table(()))  # the last one
        self._allocate(bfloat, layer_bytes, threads)

    def _allocate(self, bfloat: bool, layer_bytes: int, threads: Threads) -> None:
        s = self.shape
        shared = s.experts.shared if s.experts else 0
        widest = max(s.hidden, s.intermediate, shared, s.heads * s.head_dim)
        qkv = (s.heads + 2 * s.kv_heads) * s.head_dim
        out = max(2 * s.intermediate, 2 * shared, qkv, s.hidden)
        count = threads.count
        widths = (widest, widest, widest // 8, out)
        self.buffers = [
            [aligned(ROWS * floats, np.float32) for floats in widths]
            for _ in range(count)
        ]
        share = s.heads // s.kv_heads
        self.scratch = [
            scratch_of(BLOCK_TOKENS * share, s.head_dim) for _ in range(count)
        ]
        self.models = np.zeros(count, code.MODEL)
        self.model = self.models[:1]
        numbers = (
            s.hidden,
            s.intermediate,
            s.heads,
            s.kv_heads,
            s.head_dim,
            self.page_tokens,
            *self.routing.counts,
            tile_address(self.form),
            int(bfloat),
            int(self.form == "integers"),
            weight_bytes(self.form),
        )
        addresses = (self.keys.ctypes.data, self.values.ctypes.data, layer_bytes)
        constants = (s.eps, math.log2(math.e) / math.sqrt(s.head_dim), 1.0)
        for number, buffers in enumerate(self.buffers):
            scratch = tuple([buffer.ctypes.data for buffer in buffers])
            self.models[number] = (*numbers, *addresses, *scratch, *constants)
        self.together = Together(threads, self.models, self.scratch, out)
        self._kept = self._room(ROWS)

    def _room(self, rows: int) -> tuple[NDArray[np.float32], ...]:
        """For the queries of so many rows, and what their attention comes to."""
        s = self.shape
        q = aligned((rows * s.heads + SPARE_ROWS) * s.head_dim, np.float32)
        out = aligned(rows * s.heads * s.head_dim, np.float32)
        lse = np.empty((rows, s.heads), np.float32)
        return q, out.reshape(rows, s.heads, s.head_dim), lse

    def step(
        self,
        x: Tensor,
        turns: tuple[Tensor, Tensor],
        plan: StepPlan,
        exchange: Exchange | None,
        team: Team,
        threads: int = 1,
    ) -> None:
        """Run all layers on x, float32 [rows, hidden], in place, by so many threads.

        turns: cos and sin, each float32 [rows, head_dim / 2]. The exchange is used in every layer
        of a step with rows that several groups share, and in no other.
        """
        assert len(x) == plan.rows, "rows are read by their addresses"
        rows = plan.rows
        q, out, lse = self._kept if rows <= ROWS else self._room(rows)
        out = out[:rows]
        lse = lse[:rows]
        table, pages = _tables(plan)
        step = np.zeros(1, code.STEP)
        step[0] = (
            rows,
            x.data_ptr(),
            q.ctypes.data,
            out.ctypes.data,
            turns[0].data_ptr(),
            turns[1].data_ptr(),
        )
        made = (self.model, self.linears, self.vectors, self.routing.of_step(rows))
        attention = (table, pages, self.scratch[0], out, lse)
        if not plan.shared and team.ranks == 1:
            if threads == 1:
                code.layers(*made, step, plan.slots, *attention)
            else:
                self.together.layers(made, step, plan.slots, attention, threads)
            return
        if not plan.shared and isinstance(team, SharedTeam):
            rest = (x.numpy(), *_meetings(team), SPINS)
            team.run(lambda: layers_shared(*made, step, plan.slots, *attention, *rest))
            return
        partial = torch.from_numpy(out)
        partial_lse = torch.from_numpy(lse)
        for layer in range(len(self.weights)):
            code.before(self.model, self.linears, self.vectors, layer, step, plan.slots)
            code.between(self.model, layer, step, *attention)
            merge_shared(plan, exchange, partial, partial_lse)
            self._after(made, layer, step, x, team)

    def _after(
        self,
        made: tuple[Any, ...],
        layer: int,
        step: NDArray[np.void],
        x: Tensor,
        team: Team,
    ) -> None:
        """Output projection and gated MLP or experts of one layer, both added to x."""
        if team.ranks == 1:
            code.after(*made, layer, step)
        elif isinstance(team, SharedTeam):
            rest = (x.numpy(), *_meetings(team), SPINS)
            team.run(lambda: after_shared(*made, layer, step, *rest))
        else:
            part = torch.empty_like(x)
            for summand in (code.project, code.feed):
                summand(*made, layer, step, 0, len(x), part.data_ptr(), 0)
                x += team.total(part)

    def logits(self, x: Tensor, norm: Tensor, head: Stack, threads: int = 1) -> Tensor:
        """Final norm and LM head: x float32 [rows, hidden] -> float32 [rows, vocabulary]."""
        if self._head[0] is not head:
            self._head = head, _table(head)
        out = torch.empty(len(x), sum([matrix.outputs for matrix in head]))
        addresses = (norm.data_ptr(), len(x), x.data_ptr(), out.data_ptr())
        made = (self._head[1], *addresses)
        if threads == 1:
            code.head(self.model, *made)
        else:
            self.together.head(made, threads)
        return out


class _Routing:
    """What the kernels are given of the experts in all layers; for a dense model nothing of any
    size."""

    def __init__(self, shape: Dimensions, weights: Sequence[LayerWeights]) -> None:
        experts = shape.experts
        layers = [layer.experts for layer in weights if layer.experts is not None]
        self.hidden = shape.hidden
        self.counts = (0, 0, 0, 0)
        self.taken = 0
        self.rated = 0
        if experts is not None:
            shared = int(experts.shared > 0)
            self.counts = (experts.count, experts.used, int(experts.normalised), shared)
            self.taken = experts.used + shared
            self.rated = _padded(experts.count + shared)
        self.routers = np.array([_table(layer.router) for layer in layers], np.int64)
        self.routers = self.routers.reshape(-1, PARTS, FIELDS)
        mlps = itertools.chain.from_iterable([layer.mlps for layer in layers])
        stacks = [_table(stack) for stack in itertools.chain.from_iterable(mlps)]
        count = self.counts[0] + self.counts[3]
        self.table = np.array(stacks, np.int64).reshape(
            len(layers), count, 2, PARTS, FIELDS
        )

    def of_step(self, rows: int) -> tuple[np.ndarray, ...]:
        """See layers.feed()."""
        held = rows if self.taken else 0
        return (
            self.routers,
            self.table,
            aligned(held * self.hidden, np.float32).reshape(held, self.hidden),
            aligned(held * self.rated, np.float32).reshape(held, self.rated),
            np.empty((held, self.taken), np.int64),
            np.empty((held, self.taken), np.float32),
        )


def _padded(outputs: int) -> int:
    return -(-outputs // LANES) * LANES


def _meetings(team: SharedTeam) -> tuple[Any, ...]:
    """What the compiled layers need of a board: it, the number of the round, where they are."""
    board = team.board
    places = (team.rank, board.block_rows, board.floats, board.counters, board.buffers)
    return places, team.number, np.zeros(5, np.int64)


def _tables(plan: StepPlan) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The step's spans as the kernels read them, and their page numbers one behind the other."""
    table = np.empty((len(plan.spans), 5), np.int64)
    pages = []
    start = 0
    for number, span in enumerate(plan.spans):
        table[number] = (span.first, span.rows, span.cached, span.writes, start)
        pages.append(span.pages)
        start += len(span.pages)
    return table, np.concatenate(pages)


def _table(stack: Stack) -> NDArray[np.int64]:
    """A stack's rows for the table that the kernels read."""
    rows = np.zeros((PARTS, FIELDS), np.int64)
    for place, matrix in enumerate(stack):
        rows[place] = matrix.row()
    return rows


def _address(vector: Tensor | None) -> int:
    """Where a vector lies, 0 where the model has none."""
    return 0 if vector is None else vector.data_ptr()


def _together(weights: Sequence[LayerWeights]) -> list[LayerWeights]:
    """Move all matrices into one block of memory, which the system maps with huge pages."""
    stacks = itertools.chain.from_iterable([layer[:4] for layer in weights])
    sizes = [matrix.data.size for matrix in itertools.chain.from_iterable(stacks)]
    store = aligned(sum(sizes), np.uint8)
    start = 0

    def moved(matrix: Packed) -> Packed:
        nonlocal start
        place = store[start : start + matrix.data.size].reshape(matrix.data.shape)
        place[...] = matrix.data
        start += place.size
        return matrix._replace(data=place)

    found = []
    for layer in weights:
        qkv, out, gate_up, down = (tuple(map(moved, stack)) for stack in layer[:4])
        found.append(layer._replace(qkv=qkv, out=out, gate_up=gate_up, down=down))
    return found
