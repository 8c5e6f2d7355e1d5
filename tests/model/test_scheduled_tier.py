"""The scheduler over real stages in this process: sessions that take turns in a cache too small for
them get the tokens that they get where nothing is cached, with pages from the second tier."""

from __future__ import annotations

import random

import pytest
import torch

from medha_actors.config import (
    MedhaConfig,
    ModelLoadingConfig,
    ObjectivesConfig,
    RandomWeights,
)
from medha_actors.core.kv_plan import Grid
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.scheduler import Scheduler
from medha_actors.core.simulator import results_of
from medha_actors.messages import (
    Request,
    SamplingParams,
    StepResult,
    TokenEvent,
    pack_tokens,
)
from medha_actors.model.host_tier import HostTier
from medha_actors.model.spec import load_spec, split_layers
from medha_actors.model.stage import Stage, StageOutput

RANDOM = ModelLoadingConfig(model_source="random", random=RandomWeights(layers=3))
PAGE = 16


class Server:
    """One KV group of `stages` stages, `pages` pages and `slots` slots."""

    def __init__(self, stages, pages, slots):
        spec = load_spec(RANDOM)
        own = (pages, PAGE, "cpu", torch.float32, 1, "sdpa")
        layers = enumerate(split_layers(spec, stages))
        self.stages = [
            Stage(spec, RANDOM, held, (s, stages), 0, *own) for s, held in layers
        ]
        for stage in self.stages:
            stage.tier = HostTier(stage.decoder.cells(), slots) if slots else None
        grid = Grid(
            stages=stages,
            groups=1,
            pages_per_group=pages,
            page_tokens=PAGE,
            max_tokens_per_kvp_group=None,
            max_model_len_tokens=1000,
            slots_per_group=slots,
        )
        config = MedhaConfig(objectives=ObjectivesConfig(tpot_s=0.1))
        model = ExecutionModel.analytic(stages, token_s=1e-3, page_s=2e-3)
        self.scheduler = Scheduler(
            config.scheduler, config.objectives, "m", grid, model
        )
        self.now = 0.0
        self.tokens = {}

    def add(self, name, prompt, sampling):
        self.tokens[name] = list(prompt)
        asked = Request(
            id=name,
            prompt_token_ids=pack_tokens(prompt),
            sampling=sampling,
            arrived_at=self.now,
        )
        self.scheduler.add(asked, self.now)

    def serve(self):
        """Until nobody is left."""
        while (batch := self.scheduler.next_batch(self.now)) is not None:
            output = StageOutput(None)
            for stage in self.stages:
                output = stage.step(batch.groups[0], output.hidden, None)
                assert not output.failures
            self.now += batch.predicted_s
            result = StepResult(batch.id, 0, output.tokens, (batch.predicted_s,))
            assert len(results_of(batch, ())[0].tokens) == len(output.tokens)
            for event in self.scheduler.complete([result], self.now):
                if isinstance(event, TokenEvent):
                    self.tokens[event.request_id].append(event.token_id)
        assert not self.scheduler.live.by_id


def sampling_of(number):
    """Some look back: they are to be told what was loaded."""
    penalty = 1.2 if number % 2 else 1.0
    return SamplingParams(max_tokens=12, seed=number, repetition_penalty=penalty)


@pytest.mark.parametrize("stages", [1, 2])
def test_tokens_are_those_without_any_cache(stages):
    small = Server(stages, pages=19, slots=200)
    plain = Server(stages, pages=200, slots=0)
    rng = random.Random(3)
    sessions = [[rng.randrange(500) for _ in range(120)] for _ in range(5)]
    for turn in range(3):
        for number, history in enumerate(sessions):
            name = f"{number}-{turn}"
            small.add(name, [*history, 7 * turn + number], sampling_of(number))
            if number % 2:
                small.serve()  # alone, or beside the one before: together they do not fit
        small.serve()
        sessions = [small.tokens[f"{number}-{turn}"] for number in range(5)]
    for name, tokens in small.tokens.items():
        number = int(name[0])
        prompt = tokens[:-12]
        plain.add(name, prompt, sampling_of(number))
        plain.serve()
        assert tokens == plain.tokens[name]
    stats = small.scheduler.stats()
    assert stats.tier.loaded_pages > 50
    assert stats.evictions_total or stages == 1, (
        "decodes that were preempted are among them"
    )
