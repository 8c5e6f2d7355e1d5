"""Answers: what the device makes of some rows, as int32 numbers on their way to the host, and how
they are read there. All answers of a step come in one copy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from medha_actors.messages import PromptLogprobs, SampledToken, Span
from medha_actors.model.constraints import Constraint
from medha_actors.model.cuda.choice import BROKEN
from medha_actors.model.cuda.parcel import Returned
from medha_actors.model.cuda.requests import Asked
from medha_actors.model.guard import NOT_NUMBERS, TOO_COLD, Failures
from medha_actors.model.sampler import Sampled


class Answer(Protocol):
    """Of one request, or of some."""

    @property
    def numbers(self) -> Sequence[Tensor]:
        """int32, of any shapes."""
        ...

    def read(self, numbers: list[np.ndarray], failures: Failures) -> Sampled:
        """What has come, in the same shapes."""
        ...


@dataclass(frozen=True)
class DrawnAnswer:
    """A token for each of some rows. `numbers`: what Choice chose [2, rows], and the scores of the
    rows in `scored`, if there are any."""

    numbers: Sequence[Tensor]
    spans: Sequence[Span]
    asked: Sequence[Asked]
    constraints: Sequence[Constraint | None]
    scored: Sequence[int] = ()

    def read(self, numbers: list[np.ndarray], failures: Failures) -> Sampled:
        """See Answer."""
        token_ids, flags = numbers[0].tolist()
        scores = dict(
            zip(self.scored, entries_of(numbers[1]), strict=True) if self.scored else ()
        )
        tokens = []
        for row, (span, one) in enumerate(zip(self.spans, self.asked, strict=True)):
            if flags[row]:
                failures.add(span.request_id, _reason(flags[row], one))
                continue
            token = SampledToken(span.request_id, span.index, token_ids[row])
            if row in scores:
                logprob, top = scores[row]
                if not math.isfinite(logprob):
                    failures.add(span.request_id, NOT_NUMBERS)
                    continue
                token = SampledToken(
                    span.request_id,
                    span.index,
                    token_ids[row],
                    logprob,
                    top[: one.params.logprobs or 0],
                )
            else:
                constraint = self.constraints[row]
                if constraint is not None:
                    forced = constraint.force(span.index, token_ids[row])
                    token = SampledToken(
                        span.request_id, span.index, token_ids[row], forced=forced
                    )
            tokens.append(token)
        return Sampled(tuple(tokens))


@dataclass(frozen=True)
class PromptAnswer:
    """The scores of a span's rows, in blocks."""

    numbers: Sequence[Tensor]
    span: Span

    def read(self, numbers: list[np.ndarray], failures: Failures) -> Sampled:
        """See Answer."""
        entries: list[tuple[float, tuple[tuple[int, float], ...]]] = []
        for block in numbers:
            entries += entries_of(block)
        if not np.isfinite([logprob for logprob, _ in entries]).all():
            failures.add(self.span.request_id, NOT_NUMBERS)
            return Sampled()
        found = PromptLogprobs(self.span.request_id, self.span.start, tuple(entries))
        return Sampled(prompt_logprobs=(found,))


class Launched:
    """A step's sampling on its way; see Pending."""

    def __init__(self, answers: Sequence[Answer], failures: Failures) -> None:
        """At least one answer."""
        self._answers = answers
        self._failures = failures
        self._shapes: list[list[torch.Size]] = []
        flat: list[Tensor] = []
        for answer in answers:
            self._shapes.append([part.shape for part in answer.numbers])
            flat += [part.reshape(-1) for part in answer.numbers]
        self._returned = Returned(torch.cat(flat) if len(flat) > 1 else flat[0])

    def finish(self) -> Sampled:
        """See Pending."""
        numbers = self._returned.wait()
        tokens: list[SampledToken] = []
        prompt_logprobs: list[PromptLogprobs] = []
        first = 0
        for answer, shapes in zip(self._answers, self._shapes, strict=True):
            parts = []
            for shape in shapes:
                stop = first + shape.numel()
                parts.append(numbers[first:stop].reshape(shape))
                first = stop
            sampled = answer.read(parts, self._failures)
            tokens += sampled.tokens
            prompt_logprobs += sampled.prompt_logprobs
        return Sampled(tuple(tokens), tuple(prompt_logprobs), self._failures.all())


def entries_of(scores: np.ndarray) -> list[tuple[float, tuple[tuple[int, float], ...]]]:
    """What Choice.score made of some rows."""
    most = (scores.shape[1] - 1) // 2
    chosen = scores[:, 0].copy().view(np.float32).tolist()
    top_ids = scores[:, 1 : 1 + most].tolist()
    top_logprobs = scores[:, 1 + most :].copy().view(np.float32).tolist()
    entries = []
    for logprob, ids, logprobs in zip(chosen, top_ids, top_logprobs, strict=True):
        entries.append((logprob, tuple(zip(ids, logprobs, strict=True))))
    return entries


def _reason(flag: int, asked: Asked) -> str:
    filtered = asked.cut or asked.params.min_p > 0.0
    return TOO_COLD if filtered and not flag & BROKEN else NOT_NUMBERS
