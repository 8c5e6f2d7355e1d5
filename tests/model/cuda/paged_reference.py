"""Attention over a paged pool as the definition has it, slowly: what stands for the kernel where
only what is around it is tested."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch


class Items(NamedTuple):
    work: np.ndarray
    merges: np.ndarray
    wide: int
    slots: int


class PagedReference:
    """See medha_actors.model.cuda.layers.PagedAttention. Its work is a list of sequences, so that
    it sees whether the step's arrays arrive whole and are filled up as agreed."""

    name = "reference"

    def __init__(self):
        self.calls = 0

    def plan_work(self, sequences):
        work = np.full((len(sequences) + 1, 5), 7, np.int32)
        work[0, 0] = len(sequences)
        work[1:, 0] = np.arange(len(sequences))
        wide = int((sequences[:, 1] > 1).sum())
        return Items(work, np.empty((0, 4), np.int32), wide, len(sequences))

    def most_work(self, rows):
        return rows + 1, rows, rows

    def partials(self, slots):
        return torch.empty(slots)

    def __call__(self, q, pool, step, out, lse, partials):
        self.calls += 1
        out.fill_(torch.nan)  # whoever reads what is not written sees it
        assert len(partials) == step.slots_of_partials
        for sequence in step.work[1 : 1 + int(step.work[0, 0]), 0].tolist():
            first, rows, cached, writes = step.sequences[sequence].tolist()
            start = int(step.table_starts[sequence])
            for row in range(rows):
                seen = cached + (row + 1) * writes
                self.row(q, pool, step.tables[start:], first + row, seen, out, lse)

    def row(self, q, pool, table, row, seen, out, lse):
        heads, head_dim = q.shape[1:]
        kv_heads, page_tokens = pool.shape[2:4]
        if not seen:
            out[row] = 0
            if lse is not None:
                lse[row] = -torch.inf
            return
        pages = table[: -(-seen // page_tokens)].long()
        keys, values = (
            pool[:, pages].transpose(2, 3).reshape(2, -1, kv_heads, head_dim)[:, :seen]
        )
        share = heads // kv_heads
        keys = keys.float().repeat_interleave(share, 1)
        values = values.float().repeat_interleave(share, 1)
        scores = torch.einsum("hd,thd->ht", q[row].float(), keys) * head_dim**-0.5
        weights = scores.softmax(-1)
        out[row] = torch.einsum("ht,thd->hd", weights, values).reshape(-1).to(out.dtype)
        if lse is not None:
            lse[row] = scores.logsumexp(-1)
