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
    plain: bool  # nothing but filters is asked for
    numbers: tuple[float, float, float, float]  # see Asks: all but the shot
    penalties: tuple[float, float, float]  # repetition, presence, frequency
    stops: np.ndarray  # int64
    biased: np.ndarray  # int64, each token once
    biases: np.ndarray  # float64, theirs


def asked_of(params: SamplingParams, vocabulary: int) -> Asked:
    """Of any parameters."""
    numbers = (0.0, -math.inf, 0.0, 1.0)
    drawn = params.temperature >= COLDEST
    top_k = params.top_k if params.top_k < vocabulary else 0
    if drawn:
        log_min_p = math.log(params.min_p) if params.min_p > 0.0 else -math.inf
        numbers = (params.temperature, log_min_p, float(top_k), params.top_p)
    biases: dict[int, float] = {}
    for token_id, bias in params.logit_bias:
        biases[token_id] = biases.get(token_id, 0.0) + bias
    more = (
        params.logit_bias,
        params.min_tokens,
        params.penalised,
        params.logprobs is not None,
        params.grammar,
    )
    return Asked(
        params,
        drawn,
        drawn and (top_k > 0 or params.top_p < 1.0),
        not any(more),
        numbers,
        (params.repetition_penalty, params.presence_penalty, params.frequency_penalty),
        np.array(params.stop_token_ids, np.int64),
        np.array(list(biases), np.int64),
        np.array(list(biases.values()), np.float64),
    )


def joined(parts: Iterable[np.ndarray]) -> np.ndarray:
    """int64 [n], one after the other."""
    found: np.ndarray = np.concatenate([np.empty(0, np.int64), *parts])
    return found
