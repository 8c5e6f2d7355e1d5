"""Log-probabilities are llama.cpp's own: of each architecture of GGUF, with each kind of RoPE.

llama.cpp comes with a package that is not among the tests' own: `pip install xllamacpp`.
"""

from __future__ import annotations

import pytest
import torch
from gguf_files import SMALL, convert
from stage_driver import Driver
from test_gguf_experts import FILES
from test_gguf_files import YARN_KEYS
from tiny_experts import made
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from medha_actors.config import ModelLoadingConfig
from medha_actors.messages import SamplingParams

xllamacpp = pytest.importorskip("xllamacpp", reason="pip install xllamacpp")

PROMPT = list(range(10, 100))
BEST = SamplingParams(max_tokens=1, temperature=0.0, logprobs=20)
DENSE = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
}
ROPES = {
    "plain": {},
    "scale_linear": {"rope.scale_linear": 4.0},
    "factor alone": {"rope.scaling.factor": 4.0},
    "linear": {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    "both": {"rope.scaling.factor": 4.0, "rope.scale_linear": 2.0},
    "none": {"rope.scaling.type": "none", "rope.scaling.factor": 4.0},
    "zero": {"rope.scale_linear": 0.0},
    "yarn": YARN_KEYS,
    "yarn, ext_factor": {**YARN_KEYS, "rope.scaling.yarn_ext_factor": 1.0},
    "yarn, attn_factor": {**YARN_KEYS, "rope.scaling.attn_factor": 1.25},
}


def theirs(path, size):
    """Token -> log-probability after the prompt, computed in float32."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 128
    params.n_parallel = 1
    params.cpuparams.n_threads = 1
    params.warmup = False
    params.fit_params = False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    off = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.flash_attn_type = off
    body = {"prompt": PROMPT, "max_tokens": 1, "temperature": 0, "logprobs": size}
    answer = xllamacpp.Server(params).handle_completions(body)
    [token] = answer["choices"][0]["logprobs"]["content"]
    return {entry["id"]: entry["logprob"] for entry in token["top_logprobs"]}


def named(model):
    """Texts for the tokens."""
    size = model.config.vocab_size
    return ["<unk>", "<s>", "</s>", "<0x0A>", *(f"w{i}" for i in range(4, size))]


def compare(folder, model, name, **options):
    path = folder / "tiny.gguf"
    convert(model, path, name, words=named(model), **options)
    driver = Driver(ModelLoadingConfig(model_source=str(path)))
    driver.add("r", PROMPT, BEST)
    driver.generate({"r": 1}, 40)
    [token] = driver.remove("r").sampled
    expected = theirs(path, model.config.vocab_size)
    assert token.token_id == max(expected, key=expected.__getitem__)
    assert len(token.top_logprobs) == 20
    for token_id, logprob in token.top_logprobs:
        assert logprob == pytest.approx(expected[token_id], abs=1e-3)


@pytest.mark.parametrize("keys", ROPES.values(), ids=ROPES)
@pytest.mark.parametrize("name", DENSE)
def test_rope(tmp_path, name, keys):
    torch.manual_seed(2)
    build, config = DENSE[name]
    compare(tmp_path, build(config(**SMALL)).eval(), name, keys=keys)


def test_llama_cpp_passes_over_the_betas_of_yarn(tmp_path):
    """Of these architectures. They are used here, as in transformers: test_gguf_files.py."""
    torch.manual_seed(2)
    model = LlamaForCausalLM(LlamaConfig(**SMALL)).eval()
    betas = {
        "rope.scaling.yarn_beta_fast": 8.0,
        "rope.scaling.yarn_beta_slow": 2.0,
    }
    found = []
    for number, keys in enumerate((YARN_KEYS, {**YARN_KEYS, **betas})):
        path = tmp_path / f"{number}.gguf"
        convert(model, path, "llama", words=named(model), keys=keys)
        found.append(theirs(path, model.config.vocab_size))
    assert found[0] == found[1]


def test_frequencies_of_a_file(tmp_path):
    torch.manual_seed(2)
    model = LlamaForCausalLM(LlamaConfig(**SMALL)).eval()
    compare(tmp_path, model, "llama", rope_divisors=torch.linspace(1.0, 4.0, 8))


@pytest.mark.parametrize("rope", ["plain", "linear", "yarn"])
@pytest.mark.parametrize("family", FILES)
def test_mixtures(tmp_path, family, rope):
    name, keys = FILES[family]
    compare(tmp_path, made(family), name, keys={**keys, **ROPES[rope]})
