"""Who is put at a cell: spares that live, and whoever does not die before it begins."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from medha_actors.actors.cells import Cell
from medha_actors.actors.crew import Crew
from medha_actors.actors.plans import Place
from medha_actors.config import load
from medha_actors.errors import EngineError

pytestmark = pytest.mark.usefixtures("cluster")
CONFIG = load(
    {
        "model_loading_config": {"model_source": "random"},
        "parallel": {"spp": 2},
        "actors": {"num_cpus": 0.5, "spares": 1},
    }
)
FIRST = Cell(0, 0)
SECOND = Cell(1, 0)


def frail(folder: Path) -> type:
    """A stage actor that computes nothing. For each file in this folder one dies as it starts, and
    takes the file with it."""

    class Frail:
        def __init__(self, device: str, owner: Any) -> None:
            for bane in folder.iterdir():
                bane.unlink()
                os._exit(1)

        async def locate(self) -> Place:
            node = ray.get_runtime_context().get_node_id()
            return Place(node, (0,), 1 << 30, None)

        async def pid(self) -> int:
            return os.getpid()

    return Frail


@pytest.fixture
async def crew(tmp_path: Path):
    hired = Crew(CONFIG, "cpu", None, frail(tmp_path))
    await hired.hire()
    places = await hired.everybody("locate")
    yield hired, {cell: place.node_id for cell, place in places.items()}
    hired.dismiss()


@pytest.fixture
def doom(tmp_path: Path) -> Callable[[int], None]:
    """So many of those who start from now on die."""

    def doom_many(count: int) -> None:
        for number in range(count):
            (tmp_path / str(number)).touch()

    return doom_many


async def test_who_dies_before_it_begins_is_replaced_and_nobody_else(crew, doom):
    hired, nodes = crew
    before = await hired.everybody("pid")
    doom(2)
    places = await hired.refill([SECOND], nodes)
    assert {cell: place.node_id for cell, place in places.items()} == {
        SECOND: nodes[SECOND]
    }
    after = await hired.everybody("pid")
    assert after[FIRST] == before[FIRST]
    assert after[SECOND] != before[SECOND]


async def test_it_is_given_up_where_everybody_dies(crew, doom):
    hired, nodes = crew
    doom(3)
    with pytest.raises(EngineError, match="dies"):
        await hired.refill([SECOND], nodes)


async def test_a_spare_takes_the_place_and_a_dead_one_does_not(crew, doom):
    hired, nodes = crew
    await hired.hire_spares(nodes.values())
    ((spare, _),) = hired.spares
    warm = await spare.pid.remote()
    await hired.refill([SECOND], nodes)
    assert (await hired.everybody("pid"))[SECOND] == warm
    await hired.hire_spares(nodes.values())
    ((dead, _),) = hired.spares
    ray.kill(dead)
    doom(2)  # the dead spare costs none of the tries
    await hired.refill([SECOND], nodes)
    assert hired.spares == []
