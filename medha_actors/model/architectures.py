"""Reads a ModelSpec from a Hugging Face config.json; refuses what this package cannot run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from medha_actors.errors import ModelError
from medha_actors.files.ends import folder_ends, read_json
from medha_actors.model_spec import SUPPORTED, Experts, ModelSpec, Rope, RopeKind

_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mixtral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2MoeForCausalLM": "qwen2moe",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3moe",
}
# What transformers takes where a config.json says nothing, in so far as the families differ.
_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": {
        "max_position_embeddings": 32_768,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
    },
    "qwen3": {
        "max_position_embeddings": 32_768,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "head_dim": 128,
    },
    "mixtral": {
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "num_experts": 8,
        "num_experts_per_tok": 2,
    },
    "qwen2moe": {
        "max_position_embeddings": 32_768,
        "num_key_value_heads": 16,
        "sliding_window": 4096,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    },
    "qwen3moe": {
        "max_position_embeddings": 32_768,
        "num_key_value_heads": 4,
        "sliding_window": 4096,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
}
_QWEN_EXPERTS: Final = ("qwen2moe", "qwen3moe")


def from_hugging_face(folder: Path) -> ModelSpec:
    """ModelSpec of a folder with config.json (and perhaps generation_config.json)."""
    config = read_json(folder / "config.json")
    names = config.get("architectures") or ["(none given)"]
    architecture = _ARCHITECTURES.get(names[0])
    if architecture is None:
        raise ModelError(
            f"architecture {names[0]} is not supported; supported are {SUPPORTED}"
        )
    if config.get("quantization_config"):
        raise ModelError(
            "quantised safetensors are not supported; use the unquantised model or a GGUF file"
        )
    if config.get("hidden_act", "silu") != "silu":
        raise ModelError(f"activation {config['hidden_act']} is not supported")
    try:
        return _from_config(
            architecture, {**_DEFAULTS[architecture], **config}, folder_ends(folder)
        )
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"{folder / 'config.json'} lacks or misstates {error}"
        ) from error
    except ValueError as error:
        raise ModelError(f"{folder / 'config.json'}: {error}") from error


def _from_config(
    architecture: str, config: dict[str, Any], eos_ids: tuple[int, ...]
) -> ModelSpec:
    heads = config["num_attention_heads"]
    biased = ("llama", "qwen3", "qwen3moe")
    attention_bias = bool(config.get("attention_bias")) and architecture in biased
    always_biased = architecture == "qwen2" or (
        architecture == "qwen2moe" and bool(config.get("qkv_bias", True))
    )
    wide = (
        "moe_intermediate_size"
        if architecture in _QWEN_EXPERTS
        else "intermediate_size"
    )
    rope, positions = _rope(config)
    window = _window(architecture, config)
    return ModelSpec(
        architecture=architecture,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        intermediate=config[wide],
        vocabulary=config["vocab_size"],
        eps=config.get("rms_norm_eps", 1e-6),
        rope=rope,
        max_positions=min(positions, window) if window else positions,
        window=window,
        tied_head=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=always_biased or attention_bias,
        o_bias=attention_bias,
        mlp_bias=bool(config.get("mlp_bias")) and architecture == "llama",
        qk_norm=architecture in ("qwen3", "qwen3moe"),
        eos_ids=eos_ids,
        experts=_experts(architecture, config),
    )


def _experts(architecture: str, config: dict[str, Any]) -> Experts | None:
    """The mixture in the place of MLPs; one that some layers do without is refused."""
    qwen = architecture in _QWEN_EXPERTS
    if architecture != "mixtral" and not qwen:
        return None
    for key, neutral in (("mlp_only_layers", []), ("decoder_sparse_step", 1)):
        if qwen and (config.get(key) or neutral) != neutral:
            raise ModelError(
                f"layers without experts ({key}: {config[key]}) are not supported"
            )
    return Experts(
        count=config.get("num_local_experts") or config["num_experts"],
        used=config["num_experts_per_tok"],
        normalised=not qwen or bool(config.get("norm_topk_prob", False)),
        shared=config["shared_expert_intermediate_size"]
        if architecture == "qwen2moe"
        else 0,
    )


def _window(architecture: str, config: dict[str, Any]) -> int | None:
    """The sliding window of a model that has one in any layer."""
    kinds = set(config.get("layer_types") or ())
    for kind in kinds - {"full_attention", "sliding_attention"}:
        raise ModelError(f"layers of type {kind} are not supported")
    window = config.get("sliding_window")
    asked = bool(window) and bool(config.get("use_sliding_window"))
    if not architecture.startswith("qwen"):
        slides = bool(window) or "sliding_attention" in kinds
    elif architecture == "qwen3moe":
        slides = asked  # in every layer
    elif kinds:
        slides = "sliding_attention" in kinds
    elif architecture == "qwen2moe":
        slides = (
            asked and config.get("max_window_layers", 28) > 0
        )  # in every other of the first
    else:
        slides = (
            asked and config.get("max_window_layers", 28) < config["num_hidden_layers"]
        )
    if not slides:
        return None
    if not isinstance(window, int) or window < 1:
        raise ModelError(f"layers slide over a window, but sliding_window is {window}")
    return window


def _rope(config: dict[str, Any]) -> tuple[Rope, int]:
    """RoPE (either spelling of it) and the number of positions it reaches."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if any(isinstance(value, dict) for value in given.values()):
        raise ModelError("RoPE that differs from layer to layer is not supported")
    kind: RopeKind = given.get("rope_type") or given.get("type") or "default"
    if kind not in ("default", "linear", "dynamic", "llama3", "yarn"):
        raise ModelError(f"RoPE scaling {kind} is not supported")
    if (
        given.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
        != 1.0
    ):
        raise ModelError("partial RoPE is not supported")
    positions = config.get("max_position_embeddings", 2048)
    original = given.get("original_max_position_embeddings") or positions
    factor = given.get("factor") or (positions / original if kind == "yarn" else 1.0)
    optional = (
        "low_freq_factor",
        "high_freq_factor",
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "mscale",
    )
    values = {
        name: given[name]
        for name in (*optional, "mscale_all_dim", "truncate")
        if given.get(name) is not None
    }
    theta = given.get("rope_theta") or config.get("rope_theta") or 10_000.0
    if kind in ("default", "linear", "dynamic"):
        original = positions
    rope = Rope(
        theta=theta, kind=kind, factor=factor, original_max_positions=original, **values
    )
    if kind in ("linear", "dynamic", "yarn"):
        positions = int(original * factor)
    return rope, positions
