"""Dimensions of the models that the twin serves: a few known ones, and any Hugging Face
config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from loadgen.errors import LoadgenError
from medha_actors.model_spec import ModelSpec, Rope


class NamedModel(ModelSpec, frozen=True, kw_only=True):
    """A dense decoder of the Llama family, and what the configuration calls it."""

    name: str
    source: str = ""  # what `model_source` in serve_config.yaml would say
    architecture: str = "llama"
    eps: float = 1e-5
    rope: Rope = Rope()
    max_positions: int = 8192
    tied_head: bool = False


_CATALOGUE = (
    NamedModel(
        name="llama-3-8b",
        layers=32,
        hidden=4096,
        heads=32,
        kv_heads=8,
        head_dim=128,
        intermediate=14336,
        vocabulary=128256,
        source="meta-llama/Meta-Llama-3-8B-Instruct",
    ),
    NamedModel(
        name="llama-3-70b",
        layers=80,
        hidden=8192,
        heads=64,
        kv_heads=8,
        head_dim=128,
        intermediate=28672,
        vocabulary=128256,
        source="meta-llama/Meta-Llama-3-70B-Instruct",
    ),
    NamedModel(
        name="smollm2-135m",
        layers=30,
        hidden=576,
        heads=9,
        kv_heads=3,
        head_dim=64,
        intermediate=1536,
        vocabulary=49152,
        tied_head=True,
        source="embedded",
    ),
)
MODELS = {model.name: model for model in _CATALOGUE}


def model_of(name: str) -> NamedModel:
    """A known model, or the one that a config.json (or a directory with one) describes; raises
    LoadgenError."""
    if name.lower() in MODELS:
        return MODELS[name.lower()]
    path = Path(name)
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise LoadgenError(
            f"--model {name}: known are {', '.join(MODELS)}; or name a Hugging Face config.json"
        )
    try:
        return _from_config(msgspec.json.decode(file.read_bytes(), type=dict[str, Any]), file)
    except (KeyError, TypeError, ValueError, msgspec.DecodeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise LoadgenError(f"--model {file}: not a config of a dense decoder: {reason}") from None


def _from_config(config: dict[str, Any], file: Path) -> NamedModel:
    """Names as in transformers' LlamaConfig; a multi-modal model's text part is taken."""
    config = config.get("text_config", config)
    if config.get("num_experts") or config.get("num_local_experts"):
        raise ValueError("it is a mixture of experts, which the twin does not model")
    heads = int(config["num_attention_heads"])
    hidden = int(config["hidden_size"])
    return NamedModel(
        name=str(config.get("_name_or_path") or file.resolve().parent.name),
        layers=int(config["num_hidden_layers"]),
        hidden=hidden,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        intermediate=int(config["intermediate_size"]),
        vocabulary=int(config["vocab_size"]),
        tied_head=bool(config.get("tie_word_embeddings", False)),
        max_positions=int(config.get("max_position_embeddings", 8192)),
        source=str(file.resolve().parent),
    )
