"""Steps made of random numbers for the attention kernels, and what should come of them in
float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from medha_actors.model.cuda.attention import (
    Partials,
    Shapes,
    UploadedStep,
    paged_attention,
    partials_for,
    tiles_for,
    upload,
)
from medha_actors.model.cuda.attention_work import Tiles, plan_work


class Rows(NamedTuple):
    """The rows of one sequence, and what they see."""

    rows: int
    cached: int
    writes: bool

    @property
    def tokens(self) -> int:
        return self.cached + self.rows * self.writes


class Model(NamedTuple):
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    page_tokens: int = 64
    dtype: torch.dtype = torch.bfloat16


class Case(NamedTuple):
    """A step ready to run."""

    spans: tuple[Rows, ...]
    model: Model
    q: Tensor  # a view, as the decoder gives it: keys and values lie behind the queries
    layer: Tensor
    pages: list[Tensor]  # int64, of each sequence
    step: UploadedStep
    out: Tensor
    lse: Tensor
    partials: Partials
    shapes: Shapes | None

    def run(self) -> None:
        paged_attention(
            self.q,
            self.layer,
            self.step,
            self.out,
            self.lse,
            self.partials,
            self.shapes,
        )


def make_case(
    spans: Sequence[Rows],
    model: Model,
    device: torch.device,
    seed: int = 0,
    shapes: Shapes | None = None,
    shortest: int | None = None,
    token_major: bool = False,
    poisoned: bool = False,
) -> Case:
    """`poisoned`: whatever nobody may see is NaN, and so are the results before they are
    computed. `shortest`: keys of a piece, however few keys there are."""
    generator = torch.Generator(device).manual_seed(seed)
    counts = [-(-span.tokens // model.page_tokens) for span in spans]
    pool_pages = sum(counts) + 1
    layer = _layer(pool_pages, model, token_major, generator)
    order = torch.randperm(pool_pages - 1, generator=generator, device=device) + 1
    pages = list(order.split(counts))
    if poisoned:
        _poison(layer, pages, spans, model.page_tokens)
    rows = sum([span.rows for span in spans])
    heads = model.heads + 2 * model.kv_heads
    size = (rows, heads, model.head_dim)
    q = torch.empty(size, dtype=model.dtype, device=device).normal_(generator=generator)
    tiles = tiles_for(model.heads, model.kv_heads, model.head_dim, model.dtype, device)
    if shapes is not None:
        wide, middle, narrow = shapes
        tiles = tiles._replace(narrow=narrow.rows, middle=middle.rows, wide=wide.rows)
    if shortest is not None:
        tiles = tiles._replace(uncut=shortest, shortest=shortest)
    planned, step = _planned(spans, pages, tiles, device)
    fill = torch.nan if poisoned else 0.0
    width = model.heads * model.head_dim
    out = torch.full((rows, width), fill, dtype=model.dtype, device=device)
    lse = torch.full((rows, model.heads), fill, dtype=torch.float32, device=device)
    partials = partials_for(planned, model.heads, model.head_dim, device)
    for partial in partials if poisoned else ():
        partial.fill_(torch.nan)
    own = q[:, : model.heads]
    return Case(
        tuple(spans), model, own, layer, pages, step, out, lse, partials, shapes
    )


def _planned(
    spans: Sequence[Rows],
    pages: Sequence[Tensor],
    tiles: Tiles,
    device: torch.device,
) -> tuple[int, UploadedStep]:
    """Slots of partial results, and the step."""
    firsts = np.cumsum([0] + [span.rows for span in spans])
    numbers = [(first, *span) for first, span in zip(firsts, spans, strict=False)]
    sequences = np.array(numbers, np.int32)
    planned = plan_work(sequences, tiles)
    tables = [table.cpu().numpy().astype(np.int32) for table in pages]
    return planned.slots, upload(sequences, tables, planned, device)


def _layer(
    pages: int, model: Model, token_major: bool, generator: torch.Generator
) -> Tensor:
    inner = (model.kv_heads, model.page_tokens)
    if token_major:
        inner = (model.page_tokens, model.kv_heads)
    shape = (2, pages, *inner, model.head_dim)
    layer = torch.empty(shape, dtype=model.dtype, device=generator.device)
    layer.normal_(generator=generator)
    return layer.transpose(2, 3) if token_major else layer


def _poison(
    layer: Tensor, pages: Sequence[Tensor], spans: Sequence[Rows], size: int
) -> None:
    layer[:, 0] = torch.nan
    for table, span in zip(pages, spans, strict=True):
        if span.tokens % size:
            layer[:, table[-1], :, span.tokens % size :] = torch.nan


def reference(case: Case, number: int) -> tuple[Tensor, Tensor]:
    """Attention of one sequence's rows in float64: out [rows, heads, head_dim], LSE [rows,
    heads]."""
    span = case.spans[number]
    first = sum([before.rows for before in case.spans[:number]])
    share = case.model.heads // case.model.kv_heads
    q = case.q[first : first + span.rows].double()
    out = torch.zeros_like(q)
    lse = torch.full(q.shape[:2], -torch.inf, dtype=torch.float64, device=q.device)
    if not span.tokens:
        return out, lse
    tokens = torch.arange(span.tokens, device=q.device)
    seen = span.cached + span.writes * (torch.arange(span.rows, device=q.device) + 1)
    hidden = tokens >= seen[:, None]
    for head in range(case.model.kv_heads):
        pieces = case.layer[
            :, case.pages[number], head
        ]  # [2, pages, page_tokens, head_dim]
        keys, values = pieces.flatten(1, 2)[:, : span.tokens].double()
        mine = slice(head * share, (head + 1) * share)
        scores = q[:, mine].transpose(0, 1) @ keys.T * case.model.head_dim**-0.5
        scores.masked_fill_(hidden, -torch.inf)
        top = scores.logsumexp(-1)  # [share, rows]
        # of rows that see nothing: -inf less -inf
        weights = (scores - top[..., None]).exp_().nan_to_num_(0.0)
        out[:, mine] = (weights @ values).transpose(0, 1)
        lse[:, mine] = top.T
    return out, lse


def largest_errors(case: Case) -> tuple[float, float]:
    """Of a case that has run: |out - expected| / |expected| over each sequence, and the LSE's
    difference; the largest of all, NaN if any is."""
    firsts = np.cumsum([0] + [span.rows for span in case.spans])
    ratios = [0.0]
    differences = [0.0]
    for number, span in enumerate(case.spans):
        rows = slice(int(firsts[number]), int(firsts[number]) + span.rows)
        out, lse = reference(case, number)
        found = case.out[rows].view(out.shape).double()
        size = out.norm().clamp_min(1e-30)
        ratios.append(float((found - out).norm() / size))
        off = (case.lse[rows].double() - lse).abs()
        same = case.lse[rows].double() == lse  # -inf too
        differences.append(float(off.masked_fill(same, 0).max()))
    return max(ratios, key=_worst), max(differences, key=_worst)


def _worst(error: float) -> float:
    return error if error == error else torch.inf
