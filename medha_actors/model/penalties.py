"""Changes of logits before sampling: logit_bias, min_tokens, and repetition, presence and frequency
penalties."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medha_actors.messages import Introduction, SamplingParams


class History:
    """A request's tokens by position, so that a prefill that is computed again counts nothing
    twice."""

    def __init__(self, introduction: Introduction, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.tokens = np.empty(0, np.int32)
        self.in_prompt: Tensor | None = None
        self.record(0, introduction.token_ids)

    def record(self, start: int, packed: bytes) -> None:
        """Note the tokens of positions [start, ...)."""
        if not packed:
            return
        new = np.frombuffer(packed, np.int32)
        stop = start + len(new)
        if stop > len(self.tokens):
            grown = np.zeros(max(stop, 2 * len(self.tokens), 256), np.int32)
            grown[: len(self.tokens)] = self.tokens
            self.tokens = grown
        self.tokens[start:stop] = new

    def between(self, start: int, stop: int) -> list[int]:
        """The tokens of positions [start, stop)."""
        known: list[int] = self.tokens[start:stop].tolist()
        return known

    def penalise(
        self, logits: Tensor, params: SamplingParams, prompt: int, stop: int
    ) -> None:
        """Apply the penalties to one row of logits: repetition over all `stop` tokens, the others
        over the output."""
        if self.in_prompt is None:
            self.in_prompt = self._counts(0, prompt) > 0
        counts = self._counts(prompt, stop)
        if params.repetition_penalty != 1.0:
            seen = (self.in_prompt | (counts > 0)).to(logits.device)
            penalty = params.repetition_penalty
            logits.copy_(
                torch.where(
                    seen,
                    torch.where(logits > 0, logits / penalty, logits * penalty),
                    logits,
                )
            )
        if params.frequency_penalty or params.presence_penalty:
            counts = counts.to(logits.device, torch.float32)
            logits.sub_(counts, alpha=params.frequency_penalty)
            logits.sub_((counts > 0).float(), alpha=params.presence_penalty)

    def _counts(self, start: int, stop: int) -> Tensor:
        tokens = torch.from_numpy(self.tokens[start:stop])
        return torch.bincount(tokens, minlength=self.vocabulary)


def adjusts(params: SamplingParams, index: int) -> bool:
    """True if anything but temperature and filters changes the logits of output token `index`."""
    return bool(params.logit_bias) or index < params.min_tokens or params.penalised


def adjust(
    logits: Tensor,
    params: SamplingParams,
    index: int,
    stop: int,
    history: History | None,
) -> None:
    """Change one row of logits in place, in vLLM's order. The row predicts position `stop`, output
    token `index`."""
    if index < params.min_tokens and params.stop_token_ids:
        _hide_stops(logits, params)
    if params.logit_bias:
        token_ids, biases = zip(*params.logit_bias, strict=True)
        where = torch.tensor(token_ids, device=logits.device)
        logits.index_add_(
            0, where, torch.tensor(biases, dtype=logits.dtype, device=logits.device)
        )
    if history is not None and params.penalised:
        history.penalise(logits, params, stop - index, stop)


def _hide_stops(logits: Tensor, params: SamplingParams) -> None:
    """Keep the request going, unless its grammar lets nothing else follow."""
    where = torch.tensor(params.stop_token_ids, device=logits.device)
    before = logits[where]
    logits[where] = -torch.inf
    if params.grammar is not None and logits.max() == -torch.inf:
        logits[where] = before
