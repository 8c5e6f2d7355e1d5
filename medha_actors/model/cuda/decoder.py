"""The layers of a stage on CUDA: the host launches a step and waits for nothing in it."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor

from medha_actors.messages import Span
from medha_actors.model.cuda import fused
from medha_actors.model.cuda.graphs import ROWS, Capture, StepGraphs
from medha_actors.model.cuda.layers import CudaLayer, LayerStep, Merge, PagedAttention
from medha_actors.model.cuda.staging import Staging
from medha_actors.model.cuda.step import (
    DeviceStep,
    Ints,
    StepBuffer,
    arrays_of,
)
from medha_actors.model.kv_pool import KvPool
from medha_actors.model.layers import Embedding, Loader
from medha_actors.model.merge import Exchange, merge_shared
from medha_actors.model.rope import frequencies_of
from medha_actors.model.step_plan import StepPlan, plan_step
from medha_actors.model.team import ALONE, Team

_log = logging.getLogger("medha.model")

_STEP_INTS: Final = 1 << 20  # of a step's numbers to begin with: 4 MiB
_CLEARED: Final = 1 << 16  # pages that can be cleared at once
# of the steps that are run at start: a decode whose attention is cut, and a chunk
_CONTEXT: Final = 4096
_CHUNK: Final = 20


class CudaDecoder:
    """See decoder.Decoder. In the first stage it takes the ids of tokens in the place of hidden
    states."""

    embeds = True

    def __init__(
        self,
        loader: Loader,
        layers: tuple[int, int],
        head: bool,
        pages: int,
        page_tokens: int,
        embedding: Embedding | None,
        attention: PagedAttention,
        capture: Capture | None = None,
        graph_rows: Sequence[int] = ROWS,
    ) -> None:
        """`capture`: how steps are recorded, None: not at all; `graph_rows`: of how many rows."""
        spec = loader.spec
        self.device = loader.device
        self.dtype = loader.dtype
        self.attention = attention
        # for logs, and the key of what is measured
        self.name = f"cuda {attention.name}"
        self.table = None  # of the first stage: [tokens, hidden], from token `first` on
        if embedding is not None:
            assert embedding.kind is None, "tables are dequantised when they are loaded"
            self.table = embedding.table
            self.first = embedding.first or 0
        self.eps = spec.eps
        self.hidden = spec.hidden
        self.layers = [CudaLayer(loader, number) for number in range(*layers)]
        self.norm = loader.tensor("model.norm.weight") if head else None
        self.head = loader.head() if head else None
        frequencies, self.scale = frequencies_of(
            spec.rope, spec.head_dim, spec.max_positions
        )
        self.frequencies = frequencies.to(self.device)
        self.page_shape = (page_tokens, spec.kv_heads, spec.head_dim)
        self.buffer = StepBuffer(self.device, _STEP_INTS)
        self.cleared = Staging(self.device, _CLEARED, torch.int64)
        self.graphs: StepGraphs | None = None
        if capture is not None and spec.experts is None:
            hidden = None if embedding else (spec.hidden, self.dtype)
            self.graphs = StepGraphs(
                self.device, capture, self._alone, attention, hidden, graph_rows
            )
        self.resize(pages)

    def resize(self, pages: int) -> None:
        """Replace the KV cache by one of so many pages; graphs are taken anew by the next
        `prepare`."""
        if self.graphs is not None:
            self.graphs.drop()
        # its memory is free before the new one's is taken
        self._pool: KvPool | None = None
        self.pools: list[Tensor] = []
        pool = KvPool(
            len(self.layers), pages, *self.page_shape, self.device, self.dtype
        )
        self._pool = pool
        self.pools = list(pool.data)  # of each layer

    @property
    def pool(self) -> KvPool:
        assert self._pool is not None, "resize was interrupted"
        return self._pool

    def __call__(
        self, x: Tensor | Ints, plan: StepPlan, exchange: Exchange | None, team: Team
    ) -> Tensor:
        token_ids = x if isinstance(x, np.ndarray) else None
        hidden = None if isinstance(x, np.ndarray) else x
        arrays = arrays_of(plan, token_ids, self.attention.plan_work)
        if self.graphs is not None and team.ranks == 1 and not plan.shared:
            found = self.graphs.run(arrays, hidden)
            if found is not None:
                return found
        merge = partial(merge_shared, plan, exchange) if plan.shared else None
        return self._run(self.buffer.write(arrays), hidden, merge, team)

    def logits(self, x: Tensor) -> Tensor:
        assert self.norm is not None, "only the last stage has a head"
        assert self.head is not None
        _, normed = fused.add_norm(x.contiguous(), None, self.norm, self.eps)
        return self.head(normed).float()

    def clear(self, pages: Sequence[int]) -> None:
        for first in range(0, len(pages), _CLEARED):
            some = pages[first : first + _CLEARED]
            slab = self.cleared.slab()
            slab.array[: len(some)] = some
            numbers = self.cleared.there[: len(some)]
            slab.send(numbers)
            self.pool.data.index_fill_(2, numbers, 0)

    def fill(self, pages: int) -> None:
        self.pool.data[:, :, :pages].normal_()

    def cells(self) -> list[Tensor]:
        return [self.pool.data.flatten(0, 1).flatten(2)]

    def prepare(self) -> None:
        """Run what a step may need, so that no request waits for a compiler, and capture the graphs
        of decode steps: on the stream and in the thread that will run them."""
        room = self.pool.pages * self.pool.page_tokens
        for cached, rows in ((min(room, _CONTEXT) - 1, 1), (0, min(room, _CHUNK))):
            for merge in (None, _keep):
                self._run(*self._sample(cached, rows), merge, ALONE)
        if self.graphs is not None:
            self.graphs.prepare()

    def _sample(self, cached: int, rows: int) -> tuple[DeviceStep, Tensor | None]:
        """A step of one sequence in the first pages."""
        tokens = self.pool.page_tokens
        table = array("i", range(-(-(cached + rows) // tokens)))
        span = Span("sample", cached, cached + rows, b"", 0, cached, ())
        plan = plan_step([span], {span.request_id: table}, tokens)
        ids = np.zeros(rows, np.int32)
        step = self.buffer.write(arrays_of(plan, ids, self.attention.plan_work))
        if self.table is not None:
            return step, None
        return step, torch.zeros(
            rows, self.hidden, dtype=self.dtype, device=self.device
        )

    def _alone(self, step: DeviceStep, hidden: Tensor | None) -> Tensor:
        return self._run(step, hidden, None, ALONE)

    def _run(
        self, step: DeviceStep, hidden: Tensor | None, merge: Merge | None, team: Team
    ) -> Tensor:
        x = self._embed(step.token_ids, team) if hidden is None else hidden.contiguous()
        turns = fused.turns_of(step.positions, self.frequencies, self.scale)
        partials = self.attention.partials(step.slots_of_partials)
        layer_step = LayerStep(step, turns, self.attention, partials, merge, team)
        delta = None
        for layer, pool in zip(self.layers, self.pools, strict=True):
            x, delta = layer(x, delta, pool, layer_step)
        return x if delta is None else x + delta

    def _embed(self, token_ids: Tensor, team: Team) -> Tensor:
        assert self.table is not None, (
            "only the first stage may be given no hidden states"
        )
        return team.total(fused.embed(self.table, token_ids, self.first))


def _keep(out: Tensor, lse: Tensor) -> None:
    """In the place of a merge with other groups."""
