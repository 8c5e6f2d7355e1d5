"""Models on the GPU against the same models on the CPU in float32: log-probabilities and greedy
tokens."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from typing import Any

import torch

from medha_actors.bench.gpu_findings import Findings
from medha_actors.bench.gpu_follow import Followed, follow
from medha_actors.config import ModelLoadingConfig, RandomWeights
from medha_actors.errors import ModelError
from medha_actors.files.embedded import GGUF_NAME
from medha_actors.files.folders import cache_folder
from medha_actors.model.spec import load_spec
from medha_actors.model.stage import Stage

_SMALL = RandomWeights(
    layers=4, hidden=512, heads=8, kv_heads=2, head_dim=64, intermediate=1024, vocabulary=2048,
    seed=3,
)  # fmt: skip
# Llama-3 8B's, but two layers and a small vocabulary: the CPU computes them too.
_LARGE = RandomWeights(
    layers=2, hidden=4096, heads=32, kv_heads=8, head_dim=128, intermediate=14336, vocabulary=8192,
    seed=4,
)  # fmt: skip
_LENGTHS = (900, 130, 20, 1)
_GENERATED = 16
_SINGLY = 8
_PAGES = 64
_PAGE_TOKENS = 64
# Drawing the large one's weights takes seconds, so it is made less often.
_EXACT = ((torch.float32, "sdpa"),)
_SERVED = ((torch.bfloat16, "auto"), (torch.bfloat16, "sdpa"))
_MORE = ((torch.float32, "auto"), (torch.float16, "auto"), (torch.float16, "sdpa"))
# Of the log-probabilities: the largest difference in float32, the mean one in 16 bits.
_FLOAT32_MOST = 1e-3
_16_BITS_MOST = 0.05


def run(out: Findings) -> None:
    """Two random models, and the embedded one if its file is in the cache."""
    models = {
        "small": ModelLoadingConfig(model_source="random", random=_SMALL),
        "8B shape, 2 layers": ModelLoadingConfig(model_source="random", random=_LARGE),
    }
    file = cache_folder() / GGUF_NAME
    if file.exists():
        models["SmolLM2-135M"] = ModelLoadingConfig(model_source=str(file))
    else:
        out.say("SmolLM2-135M", "its file is not in the cache")
    for name, config in models.items():
        _compare(name, config, out)


def _compare(name: str, config: ModelLoadingConfig, out: Findings) -> None:
    spec = load_spec(config)
    prompts = {}
    for length in _LENGTHS:
        generator = torch.Generator().manual_seed(length)
        drawn = torch.randint(spec.vocabulary, (length,), generator=generator)
        prompts[str(length)] = drawn.tolist()
    reference = _stage(config, "cpu", torch.float32, "sdpa")
    expected = follow(reference, prompts, generate=_GENERATED)
    whole = {key: found.tokens for key, found in expected.items()}
    known = follow(reference, whole, singly=_SINGLY)
    del reference
    few = spec.hidden >= _LARGE.hidden
    for dtype, attention in (*_EXACT, *_SERVED, *(() if few else _MORE)):
        label = f"{name}, {str(dtype).removeprefix('torch.')}, attention {attention}"
        try:
            stage = _stage(config, "cuda", dtype, attention)
            _judge(label, stage, dtype, whole, known, out)
            if dtype == torch.float32:
                found = follow(stage, prompts, generate=_GENERATED)
                same = sum(
                    found[key].generated == expected[key].generated for key in found
                )
                out.check(
                    f"{label}: greedy tokens",
                    same == len(found),
                    f"{same} of {len(found)}",
                )
            del stage
        except ModelError as error:
            out.say(label, error.message)
        except Exception as error:  # the others are measured all the same
            traceback.print_exc()
            out.check(label, False, f"{type(error).__name__}: {error}"[:150])
        torch.cuda.empty_cache()


def _stage(
    config: ModelLoadingConfig, device: str, dtype: torch.dtype, attention: str
) -> Stage:
    spec = load_spec(config)
    where: Any = (device, dtype, os.cpu_count() or 1, attention)
    stage = Stage(
        spec, config, (0, spec.layers), (0, 1), 0, _PAGES, _PAGE_TOKENS, *where
    )
    if device == "cuda" and hasattr(stage, "warm_up"):  # takes graphs of decodes
        stage.warm_up()
    return stage


def _judge(
    label: str,
    stage: Stage,
    dtype: torch.dtype,
    whole: Mapping[str, list[int]],
    known: Mapping[str, Followed],
    out: Findings,
) -> None:
    """Differences of the log-probabilities of the very tokens that the reference has generated."""
    found = follow(stage, whole, singly=_SINGLY)
    again = follow(stage, whole, singly=_SINGLY)
    differences = []
    likeliest = []
    for key, reference in known.items():
        mine = torch.tensor(found[key].logprobs, dtype=torch.float64)
        differences.append(
            (mine - torch.tensor(reference.logprobs, dtype=torch.float64)).abs()
        )
        pairs = zip(found[key].likeliest, reference.likeliest, strict=True)
        likeliest += [mine == theirs for mine, theirs in pairs]
    difference = torch.cat(differences)
    if dtype == torch.float32:
        out.add(
            f"{label}: largest difference", difference.max().item(), most=_FLOAT32_MOST
        )
    else:
        out.add(
            f"{label}: mean difference", difference.mean().item(), most=_16_BITS_MOST
        )
        share = sum(likeliest) / len(likeliest)
        out.add(f"{label}: same likeliest token", 100 * share, "%")
    out.check(f"{label}: the same once more", again == found)
