"""The embedded model against transformers, float32: the same tokens whatever the stages, chunks and company."""

from __future__ import annotations

import pytest
from stage_driver import GREEDY, Driver

from medha_actors.messages import SamplingParams

PLAIN = SamplingParams(max_tokens=1, temperature=0.0, logprobs=1)


@pytest.fixture(scope="module", params=[1, 2, 3])
def driver(request):
    return Driver(stages=request.param, pages=80, page_tokens=64)


def test_short_and_medium_prompts_in_several_chunks(driver, reference, prompt_of, check):
    for name, length, chunk in (("short", 21, 64), ("short", 21, 5), ("medium", 500, 128), ("medium", 500, 500)):
        driver.add(name, prompt_of(length), GREEDY if length < 100 else PLAIN)
        driver.generate({name: 12}, chunk)
        check(driver.remove(name), reference)


def test_mixed_with_others_and_recomputed_after_a_drop(driver, reference, prompt_of, check):
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


def test_a_long_prompt(reference, prompt_of, check):
    driver = Driver(stages=2, pages=80, page_tokens=64)
    driver.add("short", prompt_of(20, 7), PLAIN)
    driver.generate({"short": 1}, 64)
    driver.add("long", prompt_of(4000), PLAIN)
    for chunk in (700, 64, 16, 1024, 100):
        driver.step([("short", 1), ("long", chunk)])
    driver.generate({"long": 8, "short": 20}, 512)
    for name in ("long", "short"):
        check(driver.remove(name), reference)
