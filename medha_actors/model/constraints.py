"""Grammars beside the sampler: which tokens may come next in a request's answer.

A mask depends on the request's own output alone, so it is the same after its cache was dropped, in
another group, and after a stage has died: the matcher begins anew and is told the known tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import torch
from llguidance import LLMatcher
from torch import Tensor

from medha_actors.errors import MedhaError
from medha_actors.messages import MOST_FORCED, Grammar
from medha_actors.model.guard import RowError
from medha_actors.model.matchers import Matchers, require_sound


class Grammars:
    """Makes constraints, in a thread of its own: while a prefill is computed, nobody waits."""

    def __init__(self, matchers: Matchers) -> None:
        self._matchers = matchers
        self._thread = ThreadPoolExecutor(1, "grammars")

    def prepare(self) -> None:
        """Begin to read the vocabulary; if that fails, the first grammar says so."""
        self._thread.submit(self._matchers.prepare)

    def constraint(self, grammar: Grammar) -> Constraint:
        """For a request that begins, or begins again."""
        return Constraint(grammar, self._thread.submit(self._matchers.matcher, grammar))


class Constraint:
    """Follows one request's output; all that can go wrong is a RowError."""

    def __init__(self, grammar: Grammar, coming: Future[LLMatcher]) -> None:
        self._ends = frozenset(grammar.end_ids)
        self._coming = coming
        self._matcher: LLMatcher | None = None
        self._followed = 0  # output tokens that the matcher knows
        # an end token came, and the request goes on all the same (ignore_eos)
        self._over = False
        self._allowed: np.ndarray | None = None  # after the tokens that were followed
        # a token's return is prepared for while another life of the request may begin
        self._lock = threading.Lock()

    def apply(self, logits: Tensor, output: Sequence[int]) -> None:
        """Make one row's logits minus infinity where the grammar does not let the token follow the
        output."""
        allowed = self.allowed(output)
        if allowed is not None:
            forbidden = np.unpackbits(~allowed, bitorder="little")[: len(logits)].view(
                np.bool_
            )
            logits.masked_fill_(
                torch.from_numpy(forbidden).to(logits.device), -torch.inf
            )

    def allowed(self, output: Sequence[int]) -> np.ndarray | None:
        """The tokens that may follow the output, a bit each, the lowest first (uint8); None: all
        of them."""
        with self._lock:
            new = output[self._followed :]
            self._go_back(self._followed - len(output))
            if new or self._allowed is None:
                self._follow(new)
                self._look()
            return self._allowed

    def force(self, index: int, token_id: int) -> tuple[int, ...]:
        """Output token `index` was drawn: the tokens that must follow it, as far as only one can,
        and MOST_FORCED at most. They are those that would be drawn one by one."""
        forced: list[int] = []
        with self._lock, suppress(Exception):  # it comes again when the mask is needed
            if index == self._followed:
                self._follow([token_id])
                while (
                    len(forced) < MOST_FORCED
                    and (following := self._only()) is not None
                ):
                    self._follow([following])
                    forced.append(following)
        return tuple(forced)

    def expect(self, index: int, token_id: int) -> None:
        """Output token `index` was drawn, or the last of those that it forced: be ready for the
        next one."""
        with self._lock, suppress(Exception):
            if index == self._followed:
                self._follow([token_id])
            if self._allowed is None:
                self._look()

    def _only(self) -> int | None:
        """The token that must come next; None: there is a choice, or an end."""
        if self._over or self._matcher is None or self._matcher.is_stopped():
            return None
        forced = self._matcher.compute_ff_tokens()
        return forced[0] if forced and forced[0] not in self._ends else None

    def _go_back(self, tokens: int) -> None:
        """So many forced tokens were not taken."""
        if tokens > 0 and self._matcher is not None:
            self._allowed = None
            self._followed -= tokens
            self._matcher.rollback(tokens)

    def _follow(self, new: Sequence[int]) -> None:
        """Take in tokens that follow those known."""
        if new:
            self._allowed = None
        try:
            if self._matcher is None:
                self._matcher = self._coming.result()
            for token_id in new:
                self._take(token_id)
        except MedhaError as error:
            raise RowError(error.message) from None

    def _look(self) -> None:
        """Find what may follow."""
        assert self._matcher is not None
        try:
            self._allowed = None if self._over else _allowed(self._matcher)
        except MedhaError as error:
            raise RowError(error.message) from None

    def _take(self, token_id: int) -> None:
        assert self._matcher is not None
        self._over = self._over or token_id in self._ends
        if not self._over:
            self._matcher.consume_token(token_id)
            require_sound(self._matcher)
        self._followed += 1


def _allowed(matcher: LLMatcher) -> np.ndarray:
    """A bit for each token that may come."""
    packed = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    require_sound(matcher)
    if not packed.any():
        raise RowError("the grammar leaves no token that could follow")
    return packed
