"""Chooses what computes a stage: the device's attention, and the form of its layers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from medha_actors.errors import ModelError
from medha_actors.model.attention import Attention
from medha_actors.model.attention_flash import FlashAttention
from medha_actors.model.attention_sdpa import SdpaAttention
from medha_actors.model.cuda.attention import TritonAttention
from medha_actors.model.decoder import Decoder, TorchDecoder
from medha_actors.model.layers import Embedding, Loader
from medha_actors.model_spec import ModelSpec

_log = logging.getLogger("medha.model")

# By the names of the configuration; "auto" takes the first that works.
ATTENTIONS: dict[str, type[Attention[Any]]] = {
    "triton": TritonAttention,
    "flash_attn": FlashAttention,
    "sdpa": SdpaAttention,
}


def build_decoder(
    loader: Loader,
    layers: tuple[int, int],
    head: bool,
    pages: int,
    page_tokens: int,
    attention: str,
    ranks: Sequence[ModelSpec],
    embedding: Embedding | None = None,
    threads: tuple[int, Sequence[int]] = (1, ()),
) -> Decoder:
    """The decoder for layers [i, j); the choice is logged. `ranks`: the model as each rank sees it,
    for all must choose the same; `embedding`: the first stage's, for a decoder that embeds;
    `threads`: see kernels.Threads."""
    if attention == "auto" and loader.device.type == "cpu":
        from medha_actors.model.kernels import KernelDecoder, Threads, suits

        if all(suits(spec, loader.dtype, page_tokens) for spec in ranks):
            _log.info("layers %d to %d on the CPU kernels in %s", *layers, loader.dtype)
            # its threads would spin beside those of the kernels
            torch.set_num_threads(1)
            return KernelDecoder(
                loader, layers, head, pages, page_tokens, Threads(*threads)
            )
    chosen = choose_attention(attention, loader.device, loader.dtype, page_tokens)
    _log.info(
        "layers %d to %d on %s in %s, attention: %s",
        *layers,
        loader.device,
        loader.dtype,
        chosen,
    )
    if chosen == "triton":
        from medha_actors.model.cuda.attention_calls import TritonCalls
        from medha_actors.model.cuda.decoder import CudaDecoder
        from medha_actors.model.cuda.graphs import CudaCapture

        calls = TritonCalls(loader.spec, loader.dtype, loader.device)
        captures = (
            loader.device.type == "cuda" and len(ranks) == 1
        )  # ranks meet in a step
        capture = CudaCapture(loader.device) if captures else None
        return CudaDecoder(
            loader, layers, head, pages, page_tokens, embedding, calls, capture
        )
    return TorchDecoder(loader, layers, head, pages, page_tokens, ATTENTIONS[chosen])


def choose_attention(
    asked: str, device: torch.device, dtype: torch.dtype, page_tokens: int
) -> str:
    """Resolve "auto"; refuse what cannot work."""
    obstacles = []
    for name in ATTENTIONS if asked == "auto" else (asked,):
        obstacle = ATTENTIONS[name].obstacle(device, dtype, page_tokens)
        if obstacle is None:
            return name
        obstacles.append(f"attention {name} {obstacle}")
        if asked == "auto":
            _log.info("%s", obstacles[-1])
    raise ModelError("; ".join(obstacles))
