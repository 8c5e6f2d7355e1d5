"""Teams: what several ranks add up and gather, in any amounts."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from stage_driver import teams_of

from medha_actors.errors import LinkClosedError
from medha_actors.model.kernels import Board, SharedTeam

WIDTH = 64


def all_at_once(work, ranks):
    """The results of `work(rank)`, each in a thread of its own."""
    results = [None] * ranks

    def run(rank):
        results[rank] = work(rank)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return results


@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sums_are_the_same_on_every_rank(ranks, dtype):
    """Of fewer and of more rows than a buffer holds, round after round."""
    teams = teams_of(ranks, WIDTH, "board")
    for rows in (1, 5, 0, 9000, 2):
        generator = torch.Generator().manual_seed(rows)
        given = [
            torch.randn(rows, WIDTH, generator=generator).to(dtype)
            for _ in range(ranks)
        ]
        expected = sum(part.float() for part in given).to(dtype)
        totals = all_at_once(
            lambda rank, given=given: teams[rank].total(given[rank]), ranks
        )
        for total in totals:
            assert torch.equal(total, expected)


@pytest.mark.parametrize("ranks", [2, 3])
def test_gathered_tensors_have_any_length_and_type(ranks):
    teams = teams_of(ranks, WIDTH, "board")
    for kind, sizes in (
        (torch.int32, (3, 0, 0)),
        (torch.int64, (0, 4, 1)),
        (torch.float32, (1, 700_000, 20)),
        (torch.bfloat16, (0, 0, 0)),
    ):
        given = [torch.arange(size).to(kind) for size in sizes[:ranks]]
        found = all_at_once(
            lambda rank, given=given: teams[rank].gather(given[rank]), ranks
        )
        for parts in found:
            for part, expected in zip(parts, given, strict=True):
                assert part.dtype == kind
                assert torch.equal(part, expected)


def test_a_rank_that_is_gone_ends_the_wait():
    def watch():
        raise LinkClosedError("a rank is gone")

    memory = np.zeros(Board.nbytes(2, WIDTH) // 8, np.int64).data
    team = SharedTeam(0, Board(memory, 2, WIDTH), watch)
    with pytest.raises(LinkClosedError):
        team.total(torch.zeros(1, WIDTH))
