"""Team: the ranks that share the layers of one stage in one KV group (tensor parallelism), as one
of them sees them.

Every rank runs the same steps and calls the same methods in the same order; what they agree on is
the same on all, bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor


class Team(ABC):
    """One rank's side. Methods raise LinkClosedError when another rank is gone."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank = rank
        self.ranks = ranks

    @abstractmethod
    def gather(self, x: Tensor) -> list[Tensor]:
        """What every rank has given, in the order of ranks: tensors of one type, each flat and of
        any length."""

    @abstractmethod
    def total(self, x: Tensor) -> Tensor:
        """The sum of every rank's `x` [rows, width], formed in float32 in the order of ranks, in
        the type of x."""


class Alone(Team):
    """The only rank."""

    def __init__(self) -> None:
        super().__init__(0, 1)

    def gather(self, x: Tensor) -> list[Tensor]:
        return [x.reshape(-1)]

    def total(self, x: Tensor) -> Tensor:
        return x


ALONE = Alone()


def add_up(parts: Sequence[Tensor]) -> Tensor:
    """Float32 sum of the parts in their order."""
    total = parts[0].to(torch.float32, copy=True)
    for part in parts[1:]:
        total += part
    return total
