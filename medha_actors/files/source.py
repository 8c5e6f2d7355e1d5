"""Where a model comes from: `model_source` resolved to files on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import msgspec

from medha_actors.config import ModelLoadingConfig
from medha_actors.errors import ModelError
from medha_actors.files.embedded import embedded_gguf

_TEXT_PATTERNS: Final = ["*.json", "tokenizer*", "*.jinja", "*.model"]
_WEIGHT_PATTERNS: Final = ["*.safetensors"]
_UNUSED_PATTERNS: Final = ["consolidated*", "original/*"]


class ModelSource(msgspec.Struct, frozen=True):
    """A GGUF file, a folder in Hugging Face layout, or (path None) random weights."""

    kind: Literal["gguf", "hf", "random"]
    path: Path | None = None

    @property
    def files(self) -> Path:
        """The path of one that has files."""
        assert self.path is not None, "random weights have no files"
        return self.path


def resolve(config: ModelLoadingConfig, weights: bool = True) -> ModelSource:
    """Find, or fetch, the model's files; raises ModelError when there are none. Without `weights`
    only what tells of text is fetched from the hub."""
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
    patterns = [*_TEXT_PATTERNS, *_WEIGHT_PATTERNS] if weights else _TEXT_PATTERNS
    return ModelSource("hf", _fetch(name, patterns))


def _fetch(hub_id: str, patterns: list[str]) -> Path:
    # Imports half a second of HTTP machinery: only for hub ids.
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            hub_id, allow_patterns=patterns, ignore_patterns=_UNUSED_PATTERNS
        )
    except Exception as error:  # its many error types have one meaning here
        reason = (
            str(error).strip().splitlines()[0]
            if str(error).strip()
            else type(error).__name__
        )
        raise ModelError(
            f"model_source: {hub_id} could not be fetched from the hub: {reason}"
        ) from error
    return Path(folder)
