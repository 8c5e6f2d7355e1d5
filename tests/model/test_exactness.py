"""The embedded model against transformers, float32: the same tokens whatever the stages, chunks and
company."""

from __future__ import annotations

import pytest
import torch
from stage_driver import GREEDY, Driver

from medha_actors.messages import SamplingParams

PLAIN = SamplingParams(max_tokens=1, temperature=0.0, logprobs=1)


THREE = pytest.param((3, "auto"), marks=pytest.mark.slow)


@pytest.fixture(
    scope="module", params=[(1, "auto"), (2, "auto"), THREE, (2, "sdpa")], ids=str
)
def driver(request):
    stages, attention = request.param
    return Driver(stages=stages, pages=80, page_tokens=64, attention=attention)


def test_short_and_medium_prompts_in_several_chunks(
    driver, reference, prompt_of, check
):
    for name, length, chunk in (
        ("short", 21, 64),
        ("short", 21, 5),
        ("medium", 500, 128),
        ("medium", 500, 500),
    ):
        driver.add(name, prompt_of(length), GREEDY if length < 100 else PLAIN)
        driver.generate({name: 12}, chunk)
        check(driver.remove(name), reference)


def test_mixed_with_others_and_recomputed_after_a_drop(
    driver, reference, prompt_of, check
):
    lengths = {"a": 33, "b": 150, "c": 1, "d": 64}
    for seed, (name, length) in enumerate(lengths.items()):
        driver.add(name, prompt_of(length, seed), PLAIN)
    driver.step([("a", 20), ("c", 1)])
    driver.generate({"a": 4, "c": 6}, 40)
    driver.drop("a")
    driver.generate({"a": 8, "b": 5, "d": 9}, 50)
    driver.drop("b")
    driver.generate({"b": 8, "c": 9}, 64)
    for name in lengths:
        check(driver.remove(name), reference)


@pytest.mark.timeout(900)
def test_a_long_prompt(reference, prompt_of, check):
    driver = Driver(stages=2, pages=80, page_tokens=64)
    driver.add("short", prompt_of(20, 7), PLAIN)
    driver.generate({"short": 1}, 64)
    driver.add("long", prompt_of(2300), PLAIN)
    for chunk in (700, 64, 16, 1024, 100):
        driver.step([("short", 1), ("long", chunk)])
    driver.generate({"long": 8, "short": 20}, 512)
    for name in ("long", "short"):
        check(driver.remove(name), reference)


def prompt_logprobs(prompt, **options):
    driver = Driver(pages=8, page_tokens=64, dtype=torch.bfloat16, **options)
    driver.add("r", prompt, GREEDY)
    driver.generate({"r": 5}, 60)
    request = driver.requests["r"]
    return torch.tensor(
        [request.prompt_logprobs[i][0] for i in range(1, len(prompt))]
    ), request.tokens


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_bfloat16_is_close(reference, prompt_of, attention):
    """Near-ties may flip, so tokens are not compared; log-probabilities err by little on
    average."""
    prompt = prompt_of(200)
    found, _ = prompt_logprobs(prompt, attention=attention)
    with torch.inference_mode():
        expected = reference(torch.tensor([prompt])).logits[0].log_softmax(-1)
    error = found - expected[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
    assert error.abs().mean() < 0.15
    assert abs(error.mean()) < 0.03


def test_the_number_of_stages_changes_nothing_in_bfloat16(prompt_of):
    prompt = prompt_of(100)
    (one, one_tokens), (three, three_tokens) = (
        prompt_logprobs(prompt, stages=stages) for stages in (1, 3)
    )
    assert torch.equal(one, three)
    assert one_tokens == three_tokens
