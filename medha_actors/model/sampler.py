"""The end of the last stage: from logits to tokens and log-probabilities.

Each row is treated alone: what is made of its logits does not depend on what is batched beside it,
and what goes wrong with it harms no other. (Whether the logits themselves depend on it is the
decoder's affair: the CPU kernels' do not; cuBLAS chooses another order of sums for another number
of rows, see cuda/sampler.py.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from medha_actors.errors import LinkClosedError
from medha_actors.messages import (
    TOKEN_BYTES,
    Failure,
    Introduction,
    PromptLogprobs,
    SampledToken,
    SamplingParams,
    Span,
    unpack_tokens,
)
from medha_actors.model.constraints import Constraint, Grammars
from medha_actors.model.draw import draw, most_likely
from medha_actors.model.guard import Failures, require_known, require_numbers
from medha_actors.model.penalties import History, adjust, adjusts

GREEDY = SamplingParams(max_tokens=1, temperature=0.0)
COLDEST = 1e-5  # a temperature below this is greedy, as in vLLM
# rows of prompt logits at once: a chunk's logits would take hundreds of megabytes
_PROMPT_BLOCK = 256

# rows of the step -> float32 [rows, vocabulary]; computes the head for these
Logits = Callable[[Sequence[int]], Tensor]
# the same -> the most likely token of each row, and its logit
Likeliest = Callable[[Sequence[int]], tuple[Tensor, Tensor]]


class Sampled(NamedTuple):
    """What a step has made at the end of the last stage. `failures`: of the whole step."""

    tokens: tuple[SampledToken, ...] = ()
    prompt_logprobs: tuple[PromptLogprobs, ...] = ()
    failures: tuple[Failure, ...] = ()


class Pending(Protocol):
    """A step's sampling, which may be under way."""

    def finish(self) -> Sampled:
        """Wait for it; once, in any thread, while the next steps are launched in theirs."""
        ...


class Ready(NamedTuple):
    """Sampling that is done."""

    sampled: Sampled

    def finish(self) -> Sampled:
        """See Pending."""
        return self.sampled


class Wanted(NamedTuple):
    """What a step asks of its sampler."""

    rows: list[int]  # rows of the step that a token is drawn from
    spans: list[Span]  # theirs
    prompts: list[
        tuple[Span, int]
    ]  # spans with prompt log-probabilities, and their first rows


class Sampler:
    """Chooses tokens for the spans of a step; keeps each request's parameters and, for penalties
    and grammars, its tokens."""

    def __init__(self, vocabulary: int, grammars: Grammars | None = None) -> None:
        """`grammars`: None where nothing is sampled."""
        self.vocabulary = vocabulary
        self.grammars = grammars
        self.params: dict[str, SamplingParams] = {}
        self.histories: dict[str, History] = {}
        self.constraints: dict[str, Constraint] = {}

    def prepare(self) -> None:
        """Do what the first request would have to wait for."""

    def open(self, introduction: Introduction) -> None:
        """A request begins (or begins again). Raises RowError; its spans may come all the same."""
        params = introduction.sampling or GREEDY
        self.params[introduction.request_id] = GREEDY
        for what, ids in (
            ("stop_token_ids", params.stop_token_ids),
            ("logit_bias", [token_id for token_id, _ in params.logit_bias]),
        ):
            if ids:
                require_known(what, min(ids), max(ids), self.vocabulary)
        self.params[introduction.request_id] = params
        if params.looks_back:
            self.histories[introduction.request_id] = History(
                introduction, self.vocabulary
            )
        if params.grammar is not None and self.grammars is not None:
            self.constraints[introduction.request_id] = self.grammars.constraint(
                params.grammar
            )

    def close(self, request_id: str) -> None:
        """Forget a request."""
        self.params.pop(request_id, None)
        self.histories.pop(request_id, None)
        self.constraints.pop(request_id, None)

    def launch(
        self,
        spans: Sequence[Span],
        logits: Logits,
        failures: Failures,
        likeliest: Likeliest | None = None,
    ) -> Pending:
        """Sample where the spans say so, and report prompt log-probabilities where they were asked
        for. A request for which that fails is noted in `failures`, and nothing of it returned.

        All that is asked of `logits` and `likeliest` is asked before this returns. `likeliest`:
        where this costs less than all logits, it is asked if nothing else is wanted.
        """
        wanted = self._wanted(spans, failures)
        rows, sampled, prompts = wanted
        tokens: tuple[SampledToken, ...] | None = None if rows else ()
        if rows and likeliest is not None and all(map(self._takes_likeliest, sampled)):
            tokens = _taken(sampled, *likeliest(rows))
        if tokens is None:  # more is asked, or some logits are not numbers
            tokens = self._sample(sampled, rows, logits, failures)
        scored = []
        for span, first in prompts:
            with failures.guard(span.request_id):
                scored.append(self._prompt(span, first, logits))
        found = tuple([entry for entry in scored if entry.entries])
        return Ready(Sampled(tokens, found, failures.all()))

    def _wanted(self, spans: Sequence[Span], failures: Failures) -> Wanted:
        """Note the spans' tokens, and what is asked."""
        wanted = Wanted([], [], [])
        first = 0
        for span in spans:
            if self.histories and span.request_id in self.histories:
                with failures.guard(span.request_id):
                    self.histories[span.request_id].record(span.start, span.token_ids)
            stop = first + span.stop - span.start
            if span.writes:
                if self.params[span.request_id].prompt_logprobs is not None:
                    wanted.prompts.append((span, first))
                if span.sample:
                    wanted.rows.append(stop - 1)
                    wanted.spans.append(span)
            first = stop
        return wanted

    def _takes_likeliest(self, span: Span) -> bool:
        """Whether a span's token is the most likely one, and no more is asked of it."""
        one = self.params[span.request_id]
        greedy = one.temperature < COLDEST and one.logprobs is None
        free = span.request_id not in self.constraints and not adjusts(one, span.index)
        return greedy and free

    def _sample(
        self,
        spans: Sequence[Span],
        rows: Sequence[int],
        logits: Logits,
        failures: Failures,
    ) -> tuple[SampledToken, ...]:
        """All rows at once, or if that fails one by one."""
        try:
            return self._choose(spans, logits(rows))
        except (torch.AcceleratorError, LinkClosedError):
            raise
        except Exception:
            again = logits(
                rows
            )  # choosing has changed them; all together, as they were
        tokens: list[SampledToken] = []
        for row, span in enumerate(spans):
            with failures.guard(span.request_id):
                tokens += self._choose([span], again[row : row + 1])
        return tuple(tokens)

    def _choose(
        self, spans: Sequence[Span], logits: Tensor
    ) -> tuple[SampledToken, ...]:
        """Draw from logits [rows, vocabulary], which are changed; RowError if some are not
        numbers."""
        params = [self.params[span.request_id] for span in spans]
        if self.constraints:
            self._constrain(spans, logits)
        wants = [row for row, one in enumerate(params) if one.logprobs is not None]
        # Log-probabilities are of the model's own distribution; with a grammar, of what
        # it lets pass, as in vLLM.
        raw = logits[wants].clone() if wants else None
        for row, (span, one) in enumerate(zip(spans, params, strict=True)):
            if adjusts(one, span.index):
                adjust(
                    logits[row],
                    one,
                    span.index,
                    span.stop,
                    self.histories.get(span.request_id),
                )
        drawn = [row for row, one in enumerate(params) if one.temperature >= COLDEST]
        chosen = most_likely(logits)
        require_numbers(logits.gather(1, chosen[:, None]))
        if drawn:
            among = logits if len(drawn) == len(params) else logits[drawn]
            indices = [spans[row].index for row in drawn]
            chosen[drawn] = draw(among, [params[row] for row in drawn], indices)
        token_ids = chosen.tolist()
        tokens = []
        for span, one, token_id in zip(spans, params, token_ids, strict=True):
            forced = self._forced(span, one, token_id)
            tokens.append(
                SampledToken(span.request_id, span.index, token_id, forced=forced)
            )
        if raw is not None:
            counts = [params[row].logprobs or 0 for row in wants]
            entries = logprob_entries(raw, [token_ids[row] for row in wants], counts)
            for row, (logprob, top) in zip(wants, entries, strict=True):
                tokens[row] = SampledToken(
                    spans[row].request_id,
                    spans[row].index,
                    token_ids[row],
                    logprob,
                    top,
                )
        return tuple(tokens)

    def _constrain(self, spans: Sequence[Span], logits: Tensor) -> None:
        for row, span in enumerate(spans):
            constraint = self.constraints.get(span.request_id)
            if constraint is not None:
                history = self.histories[span.request_id]
                constraint.apply(
                    logits[row], history.between(span.stop - span.index, span.stop)
                )

    def _forced(
        self, span: Span, params: SamplingParams, token_id: int
    ) -> tuple[int, ...]:
        """What must follow a drawn token; nothing where each token has log-probabilities."""
        constraint = self.constraints.get(span.request_id)
        if constraint is None or params.logprobs is not None:
            return ()
        return constraint.force(span.index, token_id)

    def look_ahead(self, tokens: Sequence[SampledToken]) -> None:
        """What was drawn is on its way back: work out what may follow it, before it comes again.
        Errors will show then. In any thread, as `finish` of a Pending."""
        for token in tokens:
            constraint = self.constraints.get(token.request_id)
            if constraint is not None:
                constraint.expect(token.index, token.token_id)

    def _prompt(self, span: Span, first: int, logits: Logits) -> PromptLogprobs:
        """Log-probabilities of the tokens that follow the span's positions, as far as they are
        known."""
        following = following_of(span)
        count = self.params[span.request_id].prompt_logprobs or 0
        entries: list[tuple[float, tuple[tuple[int, float], ...]]] = []
        for start in range(0, len(following), _PROMPT_BLOCK):
            block = following[start : start + _PROMPT_BLOCK]
            rows = range(first + start, first + start + len(block))
            entries += logprob_entries(logits(rows), block, [count] * len(block))
        return PromptLogprobs(span.request_id, span.start, tuple(entries))


def following_of(span: Span) -> list[int]:
    """The known tokens after the span's first one: each has a log-probability at the row before."""
    following = unpack_tokens(span.token_ids[TOKEN_BYTES:])
    if span.next_token_id >= 0:
        following.append(span.next_token_id)
    return following


def _taken(
    spans: Sequence[Span], token_ids: Tensor, peaks: Tensor
) -> tuple[SampledToken, ...] | None:
    """The most likely tokens; None if some logits are not numbers."""
    if not peaks.isfinite().all():
        return None
    return tuple(
        [
            SampledToken(span.request_id, span.index, token_id)
            for span, token_id in zip(spans, token_ids.tolist(), strict=True)
        ]
    )


def logprob_entries(
    logits: Tensor, token_ids: Sequence[int], counts: Sequence[int]
) -> Iterable[tuple[float, tuple[tuple[int, float], ...]]]:
    """For each row: the given token's log-probability and the `count` most likely tokens with
    theirs. RowError if there are logits that are not numbers."""
    require_known("the prompt", min(token_ids), max(token_ids), logits.shape[-1])
    every = logits.log_softmax(-1)
    of_given = every.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])[
        :, 0
    ]
    require_numbers(of_given)
    chosen = of_given.tolist()
    values, best = every.topk(min(max(counts), logits.shape[-1]))
    for logprob, count, ids, logprobs in zip(
        chosen, counts, best.tolist(), values.tolist(), strict=True
    ):
        yield logprob, tuple(zip(ids[:count], logprobs[:count], strict=True))
