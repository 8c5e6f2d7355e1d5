"""The sampler of a GPU: all rows of a step at once, and one copy back to the host.

`launch` queues everything and waits for nothing; `finish` waits for the copy, in any thread. The
CPU's sampler is the reference: the same counter-based draws, the same order of filters.

What this file makes of a row's logits is the same bits whatever is beside it (see choice.py). The
logits are not: cuBLAS chooses its kernel by the number of rows, and with it the order in which a
product is summed, so that their last bits depend on the batch, and where two tokens are as close as
that, a greedy choice or a draw may too. Nobody should be promised more on a GPU.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from medha_actors.errors import LinkClosedError
from medha_actors.messages import Introduction, SamplingParams, Span
from medha_actors.model.constraints import Grammars
from medha_actors.model.cuda.answers import Answer, DrawnAnswer, Launched, PromptAnswer
from medha_actors.model.cuda.batch import Batch, Row
from medha_actors.model.cuda.choice import BROKEN, Choice
from medha_actors.model.cuda.counts import Counts
from medha_actors.model.cuda.parcel import Parcel
from medha_actors.model.cuda.requests import Asked, asked_of
from medha_actors.model.guard import Failures, require_known
from medha_actors.model.sampler import (
    GREEDY,
    Likeliest,
    Logits,
    Pending,
    Ready,
    Sampled,
    Sampler,
    following_of,
)

_log = logging.getLogger("medha.model")

_PROMPT_BLOCK: Final = 256  # rows of prompt logits at once
_REHEARSED: Final = (
    SamplingParams(max_tokens=1, temperature=0.0),
    SamplingParams(max_tokens=1, top_k=5, top_p=0.5, min_p=0.1, logprobs=5),
    SamplingParams(
        max_tokens=1, logprobs=20, repetition_penalty=1.1, logit_bias=((0, 1.0),)
    ),
    SamplingParams(max_tokens=1, min_tokens=5, stop_token_ids=(0,)),
)


class CudaSampler(Sampler):
    """See Sampler. Runs on any device; `choice`: another way to compute than the device's own."""

    def __init__(
        self,
        vocabulary: int,
        grammars: Grammars | None,
        device: torch.device,
        choice: Choice | None = None,
    ) -> None:
        super().__init__(vocabulary, grammars)
        self.device = device
        self.asked: dict[str, Asked] = {}
        self.counts = Counts(vocabulary, device)
        self.choice = choice or choice_for(device)

    def prepare(self) -> None:
        """Compile kernels, and have the device load torch's, by doing all that may be asked."""
        if not self.choice.compiles:
            return
        spans = []
        asked = [SamplingParams(max_tokens=1, prompt_logprobs=1), *_REHEARSED]
        for number, params in enumerate(asked):
            name = f"rehearsed {number}"
            self.open(Introduction(name, params))
            spans.append(Span(name, 0, 2, bytes(8), 0, 0, (), True, True, 1))
        failures = Failures()
        for together in (spans, *[[span] for span in spans]):
            self.launch(together, self._zeros, failures).finish()
        assert not failures.all()
        for span in spans:
            self.close(span.request_id)

    def open(self, introduction: Introduction) -> None:
        request_id = introduction.request_id
        self.asked[request_id] = asked_of(GREEDY, self.vocabulary)
        self.counts.close(request_id)
        super().open(introduction)
        self.asked[request_id] = asked_of(self.params[request_id], self.vocabulary)

    def close(self, request_id: str) -> None:
        super().close(request_id)
        self.asked.pop(request_id, None)
        self.counts.close(request_id)

    def launch(
        self,
        spans: Sequence[Span],
        logits: Logits,
        failures: Failures,
        likeliest: Likeliest | None = None,
    ) -> Pending:
        wanted = self._wanted(spans, failures)
        if self.histories:
            for span in spans:
                self.counts.step_back(span.request_id, span.start)
        answers: list[Answer] = []
        if wanted.rows:
            if likeliest is not None and all(map(self._takes_likeliest, wanted.spans)):
                answers.append(self._most_likely(wanted.spans, *likeliest(wanted.rows)))
            else:
                answers += self._sampled(wanted.spans, wanted.rows, logits, failures)
        for span, first in wanted.prompts:
            with failures.guard(span.request_id):
                answers += self._scored(span, first, logits)
        return (
            Launched(answers, failures)
            if answers
            else Ready(Sampled((), (), failures.all()))
        )

    def _zeros(self, rows: Sequence[int]) -> Tensor:
        return torch.zeros(len(rows), self.vocabulary, device=self.device)

    def _most_likely(
        self, spans: Sequence[Span], ids: Tensor, peaks: Tensor
    ) -> DrawnAnswer:
        asked = [self.asked[span.request_id] for span in spans]
        flags = (~peaks.isfinite()).int() * BROKEN
        return DrawnAnswer(
            (torch.stack((ids.int(), flags)),), spans, asked, [None] * len(spans)
        )

    def _sampled(
        self,
        spans: Sequence[Span],
        numbers: Sequence[int],
        logits: Logits,
        failures: Failures,
    ) -> list[Answer]:
        """All rows at once, or if that fails one by one."""
        rows = []
        for number, span in zip(numbers, spans, strict=True):
            with failures.guard(span.request_id):
                rows.append(self._known(number, span))
        if not rows:
            return []
        try:
            return [self._draw(rows, logits([row.number for row in rows]))]
        except (torch.AcceleratorError, LinkClosedError):
            raise
        except Exception:
            _log.exception("%d rows could not be drawn together", len(rows))
            again = logits([row.number for row in rows])  # choosing has changed them
        answers: list[Answer] = []
        for place, row in enumerate(rows):
            with failures.guard(row.span.request_id):
                self.counts.close(row.span.request_id)  # what was counted is not known
                anew = self._known(row.number, row.span)
                answers.append(self._draw([anew], again[place : place + 1]))
        return answers

    def _known(self, number: int, span: Span) -> Row:
        """What of a row is worked out on the host. RowError if its grammar or history is no
        good."""
        asked = self.asked[span.request_id]
        constraint = self.constraints.get(span.request_id)
        history = self.histories.get(span.request_id)
        allowed = None
        news = None
        prompt = span.stop - span.index
        if constraint is not None and history is not None:
            allowed = constraint.allowed(history.between(prompt, span.stop))
        if history is not None and asked.params.penalised:
            news = self.counts.news(span.request_id, history, prompt, span.stop)
        return Row(number, span, asked, constraint, allowed, news)

    def _draw(self, rows: Sequence[Row], logits: Tensor) -> DrawnAnswer:
        """Queue the draws from logits [rows, vocabulary], which are changed."""
        batch = Batch(rows, self.vocabulary, self.counts, self.choice)
        batch.mask(logits)
        # Log-probabilities are of the model's own distribution; with a grammar, of what
        # it lets pass, as in vLLM.
        raw = batch.of_scored(logits) if batch.scored else None
        batch.adjust(logits)
        chosen = batch.choose(logits)
        numbers = [chosen]
        if raw is not None:
            count = max(
                rows[place].asked.params.logprobs or 0 for place in batch.scored
            )
            given = batch.of_scored(chosen[0])
            numbers.append(self.choice.score(raw, given, min(count, self.vocabulary)))
        return DrawnAnswer(
            numbers,
            [row.span for row in rows],
            [row.asked for row in rows],
            [row.constraint for row in rows],
            batch.scored,
        )

    def _scored(self, span: Span, first: int, logits: Logits) -> list[PromptAnswer]:
        """Log-probabilities of the tokens that follow the span's positions."""
        following = np.array(following_of(span), np.int64)
        if not len(following):
            return []
        require_known(
            "the prompt", int(following.min()), int(following.max()), self.vocabulary
        )
        count = min(self.params[span.request_id].prompt_logprobs or 0, self.vocabulary)
        parcel = Parcel()
        parcel.add(following)
        [given] = parcel.send(self.device)
        numbers = []
        for start in range(0, len(following), _PROMPT_BLOCK):
            stop = min(start + _PROMPT_BLOCK, len(following))
            block = logits(range(first + start, first + stop))
            numbers.append(self.choice.score(block, given[start:stop], count))
        return [PromptAnswer(numbers, span)]


def choice_for(device: torch.device) -> Choice:
    """The fastest way to compute: kernels on a GPU, where Triton is."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return Choice()
    from medha_actors.model.cuda.kernel_choice import KernelChoice

    return KernelChoice()
