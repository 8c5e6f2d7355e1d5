"""The tokenizer of a Hugging Face model directory; transformers converts a SentencePiece model."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from medha_actors.errors import ModelError


def directory_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face model directory; raises ModelError."""
    if (path / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(path / "tokenizer.json"))
    # Imports seconds of machinery.
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path).backend_tokenizer
    except Exception as error:
        raise ModelError(f"no usable tokenizer in {path}: {error}".splitlines()[0]) from None
