"""Whatever one request is or makes of the model's numbers: it is ended alone, the others notice
nothing."""

from __future__ import annotations

import functools
import math

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stage_driver import Driver

from medha_actors.config import ModelLoadingConfig
from medha_actors.messages import Introduction, SamplingParams, Span, pack_tokens
from medha_actors.model.cuda.sampler import CudaSampler
from medha_actors.model.guard import Failures
from medha_actors.model.sampler import Sampler

RANDOM = ModelLoadingConfig(model_source="random")
VOCABULARY = 512
GREEDY = SamplingParams(max_tokens=50, temperature=0.0, logprobs=1)
POISON = 7  # a token whose embedding is no number, where a test says so
GRIDS = [(1, 1, ()), (2, 1, ()), (1, 2, (20,)), (2, 3, (5, 37))]


def prompt(count, seed):
    ids = torch.randint(
        8, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)
    )
    return ids.tolist()


def bystanders(driver):
    """Requests of several lengths, drawn and greedy."""
    for number, count in enumerate((3, 40, 90)):
        sampling = (
            GREEDY
            if number
            else msgspec.structs.replace(GREEDY, temperature=1.0, seed=5)
        )
        driver.add(f"by{number}", prompt(count, number), sampling)
    return {f"by{number}": 12 for number in range(3)}


def tokens_of(driver):
    return {
        name: request.tokens
        for name, request in driver.requests.items()
        if name[:2] == "by"
    }


@functools.cache
def undisturbed(**grid):
    driver = Driver(RANDOM, **grid)
    driver.generate(bystanders(driver), 16)
    return tokens_of(driver)


def poisoned(driver, value):
    for pipeline in driver.pipelines:
        embedding = pipeline[0].embedding
        embedding.table = embedding.table.clone()  # the head may share it
        embedding.table[POISON] = value


@pytest.mark.parametrize(("stages", "groups", "cutoffs"), GRIDS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repetition_penalty": 1e-39, "top_k": 5}, "not numbers"),
        ({"repetition_penalty": 1e-39, "temperature": 0.0}, "not numbers"),
        ({"repetition_penalty": 1e39}, None),  # what was seen is never drawn again
        (
            {"stop_token_ids": (VOCABULARY,), "min_tokens": 1},
            "stop_token_ids has token id 512",
        ),
        ({"stop_token_ids": tuple(range(VOCABULARY)), "min_tokens": 1}, "not numbers"),
        ({"logit_bias": ((2**31 - 1, 1.0),)}, "logit_bias has token id 2147483647"),
        ({"logit_bias": ((-1, 1.0),)}, "logit_bias has token id -1"),
        ({"logit_bias": ((3, 1e39),)}, "not numbers"),
        ({"presence_penalty": math.nan}, "not numbers"),
        ({"temperature": 1e-44, "top_p": 0.5}, None),  # as cold as that is greedy
    ],
)
def test_extreme_sampling_ends_that_request_alone(
    stages, groups, cutoffs, changes, message
):
    grid = {"stages": stages, "groups": groups, "cutoffs": cutoffs}
    driver = Driver(RANDOM, **grid)
    counts = bystanders(driver)
    driver.add("bad", prompt(50, 9), SamplingParams(**({"max_tokens": 9} | changes)))
    driver.generate({**counts, "bad": 6}, 16)
    if message is None:
        assert not driver.failed
    else:
        assert set(driver.failed) == {"bad"}
        assert message in driver.failed["bad"]
    assert tokens_of(driver) == undisturbed(**grid)


@pytest.mark.parametrize(("stages", "groups", "cutoffs"), GRIDS)
@pytest.mark.parametrize("stranger", [VOCABULARY, 2**31 - 1, -1])
@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_a_token_that_the_model_does_not_have(
    stages, groups, cutoffs, stranger, penalty
):
    grid = {"stages": stages, "groups": groups, "cutoffs": cutoffs}
    driver = Driver(RANDOM, **grid)
    counts = bystanders(driver)
    bad = msgspec.structs.replace(GREEDY, repetition_penalty=penalty, prompt_logprobs=1)
    driver.add("bad", [*prompt(50, 9), stranger, *prompt(20, 8)], bad)
    driver.generate({**counts, "bad": 6}, 16)
    assert "this model's vocabulary ends at 511" in driver.failed["bad"]
    assert tokens_of(driver) == undisturbed(**grid)


@pytest.mark.parametrize(("stages", "groups", "cutoffs"), GRIDS)
@pytest.mark.parametrize(
    ("attention", "dtype", "value"),
    [
        ("auto", torch.float32, math.nan),
        ("auto", torch.bfloat16, math.inf),
        ("sdpa", torch.float32, math.inf),
        ("sdpa", torch.bfloat16, math.nan),
    ],
)
def test_poisoned_keys_harm_neither_neighbours_nor_the_next_owner(
    stages, groups, cutoffs, attention, dtype, value
):
    """The first request has page 0; its pages are the first to be handed out again."""
    grid = {
        "stages": stages,
        "groups": groups,
        "cutoffs": cutoffs,
        "attention": attention,
    }
    grid |= {"dtype": dtype, "pages": 64}
    expected = undisturbed(**grid)
    driver = Driver(RANDOM, **grid)
    poisoned(driver, value)
    driver.add("bad", [*prompt(45, 9), POISON, *prompt(45, 8)], GREEDY)
    driver.add(
        "worse", [POISON] * 128, msgspec.structs.replace(GREEDY, temperature=1.0)
    )
    counts = bystanders(driver)
    driver.generate({**counts, "bad": 3, "worse": 3}, 16)
    assert set(driver.failed) == {"bad", "worse"}
    assert tokens_of(driver) == expected
    for name in list(driver.requests):
        driver.remove(name)
    for free in driver.free:
        free.sort(reverse=True)
    driver.generate(bystanders(driver), 16)
    assert tokens_of(driver) == expected


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_end_every_request_with_its_own_error(value):
    driver = Driver(RANDOM, attention="sdpa")
    layer = driver.pipelines[0][0].decoder.layers[0]
    layer.mlp_norm.weight = torch.full_like(layer.mlp_norm.weight, value)
    driver.generate(bystanders(driver), 16)
    assert set(driver.failed) == {"by0", "by1", "by2"}


VALUES = [math.nan, math.inf, -math.inf, 0.0, 3e38, -3e38, 1e-40, 1.0, -1.0, 50.0]


@settings(max_examples=150)
@given(st.data())
def test_any_logits_and_parameters_give_a_token_or_a_failure(data):
    """Rows of their own, some of them absurd: each is answered, and normal rows as if alone."""
    vocabulary = 40
    sampler = Sampler(vocabulary)
    if data.draw(st.booleans()):
        sampler = CudaSampler(vocabulary, None, torch.device("cpu"))
    rows = []
    spans = []
    normal = {}
    for number in range(data.draw(st.integers(1, 5))):
        name = f"r{number}"
        logits = torch.randn(
            vocabulary, generator=torch.Generator().manual_seed(number)
        )
        strange = data.draw(st.booleans())
        fields = {
            "max_tokens": 9,
            "seed": number,
            "logprobs": data.draw(st.sampled_from([None, 2])),
        }
        if strange:
            values = data.draw(
                st.lists(st.sampled_from(VALUES), min_size=1, max_size=40)
            )
            logits[: len(values)] = torch.tensor(values)
            if data.draw(st.booleans()):
                logits[:] = values[0]
            fields |= {
                "temperature": data.draw(st.sampled_from([0.0, 1e-5, 1e-3, 1.0, 2.0])),
                "top_k": data.draw(st.sampled_from([0, 1, 5, 40, 10**6])),
                "top_p": data.draw(st.sampled_from([1e-300, 0.5, 1.0])),
                "min_p": data.draw(st.sampled_from([0.0, 1e-300, 0.5, 1.0])),
                "repetition_penalty": data.draw(
                    st.sampled_from([1.0, 1e-39, 0.01, 100.0])
                ),
                "logit_bias": data.draw(
                    st.sampled_from([(), ((1, 100.0), (2, -100.0))])
                ),
                "min_tokens": 1,
                "stop_token_ids": data.draw(
                    st.sampled_from([(), tuple(range(vocabulary))])
                ),
            }
        else:
            normal[name] = number
        sampler.open(Introduction(name, SamplingParams(**fields)))
        rows.append(logits)
        spans.append(Span(name, 0, 1, pack_tokens([3]), 0, 0, (), True, True, 0))
    table = torch.stack(rows)

    def run(numbers):
        failures = Failures()
        mine = table[numbers]
        asked = [spans[number] for number in numbers]
        found = sampler.launch(
            asked, lambda at: mine[list(at)].clone(), failures
        ).finish()
        return {token.request_id: token for token in found.tokens}, found.failures

    tokens, failures = run(list(range(len(rows))))
    failed = {failure.request_id for failure in failures}
    assert set(tokens) | failed == {span.request_id for span in spans}
    assert not set(tokens) & failed
    assert not failed & set(normal)
    for name, number in normal.items():
        assert tokens[name] == run([number])[0][name]
    for token in tokens.values():
        assert 0 <= token.token_id < vocabulary
        assert token.logprob is None or math.isfinite(token.logprob)
