"""The tokenizer of a Hugging Face model directory, whatever form its vocabulary has."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from medha_actors.errors import ModelError
from medha_actors.files import sentencepiece_tokenizer
from medha_actors.files.ends import read_json


def directory_tokenizer(path: Path) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer, and the names of special tokens that its own file tells; raises ModelError."""
    if (path / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(path / "tokenizer.json")), {}
    if (path / "tokenizer.model").is_file():
        settings = read_json(path / "tokenizer_config.json")
        return sentencepiece_tokenizer.build(path, settings)
    return _converted(path), {}


def _converted(path: Path) -> Tokenizer:
    """For directories with a vocabulary of another form: transformers converts it."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(path).backend_tokenizer
        return tokenizer
    except Exception as error:
        raise ModelError(
            f"no usable tokenizer in {path}: {error}".splitlines()[0]
        ) from None
