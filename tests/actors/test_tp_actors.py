"""Tensor ranks of real actors: the tokens and log-probabilities of transformers in every grid, and
a rank that dies."""

import asyncio
import os
import signal

import pytest

from tests.actors.followed import Followed
from tests.tiny_llama import tiny_llama

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return tiny_llama(folder, vocabulary=256, length=4096, seed=5), str(folder)


def arguments(folder, tp, spp, kvp, cutoff=None, chunk=2048):
    parallel = {"tp": tp, "spp": spp, "kvp": kvp}
    if cutoff is not None:
        parallel["max_tokens_per_kvp_group"] = cutoff
    return {
        "model_loading_config": {"model_source": folder, "dtype": "float32"},
        "parallel": parallel,
        "actors": {"num_cpus": 0.5},
        "scheduler": {"max_chunk_tokens": chunk, "batch_budget_s": 0.004},
        "kv_cache": {"budget_bytes": 2**21, "page_tokens": 64},
        "predictor": {"calibrate": False},
    }


# Two KV heads: two ranks hold one each, four hold each of them twice.
@pytest.mark.parametrize(
    ("tp", "spp", "kvp", "cutoff", "chunk"),
    [
        (2, 1, 1, None, 24),
        (2, 2, 1, None, 2048),
        (2, 1, 2, 64, 32),
        pytest.param(2, 2, 2, 37, 2048, marks=pytest.mark.slow),
        (4, 1, 1, None, 50),
    ],
)
async def test_every_grid_gives_the_log_probabilities_of_transformers(
    tp, spp, kvp, cutoff, chunk, model, warm
):
    lengths = ((150, 20), (36, 30), (37, 25), (70, 30), (3, 9))
    requests = [Followed(prompt, output) for prompt, output in lengths]
    async with warm.engine(arguments(model[1], tp, spp, kvp, cutoff, chunk)) as handle:
        assert len(await warm.pids()) == tp * spp * kvp
        async with asyncio.timeout(120):
            await asyncio.gather(*[request.follow(handle) for request in requests])
        assert (await handle.stats())["kv_usage"] == 0
    for request in requests:
        request.check(model[0])


# In the order of cells, stage by stage and group by group: one that reports, and one that does not.
@pytest.mark.parametrize("victim", [1, 4, pytest.param(7, marks=pytest.mark.slow)])
async def test_the_death_of_a_rank_costs_only_its_group(victim, model, warm):
    """Two stages by two groups by two ranks, four short requests; one actor dies while all
    decode."""
    async with warm.engine(arguments(model[1], 2, 2, 2, 512, 16)) as handle:
        cells = await warm.pids()
        assert len(cells) == 8
        requests = [Followed(10 + number, 200) for number in range(4)]
        killed = []

        def kill():
            if not killed and min(len(request.drawn) for request in requests) >= 5:
                killed.append(cells[victim])
                os.kill(cells[victim], signal.SIGKILL)

        followed = [request.follow(handle, kill) for request in requests]
        async with asyncio.timeout(200):
            await asyncio.gather(*followed)
        assert killed
        survivors = set(cells) - set(killed)
        assert survivors <= set(await warm.pids())
    for request in requests:
        request.check(model[0])
    assert {request.finished.recomputed_tokens > 0 for request in requests} == {
        False,
        True,
    }


@pytest.mark.parametrize("victim", [0, 1])
async def test_an_idle_rank_that_dies_is_replaced(victim, model, warm):
    """Nobody waits for it: the others notice that its links are closed."""
    async with warm.engine(arguments(model[1], 2, 1, 1)) as handle:
        before = Followed(20, 10)
        after = Followed(30, 10)
        async with asyncio.timeout(60):
            await before.follow(handle)
        cells = await warm.pids()
        os.kill(cells[victim], signal.SIGKILL)
        async with asyncio.timeout(60):
            await after.follow(handle)
        assert cells[victim] not in await warm.pids()
    for request in (before, after):
        request.check(model[0])


async def test_ranks_are_calibrated_together(model, warm):
    args = arguments(model[1], 2, 2, 1)
    args["predictor"] = {"cache": False, "probe_context_tokens": 256}
    async with warm.engine(args) as handle:
        request = Followed(40, 10)
        async with asyncio.timeout(60):
            await request.follow(handle)
        profile = await warm.profile()
    request.check(model[0])
    assert len(profile.stages) == 2
    for stage in profile.stages:
        assert stage.rows[0][1] > 0


async def test_heads_that_cannot_be_shared_are_refused(model, warm):
    refusal = "parallel.tp is 3, but the model has 4 heads, 2 to each of its 2 KV heads"
    with pytest.raises(Exception, match=refusal):
        async with warm.engine(arguments(model[1], 3, 1, 1)):
            pass


async def test_more_ranks_than_the_cluster_has_cores_are_refused(model, warm):
    args = arguments(model[1], 2, 2, 3, 64)
    args["actors"] = {"num_cpus": 1}
    refusal = (
        "parallel: 2 stages x 3 groups x 2 tensor ranks need 12 CPU, the cluster has 8"
    )
    with pytest.raises(Exception, match=refusal):
        async with warm.engine(args):
            pass
