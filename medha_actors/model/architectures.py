"""Reads a ModelSpec from a Hugging Face config.json or from GGUF metadata; refuses what this
package cannot run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from medha_actors.errors import ModelError
from medha_actors.files.gguf import GgufFile
from medha_actors.model_spec import ModelSpec, Rope

_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_SUPPORTED = "Llama, Mistral, SmolLM, Qwen2, Qwen2.5 and Qwen3 (dense)"


def from_hugging_face(folder: Path) -> ModelSpec:
    """ModelSpec of a folder with config.json (and perhaps generation_config.json)."""
    config = _json(folder / "config.json")
    names = config.get("architectures") or ["(none given)"]
    architecture = _ARCHITECTURES.get(names[0])
    if architecture is None:
        raise ModelError(f"architecture {names[0]} is not supported; supported are {_SUPPORTED}")
    if config.get("quantization_config"):
        raise ModelError(
            "quantised safetensors are not supported; use the unquantised model or a GGUF file"
        )
    if config.get("hidden_act", "silu") != "silu":
        raise ModelError(f"activation {config['hidden_act']} is not supported")
    try:
        return _from_config(architecture, config, _eos_ids(folder, config))
    except KeyError as error:
        raise ModelError(f"{folder / 'config.json'} lacks {error}") from error


def _from_config(architecture: str, config: dict[str, Any], eos_ids: tuple[int, ...]) -> ModelSpec:
    heads = config["num_attention_heads"]
    attention_bias = bool(config.get("attention_bias")) and architecture in ("llama", "qwen3")
    rope, positions = _rope(config)
    if architecture in ("qwen2", "qwen3") and not config.get("use_sliding_window"):
        window = None
    else:
        window = config.get("sliding_window")
    return ModelSpec(
        architecture=architecture,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        intermediate=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        eps=config.get("rms_norm_eps", 1e-6),
        rope=rope,
        max_positions=min(positions, window) if window else positions,  # exact up to the window
        tied_head=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=architecture == "qwen2" or attention_bias,
        o_bias=attention_bias,
        mlp_bias=bool(config.get("mlp_bias")) and architecture == "llama",
        qk_norm=architecture == "qwen3",
        eos_ids=eos_ids,
    )


def _rope(config: dict[str, Any]) -> tuple[Rope, int]:
    """RoPE (either spelling of it) and the number of positions it reaches."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in ("default", "linear", "dynamic", "llama3", "yarn"):
        raise ModelError(f"RoPE scaling {kind} is not supported")
    if given.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
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
    if kind in ("linear", "dynamic"):
        original = positions
    rope = Rope(theta=theta, kind=kind, factor=factor, original_max_positions=original, **values)
    if kind in ("linear", "dynamic", "yarn"):
        positions = int(original * factor)
    return rope, positions


def _eos_ids(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    generation = folder / "generation_config.json"
    given = _json(generation).get("eos_token_id") if generation.is_file() else None
    if given is None:
        given = config.get("eos_token_id")
    if given is None:
        return ()
    return tuple(given) if isinstance(given, list) else (given,)


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


def from_gguf(path: Path) -> ModelSpec:
    """ModelSpec of a GGUF file."""
    file = GgufFile(path)
    data = file.metadata
    tensors = file.tensors
    name = data.get("general.architecture", "(none given)")
    if name not in ("llama", "qwen2", "qwen3") or data.get(f"{name}.expert_count"):
        raise ModelError(f"GGUF architecture {name} is not supported; supported are {_SUPPORTED}")
    own = {
        key.removeprefix(f"{name}."): value
        for key, value in data.items()
        if key.startswith(f"{name}.")
    }
    try:
        heads = own["attention.head_count"]
        hidden = own["embedding_length"]
        rope, positions = _gguf_rope(own, file)
        window = own.get("attention.sliding_window")
        return ModelSpec(
            architecture=name,
            layers=own["block_count"],
            hidden=hidden,
            heads=heads,
            kv_heads=own.get("attention.head_count_kv", heads),
            head_dim=own.get("attention.key_length", hidden // heads),
            intermediate=own["feed_forward_length"],
            vocabulary=tensors["token_embd.weight"].shape[0],
            eps=own["attention.layer_norm_rms_epsilon"],
            rope=rope,
            max_positions=min(positions, window) if window else positions,
            tied_head="output.weight" not in tensors,
            qkv_bias="blk.0.attn_q.bias" in tensors,
            o_bias="blk.0.attn_output.bias" in tensors,
            mlp_bias="blk.0.ffn_gate.bias" in tensors,
            qk_norm="blk.0.attn_q_norm.weight" in tensors,
            eos_ids=_gguf_eos(data),
        )
    except (KeyError, TypeError) as error:
        raise ModelError(f"{path} lacks or misstates {error}") from error


def _gguf_eos(data: dict[str, Any]) -> tuple[int, ...]:
    keys = (
        "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.eot_token_id",
        "tokenizer.ggml.eom_token_id",
    )
    return tuple(dict.fromkeys(data[key] for key in keys if key in data))


def _gguf_rope(own: dict[str, Any], file: GgufFile) -> tuple[Rope, int]:
    positions = own["context_length"]
    kind = own.get("rope.scaling.type", "none")
    if kind not in ("none", "linear", "yarn"):
        raise ModelError(f"RoPE scaling {kind} is not supported")
    if own.get("rope.dimension_count", 0) not in (
        0,
        own.get("attention.key_length", own["embedding_length"] // own["attention.head_count"]),
    ):
        raise ModelError("partial RoPE is not supported")
    divisors: tuple[float, ...] = ()
    if "rope_freqs.weight" in file.tensors:
        from medha_actors.model.gguf_weights import read_tensor

        divisors = tuple(read_tensor(file, "rope_freqs.weight", torch.float32).tolist())
    rope = Rope(
        theta=own.get("rope.freq_base", 10_000.0),
        kind="default" if kind == "none" else kind,
        factor=own.get("rope.scaling.factor", 1.0),
        original_max_positions=own.get("rope.scaling.original_context_length", positions),
        divisors=divisors,
    )
    return rope, positions
