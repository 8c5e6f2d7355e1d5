"""Grammars compiled for one model's vocabulary (llguidance). No torch: an ingress replica tries a
grammar here before any stage sees it.

The vocabulary is read when the first grammar comes, or before (`prepare`). What was compiled is
kept for those that come again: a matcher is a copy of it, which takes microseconds.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from medha_actors.errors import MedhaError
from medha_actors.files.encoder import Encoder
from medha_actors.files.vocabulary import Vocabulary
from medha_actors.messages import Grammar

_KEPT: Final = 64  # compiled grammars
# What one grammar may cost. Far above what schemas of real tools need; the worst we could write
# takes 130 ms to compile, and 10 ms of a step before it is given up (tests/model/test_matchers.py).
_LIMITS: Final = LLParserLimits(
    max_items_in_row=1000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=3_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)


class GrammarError(MedhaError):
    """A grammar cannot be compiled, or became too costly; the message is for its client."""


class Matchers:
    """Compiles; may be used from several threads."""

    def __init__(
        self,
        load: Callable[[], Vocabulary],
        size: int,
        load_encoder: Callable[[], Encoder] | None = None,
    ) -> None:
        """`size`: rows of the model's logits, which may be more or fewer than its tokens.
        `load_encoder`: for matchers that force the tokens of a text where nothing else may follow;
        without it they let a model choose its own way of writing it."""
        self._load = load
        self._size = size
        self._load_encoder = load_encoder
        self._vocabulary: Vocabulary | None = None
        self._encode: Encoder | None = None
        self._tokenizers: dict[tuple[int, ...], LLTokenizer] = {}
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, grammar: Grammar) -> LLMatcher:
        """A matcher at the grammar's start; raises GrammarError, or ModelError if the model's
        vocabulary cannot be read."""
        with self._lock:
            compiled = self._compiled.get(grammar)
            if compiled is None:
                forces = self._load_encoder is not None
                compiled = _compile(
                    grammar.text, self._tokenizer(grammar.end_ids), forces
                )
                self._compiled[grammar] = compiled
                if len(self._compiled) > _KEPT:
                    self._compiled.popitem(last=False)
            else:
                self._compiled.move_to_end(grammar)
            return compiled.deep_copy()

    def prepare(self) -> None:
        """Read what every grammar needs; raises ModelError."""
        with self._lock:
            self._read()

    def _read(self) -> Vocabulary:
        if self._vocabulary is None:
            self._vocabulary = self._load()
            self._encode = None if self._load_encoder is None else self._load_encoder()
        return self._vocabulary

    def _tokenizer(self, end_ids: tuple[int, ...]) -> LLTokenizer:
        known = self._tokenizers.get(end_ids)
        if known is None:
            if not end_ids:
                raise GrammarError(
                    "this model has no end token, so that no grammar can end"
                )
            words = _Words(self._read(), end_ids, self._size, self._encode)
            known = LLTokenizer(TokenizerWrapper(words), eos_token=list(end_ids))
            self._tokenizers = {end_ids: known}  # a model has one set of them
        return known


class _Words:
    """A vocabulary as llguidance wants it, cut or filled up to the model's logits."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        end_ids: tuple[int, ...],
        size: int,
        encode: Encoder | None,
    ) -> None:
        fillers = [b""] * (size - len(vocabulary.tokens))
        self.tokens = vocabulary.tokens[:size] + fillers
        self.special_token_ids = sorted(
            {i for i in (*vocabulary.control, *end_ids) if i < size}
        )
        self.eos_token_id = end_ids[0]
        self.bos_token_id = None
        self._encode = encode

    def __call__(self, text: str) -> list[int]:
        """Forced text is cut into tokens by this."""
        return [] if self._encode is None else self._encode(text)


def _compile(text: str, tokenizer: LLTokenizer, forces: bool) -> LLMatcher:
    # At the end: errors name the lines that the client knows, and it wins over the client's own.
    options = f'\n%llguidance {{"no_forcing": {"false" if forces else "true"}}}\n'
    matcher = LLMatcher(tokenizer, text + options, log_level=0, limits=_LIMITS)
    require_sound(matcher)
    return matcher


def require_sound(matcher: LLMatcher) -> None:
    """Raise GrammarError if the matcher has met an error; it never leaves that state."""
    if matcher.is_error():
        reason = " ".join(
            str(matcher.get_error()).replace("<non-verbose/>", "").split()
        )
        raise GrammarError(f"the grammar cannot be followed: {reason[:300]}")
