"""KV-cache parallelism: a sequence cut over groups gives the tokens and log-probabilities of one
group."""

from __future__ import annotations

import pytest
import torch
from stage_driver import GREEDY, Driver

from medha_actors.config import ModelLoadingConfig
from tests.tiny_llama import tiny_llama


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    model = tiny_llama(folder, vocabulary=160, length=512, seed=3)
    return model, ModelLoadingConfig(model_source=str(folder))


def tokens(count, seed=0):
    return torch.randint(
        160, (count,), generator=torch.Generator().manual_seed(seed)
    ).tolist()


@pytest.mark.parametrize(
    ("groups", "cutoffs"),
    [
        (1, ()),
        (2, (40,)),
        (2, (37,)),
        (2, (1,)),
        (2, (95,)),
        (3, (32, 64)),
        (3, (5, 90)),
        (3, (50, 51)),
        (2, (64,)),
        (2, (65,)),
    ],
)
@pytest.mark.parametrize(
    ("stages", "chunk", "attention"),
    [(1, 100, "auto"), (2, 13, "auto"), (1, 1, "auto"), (2, 13, "sdpa")],
)
def test_pieces_of_any_size(tiny, check, groups, cutoffs, stages, chunk, attention):
    model, config = tiny
    driver = Driver(
        config, stages=stages, groups=groups, cutoffs=cutoffs, attention=attention
    )
    driver.add("long", tokens(93), GREEDY)
    driver.generate({"long": 10}, chunk)
    check(driver.remove("long"), model)


def test_long_and_short_requests_share_a_batch(tiny, check):
    model, config = tiny
    driver = Driver(config, stages=2, groups=2, cutoffs=(30,))
    for seed, length in enumerate((70, 50, 12, 1)):
        driver.add(str(length), tokens(length, seed), GREEDY)
    driver.generate({"70": 9, "50": 8, "12": 7, "1": 12}, 11)
    driver.drop("50")
    driver.generate({"70": 12, "50": 12, "12": 25}, 20)
    for name in list(driver.requests):
        check(driver.remove(name), model)


def test_a_group_whose_piece_is_still_empty_adds_nothing(tiny, check):
    """The scheduler may onboard a group before its first token is written there."""
    model, config = tiny
    driver = Driver(config, groups=2, cutoffs=(0,))
    driver.add("r", tokens(21), GREEDY)
    driver.generate({"r": 6}, 8)
    check(driver.remove("r"), model)


def test_bfloat16_partials_merge_in_float32(tiny):
    _, config = tiny
    found = []
    for groups, cutoffs in ((1, ()), (3, (20, 45))):
        driver = Driver(config, groups=groups, cutoffs=cutoffs, dtype=torch.bfloat16)
        driver.add("r", tokens(90), GREEDY)
        driver.generate({"r": 1}, 16)
        found.append(
            torch.tensor(
                [
                    entry[0]
                    for _, entry in sorted(driver.requests["r"].prompt_logprobs.items())
                ]
            )
        )
    assert (found[0] - found[1]).abs().max() < 0.5
    assert (found[0] - found[1]).abs().mean() < 0.06
