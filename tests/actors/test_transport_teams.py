"""Teams and groups that add up and merge over transports, as they do over links."""

from __future__ import annotations

import pytest
import torch

from medha_actors.actors.cells import Cell
from medha_actors.actors.exchange import LinkExchange, TransportExchange, transports_of
from medha_actors.actors.teams import LinkTeam, TransportTeam
from medha_actors.actors.tensor_links import link_tensors
from medha_actors.model.merge import merge
from medha_actors.model.team import add_up
from tests.actors.link_ends import end, pair, together
from tests.actors.linked_peer import CPU


def team_of(ranks: int):
    """The links of each rank with transports."""
    cells = [Cell(0, 0, rank) for rank in range(ranks)]
    links = [{} for _ in range(ranks)]
    for a in range(ranks):
        for b in range(a + 1, ranks):
            links[a][cells[b]], links[b][cells[a]] = pair()
    lookouts = together(
        *[(link_tensors, cells[rank], links[rank], CPU) for rank in range(ranks)]
    )
    return [
        {cell.rank: link for cell, link in found.items()} for found in links
    ], lookouts


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_sums_have_the_same_bits_on_all_ranks(ranks: int):
    """However they are formed: as links form them, in float32 in the order of ranks."""
    links, lookouts = team_of(ranks)
    for rows, width, large in ((1, 64, 0), (3, 64, 0), (50, 64, 0), (50, 64, 1 << 30)):
        generator = torch.Generator().manual_seed(rows)
        given = [
            torch.randn(rows, width, generator=generator).mul(10.0**rank).bfloat16()
            for rank in range(ranks)
        ]
        teams = [
            TransportTeam(rank, links[rank], transports_of(links[rank]), large)
            for rank in range(ranks)
        ]
        expected = add_up(given).bfloat16()
        found = together(*[(teams[rank].total, given[rank]) for rank in range(ranks)])
        assert all(torch.equal(total, expected) for total in found)
        pieces = together(
            *[(teams[rank].gather, torch.arange(rank)) for rank in range(ranks)]
        )
        assert [[len(part) for part in parts] for parts in pieces] == [
            list(range(ranks))
        ] * ranks
    for found in links:
        end(found.values(), ())
    for lookout in lookouts:
        assert lookout.join(10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_groups_merge_as_links_do(dtype: torch.dtype):
    links, lookouts = team_of(3)
    exchanges = [
        TransportExchange(k, links[k], transports_of(links[k])) for k in range(3)
    ]
    for order in ((0, 1, 2), (2, 0, 1), (0, 2)):
        outs = [torch.randn(40, 9, 64).to(dtype) for _ in range(3)]
        lses = [torch.randn(40, 9) * 10 for _ in range(3)]
        lses[0][0] = -torch.inf
        whole = merge([outs[k] for k in order], [lses[k] for k in order])[0].to(dtype)
        copies = [out.clone() for out in outs]
        together(*[(exchanges[k].merge, order, copies[k], lses[k]) for k in order])
        assert all(torch.equal(copies[k], whole) for k in order)
        assert all(exchanges[k].take().seconds() > 0 for k in order)
    for found in links:
        end(found.values(), ())
    for lookout in lookouts:
        assert lookout.join(10)


def test_links_without_transports_have_none():
    link, other = pair()
    assert transports_of({1: link}) is None
    assert transports_of({}) is None
    assert LinkTeam(0, {1: link}).ranks == 2
    assert LinkExchange(0, {1: link}).take().seconds() == 0.0
    end((link, other), ())
