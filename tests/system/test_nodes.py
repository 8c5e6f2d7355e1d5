"""A grid on several raylets of this machine: its links are TCP, and a node that dies takes nothing
with it but what was on it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util import placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from medha_actors.actors.controller import Controller
from medha_actors.actors.engine import RayEngine
from tests.actors.warm import TWO_STAGES
from tests.engine_contract import Heard, ask, asking

pytestmark = pytest.mark.slow
ARGS: dict[str, Any] = {
    **TWO_STAGES,
    "placement_group_config": {"strategy": "STRICT_SPREAD"},
    "actors": {"num_cpus": 0.5, "spares": 0},
}


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """A head without room for stages, and three nodes with room for one each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(3):
        cluster.add_node(num_cpus=0.5)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def controller_of(cluster: Cluster) -> Any:
    """On the head, so that it outlives the nodes."""
    actor_class: Any = ray.remote(Controller)
    head = NodeAffinitySchedulingStrategy(cluster.head_node.node_id, soft=False)
    return actor_class.options(
        num_cpus=0, max_concurrency=1000, scheduling_strategy=head
    ).remote(ARGS)


def nodes_of_stages() -> list[str]:
    """Node ids, stage by stage."""
    (table,) = [
        one for one in placement_group_table().values() if one["state"] == "CREATED"
    ]
    bundles: dict[int, str] = table["bundles_to_node_id"]
    return [bundles[stage] for stage in sorted(bundles)]


async def whole(engine: RayEngine, name: str, tokens: int) -> Heard:
    heard = await ask(engine, asking(name, tokens, prompt=300))
    async with asyncio.timeout(120):
        await heard.end()
    heard.check_whole()
    return heard


async def test_a_node_that_dies_takes_no_request_with_it(nodes: Cluster) -> None:
    controller = controller_of(nodes)
    engine = RayEngine(lambda: controller)
    await engine.start()
    used = nodes_of_stages()
    assert len(set(used)) == 2
    alone = await whole(engine, "alone", 60)
    heard = await ask(engine, asking("disturbed", 60, prompt=300))
    await heard.until(10)
    (dying,) = [node for node in nodes.list_all_nodes() if node.node_id == used[1]]
    nodes.remove_node(dying, allow_graceful=False)
    async with asyncio.timeout(180):
        await heard.end()
    heard.check_whole()
    assert heard.tokens == alone.tokens
    assert used[1] not in nodes_of_stages()
    assert nodes_of_stages()[0] == used[0]
    await engine.stop()
    ray.kill(controller)
