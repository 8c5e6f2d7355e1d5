"""Teams of stage actors: how the ranks of one stage and group add up (model/team.py), and notice
that one of them is gone.

Ranks on one host use a board in shared memory, GPUs the transports of their links; others the
links.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Collection, Mapping

import torch

from medha_actors.actors.exchange import swap
from medha_actors.actors.links import Link
from medha_actors.actors.shared_memory import shared_memory
from medha_actors.actors.transports import Transport, dealt, handed_round, swapped
from medha_actors.errors import LinkClosedError
from medha_actors.model.kernels import Board, SharedTeam
from medha_actors.model.team import Team, add_up
from medha_actors.model_shares import rows_of

_LARGE_BYTES = 2**20


class LinkTeam(Team):
    """Over links: every rank sends to every other one."""

    def __init__(self, rank: int, mates: Mapping[int, Link]) -> None:
        super().__init__(rank, len(mates) + 1)
        self._mates = mates

    def gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        return swap(self.rank, self._mates, x.reshape(-1))

    def total(self, x: torch.Tensor) -> torch.Tensor:
        return add_up(swap(self.rank, self._mates, x)).to(x.dtype)


class TransportTeam(LinkTeam):
    """Through the transports of the links, which on a GPU only queue the work. Small sums, and
    those of two ranks, are formed by every rank from all parts. For larger ones each rank forms its
    share of the rows and hands it to the others: less to move, a wait more."""

    def __init__(
        self,
        rank: int,
        mates: Mapping[int, Link],
        transports: Mapping[int, Transport],
        large_bytes: int = _LARGE_BYTES,
    ) -> None:
        super().__init__(rank, mates)
        self._transports = transports
        self._large_bytes = large_bytes
        self._room = min(one.room for one in transports.values())

    def total(self, x: torch.Tensor) -> torch.Tensor:
        if not all(one.carries(x) for one in self._transports.values()):
            return super().total(x)
        if self.ranks > 2 and self._large_bytes <= x.nbytes and len(x) >= self.ranks:
            return self._in_shares(x)
        return _sum([part for (part,) in swapped(self.rank, self._transports, x)])

    def _in_shares(self, x: torch.Tensor) -> torch.Tensor:
        """Blocks of rows, one after the other, of which every rank's share has room."""
        total = torch.empty_like(x, memory_format=torch.contiguous_format)
        most = max(self.ranks, self._room // x[0].nbytes)
        for start in range(0, len(x), most):
            block = x[start : start + most]
            if len(block) < self.ranks:
                parts = [
                    part for (part,) in swapped(self.rank, self._transports, block)
                ]
                total[start : start + most] = _sum(parts)
                continue
            shares = [
                block[rows_of(len(block), rank, self.ranks)]
                for rank in range(self.ranks)
            ]
            own = _sum(dealt(self.rank, self._transports, shares))
            total[start : start + most] = torch.cat(
                handed_round(self.rank, self._transports, own, shares)
            )
        return total


def _sum(parts: list[torch.Tensor]) -> torch.Tensor:
    """In float32 in their order, in their type. Torch adds two in float32 and rounds once."""
    return parts[0] + parts[1] if len(parts) == 2 else add_up(parts).to(parts[0].dtype)


def shared_team(rank: int, mates: Mapping[int, Link], board: Board) -> Team:
    """Over shared memory; the links only tell when a rank dies."""
    return SharedTeam(rank, board, watching(mates.values()))


def open_board(name: str, ranks: int, hidden: int) -> Board:
    """The board of one team; every rank of it opens the same `name`."""
    return Board(shared_memory(name, Board.nbytes(ranks, hidden)), ranks, hidden)


def wait_for(source: Link, links: Collection[Link]) -> None:
    """Until there is something to read from `source`; raises LinkClosedError once one of the other
    links has been closed."""
    ends = select.poll()
    ends.register(source, select.POLLIN)
    for link in links:
        ends.register(link, select.POLLRDHUP)
    found = dict(ends.poll())
    if found.keys() - {source.fileno()}:
        raise LinkClosedError("a rank is gone")


def watching(links: Collection[Link]) -> Callable[[], None]:
    """What raises LinkClosedError once one of these links has been closed, on either end; frames
    that wait in them are left alone."""
    ends = select.poll()
    for link in links:
        ends.register(link, select.POLLRDHUP)

    def watch() -> None:
        if ends.poll(0):
            raise LinkClosedError("a rank is gone")

    return watch
