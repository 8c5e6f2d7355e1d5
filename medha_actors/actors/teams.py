"""Teams of stage actors: how the ranks of one stage and group add up (model/team.py), and notice
that one of them is gone.

Ranks on one host use a board in shared memory; others, and GPUs, the links.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Collection, Mapping

import torch

from medha_actors.actors.exchange import swap
from medha_actors.actors.links import Link
from medha_actors.actors.shared_memory import shared_memory
from medha_actors.errors import LinkClosedError
from medha_actors.model.kernels import Board, SharedTeam
from medha_actors.model.team import Team, add_up


class LinkTeam(Team):
    """Over links: every rank sends to every other one."""

    def __init__(self, rank: int, mates: Mapping[int, Link]) -> None:
        super().__init__(rank, len(mates) + 1)
        self._mates = mates

    def gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        return swap(self.rank, self._mates, x.reshape(-1))

    def total(self, x: torch.Tensor) -> torch.Tensor:
        return add_up(swap(self.rank, self._mates, x)).to(x.dtype)


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
