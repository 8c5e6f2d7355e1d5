"""Where a model comes from: `model_source` resolved to files on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from medha_actors.config import ModelLoadingConfig
from medha_actors.errors import ModelError
from medha_actors.model.embedded import embedded_gguf

_HUB_PATTERNS = ["*.json", "*.safetensors", "tokenizer*", "*.jinja", "*.model"]


class ModelSource(msgspec.Struct, frozen=True):
    """A GGUF file, a folder in Hugging Face layout, or (path None) random weights."""

    kind: Literal["gguf", "hf", "random"]
    path: Path | None = None


def resolve(config: ModelLoadingConfig) -> ModelSource:
    """Find, or fetch, the model's files; raises ModelError when there are none."""
    name = config.model_source
    if name == "random":
        return ModelSource("random")
    if name == "embedded":
        return ModelSource("gguf", embedded_gguf())
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"model_source: no file {path}")
        return ModelSource("gguf", path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"model_source: {path} has no config.json")
        return ModelSource("hf", path)
    if name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise ModelError(
            f"model_source: {name} is neither a folder, a .gguf file nor a hub id (owner/name)"
        )
    return ModelSource("hf", _fetch(name))


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import (
        snapshot_download,
    )  # imports half a second of HTTP machinery: only for hub ids

    try:
        return Path(
            snapshot_download(
                hub_id,
                allow_patterns=_HUB_PATTERNS,
                ignore_patterns=["consolidated*", "original/*"],
            )
        )
    except Exception as error:  # its many error types have one meaning here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model_source: {hub_id} could not be fetched from the hub: {reason}"
        ) from error
