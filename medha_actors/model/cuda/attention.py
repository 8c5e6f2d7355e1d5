"""Attention on CUDA with Triton kernels of our own: paged keys and values of any page size, rows of
many sequences in one launch, no package but the compiler that torch brings along."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medha_actors.errors import ModelError
from medha_actors.model.attention import Attention
from medha_actors.model.cuda.attention_work import HEADER, Tiles, Work, plan_work
from medha_actors.model.cuda.launch import Launcher
from medha_actors.model.kv_pool import KvPool, Layout
from medha_actors.model.step_plan import SpanRows, StepPlan

LARGEST_HEAD = 256
LARGEST_SHARE = 64  # query heads of a key head
# int32: where arrays begin; Triton compiles another variant for each other place
_ALIGNED = 4
_MERGED_AT_ONCE = 8  # pieces
_MERGED_ROWS = 8  # of a tile, side by side
_PROGRAMS = 8  # of each processor, where each takes its share


class Shape(NamedTuple):
    """How a kernel is compiled: packed rows of a tile, keys read at once, warps, stages of the
    loads' pipeline."""

    rows: int
    keys: int
    warps: int
    stages: int


class Shapes(NamedTuple):
    """For the kinds of tiles, see attention_work.Tiles."""

    wide: Shape
    middle: Shape
    narrow: Shape


class StepArrays(Protocol):
    """The device's copy of a step, int32 tensors. With n sequences:

    sequences [n, 4]: first row, rows, cached, writes; table_starts [n]: where each one's pages
    begin in `tables`, page numbers of the pool; work, merges and wide: see attention_work.Work.
    Both arrays may be longer than what the header of `work` counts.
    """

    @property
    def sequences(self) -> Tensor: ...
    @property
    def table_starts(self) -> Tensor: ...
    @property
    def tables(self) -> Tensor: ...
    @property
    def work(self) -> Tensor: ...
    @property
    def merges(self) -> Tensor: ...
    @property
    def wide(self) -> int: ...


class Partials(NamedTuple):
    """Where the results of pieces wait for being merged: float32 [slots, heads, head_dim] and base
    2 log-sum-exps [slots, heads]."""

    out: Tensor
    lse: Tensor


def shapes_for(dtype: torch.dtype, head_dim: int, share: int, roomy: bool) -> Shapes:
    """Shapes without spilled registers; `roomy`: the shared memory is that of an H100."""
    least = _padded(share)
    if dtype == torch.float32:  # without matrix instructions: exact, not fast
        shape = Shape(max(32, least), 16, 8, 1)
        return Shapes(shape, shape, shape)
    if _padded(head_dim) > 128:
        shape = Shape(64, 32, 8, 2)
        return Shapes(shape, shape, Shape(least, 32, 4, 2))
    narrow = Shape(least, 64, 4, 3)
    keys = 64 if roomy else 32
    return Shapes(Shape(128, keys, 8, 3), Shape(64, keys, 4, 3), narrow)


def tiles_for(
    heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> Tiles:
    """How the rows of a model are cut on this device."""
    share = heads // kv_heads
    if head_dim > LARGEST_HEAD or share > LARGEST_SHARE:
        raise ModelError(
            f"attention triton takes at most {LARGEST_SHARE} query heads of a key head and "
            f"head_dim {LARGEST_HEAD}, not {share} and {head_dim}"
        )
    limits = _limits(device)
    shapes = shapes_for(dtype, head_dim, share, limits.roomy)
    rows = (shapes.narrow.rows, shapes.middle.rows, shapes.wide.rows)
    return Tiles(share, kv_heads, *rows, limits.processors)


def partials_for(
    slots: int, heads: int, head_dim: int, device: torch.device
) -> Partials:
    """Room for `slots` partial results."""
    out = torch.empty(slots, heads, head_dim, dtype=torch.float32, device=device)
    return Partials(out, torch.empty(slots, heads, dtype=torch.float32, device=device))


def paged_attention(
    q: Tensor,
    pool_layer: Tensor,
    step: StepArrays,
    out: Tensor,
    lse: Tensor | None,
    partials: Partials,
    shapes: Shapes | None = None,
) -> None:
    """Store the attention of a step's rows into `out` [rows, heads * head_dim], and its natural
    log-sum-exp into `lse` (float32 [rows, heads]; None: nobody asks).

    q [rows, heads, head_dim] may be a view; pool_layer [2, pages, kv_heads, page_tokens, head_dim]
    in either layout. A sequence's own keys, where it writes, are in the pool
    already, behind the cached ones. Rows that see nothing get 0 and -inf.
    """
    kernels = _kernels()
    heads, head_dim = q.shape[1:]
    kv_heads = pool_layer.shape[2]
    assert q.stride(2) == pool_layer.stride(4) == out.stride(1) == 1
    limits = _limits(q.device)
    if shapes is None:
        shapes = shapes_for(q.dtype, head_dim, heads // kv_heads, limits.roomy)
    tensors = (
        q, pool_layer[0], pool_layer[1], out, out if lse is None else lse, *partials,
        step.work, step.sequences, step.table_starts, step.tables,
    )  # fmt: skip
    numbers = _numbers(q, pool_layer, out)
    flags = (lse is not None, kernels.INTERPRETED)
    launch = _launchers()
    wide = step.wide * kv_heads
    narrow = (len(step.work) - HEADER) * kv_heads - wide
    many = _PROGRAMS * limits.processors
    for kind, programs in enumerate((wide, min(wide, many), min(narrow, many))):
        if programs:
            shape = shapes[kind]
            constants = (*numbers, shape.rows, shape.keys, *flags, kind)
            launch.attend((programs, 1, 1), tensors, (), constants, _options(shape))
    if len(step.merges):
        rows_at_once = _MERGED_ROWS if step.wide else 1
        programs = min(len(step.merges) * heads, many)
        merged = (out, out if lse is None else lse, *partials, step.work, step.merges)
        sizes = (out.stride(0), heads, head_dim, _padded(head_dim), _MERGED_AT_ONCE)
        launch.merge((programs, rows_at_once, 1), merged, (), (*sizes, lse is not None))


def _numbers(q: Tensor, pool_layer: Tensor, out: Tensor) -> tuple[float, ...]:
    """What the kernel is told of scale, strides and sizes, in the order of its parameters: the same
    in all steps of a model."""
    heads, head_dim = q.shape[1:]
    kv_heads, page_tokens = pool_layer.shape[2:4]
    return (
        head_dim**-0.5 * math.log2(math.e),
        q.stride(0),
        q.stride(1),
        pool_layer.stride(1),
        pool_layer.stride(2),
        pool_layer.stride(3),
        out.stride(0),
        heads // kv_heads,
        kv_heads,
        head_dim,
        _padded(head_dim),
        page_tokens,
    )


class TritonAttention(Attention["Prepared"]):
    """See Attention."""

    layout: ClassVar[Layout] = "head_major"

    @classmethod
    def obstacle(
        cls, device: torch.device, dtype: torch.dtype, page_tokens: int
    ) -> str | None:
        """Found by running it: where a C compiler is missing, say, it can be imported and does not
        start."""
        if device.type != "cuda":
            return f"needs CUDA, not {device.type}"
        try:
            _try(device, dtype, page_tokens)
        except Exception as error:
            return f"does not run here: {type(error).__name__}: {error}"
        return None

    def prepare(self, plan: StepPlan) -> Prepared:
        return Prepared(plan)

    def attend(
        self,
        layer: int,
        prepared: Prepared,
        q: Tensor,
        kv: Tensor,
        out: Tensor,
        lse: Tensor | None,
    ) -> None:
        if prepared.uploaded is None:
            prepared.uploaded = self._upload(prepared.plan, q.shape[1])
        step, partials = prepared.uploaded
        paged_attention(
            q, self.pool.data[layer], step, out.view(len(out), -1), lse, partials
        )

    def _upload(self, plan: StepPlan, heads: int) -> tuple[UploadedStep, Partials]:
        pool = self.pool
        device = pool.data.device
        tiles = tiles_for(heads, pool.kv_heads, pool.head_dim, pool.data.dtype, device)
        numbers = [
            (span.first, span.rows, span.cached, span.writes) for span in plan.spans
        ]
        sequences = np.array(numbers, np.int32)
        tables = [
            span.pages[: -(-span.tokens // pool.page_tokens)] for span in plan.spans
        ]
        planned = plan_work(sequences, tiles)
        step = upload(sequences, tables, planned, device)
        return step, partials_for(planned.slots, heads, pool.head_dim, device)


class UploadedStep(NamedTuple):
    """See StepArrays."""

    sequences: Tensor
    table_starts: Tensor
    tables: Tensor
    work: Tensor
    merges: Tensor
    wide: int


@dataclass(slots=True)
class Prepared:
    """A step, uploaded by the first layer, which knows how many heads there are."""

    plan: StepPlan
    uploaded: tuple[UploadedStep, Partials] | None = None


def upload(
    sequences: NDArray[np.int32],
    tables: Sequence[NDArray[np.int32]],
    planned: Work,
    device: torch.device,
) -> UploadedStep:
    """A step on the device, in one transfer. `tables`: the page numbers of each sequence."""
    lengths = [len(table) for table in tables]
    starts = np.cumsum([0, *lengths[:-1]], dtype=np.int32)
    arrays = (sequences, starts, np.concatenate(tables), planned.work, planned.merges)
    sizes = [-(-array.size // _ALIGNED) * _ALIGNED for array in arrays]
    flat = torch.empty(sum(sizes), dtype=torch.int32, pin_memory=device.type == "cuda")
    for part, array in zip(flat.split(sizes), arrays, strict=True):
        part[: array.size] = torch.from_numpy(array.reshape(-1))
    parts = flat.to(device, non_blocking=True).split(sizes)
    views = []
    for part, array in zip(parts, arrays, strict=True):
        views.append(part[: array.size].view(array.shape))
    return UploadedStep(views[0], views[1], views[2], views[3], views[4], planned.wide)


class _Limits(NamedTuple):
    processors: int
    roomy: bool  # a block of threads may have 227 KB of shared memory


_H100 = _Limits(132, True)
_ROOMY = ((9, 0), (10, 0), (10, 3))  # compute capabilities


@functools.lru_cache(maxsize=64)
def _limits(device: torch.device) -> _Limits:
    """Of a CPU, where the kernels are interpreted: those of an H100."""
    if device.type != "cuda":
        return _H100
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return _Limits(processors, torch.cuda.get_device_capability(device) in _ROOMY)


def _padded(size: int) -> int:
    """What the products of the kernel can be made of: a power of 2, at least 16."""
    return max(16, 1 << (size - 1).bit_length())


def _options(shape: Shape) -> dict[str, int]:
    return {"num_warps": shape.warps, "num_stages": shape.stages}


class _Launchers(NamedTuple):
    attend: Launcher
    merge: Launcher


@functools.cache
def _launchers() -> _Launchers:
    """Numbers are the same in all steps of a model, so they are told as constants are."""
    kernels = _kernels()
    return _Launchers(Launcher(kernels.attend), Launcher(kernels.merge, num_warps=2))


def _kernels() -> Any:
    """Imported late: it imports triton, which a machine without a GPU need not have."""
    return importlib.import_module("medha_actors.model.cuda.attention_kernels")


@functools.lru_cache(maxsize=64)
def _try(device: torch.device, dtype: torch.dtype, page_tokens: int) -> None:
    """Run it on one row; raises what hinders it."""
    pool = KvPool(1, 1, page_tokens, 1, 64, device, dtype)
    pages = np.zeros(1, np.int32)
    span = SpanRows(0, 1, 1, False, pages, ())
    plan = StepPlan(1, np.zeros(1, np.int64), np.full(1, -1, np.int64), (span,), (), ())
    attention = TritonAttention(pool)
    q = torch.ones(1, 1, 64, dtype=dtype, device=device)
    out = torch.empty_like(q)
    attention.attend(0, attention.prepare(plan), q, q, out, None)
    found = out.abs().max().item()
    if found != 0:
        raise ModelError(f"the attention over a value of 0 was {found}")
