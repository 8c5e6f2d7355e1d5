"""How a model's tokenizer writes a piece of text that stands in the middle of one: for text that a
grammar forces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tokenizers import Tokenizer

from medha_actors.config import ModelLoadingConfig
from medha_actors.files import gguf_tokenizer
from medha_actors.files.directory_tokenizer import directory_tokenizer
from medha_actors.files.gguf import GgufFile
from medha_actors.files.source import resolve

Encoder = Callable[[str], list[int]]
# Tokenizers write a space before a text, which there is none of in the middle; before this, too.
_BEFORE: Final = "\x02"


def load_encoder(config: ModelLoadingConfig) -> Encoder:
    """Of the configured model; takes about a second. Raises ModelError."""
    source = resolve(config, weights=False)
    if source.kind == "random":
        return _bytes
    if source.kind == "gguf":
        return encoder(
            gguf_tokenizer.build(GgufFile(source.files, texts=True).metadata)
        )
    tokenizer, _ = directory_tokenizer(source.files)
    return encoder(tokenizer)


def encoder(tokenizer: Tokenizer) -> Encoder:
    """What a whole tokenizer makes of a text, without tokens around it."""
    before = tokenizer.encode(_BEFORE, add_special_tokens=False).ids

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(_BEFORE + text, add_special_tokens=False).ids
        if ids[: len(before)] == before:
            return ids[len(before) :]
        return tokenizer.encode(text, add_special_tokens=False).ids

    return encode


def _bytes(text: str) -> list[int]:
    return list(text.encode())
