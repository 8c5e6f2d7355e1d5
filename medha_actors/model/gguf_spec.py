"""Reads a ModelSpec from a GGUF file's metadata, and refuses by name what would be computed
otherwise than the file means."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from medha_actors.errors import ModelError
from medha_actors.files.ends import gguf_ends
from medha_actors.files.gguf import GgufFile
from medha_actors.files.gguf_kinds import KINDS
from medha_actors.model.gguf_experts import gguf_experts
from medha_actors.model.gguf_names import expert_of, gguf_name
from medha_actors.model.gguf_rope import gguf_rope
from medha_actors.model.shapes import tensor_shapes
from medha_actors.model_spec import SUPPORTED, Experts, ModelSpec

_ATTENTION: Final = frozenset({
    "head_count", "head_count_kv", "key_length", "value_length", "layer_norm_rms_epsilon",
    "layer_norm_epsilon", "sliding_window", "sliding_window_pattern", "causal",
})  # fmt: skip
# Keys that change what is computed, and the values with which they do not.
_NEUTRAL: Final = {
    "leading_dense_block_count": (0,),
    "interleave_moe_layer_step": (0, 1),
    "moe_every_n_layers": (0, 1),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "use_parallel_residual": (False,),
    "attention.causal": (True,),
}
_FREQUENCIES: Final = "rope_freqs.weight"
_PLAIN: Final = {"F32": np.float32, "F16": np.float16}
# in old files, and by llama.cpp not read either
_UNUSED: Final = ("attn_rot_embd", "rope_freqs")


def from_gguf(path: Path) -> ModelSpec:
    """ModelSpec of a GGUF file whose tensors are all there and of the right shapes."""
    file = GgufFile(path)
    data = file.metadata
    name = data.get("general.architecture", "(none given)")
    if name not in ("llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe"):
        raise ModelError(
            f"GGUF architecture {name} is not supported; supported are {SUPPORTED}"
        )
    own = {
        key.removeprefix(f"{name}."): value
        for key, value in data.items()
        if key.startswith(f"{name}.")
    }
    _refuse_keys(path, name, own)
    try:
        spec = _spec(name, own, file)
    except (KeyError, TypeError) as error:
        raise ModelError(f"{path} lacks or misstates {error}") from error
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from error
    _check_tensors(file, spec)
    return spec


def _spec(name: str, own: dict[str, Any], file: GgufFile) -> ModelSpec:
    tensors = file.tensors
    heads = _count(own, "attention.head_count")
    hidden = _count(own, "embedding_length")
    head_dim = _count(own, "attention.key_length", hidden // heads)
    if _count(own, "attention.value_length", head_dim) != head_dim:
        raise ValueError("values of another length than keys are not supported")
    positions = _count(own, "context_length")
    window = own.get("attention.sliding_window") or None
    if "token_embd.weight" not in tensors:
        raise KeyError("token_embd.weight")
    experts = gguf_experts(name, own)
    divisors: tuple[float, ...] = ()
    if _FREQUENCIES in tensors:
        if tensors[_FREQUENCIES].shape != (head_dim // 2,):
            raise ValueError(
                f"tensor {_FREQUENCIES} has not one value for each of RoPE's pairs"
            )
        divisors = _plain_values(file, _FREQUENCIES)
    return ModelSpec(
        architecture=name,
        layers=_count(own, "block_count"),
        hidden=hidden,
        heads=heads,
        kv_heads=_count(own, "attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate=_width(name, own, experts),
        vocabulary=tensors["token_embd.weight"].shape[0],
        eps=own["attention.layer_norm_rms_epsilon"],
        rope=gguf_rope(name, own, head_dim, positions, divisors),
        max_positions=min(positions, window) if window else positions,
        window=window,
        tied_head="output.weight" not in tensors,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        o_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_gate.bias" in tensors,
        qk_norm=name in ("qwen3", "qwen3moe"),
        eos_ids=gguf_ends(file),
        experts=experts,
    )


def _plain_values(file: GgufFile, name: str) -> tuple[float, ...]:
    kind = _PLAIN.get(KINDS[file.tensors[name].kind].name)
    if kind is None:
        raise ValueError(f"tensor {name} is not in float32 or float16")
    return tuple(np.array(file.stored(name)).view(kind).astype(np.float32).tolist())


def _width(name: str, own: dict[str, Any], experts: Experts | None) -> int:
    """Of the MLP, or of one expert."""
    if experts is None or name == "llama":
        return _count(own, "feed_forward_length")
    share = own.get("feed_forward_length", 0) // experts.used
    return _count(own, "expert_feed_forward_length", share)


def _count(own: dict[str, Any], key: str, default: int | None = None) -> int:
    """A positive whole number; one for each layer is accepted if all are the same."""
    value = own[key] if default is None else own.get(key, default)
    if isinstance(value, list) and len(set(value)) == 1:
        value = value[0]
    if isinstance(value, list):
        raise ValueError(f"{key} differs from layer to layer, which is not supported")
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{key} is {value!r}")
    return value


def _refuse_keys(path: Path, name: str, own: dict[str, Any]) -> None:
    """Refuse keys that ask for what is not done here."""
    for key, value in own.items():
        neutral = _NEUTRAL.get(key)
        if neutral is not None and value not in neutral:
            raise ModelError(f"{path}: {name}.{key} = {value} is not supported")
        if (
            key.startswith("attention.")
            and key.removeprefix("attention.") not in _ATTENTION
        ):
            raise ModelError(f"{path}: {name}.{key} = {value} is not supported")


def _check_tensors(file: GgufFile, spec: ModelSpec) -> None:
    """Every tensor of the model is there with its shape, and no other that would have a say."""
    shapes = _stored_shapes(spec)
    for name, shape in shapes.items():
        tensor = file.tensors.get(name)
        if tensor is None:
            raise ModelError(f"{file.path} has no tensor {name}")
        if shape not in (
            tensor.shape,
            (1, *tensor.shape),
        ):  # a matrix of one row may be a vector
            raise ModelError(
                f"{file.path}: tensor {name} has shape {list(tensor.shape)}; by the file's "
                f"metadata it has {list(shape)}"
            )
    for name in file.tensors:
        if name not in shapes and not any(unused in name for unused in _UNUSED):
            raise ModelError(
                f"{file.path}: tensor {name} is none that a {spec.architecture} has"
            )


def _stored_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """By name in the file, where all experts of a layer are one tensor."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in tensor_shapes(spec).items():
        if spec.experts is not None and expert_of(name) is not None:
            shape = (spec.experts.count, *shape)
        shapes[gguf_name(name)] = shape
    return shapes
