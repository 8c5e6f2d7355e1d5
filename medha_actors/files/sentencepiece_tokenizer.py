"""The tokenizer of a folder that has only a SentencePiece model (`tokenizer.model`), built like the
one of a GGUF file, whose metadata hold the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer

from medha_actors.errors import ModelError
from medha_actors.files import gguf_tokenizer
from medha_actors.files.ends import content_of, read_json

_BPE: Final = 2  # sentencepiece's TrainerSpec.ModelType


def build(path: Path, settings: dict[str, Any]) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer of `path`/tokenizer.model and its special tokens' names; `settings` are those
    of tokenizer_config.json. Raises ModelError in one line."""
    model = _read(path / "tokenizer.model")
    pieces = model.pieces
    trained = model.trainer_spec
    special = {}
    for name in ("bos", "eos", "unk", "pad"):
        number = getattr(trained, f"{name}_id")
        if 0 <= number < len(pieces):
            special[f"{name}_token"] = pieces[number].piece
    tokenizer = gguf_tokenizer.build(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [piece.piece for piece in pieces],
            "tokenizer.ggml.scores": [piece.score for piece in pieces],
            "tokenizer.ggml.token_type": [piece.type for piece in pieces],
            "tokenizer.ggml.unknown_token_id": trained.unk_id,
            "tokenizer.ggml.bos_token_id": trained.bos_id
            if "bos_token" in special
            else None,
            "tokenizer.ggml.eos_token_id": trained.eos_id
            if "eos_token" in special
            else None,
            "tokenizer.ggml.add_bos_token": settings.get("add_bos_token", True),
            "tokenizer.ggml.add_eos_token": settings.get("add_eos_token", False),
            "tokenizer.ggml.add_space_prefix": model.normalizer_spec.add_dummy_prefix,
        }
    )
    _add(tokenizer, path, settings)
    return tokenizer, special


def _read(path: Path) -> Any:
    """The file's message; refuses what would be tokenised otherwise than sentencepiece does."""
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:
        raise ModelError(
            f"{path.parent} has no tokenizer.json, and its tokenizer.model needs sentencepiece: "
            "pip install 'medha-on-ray[sentencepiece]'"
        ) from None
    from google.protobuf.message import DecodeError

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (OSError, DecodeError):
        raise ModelError(f"{path} is not a SentencePiece model") from None
    if not model.pieces:
        raise ModelError(f"{path} is not a SentencePiece model")
    rules = model.normalizer_spec
    if model.trainer_spec.model_type != _BPE:
        raise ModelError(
            f"{path} is not of SentencePiece's kind bpe, the only one supported"
        )
    if rules.precompiled_charsmap or rules.remove_extra_whitespaces:
        raise ModelError(
            f"{path} normalises text ({rules.name}), which is not supported"
        )
    return model


def _add(tokenizer: Tokenizer, path: Path, settings: dict[str, Any]) -> None:
    """Tokens that came after the SentencePiece model was made, with the ids that they are given."""
    added = {}
    for text, number in read_json(path / "added_tokens.json").items():
        added[int(number)] = AddedToken(text, special=False, normalized=False)
    for number, token in (settings.get("added_tokens_decoder") or {}).items():
        added[int(number)] = AddedToken(
            content_of(token) or "",
            special=bool(token.get("special")),
            normalized=False,
        )
    for number, token in sorted(added.items()):
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != number:
            raise ModelError(
                f"{path}: the added token {token.content!r} cannot have the id {number}"
            )
