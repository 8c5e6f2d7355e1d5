"""Outcome: what all KV groups report of one batch, as one thing."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from medha_actors.messages import PromptLogprobs, SampledToken, StepResult


class Outcome(msgspec.Struct):
    """By request id: tokens drawn, scores of prompts, messages of failures. Seconds: of the stage
    that took longest, and of all stages together."""

    drawn: dict[str, SampledToken] = {}
    scored: dict[str, PromptLogprobs] = {}
    failed: dict[str, str] = {}
    longest_s: float = 0.0
    work_s: float = 0.0


def outcome_of(results: Sequence[StepResult]) -> Outcome:
    """Of the results of one batch, one from each group that had a part in it."""
    outcome = Outcome()
    for result in results:
        for token in result.tokens:
            outcome.drawn[token.request_id] = token
        for entry in result.prompt_logprobs:
            outcome.scored[entry.request_id] = entry
        for failure in result.failures:
            outcome.failed[failure.request_id] = failure.message
        outcome.longest_s = max([outcome.longest_s, *result.stage_seconds])
        outcome.work_s += sum(result.stage_seconds)
    return outcome
