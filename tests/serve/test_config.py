"""The configuration: every number has bounds, and a wrong value is named with what is allowed."""

import math
import re

import pytest

from deployments.protocol import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from medha_actors.bounds import numbers
from medha_actors.config import MedhaConfig, load
from medha_actors.errors import ConfigError
from tests.system.serve_process import shipped_args

NUMBERS = dict(numbers(MedhaConfig))
SCALING = {"rope_type": "linear", "factor": 2.0}


def args_with(path: str, value: object) -> dict:
    """`args` in which only this one key is set (and what its section requires)."""
    *sections, name = path.split(".")
    tree: dict = {}
    inner = tree
    for section in sections:
        inner[section] = dict(SCALING) if section == "rope_scaling" else {}
        inner = inner[section]
    inner[name] = value
    return tree


def test_all_numbers_are_found():
    assert len(NUMBERS) > 60
    assert "telemetry.tracing.sample_ratio" in NUMBERS
    assert "model_loading_config.rope_scaling.factor" in NUMBERS


@pytest.mark.parametrize("path", NUMBERS)
def test_every_number_has_bounds(path: str):
    low, high = NUMBERS[path]
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert low < high


@pytest.mark.parametrize(
    "kind", [CompletionBody, ChatBody, TokenizeBody, DetokenizeBody]
)
def test_every_number_of_a_request_has_bounds(kind: type):
    for _, bounds in numbers(kind):
        assert math.isfinite(bounds.high - bounds.low)


@pytest.mark.parametrize("path", NUMBERS)
@pytest.mark.parametrize("side", ["below", "above"])
def test_a_number_outside_its_bounds_is_named(path: str, side: str):
    low, high = NUMBERS[path]
    value = low - 1 if side == "below" else high + 1
    expected = f"args: {path} is {value}, allowed is {low} to {high}"
    with pytest.raises(ConfigError, match=re.escape(expected)):
        load(args_with(path, value))


@pytest.mark.parametrize("path", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1", True, [1]])
def test_what_is_not_a_finite_number_is_refused(path: str, value: object):
    with pytest.raises(ConfigError, match=re.escape(path)):
        load(args_with(path, value))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            {"scheduler": {"min_chunk_tokens": 99, "max_chunk_tokens": 64}},
            "scheduler.max_chunk_tokens is 64, allowed is 99 to",
        ),
        (
            {"scheduler": {"max_batch_tokens": 1024}},
            "scheduler.max_batch_tokens is 1024, allowed is 2048 to",
        ),
        (
            {"objectives": {"tpot_s": 0.01, "min_tpot_s": 0.02}},
            "objectives.tpot_s is 0.01, allowed is 0.02 to",
        ),
        (
            {"objectives": {"default_timeout_s": 9.0, "max_timeout_s": 8.0}},
            "objectives.default_timeout_s is 9.0, allowed is 0.001 to 8.0",
        ),
        (
            {"model_loading_config": {"model_id": ""}},
            "args.model_loading_config.model_id",
        ),
        ({"scheduler": {"max_yeild": 0.1}}, "unknown field `max_yeild`"),
        ({"parallel": None}, "args.parallel"),
    ],
)
def test_other_wrong_values(args: dict, message: str):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(args)


def test_the_shipped_configuration_is_right():
    assert load(shipped_args()).model_loading_config.model_source == "embedded"
