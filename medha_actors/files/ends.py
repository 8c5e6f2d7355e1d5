"""The tokens that end an answer: one reading of a model's files, for the engine and for the text
side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import msgspec

from medha_actors.errors import ModelError
from medha_actors.files.gguf import GgufFile
from medha_actors.files.gguf_kinds import TokenType

_TOKENS: Final = "tokenizer.ggml.tokens"
_NAMED: Final = ("eos", "eot", "eom")
# By these llama.cpp knows the ends of a family whose file names only one of them, or the wrong one:
# a Llama 3 Instruct file may say <|end_of_text|> where turns end with <|eot_id|>.
WELL_KNOWN: Final = frozenset({
    "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>",  # Llama 3, Granite
    "<|im_end|>", "<|endoftext|>",  # ChatML, Qwen, SmolLM
    "<|end|>",  # Phi
    "</s>", "<eos>", "<end_of_turn>",  # Llama 2, Mistral, Gemma
    "<EOT>", "_<EOT>", "▁<EOT>", "[EOT]", "[EOS]",
    "<end_of_utterance>", "<｜end▁of▁sentence｜>",  # SmolVLM, DeepSeek
})  # fmt: skip


def gguf_ends(file: GgufFile) -> tuple[int, ...]:
    """Those that the file names, then the control tokens with a well-known text."""
    data = file.metadata
    types = data.get("tokenizer.ggml.token_type") or []
    named = [data.get(f"tokenizer.ggml.{name}_token_id") for name in _NAMED]
    known = [
        place
        for place in file.places(_TOKENS, WELL_KNOWN)
        if place < len(types) and types[place] == TokenType.CONTROL
    ]
    return _ids([*named, *known])


def folder_ends(folder: Path) -> tuple[int, ...]:
    """Of a folder in Hugging Face layout: those of generation_config.json (of config.json where
    that names none), then the tokenizer's own."""
    given = read_json(folder / "generation_config.json").get("eos_token_id")
    if given is None:
        given = read_json(folder / "config.json").get("eos_token_id")
    named = given if isinstance(given, list) else [given]
    return _ids([*named, _own_end(folder)])


def _own_end(folder: Path) -> int | None:
    """The id of the tokenizer's eos_token."""
    settings = read_json(folder / "tokenizer_config.json")
    text = content_of(settings.get("eos_token"))
    if text is None:
        return None
    for number, token in (settings.get("added_tokens_decoder") or {}).items():
        if content_of(token) == text:
            return int(number)
    path = folder / "tokenizer.json"
    try:
        added = msgspec.json.decode(path.read_bytes(), type=_Tokenizer).added_tokens
    except (OSError, msgspec.MsgspecError):
        return None
    return next((token.id for token in added if token.content == text), None)


class _Added(msgspec.Struct):
    id: int
    content: str


class _Tokenizer(msgspec.Struct):
    """What is needed of a tokenizer.json, whose vocabulary is large."""

    added_tokens: list[_Added] = []


def content_of(token: Any) -> str | None:
    """A token's text, whether it is given as it is or with its properties."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def read_json(path: Path) -> dict[str, Any]:
    """An object in a file; an empty one if there is no such file."""
    try:
        value = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    return value if isinstance(value, dict) else {}


def _ids(given: list[Any]) -> tuple[int, ...]:
    """Each once, in order."""
    ids = [
        i for i in given if isinstance(i, int) and not isinstance(i, bool) and i >= 0
    ]
    return tuple(dict.fromkeys(ids))
