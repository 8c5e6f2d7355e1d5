"""The bytes of every token of a model: what a constraint on sampling has to know of its text.

A vocabulary of 50,000 tokens takes 70 ms, where its whole tokenizer would take a second.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, NamedTuple

from medha_actors.config import ModelLoadingConfig
from medha_actors.errors import ModelError
from medha_actors.files import toy
from medha_actors.files.directory_tokenizer import directory_tokenizer
from medha_actors.files.gguf import GgufFile
from medha_actors.files.gguf_kinds import TokenType
from medha_actors.files.source import resolve
from medha_actors.files.spelling import Spelling, token_bytes

_GGUF_SPELLINGS: Final[dict[str, Spelling]] = {
    "gpt2": "byte_level",
    "llama": "byte_fallback",
}
_NO_TEXT: Final = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.UNUSED)


class Vocabulary(NamedTuple):
    """What each token id stands for."""

    tokens: list[bytes]
    control: list[int]  # ids that are no part of any text


def load_vocabulary(config: ModelLoadingConfig) -> Vocabulary:
    """The vocabulary of the configured model; raises ModelError."""
    source = resolve(config, weights=False)
    if source.kind == "random":
        return _toy(config.random.vocabulary)
    if source.kind == "gguf":
        return _gguf(source.files)
    return _directory(source.files)


def _toy(count: int) -> Vocabulary:
    words = toy.toy_words(count)
    ordered = sorted(words, key=words.__getitem__)
    return Vocabulary([token_bytes(word, "byte_level") for word in ordered], [toy.END])


def _gguf(path: Path) -> Vocabulary:
    metadata = GgufFile(path, texts=True).metadata
    texts: list[str] = metadata.get("tokenizer.ggml.tokens") or []
    kind = metadata.get("tokenizer.ggml.model")
    if not texts or kind not in _GGUF_SPELLINGS:
        raise ModelError(f"the GGUF file's tokenizer is of kind {kind!r}")
    spelling = _GGUF_SPELLINGS[kind]
    types = metadata.get("tokenizer.ggml.token_type") or []
    control = [i for i, type_ in enumerate(types) if type_ in _NO_TEXT]
    return Vocabulary([token_bytes(text, spelling) for text in texts], control)


def _directory(path: Path) -> Vocabulary:
    tokenizer, _ = directory_tokenizer(path)
    spelling = spelling_of(json.loads(tokenizer.to_str()).get("decoder"))
    words = tokenizer.get_vocab(with_added_tokens=True)
    tokens = [b""] * (max(words.values()) + 1)
    for word, i in words.items():
        tokens[i] = token_bytes(word, spelling)
    added = tokenizer.get_added_tokens_decoder()
    return Vocabulary(tokens, sorted(i for i, token in added.items() if token.special))


def spelling_of(decoder: dict[str, Any] | None) -> Spelling:
    """How the tokens of a tokenizer with this decoder (of its JSON form) are written."""
    steps = [] if decoder is None else decoder.get("decoders", [decoder])
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        return "byte_level"
    if kinds & {"ByteFallback", "Metaspace"}:
        return "byte_fallback"
    return "plain"
