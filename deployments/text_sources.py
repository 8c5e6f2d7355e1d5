"""Where a model's tokenizer and chat template come from: GGUF file, Hugging Face directory or hub
id, or a toy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from deployments.text import Text
from medha_actors.config import ModelLoadingConfig
from medha_actors.errors import ConfigError, ModelError
from medha_actors.files import gguf_tokenizer, toy
from medha_actors.files.directory_tokenizer import directory_tokenizer
from medha_actors.files.ends import content_of, folder_ends, gguf_ends, read_json
from medha_actors.files.gguf import GgufFile
from medha_actors.files.source import resolve

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
    if vocabulary < toy.FEWEST:
        raise ConfigError(
            f"args: model_loading_config.random.vocabulary is {vocabulary}; bytes and an end need "
            f"{toy.FEWEST}"
        )
    tokenizer = Tokenizer(models.BPE(vocab=toy.toy_words(vocabulary), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(toy.END_TEXT, special=True, normalized=False)]
    )
    return Text(
        tokenizer,
        chat_template=TOY_TEMPLATE,
        eos_token_ids=(toy.END,),
        context_tokens=context_tokens,
    )


def gguf_text(path: Path) -> Text:
    """Everything from one GGUF file's metadata; takes about a second."""
    file = GgufFile(path, texts=True)
    metadata = file.metadata
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
        _gguf_tokenizer(path, metadata),
        chat_template=metadata.get("tokenizer.chat_template"),
        special_tokens={
            f"{name}_token": tokens[i]
            for name, i in ids.items()
            if i is not None and i < len(tokens)
        },
        eos_token_ids=gguf_ends(file),
        context_tokens=metadata.get(f"{architecture}.context_length"),
    )


def _gguf_tokenizer(path: Path, metadata: dict[str, Any]) -> Tokenizer:
    try:
        return gguf_tokenizer.build(metadata)
    except ModelError:
        raise
    except Exception as error:
        # `tokenizers` raises plain ones, for a merge of unknown tokens
        raise ModelError(
            f"{path}: its tokenizer is broken: {error}".splitlines()[0]
        ) from error


def directory_text(path: Path) -> Text:
    """A Hugging Face model directory."""
    settings = read_json(path / "tokenizer_config.json")
    config = read_json(path / "config.json")
    tokenizer, special = directory_tokenizer(path)
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        text = content_of(settings.get(name))
        if text:
            special[name] = text
    return Text(
        tokenizer,
        chat_template=_template(path, settings),
        special_tokens=special,
        eos_token_ids=folder_ends(path),
        context_tokens=config.get("max_position_embeddings"),
    )


def _template(path: Path, settings: dict[str, Any]) -> str | None:
    if (path / "chat_template.jinja").is_file():
        return (path / "chat_template.jinja").read_text("utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {entry["name"]: entry["template"] for entry in template}.get(
            "default"
        )
    return template
