"""RoPE as a GGUF file states it, read as llama.cpp reads it; what it would do otherwise is
refused by name."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from medha_actors.model_spec import Rope

_USED: Final = frozenset({
    "dimension_count", "freq_base", "scale_linear",
    "scaling.type", "scaling.factor", "scaling.original_context_length", "scaling.attn_factor",
    "scaling.yarn_beta_fast", "scaling.yarn_beta_slow",
    "scaling.finetuned",  # says only how the model was made
})  # fmt: skip
# Used by llama.cpp for other architectures or not at all: only with the value that changes nothing.
_NEUTRAL: Final = {
    "scaling.yarn_ext_factor": 1.0,
    "scaling.yarn_attn_factor": 1.0,
    "scaling.yarn_log_multiplier": 0.0,
}


def gguf_rope(
    architecture: str,
    own: dict[str, Any],
    head_dim: int,
    positions: int,
    divisors: tuple[float, ...] = (),
) -> Rope:
    """The Rope of a file's own keys, "rope." and what follows; raises ValueError.

    A factor without a type means linear, and type "none" switches a factor off.
    """
    given = {
        key.removeprefix("rope."): value
        for key, value in own.items()
        if key.startswith("rope.")
    }
    for key, value in given.items():
        if key not in _USED and value != _NEUTRAL.get(key):
            raise ValueError(f"{architecture}.rope.{key} = {value} is not supported")
    if given.get("dimension_count", head_dim) not in (0, head_dim):
        raise ValueError(
            f"{architecture}.rope.dimension_count = {given['dimension_count']}: partial RoPE is "
            "not supported"
        )
    kind = given.get("scaling.type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise ValueError(f"{architecture}.rope.scaling.type = {kind} is not supported")
    factor = _factor(architecture, given) if kind != "none" else 1.0
    attention = given.get("scaling.attn_factor", 1.0)
    if kind != "yarn" and attention != 1.0:
        raise ValueError(
            f"{architecture}.rope.scaling.attn_factor = {attention} is supported with yarn only"
        )
    if kind == "linear" and factor == 1.0:
        kind = "none"
    original = given.get("scaling.original_context_length") or positions
    rope = Rope(
        theta=given.get("freq_base", 10_000.0),
        kind="default" if kind == "none" else kind,
        factor=factor,
        original_max_positions=original if kind == "yarn" else positions,
        divisors=divisors,
    )
    if kind == "yarn":
        return msgspec.structs.replace(rope, **_yarn(given, factor, attention))
    return rope


def _factor(architecture: str, given: dict[str, Any]) -> float:
    """How far positions are pressed together; 0 stands for not at all."""
    key = "scaling.factor" if "scaling.factor" in given else "scale_linear"
    factor = float(given.get(key, 1.0)) or 1.0
    if not 0 < factor < math.inf:
        raise ValueError(f"{architecture}.rope.{key} = {factor} is not a factor")
    return factor


def _yarn(given: dict[str, Any], factor: float, attention: float) -> dict[str, float]:
    """What yarn has beside the factor."""
    values = {}
    for name in ("beta_fast", "beta_slow"):
        value = given.get(f"scaling.yarn_{name}")
        if value is not None:
            values[name] = value
    if attention != 1.0:
        values["attention_factor"] = attention * (
            1.0 + 0.1 * math.log(max(factor, 1.0))
        )
    return values
