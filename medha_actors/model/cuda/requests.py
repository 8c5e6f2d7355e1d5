"""What a request asks of the sampler, as the numbers that a step sends; worked out once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from medha_actors.messages import SamplingParams
from medha_actors.model.sampler import COLDEST


class Asked(NamedTuple):
    """Of one request."""

    params: SamplingParams
    drawn: bool
    cut: bool  # by top_k or top_p
    filters: tuple[float, float, float, float]  # temperature, log of min_p, top_k, top_p
    penalties: tuple[float, float, float]  # repetition, presence, frequency
    stops: np.ndarray  # int64
    biased: np.ndarray  # int64, each token once
    biases: np.ndarray  # float64, theirs


def asked_of(params: SamplingParams) -> Asked:
    """Of any parameters."""
    log_min_p = math.log(params.min_p) if params.min_p > 0.0 else -math.inf
    biases: dict[int, float] = {}
    for token_id, bias in params.logit_bias:
        biases[token_id] = biases.get(token_id, 0.0) + bias
    return Asked(
        params,
        params.temperature >= COLDEST,
        params.top_k > 0 or params.top_p < 1.0,
        (params.temperature, log_min_p, params.top_k, params.top_p),
        (params.repetition_penalty, params.presence_penalty, params.frequency_penalty),
        np.array(params.stop_token_ids, np.int64),
        np.array(list(biases), np.int64),
        np.array(list(biases.values()), np.float64),
    )


def joined(parts: Iterable[np.ndarray]) -> np.ndarray:
    """int64 [n], one after the other."""
    found: np.ndarray = np.concatenate([np.empty(0, np.int64), *parts])
    return found
