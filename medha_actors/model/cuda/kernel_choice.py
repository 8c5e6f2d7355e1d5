"""Choice on kernels of our own: what Choice says, in a few launches.

Rows that are cut by top_k or top_p are decided among candidates: the tokens that reach a bar which
at least top_k tokens do reach, since as many parts of the row have one. Where these cannot tell
(top_p of a flat row), the row is searched as a whole.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
from torch import Tensor

from medha_actors.model.cuda import choice_kernels, search_kernels
from medha_actors.model.cuda.choice import Asks, Choice

_CHUNK: Final = 4096  # tokens of one program
_PART: Final = 128  # tokens that may lift the bar together
_MANY: Final = 4096  # candidates
_BLOCK: Final = 4096  # tokens of one round of the search
_BEST: Final = (8, 32)  # most likely tokens that a kernel gives; more are sorted
_COUNTED: Final = 1024  # tokens counted by one program


class KernelChoice(Choice):
    """See Choice."""

    compiles = True

    def choose(self, logits: Tensor, asks: Asks) -> Tensor:
        rows, vocabulary = logits.shape
        stride = logits.stride(0)
        device = logits.device
        chunks = triton.cdiv(vocabulary, _CHUNK)
        wide = triton.next_power_of_2(chunks)
        parts = chunks * (_CHUNK // _PART)
        numbers = asks.numbers
        keys, sums = torch.empty(
            2, rows, chunks, dtype=torch.int64, device=device
        ).unbind()
        found = torch.empty(5, rows, dtype=torch.int32, device=device)
        settled, bars, counters = found[2:].unbind()
        bests = candidates = found
        if asks.cut:
            bests = torch.empty(rows, parts, dtype=torch.int32, device=device)
            candidates = torch.empty(rows, _MANY, dtype=torch.int32, device=device)
        grid = (rows, chunks)
        choice_kernels.look_over[grid](
            logits, stride, keys, bests, vocabulary, chunks,
            CHUNK=_CHUNK, PART=_PART, CUT=asks.cut, num_warps=8,
        )  # fmt: skip
        if asks.cut:
            choice_kernels.set_bars[rows,](
                bests, numbers, bars, counters, rows, vocabulary, parts,
                triton.cdiv(vocabulary, _PART),
                PARTS=triton.next_power_of_2(parts), num_warps=4,
            )  # fmt: skip
        if asks.drawn:
            choice_kernels.weigh[grid](
                logits, stride, numbers, keys, bars, counters, candidates, sums, rows,
                vocabulary, chunks,
                CHUNK=_CHUNK, CHUNKS=wide, MANY=_MANY, CUT=asks.cut, num_warps=8,
            )  # fmt: skip
        choice_kernels.pick[rows,](
            logits, stride, numbers, keys, bars, counters, candidates, sums, found, settled,
            rows, vocabulary, chunks,
            CHUNK=_CHUNK, CHUNKS=wide, MANY=_MANY, DRAWN=asks.drawn, CUT=asks.cut, num_warps=8,
        )  # fmt: skip
        if asks.cut:
            search_kernels.search_all[rows,](
                logits, stride, numbers, keys, found, settled, rows, vocabulary, chunks,
                CHUNKS=wide, BLOCK=_BLOCK, num_warps=16,
            )  # fmt: skip
        return found[:2]

    def penalise(
        self,
        logits: Tensor,
        rows: Tensor,
        counts: Tensor,
        slots: Tensor,
        penalties: Tensor,
    ) -> None:
        vocabulary = logits.shape[1]
        search_kernels.take_penalties[len(rows), triton.cdiv(vocabulary, _CHUNK)](
            logits, logits.stride(0), rows, counts, slots, penalties, len(rows), vocabulary,
            CHUNK=_CHUNK, num_warps=8,
        )  # fmt: skip

    def count(self, table: Tensor, cells: Tensor, prompts: int) -> None:
        search_kernels.add_counts[triton.cdiv(len(cells), _COUNTED),](
            table, cells, len(cells), prompts, BLOCK=_COUNTED
        )

    def score(self, logits: Tensor, token_ids: Tensor, count: int) -> Tensor:
        most = next((many for many in _BEST if many >= count), None)
        if most is None:
            return super().score(logits, token_ids, count)
        rows, vocabulary = logits.shape
        stride = logits.stride(0)
        chunks = triton.cdiv(vocabulary, _CHUNK)
        wide = triton.next_power_of_2(chunks)
        keys = torch.empty(rows, chunks, most, dtype=torch.int64, device=logits.device)
        sums = torch.empty(rows, chunks, dtype=torch.int64, device=logits.device)
        scores = torch.empty(
            rows, 1 + 2 * count, dtype=torch.int32, device=logits.device
        )
        search_kernels.best_of_chunks[rows, chunks](
            logits,
            stride,
            keys,
            vocabulary,
            chunks,
            CHUNK=_CHUNK,
            COUNT=most,
            num_warps=8,
        )
        search_kernels.spread_of_chunks[rows, chunks](
            logits, stride, keys, sums, vocabulary, chunks,
            CHUNK=_CHUNK, CHUNKS=wide, COUNT=most, num_warps=8,
        )  # fmt: skip
        search_kernels.score_rows[rows,](
            logits, stride, token_ids, keys, sums, scores, count, vocabulary, chunks,
            CHUNKS=wide, COUNT=most, num_warps=4,
        )  # fmt: skip
        return scores
