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
from tests.engine_contract import ask, asking

pytestmark = pytest.mark.slow
TOKENS = 3000  # longer than it takes a stage to notice that its raylet is gone
TWO_GROUPS = {"spp": 1, "kvp": 2, "max_tokens_per_kvp_group": 8192}


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """A head without room for stages, and three nodes with room for one each."""
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(3):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def controller_of(cluster: Cluster, parallel: dict[str, int]) -> Any:
    """On the head, so that it outlives the nodes, with one cell on each node."""
    args = {
        **TWO_STAGES,
        "parallel": parallel,
        "placement_group_config": {"strategy": "STRICT_SPREAD"},
        "actors": {"num_cpus": 1, "spares": 0},
        "kv_cache": {"budget_bytes": 2**27, "page_tokens": 16, "prefix_cache": False},
    }
    actor_class: Any = ray.remote(Controller)
    head = NodeAffinitySchedulingStrategy(cluster.head_node.node_id, soft=False)
    return actor_class.options(
        num_cpus=0, max_concurrency=1000, scheduling_strategy=head
    ).remote(args)


def nodes_of_cells() -> list[str]:
    """Node ids, cell by cell."""
    (table,) = [
        one for one in placement_group_table().values() if one["state"] == "CREATED"
    ]
    bundles: dict[int, str] = table["bundles_to_node_id"]
    return [bundles[cell] for cell in sorted(bundles)]


async def kill(cluster: Cluster, dying: str) -> None:
    """The raylet of a node, which takes the node's actors with it."""
    (node,) = [one for one in cluster.list_all_nodes() if one.node_id == dying]
    await asyncio.to_thread(cluster.remove_node, node, allow_graceful=False)


async def disturbed(nodes: Cluster, parallel: dict[str, int]) -> list[int]:
    """Two requests that decode while the node of the second cell dies: their tokens are those of
    undisturbed ones. Returns how many tokens of each were computed again."""
    controller = controller_of(nodes, parallel)
    engine = RayEngine(lambda: controller)
    await engine.start()
    used = nodes_of_cells()
    assert len(set(used)) == 2
    names = ("first", "second")
    alone = [await ask(engine, asking(name, TOKENS, prompt=300)) for name in names]
    async with asyncio.timeout(120):
        for heard in alone:
            await heard.end()
    both = [
        await ask(engine, asking(f"{name}-2", TOKENS, prompt=300)) for name in names
    ]
    for heard in both:
        await heard.until(100)
    await kill(nodes, used[1])
    async with asyncio.timeout(180):
        for heard in both:
            await heard.end()
    for heard, before in zip(both, alone, strict=True):
        heard.check_whole()
        assert heard.tokens == before.tokens
    now = nodes_of_cells()
    assert now[0] == used[0]
    assert now[1] not in used
    await engine.stop()
    ray.kill(controller)
    recomputed = [heard.last.recomputed_tokens for heard in both]
    print(f"\n{parallel}: computed again {recomputed} tokens")
    return recomputed


async def test_a_node_with_a_stage_dies_and_no_request_with_it(nodes: Cluster) -> None:
    """Each request had KV there."""
    recomputed = await disturbed(nodes, {"spp": 2})
    assert min(recomputed) >= 400


async def test_a_node_with_a_group_dies_and_only_its_requests_are_computed_again(
    nodes: Cluster,
) -> None:
    """Each group had one of the two requests."""
    kept, again = sorted(await disturbed(nodes, TWO_GROUPS))
    assert kept == 0
    assert again >= 400
