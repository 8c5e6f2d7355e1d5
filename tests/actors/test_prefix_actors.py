"""The prefix cache of real actors: the tokens and log-probabilities of transformers, whatever was
found in the cache, under pressure and across deaths."""

import asyncio
import itertools
import os
import signal
import time

import pytest
import torch

from medha_actors.actors.local import events_of, prompt_of
from medha_actors.messages import (
    FinishedEvent,
    PromptLogprobsEvent,
    Request,
    SamplingParams,
    TokenEvent,
    pack_tokens,
)
from tests.tiny_llama import tiny_llama

pytestmark = pytest.mark.usefixtures("cluster")
_PAGE = 64
_names = itertools.count()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return tiny_llama(folder, vocabulary=256, length=4096, seed=5), str(folder)


def arguments(
    folder, spp, kvp, cutoff=None, budget_bytes=2**21, prefix_cache=True, **tier
):
    return {
        "model_loading_config": {"model_source": folder, "dtype": "float32"},
        "parallel": {"spp": spp, "kvp": kvp, "max_tokens_per_kvp_group": cutoff},
        "actors": {"num_cpus": 0.5},
        "scheduler": {"batch_budget_s": 0.004},
        "kv_cache": {
            "budget_bytes": budget_bytes,
            "page_tokens": _PAGE,
            "prefix_cache": prefix_cache,
            **tier,
        },
        "predictor": {"calibrate": False},
    }


class Asked:
    """One request and what came of it."""

    def __init__(self, prompt, output, prompt_logprobs=None, **more):
        self.prompt = list(prompt)
        self.request = Request(
            id=f"asked-{next(_names)}",
            prompt_token_ids=pack_tokens(self.prompt),
            sampling=SamplingParams(
                max_tokens=output,
                temperature=0.0,
                logprobs=1,
                prompt_logprobs=prompt_logprobs,
            ),
            arrived_at=time.time(),
            **more,
        )
        self.drawn = []
        self.scored = {}
        self.finished = None

    @property
    def known(self):
        return self.prompt + [token.token_id for token in self.drawn]

    @property
    def cached(self):
        return self.finished.cached_tokens

    async def ask(self, handle, happened=lambda: None):
        async for event in await events_of(handle, self.request):
            if isinstance(event, TokenEvent):
                assert event.index == len(self.drawn), "a token lost or doubled"
                self.drawn.append(event)
            elif isinstance(event, PromptLogprobsEvent):
                self.scored.update(enumerate(event.entries, event.start + 1))
            elif isinstance(event, FinishedEvent):
                self.finished = event
            happened()
        return self

    @torch.inference_mode()
    def check(self, model):
        """Greedy tokens equal, log-probabilities within 1e-3."""
        assert self.finished.reason == "length"
        expected = model(torch.tensor([self.known])).logits[0].log_softmax(-1)
        after = expected[len(self.prompt) - 1 : -1]
        assert [token.token_id for token in self.drawn] == after.argmax(-1).tolist()
        for token, row in zip(self.drawn, after, strict=True):
            assert abs(token.logprob - row[token.token_id]) < 1e-3
        for position, (logprob, _) in self.scored.items():
            assert abs(logprob - expected[position - 1, self.prompt[position]]) < 1e-3


async def everyone(handle, requests):
    async with asyncio.timeout(120):
        await asyncio.gather(*[request.ask(handle) for request in requests])


# The cutoffs: none, at an edge of pages, and inside one
@pytest.mark.parametrize(
    ("spp", "kvp", "cutoff"),
    [(1, 1, None), (2, 1, None), (1, 2, 128), (2, 2, 128), (2, 2, 100)],
)
async def test_hits_change_no_token(spp, kvp, cutoff, model, warm):
    base = prompt_of(400, salt=1)

    async with warm.engine(arguments(model[1], spp, kvp, cutoff)) as handle:
        first = await Asked(base, 40).ask(handle)
        turns = [
            Asked(base[:shared] + prompt_of(30, salt=shared), 10)
            for shared in (63, 64, 65, 191, 192, 400)
        ]
        whole = [Asked(base[:192], 10), Asked(base[:193], 10)]
        history = Asked(first.known + prompt_of(50, salt=9), 70)
        scored = Asked(base, 5, prompt_logprobs=0)
        other = Asked(base, 5, cache_salt="another")
        private = Asked(base, 5, cache=False)
        everybody = [*turns, *whole, history, scored, other, private]
        await everyone(handle, everybody)
        later = await Asked(history.known, 20).ask(handle)
        together = [Asked([*prompt_of(300, salt=77), index], 10) for index in range(4)]
        await everyone(handle, together)
        after = await Asked([*prompt_of(300, salt=77), 9], 10).ask(handle)
        stats = await handle.stats()
        assert stats["kv_usage"] == 0
        assert stats["prefix_cache_hits_total"] > 0
    for request in (first, *everybody, later, *together, after):
        request.check(model[0])
    assert (scored.cached, other.cached, private.cached) == (0, 0, 0)
    assert len(scored.scored) == len(base) - 1
    assert later.cached > 0
    # with several groups, hits are weighed against the load of those that have them
    if kvp == 1:
        assert [turn.cached for turn in turns] == [0, 64, 64, 128, 192, 384]
        assert [request.cached for request in whole] == [128, 192]
        assert history.cached == 384
        assert later.cached == (len(history.known) - 1) // _PAGE * _PAGE
        shares = sorted(request.cached for request in together)
        assert shares[0] == 0
        # in one batch all compute (tests/core/test_leaders.py: who waits for whom)
        assert shares[-1] <= 256
        assert after.cached == 256


async def test_hits_change_no_token_under_pressure(model, warm):
    """A cache of 16 pages, sessions that grow beyond it together."""
    arguments_ = arguments(model[1], 2, 1, budget_bytes=16 * _PAGE * 256)
    async with warm.engine(arguments_) as handle:
        sessions = [prompt_of(70, salt=number) for number in range(4)]
        done = []
        for turn in range(5):
            asked = [
                Asked(history + prompt_of(40, salt=turn), 30) for history in sessions
            ]
            await everyone(handle, asked)
            sessions = [request.known for request in asked]
            done += asked
        stats = await handle.stats()
        assert stats["kv_usage"] == 0
    for request in done:
        request.check(model[0])
    assert sum(request.cached for request in done[4:]) > 0
    assert sum(request.cached for request in done[4:]) < sum(
        len(r.prompt) for r in done[4:]
    )


async def test_hits_outlive_the_death_of_another_group(model, warm):
    """One of two groups dies while requests that share pages decode: nothing is lost, and what the
    other group has cached is found again."""
    async with warm.engine(arguments(model[1], 1, 2)) as handle:
        bases = [prompt_of(200, salt=number) for number in range(2)]
        # so long that they run beside each other
        firsts = [Asked(base, 100) for base in bases]
        await everyone(handle, firsts)  # one on each group
        victim = (await warm.pids())[0]
        turns = [
            Asked([*base, index], 150)
            for index, base in itertools.product(range(2), bases)
        ]
        killed = []

        def kill():
            if not killed and min(len(turn.drawn) for turn in turns) >= 5:
                killed.append(victim)
                os.kill(victim, signal.SIGKILL)

        async with asyncio.timeout(120):
            await asyncio.gather(*[turn.ask(handle, kill) for turn in turns])
        assert killed
        again = [Asked([*base, 9], 5) for base in bases]
        await everyone(handle, again)
    for request in (*firsts, *turns, *again):
        request.check(model[0])
    found = [turn.cached for turn in turns]
    # who would have to wait in the group with its hit may be sooner through in the other one
    assert set(found) <= {0, 192}
    assert found.count(192) >= 2
    assert [request.cached for request in again] == [192, 192]
    assert {turn.finished.recomputed_tokens > 0 for turn in turns} == {False, True}


@pytest.mark.parametrize(("spp", "kvp"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("disk", [False, True], ids=["memory", "file"])
async def test_loads_from_the_second_tier_change_no_token(
    spp, kvp, disk, model, warm, tmp_path
):
    """Sessions that take turns in a cache with room for one of them."""
    folder = str(tmp_path) if disk else None
    tier = {"host_bytes": 2**22, "disk": folder}
    arguments_ = arguments(
        model[1], spp, kvp, budget_bytes=12 * _PAGE * 512 // spp, **tier
    )
    done = []
    async with warm.engine(arguments_) as handle:
        sessions = [prompt_of(400, salt=number) for number in range(3 * kvp)]
        for turn in range(3):
            for number, history in enumerate(sessions):
                asked = await Asked(history + prompt_of(20, salt=turn), 20).ask(handle)
                sessions[number] = asked.known
                done.append(asked)
        stats = await handle.stats()
    for request in done:
        request.check(model[0])
    assert stats["tier"]["loaded_pages"] > 0
    assert stats["kv_usage"] == 0


@pytest.mark.parametrize("disk", [False, True], ids=["memory", "file"])
async def test_a_file_outlives_its_actor_and_so_do_its_hits(
    disk, model, warm, tmp_path
):
    tier = {"host_bytes": 2**22, "disk": str(tmp_path) if disk else None}
    arguments_ = arguments(model[1], 1, 1, budget_bytes=12 * _PAGE * 512, **tier)
    async with warm.engine(arguments_) as handle:
        first = await Asked(prompt_of(400, salt=1), 5).ask(handle)
        await Asked(prompt_of(700, salt=2), 5).ask(handle)
        other = Asked(prompt_of(300, salt=3), 60)
        killed = []
        victim = (await warm.pids())[0]

        def kill():
            if not killed and len(other.drawn) >= 5:
                killed.append(victim)
                os.kill(victim, signal.SIGKILL)

        async with asyncio.timeout(120):
            await other.ask(handle, kill)
        assert killed
        again = await Asked([*first.prompt, 7], 5).ask(handle)
    for request in (first, other, again):
        request.check(model[0])
    assert again.cached == (384 if disk else 0)
