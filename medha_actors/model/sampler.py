"""Chooses tokens from logits."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items

from torch import Tensor

from medha_actors.messages import PromptLogprobs, SampledToken, Sequence, Span

Logits = Callable[[Items[int]], Tensor]


class Sampler:
    """Greedy for now."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def open(self, sequence: Sequence) -> None: ...

    def close(self, request_id: str) -> None: ...

    def __call__(
        self, spans: Items[Span], logits: Logits
    ) -> tuple[tuple[SampledToken, ...], tuple[PromptLogprobs, ...]]:
        rows, sampled, row = [], [], 0
        for span in spans:
            row += span.stop - span.start
            if span.sample and span.writes:
                rows.append(row - 1)
                sampled.append(span)
        if not rows:
            return (), ()
        token_ids = logits(rows).argmax(-1).tolist()
        return tuple(SampledToken(s.request_id, s.index, t) for s, t in zip(sampled, token_ids, strict=True)), ()
