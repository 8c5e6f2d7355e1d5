"""Attention kernels that this machine cannot run, checked against those it can; and the choice
between them."""

from __future__ import annotations

import sys
import types
import typing

import pytest
import torch
from stage_driver import GREEDY, Driver

from medha_actors.config import ModelLoadingConfig, RandomWeights
from medha_actors.errors import ModelError
from medha_actors.grid_config import ActorConfig
from medha_actors.model import attention_sdpa
from medha_actors.model.backend import ATTENTIONS, choose_attention

RANDOM = ModelLoadingConfig(
    model_source="random",
    dtype="float32",
    random=RandomWeights(layers=2, vocabulary=300),
)


def flash_attn_with_kvcache(
    q,
    k_cache,
    v_cache,
    cache_seqlens=None,
    block_table=None,
    causal=False,
    return_softmax_lse=False,
):
    """What flash-attn documents, written plainly: bottom-right causal, token-major pages of 256,
    float32 LSE."""
    assert k_cache.shape[1] % 256 == 0
    assert block_table.dtype == cache_seqlens.dtype == torch.int32
    outs = torch.zeros(q.shape, dtype=q.dtype)
    lses = torch.zeros(q.shape[0], q.shape[2], q.shape[1])
    for row, length in enumerate(cache_seqlens.tolist()):
        assert length > 0
        share = q.shape[2] // k_cache.shape[2]
        k, v = (
            x[block_table[row].long()]
            .flatten(0, 1)[:length]
            .repeat_interleave(share, 1)
            for x in (k_cache, v_cache)
        )
        scores = (
            torch.einsum("qhd,khd->hqk", q[row].float(), k.float())
            * q.shape[-1] ** -0.5
        )
        if causal:
            last = torch.arange(length - q.shape[1], length)
            scores.masked_fill_(torch.arange(length) > last[:, None], -torch.inf)
        lses[row] = scores.logsumexp(-1)
        outs[row] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v.float())
    return outs, lses


@pytest.fixture
def installed(monkeypatch):
    """A flash_attn package that can be imported."""
    module = types.ModuleType("flash_attn")
    module.flash_attn_with_kvcache = flash_attn_with_kvcache
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return module


@pytest.fixture
def flash_attn(installed, monkeypatch):
    """It is used on a CPU, which the real one refuses."""
    monkeypatch.setattr(
        "medha_actors.model.backend.choose_attention", lambda *_: "flash_attn"
    )


def drive(**options):
    driver = Driver(RANDOM, pages=6, page_tokens=256, **options)
    for seed, length in enumerate((300, 20, 1)):
        tokens = torch.randint(
            300, (length,), generator=torch.Generator().manual_seed(seed)
        )
        driver.add(str(length), tokens.tolist(), GREEDY)
    driver.generate({"300": 6, "20": 9, "1": 4}, 130)
    return {
        name: (r.tokens, [entry[0] for entry in r.prompt_logprobs.values()])
        for name, r in driver.requests.items()
    }


@pytest.mark.parametrize("options", [{}, {"stages": 2, "groups": 2, "cutoffs": (260,)}])
def test_flash_attn_is_called_as_it_is_documented(request, options):
    expected = drive(**options)
    request.getfixturevalue("flash_attn")
    for name, (tokens, logprobs) in drive(**options).items():
        assert tokens == expected[name][0]
        assert logprobs == pytest.approx(expected[name][1], abs=1e-4)


def test_two_matrix_products_equal_the_fused_operator():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 2, n, 16, generator=generator) for n in (4, 24, 24))
    mask = torch.zeros(3, 1, 1, 24)
    mask[0, ..., 5:] = mask[1, ..., 23:] = -torch.inf
    for mine, theirs in zip(
        attention_sdpa.plain_masked(q, k, v, mask),
        attention_sdpa.masked(q, k, v, mask),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def test_every_backend_has_a_name_in_the_configuration():
    names = typing.get_args(typing.get_type_hints(ActorConfig)["attention"])
    assert set(names) == {"auto", *ATTENTIONS}


def test_auto_takes_the_first_that_works(installed, monkeypatch):
    assert choose_attention("auto", CPU, torch.float32, 64) == "sdpa"
    assert choose_attention("auto", CUDA, torch.float32, 256) == "sdpa"
    assert choose_attention("auto", CUDA, torch.bfloat16, 64) == "sdpa"
    assert choose_attention("auto", CUDA, torch.bfloat16, 256) == "flash_attn"
    # flash-attn 4 installs a package of this name without it
    del installed.flash_attn_with_kvcache
    assert choose_attention("auto", CUDA, torch.bfloat16, 256) == "sdpa"
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    assert choose_attention("auto", CUDA, torch.bfloat16, 256) == "sdpa"


def test_what_is_asked_for_is_taken_or_refused_with_the_reason(installed, monkeypatch):
    assert choose_attention("sdpa", CUDA, torch.bfloat16, 256) == "sdpa"
    assert choose_attention("flash_attn", CUDA, torch.bfloat16, 256) == "flash_attn"
    for device, dtype in ((CPU, torch.bfloat16), (CUDA, torch.float32)):
        with pytest.raises(
            ModelError, match="flash_attn needs CUDA and a 16-bit dtype"
        ):
            choose_attention("flash_attn", device, dtype, 256)
    with pytest.raises(ModelError, match="multiple of 256"):
        choose_attention("flash_attn", CUDA, torch.bfloat16, 64)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(ModelError, match="cannot be imported"):
        choose_attention("flash_attn", CUDA, torch.bfloat16, 256)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize(("heads", "causal"), [(2, False), (8, True)])
def test_the_cuda_operators_take_our_arguments(dtype, heads, causal):
    """On the meta device, which has the same signatures and shapes."""
    q, keys = (
        torch.empty(1, n, 100, 64, dtype=dtype, device="meta") for n in (heads, 2)
    )
    out, lse = attention_sdpa.fused(q, keys, keys, causal)
    assert (out.shape, out.dtype) == (q.shape, dtype)
    assert (lse.shape, lse.dtype) == (q.shape[:3], torch.float32)
