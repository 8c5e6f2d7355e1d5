"""KV groups of real actors: the tokens and log-probabilities of transformers, and of whom a death
costs what."""

import asyncio
import os
import signal

import msgspec
import pytest

from tests.actors.followed import Followed
from tests.poisoned import POISON, Poisoned
from tests.processes import stage_pids
from tests.tiny_llama import tiny_llama

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return tiny_llama(folder, vocabulary=256, length=4096, seed=5), str(folder)


def arguments(folder, spp, kvp, cutoff, chunk=2048):
    return {
        "model_loading_config": {"model_source": folder, "dtype": "float32"},
        "parallel": {"spp": spp, "kvp": kvp, "max_tokens_per_kvp_group": cutoff},
        "actors": {"num_cpus": 0.5},
        "scheduler": {"max_chunk_tokens": chunk, "batch_budget_s": 0.004},
        "kv_cache": {"budget_bytes": 2**21, "page_tokens": 64},
        "predictor": {"calibrate": False},
    }


# The cutoffs: at an edge of pages and chunks, inside both, at a chunk's edge, and such
# that most is in the last piece.
@pytest.mark.parametrize(
    ("spp", "kvp", "cutoff", "chunk"),
    [(1, 2, 64, 32), (2, 2, 37, 2048), (1, 3, 48, 24), (2, 3, 5, 16)],
)
async def test_every_grid_gives_the_log_probabilities_of_transformers(
    spp, kvp, cutoff, chunk, model, warm
):
    """With several long requests at once, on different groups, while others grow from one group to
    the next."""
    lengths = (
        (150, 20),
        (cutoff - 1, 30),
        (cutoff, 25),
        (cutoff + 1, 40),
        (70, 30),
        (66, 40),
        (80, 30),
        (3, 9),
    )
    requests = [Followed(prompt, output) for prompt, output in lengths]
    async with warm.engine(arguments(model[1], spp, kvp, cutoff, chunk)) as handle:
        async with asyncio.timeout(120):
            await asyncio.gather(*[request.follow(handle) for request in requests])
        assert (await handle.stats())["kv_usage"] == 0
    for request in requests:
        request.check(model[0])


async def test_a_death_costs_only_those_with_a_piece_there(model, warm):
    """Two stages by two groups, one long request on both groups and four short ones; one actor
    dies, then another."""
    # The cutoff: the long one needs both groups, the short ones never grow onto a second.
    async with warm.engine(arguments(model[1], 2, 2, 512, 16)) as handle:
        cells = await warm.pids()
        assert len(cells) == 4
        for victim, prefilled in (
            (cells[1], 0),
            (cells[2], 560),
        ):  # while all decode; during the long prefill, once both groups hold a piece of it
            order = []
            long = Followed(700, 100, order)
            shorts = [Followed(10 + number, 300, order) for number in range(4)]
            killed_after = []
            spread = asyncio.Event()

            def kill(
                victim=victim,
                prefilled=prefilled,
                long=long,
                shorts=shorts,
                killed_after=killed_after,
                order=order,
                spread=spread,
            ):
                if all(short.drawn for short in shorts):
                    spread.set()
                ready = min(len(short.drawn) for short in shorts) >= 5
                ready &= (
                    long.prefilled >= prefilled if prefilled else len(long.drawn) >= 5
                )
                if ready and not killed_after:
                    assert not prefilled or not long.drawn
                    killed_after.append(len(order))
                    os.kill(victim, signal.SIGKILL)

            async def then_long(long=long, kill=kill, spread=spread, handle=handle):
                # before it fills one group's cache, or the short ones would all go to the other
                await spread.wait()
                await long.follow(handle, kill)

            followed = [short.follow(handle, kill) for short in shorts]
            async with asyncio.timeout(200):
                await asyncio.gather(*followed, then_long())
            assert killed_after
            for request in (long, *shorts):
                request.check(model[0])
            assert long.finished.recomputed_tokens > 0  # what the dead group held of it
            assert {short.finished.recomputed_tokens > 0 for short in shorts} == {
                False,
                True,
            }
            # Who lost nothing goes on at once: at least 11 chunks of the long one are still to be
            # computed, and no token waits for them. While both decode, they take turns.
            spared = [short for short in shorts if not short.finished.recomputed_tokens]
            since = order[killed_after[0] :]
            assert min(most_between(since, short, long) for short in spared) >= 5


def most_between(order, one, other):
    """The most tokens that `one` got while `other` waited for its next."""
    most = count = 0
    for who in order:
        if who is one:
            count += 1
        elif who is other:
            most = max(most, count)
            count = 0
    return most


# of one group: test_losses.py
@pytest.mark.parametrize(
    ("spp", "kvp"), [(1, 2), pytest.param(2, 1, marks=pytest.mark.slow)]
)
async def test_a_request_that_kills_the_pipeline_is_ended_and_its_neighbours_go_on(
    spp, kvp, model, warm
):
    """They were in flight beside it, and each is tried alone."""
    neighbours = [Followed(length, 120) for length in (20, 30, 25)]
    poison = Followed(10, 5)
    poison.request = msgspec.structs.replace(poison.request, id=POISON)
    running = asyncio.Event()

    def look():
        if min(len(neighbour.drawn) for neighbour in neighbours) >= 5:
            running.set()

    async def then_poison():
        await running.wait()
        await poison.follow(handle)

    async with warm.engine(arguments(model[1], spp, kvp, 512), Poisoned) as handle:
        followed = [neighbour.follow(handle, look) for neighbour in neighbours]
        async with asyncio.timeout(120):
            await asyncio.gather(*followed, then_poison())
    assert poison.finished.reason == "error"
    assert "died repeatedly" in poison.finished.message
    assert not poison.drawn
    for neighbour in neighbours:
        neighbour.check(model[0])
    assert any(neighbour.finished.recomputed_tokens for neighbour in neighbours)


async def test_logits_that_are_no_numbers_end_one_request_and_no_actor(model, warm):
    """The edge lets no such penalty pass: in every stage and group beside others that go on."""
    neighbours = [Followed(length, 60) for length in (20, 100, 150)]
    bad = Followed(130, 5)
    sampling = msgspec.structs.replace(
        bad.request.sampling, repetition_penalty=1e-39, top_k=5, prompt_logprobs=None
    )
    bad.request = msgspec.structs.replace(bad.request, sampling=sampling)
    async with warm.engine(arguments(model[1], 2, 2, 64, 16)) as handle:
        cells = set(await warm.pids())
        followed = [request.follow(handle) for request in (*neighbours, bad)]
        async with asyncio.timeout(120):
            await asyncio.gather(*followed)
        assert cells <= set(stage_pids(os.getpid()))
        assert (await handle.stats())["kv_usage"] == 0
    assert bad.finished.reason == "error"
    assert "not numbers" in bad.finished.message
    for neighbour in neighbours:
        neighbour.check(model[0])
        assert neighbour.finished.recomputed_tokens == 0


async def test_more_groups_than_the_cluster_has_cores_are_refused(model, warm):
    args = arguments(model[1], 2, 5, 64)
    args["actors"] = {"num_cpus": 1}
    with pytest.raises(
        Exception, match="parallel: 2 stages x 5 groups need 10 CPU, the cluster has 8"
    ):
        async with warm.engine(args):
            pass
