"""A mixture of experts as a GGUF file states it, read as llama.cpp reads it; what it would do
otherwise is refused by name."""

from __future__ import annotations

from typing import Any, Final

from medha_actors.model_spec import Experts

# Architectures that may have experts, and whether the weights of those that a row takes
# sum to 1: llama.cpp knows it of each.
_NORMALISED: Final = {"llama": True, "qwen2moe": False, "qwen3moe": True}
_USED: Final = frozenset({
    "expert_count", "expert_used_count", "expert_feed_forward_length",
    "expert_shared_feed_forward_length", "expert_weights_norm",
})  # fmt: skip
# Only with values that change nothing.
_NEUTRAL: Final = {
    "expert_gating_func": (0, 1),  # softmax
    "expert_weights_scale": (0, 1),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_count": (0,),
}


def gguf_experts(architecture: str, own: dict[str, Any]) -> Experts | None:
    """The experts of a file's own keys; None for a dense model. Raises ValueError or KeyError."""
    for key, value in own.items():
        if (
            key.startswith("expert")
            and key not in _USED
            and value not in _NEUTRAL.get(key, (0,))
        ):
            raise ValueError(f"{architecture}.{key} = {value} is not supported")
    count = (
        own["expert_count"]
        if architecture.endswith("moe")
        else own.get("expert_count", 0)
    )
    if not count:
        return None
    if architecture not in _NORMALISED:
        raise ValueError(f"{architecture}.expert_count = {count} is not supported")
    normalised = _NORMALISED[architecture]
    if own.get("expert_weights_norm", normalised) != normalised:
        raise ValueError(
            f"{architecture}.expert_weights_norm = {not normalised} is not supported"
        )
    shared = own.get("expert_shared_feed_forward_length", 0)
    if architecture == "qwen2moe":
        shared = shared or own["feed_forward_length"]
    elif shared:
        raise ValueError(
            f"{architecture}.expert_shared_feed_forward_length = {shared} is not supported"
        )
    used = own["expert_used_count"]
    return Experts(count=count, used=used, normalised=normalised, shared=shared)
