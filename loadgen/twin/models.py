"""Dimensions of the models that the twin serves: a few known ones, and any Hugging Face
config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from loadgen.errors import LoadgenError
from medha_actors.model_spec import Experts, ModelSpec, Rope


class NamedModel(ModelSpec, frozen=True, kw_only=True):
    """A decoder of the Llama family, and what the configuration calls it."""

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
        name="mixtral-8x7b",
        layers=32,
        hidden=4096,
        heads=32,
        kv_heads=8,
        head_dim=128,
        intermediate=14336,
        vocabulary=32000,
        experts=Experts(count=8, used=2, normalised=True),
        max_positions=32768,
        source="mistralai/Mixtral-8x7B-Instruct-v0.1",
    ),
    NamedModel(
        name="qwen3-30b-a3b",
        layers=48,
        hidden=2048,
        heads=32,
        kv_heads=4,
        head_dim=128,
        intermediate=768,
        vocabulary=151936,
        experts=Experts(count=128, used=8, normalised=True),
        max_positions=40960,
        source="Qwen/Qwen3-30B-A3B",
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
        return _from_config(
            msgspec.json.decode(file.read_bytes(), type=dict[str, Any]), file
        )
    except (KeyError, TypeError, ValueError, msgspec.DecodeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise LoadgenError(
            f"--model {file}: not a config that is modelled: {reason}"
        ) from None


def _from_config(config: dict[str, Any], file: Path) -> NamedModel:
    """Names as in transformers' LlamaConfig; a multi-modal model's text part is taken."""
    config = config.get("text_config", config)
    experts = _experts(config)
    wide = (
        "moe_intermediate_size"
        if "moe_intermediate_size" in config
        else "intermediate_size"
    )
    heads = int(config["num_attention_heads"])
    hidden = int(config["hidden_size"])
    return NamedModel(
        name=str(config.get("_name_or_path") or file.resolve().parent.name),
        layers=int(config["num_hidden_layers"]),
        hidden=hidden,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        intermediate=int(config[wide if experts else "intermediate_size"]),
        vocabulary=int(config["vocab_size"]),
        tied_head=bool(config.get("tie_word_embeddings", False)),
        max_positions=int(config.get("max_position_embeddings", 8192)),
        source=str(file.resolve().parent),
        experts=experts,
    )


def _experts(config: dict[str, Any]) -> Experts | None:
    """The mixture in every layer, if there is one."""
    for key in ("n_routed_experts", "mlp_only_layers"):
        if config.get(key):
            raise ValueError(
                f"{key} is {config[key]}: such a mixture of experts is not modelled"
            )
    if config.get("decoder_sparse_step", 1) != 1:
        raise ValueError("decoder_sparse_step: layers without experts are not modelled")
    count = config.get("num_local_experts") or config.get("num_experts")
    if not count:
        return None
    return Experts(
        count=int(count),
        used=int(config["num_experts_per_tok"]),
        normalised=bool(config.get("norm_topk_prob", True)),
        shared=int(config.get("shared_expert_intermediate_size") or 0),
    )
