"""Every family on a GPU against transformers on the CPU in float32: biases, norms of heads, tied
heads, scaled rotations, experts."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import transformers

from medha_actors.config import ModelLoadingConfig
from tests.model.stage_driver import GREEDY, Driver

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"
)

# The same sizes for all, so that kernels are compiled once.
SIZES = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "initializer_range": 0.08,
    "eos_token_id": 7,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "rope_theta": 500.0,
    "original_max_position_embeddings": 64,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 128}
FAMILIES = {
    "llama": ("Llama", {}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3.1, tied": (
        "Llama",
        {"tie_word_embeddings": True, "rope_parameters": LLAMA3},
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "mixtral": ("Mixtral", {"num_local_experts": 8, "num_experts_per_tok": 2}),
    "qwen3-moe": ("Qwen3Moe", {**EXPERTS, "norm_topk_prob": True}),
    "qwen2-moe": ("Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 256}),
}
PROMPT = list(range(3, 303))
GENERATED = 12


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A tiny model of transformers, and what it makes of known tokens by its folder."""
    name, more = FAMILIES[request.param]
    config = getattr(transformers, f"{name}Config")(**SIZES | more)
    torch.manual_seed(1)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias") or "norm" in key:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)

    @cache
    @torch.inference_mode()
    def logprobs(tokens):
        return model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)

    return folder, logprobs


def driven(folder, dtype):
    """A request in chunks of 128, beside another; its tokens and log-probabilities."""
    config = ModelLoadingConfig(model_source=str(folder))
    driver = Driver(config, device="cuda", dtype=dtype, pages=24, page_tokens=64)
    driver.pipelines[0][0].warm_up()
    driver.add("beside", PROMPT[:77], GREEDY)
    driver.add("r", PROMPT, GREEDY)
    driver.generate({"r": GENERATED, "beside": GENERATED}, 128)
    request = driver.requests["r"]
    found = [request.prompt_logprobs[place][0] for place in range(1, request.prompt)]
    found += [token.logprob for token in request.sampled]
    return request.tokens, torch.tensor(found)


def test_float32_gives_the_tokens_and_log_probabilities_of_transformers(family):
    folder, logprobs = family
    tokens, found = driven(folder, torch.float32)
    expected = logprobs(tuple(tokens[:-1]))
    assert tokens[len(PROMPT) :] == expected[len(PROMPT) - 1 :].argmax(-1).tolist()
    known = expected.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    torch.testing.assert_close(found, known, atol=1e-3, rtol=0)


def test_bfloat16_is_close_to_transformers(family):
    folder, logprobs = family
    tokens, found = driven(folder, torch.bfloat16)
    known = logprobs(tuple(tokens[:-1])).gather(1, torch.tensor(tokens[1:])[:, None])[
        :, 0
    ]
    assert (found - known).abs().mean() < 0.1
