"""Tokens that a grammar forces: the same as if they were drawn one by one, in fewer steps."""

from __future__ import annotations

import functools
import json

import msgspec
import numpy as np
import pytest
import torch
from test_constraints import CHOICE, DRAWN, END, REGEX, SCHEMA, VOCABULARY, constrained

from medha_actors.config import MedhaConfig, ModelLoadingConfig, SchedulerConfig
from medha_actors.core.kv_plan import Grid
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.scheduler import Scheduler
from medha_actors.files.encoder import load_encoder
from medha_actors.files.vocabulary import load_vocabulary
from medha_actors.messages import (
    MOST_FORCED,
    Accepted,
    FinishedEvent,
    Grammar,
    Introduction,
    Request,
    Span,
    StepResult,
    TokenEvent,
    pack_tokens,
)
from medha_actors.model.constraints import Grammars
from medha_actors.model.guard import Failures
from medha_actors.model.matchers import Matchers
from medha_actors.model.sampler import Sampler
from medha_actors.model.spec import load_spec
from medha_actors.model.stage import Stage

RANDOM = ModelLoadingConfig(model_source="random")
EMBEDDED = ModelLoadingConfig()
FORM = 'start: "{\\"name\\":\\"get_weather\\",\\"parameters\\":{\\"city\\":" /"[a-z]{1,5}"/ "}}"'
TEXTS = {"choice": CHOICE, "regex": REGEX, "schema": SCHEMA, "form": FORM}
START = 10  # tokens of the prompt


@functools.cache
def matchers():
    return Matchers(
        lambda: load_vocabulary(RANDOM), VOCABULARY, lambda: load_encoder(RANDOM)
    )


def logits_of(index):
    generator = torch.Generator().manual_seed(1000 + index)
    return torch.randn(1, VOCABULARY, generator=generator)


def answer(sampling, takes, look_ahead=True):
    """Tokens, and how many were drawn, where as many forced ones are taken as `takes` says, again
    and again."""
    sampler = Sampler(VOCABULARY, Grammars(matchers()))
    sampler.open(Introduction("a", sampling, pack_tokens([1] * START)))
    tokens = []
    fresh = [1]
    drawn = 0
    while len(tokens) < 60 and END not in tokens:
        stop = START + len(tokens)
        packed = pack_tokens(fresh)
        start = stop - len(fresh)
        span = Span("a", start, stop, packed, 0, 0, (), True, True, len(tokens))
        failures = Failures()
        index = len(tokens)
        pending = sampler.launch(
            [span], lambda rows, index=index: logits_of(index), failures
        )
        [found] = pending.finish().tokens
        assert not failures.all()
        assert len(found.forced) <= MOST_FORCED
        if look_ahead:
            sampler.look_ahead([found])
        fresh = [found.token_id, *found.forced[: takes[drawn % len(takes)]]]
        tokens += fresh
        drawn += 1
    return tokens, drawn


@pytest.mark.usefixtures("each_sampler")
@pytest.mark.parametrize("look_ahead", [True, False])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_the_answer_is_the_same_however_many_are_taken(text, look_ahead):
    sampling = constrained(text, DRAWN, logprobs=None)
    expected, steps = answer(sampling, [0])
    assert steps == len(expected)
    for takes in ([1], [3], [100], [0, 2], [5, 0, 1]):
        assert answer(sampling, takes, look_ahead)[0] == expected
    if text == FORM:
        assert answer(sampling, [100])[1] < steps / 3


def test_tokens_that_have_log_probabilities_are_drawn_one_by_one():
    sampling = constrained(FORM, DRAWN)
    assert sampling.logprobs is not None
    tokens, steps = answer(sampling, [100])
    assert steps == len(tokens)


@pytest.fixture(scope="module")
def embedded():
    matchers = Matchers(
        lambda: load_vocabulary(EMBEDDED), 49152, lambda: load_encoder(EMBEDDED)
    )
    return matchers, load_vocabulary(EMBEDDED).tokens


def allowed(matcher):
    packed = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    return np.flatnonzero(np.unpackbits(packed, bitorder="little")).tolist()


def test_what_is_forced_is_all_that_the_mask_lets_pass(embedded):
    """With a real vocabulary, in which a text can be written in many ways: it is written as the
    model's tokenizer would write it."""
    matchers, words = embedded
    schema = {
        "type": "object",
        "properties": {
            "temperature_celsius": {"type": "integer"},
            "kind": {"const": "the weather report of today"},
        },
        "required": ["temperature_celsius", "kind"],
        "additionalProperties": False,
        "x-guidance": {"whitespace_flexible": False},
    }
    matcher = matchers.matcher(Grammar(f"start: %json {json.dumps(schema)}", (2,)))
    written: list[int] = []
    forced = 0
    while not matcher.is_stopped() and len(written) < 60:
        following = matcher.compute_ff_tokens()
        among = allowed(matcher)
        if following:
            assert among == [following[0]]
            forced += 1
        token_id = next((i for i in among if words[i] in (b"1", b",")), among[0])
        written.append(token_id)
        matcher.consume_token(token_id)
    text = b"".join(words[i] for i in written if i != 2).decode()
    assert json.loads(text)["kind"] == "the weather report of today"
    assert forced > 10


class Engine:
    """The scheduler and a stage of a random model, with nothing between them."""

    def __init__(self):
        self.stage = Stage(
            load_spec(RANDOM), RANDOM, (0, load_spec(RANDOM).layers), (0, 1), 0, 64, 64, "cpu",
            torch.float32,
        )  # fmt: skip
        grid = Grid(
            stages=1,
            groups=1,
            pages_per_group=64,
            page_tokens=64,
            max_tokens_per_kvp_group=None,
            max_model_len_tokens=2048,
        )
        config = MedhaConfig(scheduler=SchedulerConfig())
        model = ExecutionModel.analytic(
            1, token_s=1e-3, step_s=1e-3, pair_s=0.0, kv_s=0.0
        )
        self.scheduler = Scheduler(
            config.scheduler, config.objectives, None, grid, model
        )
        self.steps = 0

    def run(self, sampling):
        """The tokens of a request, and its last event."""
        request = Request(
            id="a", prompt_token_ids=pack_tokens([1] * START), sampling=sampling
        )
        assert isinstance(self.scheduler.add(request, 0.0), Accepted)
        tokens = []
        last = None
        while last is None:
            batch = self.scheduler.next_batch(0.0)
            [message] = batch.groups
            output = self.stage.step(message, None, None)
            self.stage.look_ahead(output)
            self.steps += 1
            result = StepResult(
                batch.id, 0, output.tokens, (0.01,), failures=output.failures
            )
            for event in self.scheduler.complete([result], 0.0):
                if isinstance(event, TokenEvent):
                    assert event.index == len(tokens)
                    tokens.append(event.token_id)
                elif isinstance(event, FinishedEvent):
                    last = event
        return tokens, last


@pytest.mark.parametrize("most", [60, 7])
def test_scheduler_and_stage(most):
    """One by one, since there are log-probabilities, and in chunks: the same tokens and counts."""
    stepwise = Engine()
    quick = Engine()
    sampling = constrained(FORM, DRAWN, max_tokens=most)
    expected, ended = stepwise.run(sampling)
    tokens, last = quick.run(msgspec.structs.replace(sampling, logprobs=None))
    assert tokens == expected
    assert (last.reason, last.generated_tokens) == (
        ended.reason,
        ended.generated_tokens,
    )
    assert last.generated_tokens == len(tokens)
    assert quick.steps < stepwise.steps
