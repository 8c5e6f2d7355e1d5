"""A team whose ranks are processes of one host: they add up through a board in shared memory."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from medha_actors.model.kernels.board import Board
from medha_actors.model.kernels.counters import SPINS
from medha_actors.model.kernels.pack import aligned
from medha_actors.model.team import Team


class SharedTeam(Team):
    """See Team. `number`: of the round under way, int64 [1], which compiled code counts on."""

    def __init__(self, rank: int, board: Board, watch: Callable[[], None]) -> None:
        """`watch` is called while others keep this rank waiting; raises when one of them is
        gone."""
        super().__init__(rank, board.ranks)
        self.board = board
        self.number = np.zeros(1, np.int64)
        self._watch = watch

    def run(self, work: Callable[[], bool]) -> None:
        """Call compiled code that has rounds in it, again and again, until it says that it is
        done; between calls, others get this core."""
        while not work():
            os.sched_yield()
            self._watch()

    def gather(self, x: Tensor) -> list[Tensor]:
        own = x.detach().reshape(-1).contiguous().cpu().view(torch.uint8).numpy()
        found = [torch.empty(0, dtype=torch.uint8)] * self.ranks
        taken = 0  # bytes of whoever has as many
        while taken == 0 or taken < max([len(whole) for whole in found]):
            number = self._next()
            part = own[taken : taken + self.board.capacity]
            self.board.put_bytes(self.rank, number, len(own), part)
            self._meet(number)
            for rank in range(self.ranks):
                total, part = self.board.bytes_of(rank, number, taken)
                if taken == 0:
                    found[rank] = torch.empty(total, dtype=torch.uint8)
                found[rank].numpy()[taken : taken + len(part)] = part
            taken += self.board.capacity
        return [whole.view(x.dtype) for whole in found]

    def total(self, x: Tensor) -> Tensor:
        own = x.detach().to("cpu", torch.float32).contiguous().numpy()
        total = np.zeros_like(own)
        for start in range(0, len(own), self.board.block_rows):
            block = slice(start, start + self.board.block_rows)
            number = self._next()
            self.board.put_rows(self.rank, number, own[block])
            self._meet(number)
            self.board.add_rows(number, total[block])
        return torch.from_numpy(total).to(x.device, x.dtype)

    def _meet(self, number: int) -> None:
        self.run(lambda: self.board.wait(number, SPINS))

    def _next(self) -> int:
        self.number += 1
        return int(self.number[0])


class Rehearsal(SharedTeam):
    """A rank by itself, before there are others: nobody is waited for, and what they would add is
    0. For warming up."""

    def __init__(self, rank: int, ranks: int, width: int) -> None:
        memory = aligned(Board.nbytes(ranks, width), np.uint8)
        board = Board(memory.data, ranks, width)
        super().__init__(rank, board, lambda: None)
        for other in range(ranks):
            if other != rank:
                board.put_rows(
                    other, np.iinfo(np.int64).max, np.zeros((0, width), np.float32)
                )

    def gather(self, x: Tensor) -> list[Tensor]:
        """Nothing of the others."""
        gone = torch.empty(0, dtype=x.dtype)
        return [x.reshape(-1), *[gone] * (self.ranks - 1)]
