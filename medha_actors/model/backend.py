"""Chooses what computes a stage: the device's attention, and the form of its layers."""

from __future__ import annotations

import importlib.util
import logging

import torch

from medha_actors.errors import ModelError
from medha_actors.model.attention_flash import PAGE_MULTIPLE
from medha_actors.model.decoder import Decoder, TorchDecoder
from medha_actors.model.layers import Loader

_log = logging.getLogger("medha.model")


def build_decoder(
    loader: Loader,
    layers: tuple[int, int],
    head: bool,
    pages: int,
    page_tokens: int,
    attention: str,
) -> Decoder:
    """The decoder for layers [i, j); the choice is logged."""
    if attention == "auto" and loader.device.type == "cpu":
        from medha_actors.model.kernels import KernelDecoder, suits

        if suits(loader, page_tokens):
            _log.info("layers %d to %d on the CPU kernels in %s", *layers, loader.dtype)
            return KernelDecoder(loader, layers, head, pages, page_tokens)
    chosen = choose_attention(attention, loader.device, loader.dtype, page_tokens)
    _log.info(
        "layers %d to %d on %s in %s, attention: %s", *layers, loader.device, loader.dtype, chosen
    )
    return TorchDecoder(loader, layers, head, pages, page_tokens, chosen)


def choose_attention(asked: str, device: torch.device, dtype: torch.dtype, page_tokens: int) -> str:
    """Resolve "auto"; refuse what cannot work."""
    possible = device.type == "cuda" and dtype != torch.float32
    if asked == "auto":
        installed = possible and importlib.util.find_spec("flash_attn") is not None
        return "flash_attn" if installed and page_tokens % PAGE_MULTIPLE == 0 else "sdpa"
    if asked == "flash_attn" and not possible:
        raise ModelError(
            f"attention flash_attn needs CUDA and a 16-bit dtype, not {device.type} and {dtype}"
        )
    return asked
