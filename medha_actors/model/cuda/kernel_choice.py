"""Choice on kernels of our own: what Choice says, in a tenth of the passes over the logits."""

from __future__ import annotations

from typing import Final

import torch
import triton
from torch import Tensor

from medha_actors.model.cuda import choice_kernels as kernels
from medha_actors.model.cuda.choice import Choice, Drawn, Filters, share_of, tokens_of, weights_of

_CHUNK: Final = 4096  # tokens of one program
_BLOCK: Final = 4096  # tokens of one round of the search
_MANY: Final = 1024  # tokens that top_k and top_p look at before the search
_BEST: Final = (8, 32)  # most likely tokens that the kernel gives; more are sorted


class KernelChoice(Choice):
    """`looks`: whether filters try the most likely tokens before the search over all."""

    compiles = True

    def __init__(self, looks: bool = True) -> None:
        self._looks = looks

    def penalise(
        self, logits: Tensor, rows: Tensor, counts: Tensor, slots: Tensor, penalties: Tensor
    ) -> None:
        vocabulary = logits.shape[1]
        kernels.take_penalties[len(rows), triton.cdiv(vocabulary, _CHUNK)](
            logits,
            logits.stride(0),
            rows,
            counts,
            slots,
            penalties.contiguous(),
            len(rows),
            vocabulary,
            CHUNK=_CHUNK,
            num_warps=8,
        )

    def floors(self, logits: Tensor, drawn: Drawn, floors: Tensor, filters: Filters) -> Tensor:
        count = len(filters.places)
        if self._looks:
            found, settled = self._look(logits, drawn, floors, filters)
        else:
            found = torch.empty_like(filters.top_ps, dtype=torch.float32)
            settled = torch.zeros(count, dtype=torch.int32, device=logits.device)
        kernels.find_floors[count,](
            logits,
            logits.stride(0),
            drawn.rows,
            drawn.temperatures,
            drawn.peaks,
            floors,
            filters.places,
            filters.top_ks,
            filters.top_ps,
            settled,
            found,
            logits.shape[1],
            BLOCK=_BLOCK,
            num_warps=16,
        )
        return found

    def draw(self, logits: Tensor, drawn: Drawn, floors: Tensor) -> Tensor:
        sums = self._sums(logits, drawn, floors)
        tokens = torch.empty_like(drawn.rows)
        chunks = sums.shape[1]
        kernels.pick_tokens[len(tokens),](
            logits,
            logits.stride(0),
            drawn.rows,
            drawn.temperatures,
            drawn.peaks,
            floors,
            drawn.shots,
            sums,
            tokens,
            logits.shape[1],
            chunks,
            CHUNK=_CHUNK,
            CHUNKS=triton.next_power_of_2(chunks),
            num_warps=8,
        )
        return tokens

    def spread(self, logits: Tensor, peaks: Tensor) -> Tensor:
        rows = torch.arange(len(logits), device=logits.device)
        every = Drawn(rows, torch.ones_like(peaks), peaks, peaks)
        return self._sums(logits, every, torch.full_like(peaks, -torch.inf)).sum(-1)

    def tops(self, logits: Tensor, count: int) -> Tensor:
        most = next((many for many in _BEST if many >= count), None)
        if most is None:
            return super().tops(logits, count)
        rows, vocabulary = logits.shape
        chunks = triton.cdiv(vocabulary, _CHUNK)
        keys = torch.empty(rows, chunks, most, dtype=torch.int64, device=logits.device)
        kernels.best_of_chunks[rows, chunks](
            logits,
            logits.stride(0),
            keys,
            vocabulary,
            chunks,
            CHUNK=_CHUNK,
            COUNT=most,
            num_warps=8,
        )
        return tokens_of(keys.view(rows, -1).topk(count).values)

    def _sums(self, logits: Tensor, drawn: Drawn, floors: Tensor) -> Tensor:
        """int64 [rows of drawn, chunks]."""
        vocabulary = logits.shape[1]
        chunks = triton.cdiv(vocabulary, _CHUNK)
        sums = torch.empty(len(drawn.rows), chunks, dtype=torch.int64, device=logits.device)
        kernels.sum_weights[len(sums), chunks](
            logits,
            logits.stride(0),
            drawn.rows,
            drawn.temperatures,
            drawn.peaks,
            floors,
            sums,
            vocabulary,
            chunks,
            CHUNK=_CHUNK,
            num_warps=8,
        )
        return sums

    def _look(
        self, logits: Tensor, drawn: Drawn, floors: Tensor, filters: Filters
    ) -> tuple[Tensor, Tensor]:
        """The floors as the most likely tokens say, and int32 [n]: whether these settle them."""
        vocabulary = logits.shape[1]
        some = Drawn(*[part.index_select(0, filters.places) for part in drawn])
        floor = floors.index_select(0, filters.places)
        held = logits if len(some.rows) == len(logits) else logits.index_select(0, some.rows)
        best = held.topk(min(_MANY, vocabulary)).values / some.temperatures[:, None]
        many = best.shape[1]
        cut = (filters.top_ks > 0) & (filters.top_ks < vocabulary)
        kth = best.gather(1, (filters.top_ks - 1).clamp(0, many - 1)[:, None])[:, 0]
        floor = torch.where(cut, torch.maximum(kth, floor), floor)
        total = self._sums(logits, some, floor).sum(-1)
        reached = weights_of(best, some.peaks, floor).cumsum(-1)
        wanted = share_of(filters.top_ps, total)
        last = torch.searchsorted(reached, wanted[:, None]).clamp_max_(many - 1)
        nucleus = torch.maximum(best.gather(1, last)[:, 0], floor)
        found = torch.where(filters.top_ps < 1.0, nucleus, floor)
        settled = (~cut | (filters.top_ks <= many)) & (
            (filters.top_ps >= 1.0) | (reached[:, -1] >= wanted)
        )
        return found, settled.int()
