"""A grid, and a fleet of two, on several raylets of this machine: links are TCP, and a node that
dies takes nothing with it but what was on it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import ray
from fleet_load import loaded, until, until_grids
from ray.cluster_utils import Cluster
from ray.util import placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from serve_process import own_ports, serving
from token_streams import TokenStream, told, undisturbed

from deployments.launcher import environment
from medha_actors.actors.controller import Controller
from medha_actors.actors.engine import RayEngine
from tests.actors.warm import TWO_STAGES
from tests.engine_contract import ask, asking
from tests.processes import actor_pids

pytestmark = pytest.mark.slow
Node = Any  # a raylet with its agents, of Ray's test cluster
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


# ---------------------------------------------------------------- behind Serve, on the head

ARGS: dict[str, Any] = {
    "model_loading_config": {
        "model_id": "random",
        "model_source": "random",
        "dtype": "float32",  # what is computed again is the same, to the bit that decides
        "max_model_len_tokens": 8192,
    },
    "kv_cache": {"budget_bytes": 2**27, "page_tokens": 16, "prefix_cache": False},
    "predictor": {"calibrate": False},
    "actors": {"num_cpus": 1, "spares": 0},
    "deployment_config": {
        "ray_actor_options": {"num_cpus": 0, "resources": {"ingress": 0.1}}
    },
}
GRID_OF_TWO = {
    "parallel": {"spp": 2},
    "placement_group_config": {"strategy": "STRICT_SPREAD"},
}
FLEET_OF_TWO = {
    "parallel": {"spp": 1},
    "fleet": {"num_grids": 2, "routing": {"router": "two_choices"}},
}


@pytest.fixture
def serving_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head for the ingress replica, on which Serve's processes will find the environment that
    medha-serve would give them."""
    for name, value in environment({**os.environ, **own_ports()}).items():
        monkeypatch.setenv(name, value)
    head = {"num_cpus": 0, "resources": {"ingress": 1}, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


def hosts(cluster: Cluster, kind: str) -> list[Node]:
    """The nodes that have actors of this class, the head among them."""
    nodes = [cluster.head_node, *cluster.worker_nodes]
    return [node for node in nodes if actor_pids(raylet_of(node), kind)]


def raylet_of(node: Node) -> int:
    return node.all_processes["raylet"][0].process.pid


async def lose(cluster: Cluster, node: Node) -> None:
    await asyncio.to_thread(cluster.remove_node, node, allow_graceful=False)


async def controller_moved(cluster: Cluster, url: str, beside_a_stage: bool) -> Node:
    """Ray puts the controller on any node; it is sent away until it is where it is wanted, and
    never on the head."""
    async with asyncio.timeout(240):
        while True:
            await until_answered(url)
            (node,) = hosts(cluster, "SchedulerActor")
            is_beside = node in hosts(cluster, "StageActor")
            if node is not cluster.head_node and is_beside == beside_a_stage:
                return node
            (pid,) = actor_pids(raylet_of(node), "SchedulerActor")
            os.kill(pid, signal.SIGKILL)


async def until_answered(url: str) -> None:
    """Until the controller of now serves."""
    async with asyncio.timeout(60), aiohttp.ClientSession(url) as session:
        body = {"model": "random", "prompt": [1], "max_tokens": 1}
        while True:
            async with session.post("/v1/completions", json=body) as answer:
                if answer.status == 200:
                    return
            await asyncio.sleep(0.25)


@pytest.mark.parametrize("beside_a_stage", [False, True], ids=["alone", "and a stage"])
async def test_the_controllers_node_dies_and_its_streams_go_on(
    serving_nodes: Cluster, tmp_path: Path, beside_a_stage: bool
) -> None:
    for _ in range(3):
        serving_nodes.add_node(num_cpus=1)
    at = {"RAY_ADDRESS": serving_nodes.address}
    with serving(tmp_path, environment=at, **ARGS, **GRID_OF_TWO) as (url, _):
        node = await controller_moved(serving_nodes, url, beside_a_stage)
        alone = await undisturbed(url, 2, TOKENS)
        streams = [TokenStream(url, one.seed, TOKENS) for one in alone]
        async with asyncio.timeout(180), asyncio.TaskGroup() as group:
            for stream in streams:
                group.create_task(stream.run())
            for stream in streams:
                await stream.until(100)
            await lose(serving_nodes, node)
        assert [one.tokens for one in streams] == [one.tokens for one in alone]
        assert len(hosts(serving_nodes, "StageActor")) == 2
        assert len(hosts(serving_nodes, "SchedulerActor")) == 1
        told(f"the controller's node (a stage there: {beside_a_stage})", streams)


async def test_a_grids_node_dies_and_the_other_grid_goes_on_with_its_streams(
    serving_nodes: Cluster, tmp_path: Path
) -> None:
    """Those of the other grid do not notice; the lost one is there again when a node has room."""
    length = 1500
    for _ in range(2):
        serving_nodes.add_node(num_cpus=1)
    at = {"RAY_ADDRESS": serving_nodes.address}
    with serving(tmp_path, environment=at, **ARGS, **FLEET_OF_TWO) as (url, _):
        old = await until_grids(url, 2, limit_s=60)
        alone = await undisturbed(url, 4, length)
        streams = [TokenStream(url, one.seed, length) for one in alone]
        async with asyncio.timeout(180), asyncio.TaskGroup() as group:
            for stream in streams:
                group.create_task(stream.run())
            for stream in streams:
                await stream.until(100)
            controllers = hosts(serving_nodes, "SchedulerActor")
            assert controllers == hosts(serving_nodes, "StageActor")
            assert len(controllers) == 2  # a whole grid on each
            await lose(serving_nodes, controllers[0])
        assert [one.tokens for one in streams] == [one.tokens for one in alone]
        told("a grid's node", streams)
        paused = [one for one in streams if one.pause[0] >= 1.0]
        assert 0 < len(paused) < len(streams)

        serving_nodes.add_node(num_cpus=1)
        began = time.monotonic()
        new = await until_grids(url, 2, limit_s=120)
        print(f"\nthere again {time.monotonic() - began:.1f} s after a node with room")
        (back,) = new.keys() - old.keys()
        async with loaded(url, "random", workers=4, prompt=50, tokens=50) as load:
            await until(url, lambda now: now.get(back, 0.0) > 0, limit_s=60)
        assert load.wrong == []
