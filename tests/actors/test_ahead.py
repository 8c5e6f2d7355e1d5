"""The pipeline and a lone stage on a GPU: a batch is on its way while another one computes."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace

import msgspec
import pytest

from medha_actors.actors.cells import Shape
from medha_actors.actors.links import Link
from medha_actors.actors.pipeline import Pipeline
from medha_actors.actors.records import Records
from medha_actors.actors.service import CREDIT
from medha_actors.actors.sinks import Sinks
from medha_actors.actors.telemetry.observer import Silence
from medha_actors.config import load
from medha_actors.core.kv_plan import Grid
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.scheduler import Scheduler
from medha_actors.messages import (
    Request,
    SampledToken,
    SamplingParams,
    StepMessage,
    StepResult,
    pack_tokens,
)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(StepMessage).decode


class Lone:
    """A cluster of one stage, whose side of the link is here."""

    def __init__(self, credits_apart: bool) -> None:
        ours, theirs = socket.socketpair()
        theirs.settimeout(30)
        self.stage = Link(theirs)
        self.first = self.last = [Link(ours)]
        self.credits_apart = credits_apart
        self.crew = SimpleNamespace(shape=Shape(1, 1))
        self.config = load({"parallel": {"spp": 1}})
        self.spec = None

    async def link(self) -> None:
        pass

    def stop(self) -> None:
        self.first[0].close()
        self.stage.close()

    async def taken(self) -> StepMessage:
        """The next batch that comes."""
        return _decode((await asyncio.to_thread(self.stage.recv))[0])

    def answer(self, message: StepMessage) -> None:
        tokens = [
            SampledToken(span.request_id, span.index, 5)
            for span in message.spans
            if span.sample
        ]
        self.stage.send(
            _encode(StepResult(message.batch_id, 0, tuple(tokens), (0.001,)))
        )


class Told(Silence):
    """Says when a batch has landed."""

    def __init__(self) -> None:
        self.landed = asyncio.Event()

    def done(self, results, now) -> None:
        self.landed.set()


def pipeline_of(lone: Lone, observer: Silence | None = None) -> Pipeline:
    grid = Grid(
        stages=1,
        groups=1,
        pages_per_group=200,
        page_tokens=16,
        max_tokens_per_kvp_group=None,
        max_model_len_tokens=3000,
    )
    config = load({"scheduler": {"batch_budget_s": 0.05}})
    model = ExecutionModel.analytic(token_s=1e-3)
    scheduler = Scheduler(config.scheduler, config.objectives, None, grid, model)
    now = asyncio.get_running_loop().time
    return Pipeline(
        lone, scheduler, Sinks(), Records(0.0, 0), observer or Silence(), now
    )


@pytest.mark.parametrize("apart", [True, False], ids=["a GPU", "a CPU"])
async def test_a_credit_asks_for_the_next_batch(apart):
    lone = Lone(apart)
    pipeline = pipeline_of(lone)
    await pipeline.connect()
    sampling = SamplingParams(max_tokens=2, temperature=0.0)
    request = Request(
        id="r", prompt_token_ids=pack_tokens(range(2000)), sampling=sampling
    )
    pipeline.submit(request, "replica")
    first = await lone.taken()
    if apart:
        lone.stage.send(CREDIT)
        second = await lone.taken()  # while the first one computes
        lone.answer(first)
        await asyncio.sleep(0)
        assert second.batch_id != first.batch_id
        assert len(pipeline.flights) <= 2
        lone.stage.send(CREDIT)
        lone.answer(second)
        third = await lone.taken()
        assert third.batch_id not in (first.batch_id, second.batch_id)
    else:
        lone.answer(first)
        second = await lone.taken()
        assert second.spans[0].start == first.spans[0].stop
    pipeline.stop()


async def test_a_result_of_a_gpu_is_no_credit():
    lone = Lone(credits_apart=True)
    told = Told()
    pipeline = pipeline_of(lone, told)
    await pipeline.connect()
    for name in ("a", "b"):  # two requests: one batch in flight
        sampling = SamplingParams(max_tokens=2, temperature=0.0)
        pipeline.submit(
            Request(
                id=name, prompt_token_ids=pack_tokens(range(900)), sampling=sampling
            ),
            "replica",
        )
    first = await lone.taken()
    lone.answer(first)
    await told.landed.wait()
    await asyncio.sleep(0)
    assert len(pipeline.flights) == 0, "nothing is sent before stage 0 asks for it"
    lone.stage.send(CREDIT)
    assert (await lone.taken()).batch_id != first.batch_id
    pipeline.stop()
