"""Matrices in every kind of GGUF block that stays as it is, with random contents."""

from __future__ import annotations

import gguf
import numpy as np
from gguf.quants import dequantize

from medha_actors.model.gguf_blocks import Q4_1, Q4_K, Q5_1, Q5_K, Q6_K

_WITH_MINIMUM = (Q4_1, Q5_1, Q4_K, Q5_K)


def random_blocks(kind, outputs, inputs, seed=0, scale=0.1):
    """uint8 [outputs, bytes of a row] of arbitrary bytes, but for the float16 scales: up to `scale`
    in magnitude, of either sign, and some of them 0."""
    generator = np.random.default_rng((kind, seed))
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    blocks = generator.integers(0, 256, (outputs * inputs // values, size), np.uint8)
    count = 2 if kind in _WITH_MINIMUM else 1
    scales = generator.uniform(-scale, scale, (len(blocks), count))
    scales[generator.random(scales.shape) < 0.1] = 0
    place = slice(208, 210) if kind == Q6_K else slice(2 * count)
    blocks[:, place] = scales.astype(np.float16).view(np.uint8)
    return blocks.reshape(outputs, -1)


def values_of(raw, kind):
    """float32 [outputs, inputs], as the gguf package reads it."""
    return dequantize(raw, gguf.GGMLQuantizationType(kind)).reshape(len(raw), -1)
