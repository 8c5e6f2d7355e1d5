"""The controller may die or fail at any place: requests go on in the next one, stages stay."""

import asyncio
import contextlib
import os
import signal
import time
from contextlib import asynccontextmanager
from functools import partial

import pytest
import pytest_asyncio
from ray.exceptions import RayActorError

from medha_actors.actors.local import events_of, greedy, prompt_of
from medha_actors.errors import EngineError
from medha_actors.messages import (
    FinishedEvent,
    PromptLogprobsEvent,
    Request,
    SamplingParams,
    TokenEvent,
    pack_tokens,
)
from tests.actors.breakable import POISON, Service, breakable
from tests.processes import stage_pids

pytestmark = pytest.mark.usefixtures("cluster")


def arguments(spp=2, kvp=1):
    return {
        "model_loading_config": {"model_source": "random", "dtype": "float32"},
        "parallel": {
            "spp": spp,
            "kvp": kvp,
            "max_tokens_per_kvp_group": 48 if kvp > 1 else None,
        },
        "actors": {"num_cpus": 0.5, "spares": 0},
        "scheduler": {"min_chunk_tokens": 16, "batch_budget_s": 0.002},
        "kv_cache": {"budget_bytes": 2**21, "page_tokens": 16},
        "predictor": {"calibrate": False},
    }


class Stream:
    """One request and what came back."""

    def __init__(self, name, prompt, sampling):
        self.request = Request(
            id=name,
            prompt_token_ids=pack_tokens(prompt),
            sampling=sampling,
            arrived_at=time.time(),
        )
        self.tokens = []
        self.scored = []
        self.finished = None

    async def follow(self, handle, reached=None, at=0):
        """To its end; `reached` is set when `at` tokens are there."""
        async for event in await events_of(handle, self.request):
            if isinstance(event, TokenEvent):
                assert event.index == len(self.tokens)
                self.tokens.append(event.token_id)
            elif isinstance(event, PromptLogprobsEvent):
                self.scored += range(
                    event.start + 1, event.start + 1 + len(event.entries)
                )
            elif isinstance(event, FinishedEvent):
                self.finished = event
            if reached is not None and len(self.tokens) >= at:
                reached.set()


def streams(salt=""):
    """A greedy one, a sampled one with penalties, and one that scores its prompt."""
    sampled = SamplingParams(
        max_tokens=150, temperature=1.0, seed=7, repetition_penalty=1.2
    )
    scored = SamplingParams(
        max_tokens=20, temperature=0.0, logprobs=1, prompt_logprobs=1
    )
    return [
        Stream(f"greedy{salt}", prompt_of(50), greedy(500)),
        Stream(f"sampled{salt}", prompt_of(30, 1), sampled),
        Stream(f"scored{salt}", prompt_of(1500, 2), scored),
    ]


async def undisturbed(handle):
    alone = streams("-alone")
    await asyncio.gather(*[stream.follow(handle) for stream in alone])
    return [stream.tokens for stream in alone]


def check(live, expected):
    assert [stream.finished.reason for stream in live] == ["length"] * 3
    assert [stream.tokens for stream in live] == expected
    assert [stream.finished.generated_tokens for stream in live] == [500, 150, 20]
    assert live[2].scored == list(range(1, 1500)), "each position once, in order"


class Grid:
    """One engine, what undisturbed requests say, and ways to break it."""

    def __init__(self, handle, service, expected, others):
        self.handle = handle
        self.service = service
        self.expected = expected
        self._others = others

    def stages(self):
        return sorted(set(stage_pids(os.getpid())) - self._others)

    async def kill_controller(self):
        os.kill(await self.service.find().pid.remote(), signal.SIGKILL)

    async def kill_controller_and_stage(self):
        await self.kill_controller()
        os.kill(self.stages()[0], signal.SIGKILL)

    async def break_part(self, part):
        # A part that is used at once takes the answer with it.
        with contextlib.suppress(RayActorError):
            await self.service.find().break_part.remote(part)

    async def break_mending(self):
        await self.break_part("restart")
        os.kill(self.stages()[0], signal.SIGKILL)

    async def survives(self, loss, salt):
        """The same requests again, with a loss in the middle: no token is lost or doubled."""
        live = streams(salt)
        reached = asyncio.Event()
        work = asyncio.gather(
            *[stream.follow(self.handle, reached, at=20) for stream in live]
        )
        await reached.wait()
        made = self.service.made
        await loss()
        async with asyncio.timeout(200):
            await work
        check(live, self.expected)
        assert self.service.made > made
        stats = await self.handle.stats()
        assert stats["running"] == stats["waiting"] == 0
        assert stats["kv_usage"] == 0


@asynccontextmanager
async def grid_of(spp, kvp):
    others = set(stage_pids(os.getpid()))
    async with breakable(arguments(spp, kvp)) as (handle, service):
        yield Grid(handle, service, await undisturbed(handle), others)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two_stages(cluster):
    async with grid_of(2, 1) as grid:
        yield grid


@pytest.mark.asyncio(loop_scope="module")
async def test_no_loss_of_the_controller_costs_a_token(two_stages):
    grid = two_stages
    stages = grid.stages()
    await grid.survives(grid.kill_controller, "-killed")
    for part in ("_publish", "complete"):
        await grid.survives(partial(grid.break_part, part), part)
    assert grid.stages() == stages, "the stages are those of before"
    await grid.survives(grid.break_mending, "-mending")
    await grid.survives(grid.kill_controller_and_stage, "-both")


@pytest.mark.slow  # wherever it fails, the same happens
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("part", ["next_batch", "expire", "next_wake"])
async def test_no_failure_of_a_part_of_it_costs_a_token(two_stages, part):
    await two_stages.survives(partial(two_stages.break_part, part), part)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_request_that_kills_every_controller_is_ended_and_its_neighbours_are_not(
    two_stages,
):
    async def send_poison():
        poison = Stream(POISON, prompt_of(9), greedy(5))
        with pytest.raises(EngineError, match="died repeatedly"):
            await poison.follow(two_stages.handle)

    await two_stages.survives(send_poison, "-poisoned")


@pytest.mark.slow  # the test of one group in every run loses it in the same places
async def test_no_loss_of_the_controller_of_two_groups_costs_a_token():
    async with grid_of(1, 2) as grid:
        await grid.survives(grid.kill_controller, "-killed")


async def test_a_failed_start_is_tried_again(tmp_path):
    args = arguments()
    args["model_loading_config"] = {"model_source": str(tmp_path / "later.gguf")}

    controller = Service(args).find()
    for _ in range(2):
        with pytest.raises(Exception, match=r"later\.gguf"):
            await controller.ready.remote()
