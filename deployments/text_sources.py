"""Where a model's tokenizer and chat template come from: GGUF file, Hugging Face directory or hub
id, or a toy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from deployments import gguf_tokenizer
from deployments.text import Text
from medha_actors.config import ModelLoadingConfig
from medha_actors.errors import ConfigError, ModelError
from medha_actors.files.directory_tokenizer import directory_tokenizer
from medha_actors.files.gguf import GgufFile
from medha_actors.files.source import resolve
from medha_actors.files.spelling import byte_alphabet

TOY_TEMPLATE: Final = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def load_text(config: ModelLoadingConfig) -> Text:
    """The text side of the configured model; raises ModelError or ConfigError."""
    source = resolve(config, weights=False)
    if source.kind == "random":
        return toy_text(config.random.vocabulary, config.max_model_len_tokens)
    if source.kind == "gguf":
        return gguf_text(source.files)
    return directory_text(source.files)


def toy_text(vocabulary: int, context_tokens: int | None = None) -> Text:
    """One token per byte, an end token, and fillers for the rest of the vocabulary, which only a
    model can produce."""
    if vocabulary < 257:
        raise ConfigError(
            f"args: model_loading_config.random.vocabulary is {vocabulary}; bytes and an end need "
            "257"
        )
    fillers = {f"<{i}>": i for i in range(257, vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocab={**byte_alphabet(), "<eos>": 256, **fillers}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True, normalized=False)])
    return Text(
        tokenizer, chat_template=TOY_TEMPLATE, eos_token_ids=(256,), context_tokens=context_tokens
    )


def gguf_text(path: Path) -> Text:
    """Everything from one GGUF file's metadata; takes about a second."""
    metadata = GgufFile(path, texts=True).metadata
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    ids = {
        name: metadata.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in [
            ("bos", "bos"),
            ("eos", "eos"),
            ("unk", "unknown"),
            ("pad", "padding"),
            ("eot", "eot"),
        ]
    }
    architecture = metadata.get("general.architecture", "llama")
    return Text(
        gguf_tokenizer.build(metadata),
        chat_template=metadata.get("tokenizer.chat_template"),
        special_tokens={
            f"{name}_token": tokens[i]
            for name, i in ids.items()
            if i is not None and i < len(tokens)
        },
        eos_token_ids=[i for i in (ids["eos"], ids["eot"]) if i is not None],
        context_tokens=metadata.get(f"{architecture}.context_length"),
    )


def directory_text(path: Path) -> Text:
    """A Hugging Face model directory."""
    settings, config = _json(path / "tokenizer_config.json"), _json(path / "config.json")
    tokenizer = directory_tokenizer(path)
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    special = {name: _content(settings[name]) for name in names if settings.get(name)}
    eos = _json(path / "generation_config.json").get("eos_token_id", config.get("eos_token_id"))
    eos_ids = [eos] if isinstance(eos, int) else list(eos or [])
    named = tokenizer.token_to_id(special.get("eos_token", ""))
    return Text(
        tokenizer,
        chat_template=_template(path, settings),
        special_tokens=special,
        eos_token_ids=[*eos_ids, *([named] if named is not None else [])],
        context_tokens=config.get("max_position_embeddings"),
    )


def _template(path: Path, settings: dict[str, Any]) -> str | None:
    if (path / "chat_template.jinja").is_file():
        return (path / "chat_template.jinja").read_text("utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def _content(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from None
    return value if isinstance(value, dict) else {}
