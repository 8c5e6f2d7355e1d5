"""Reference models from transformers, with the same weights; each of the samplers."""

from __future__ import annotations

import pytest
import torch

from medha_actors.files.embedded import embedded_gguf
from medha_actors.files.gguf import GgufFile
from medha_actors.model.cuda.sampler import CudaSampler

TEXT = (
    "The river runs through the old town and past the mill where people used to bring their corn . "
    "In the morning the market opens and the children walk to school along the bridge while a "
    "train crosses the valley . There is a small library near the church ; it has books about "
    "history , science and music , and a map of the world on the wall . Every year in June the "
    "whole town comes together to eat and dance until late at night . Nobody knows who built the "
    "tower , but many stories are told about it : one says that a king lost his way in the forest ."
)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["the CPU's sampler", "the GPU's sampler"])
def each_sampler(request, monkeypatch):
    """A test runs with the one and the other (on CPU tensors) as its module's `Sampler`."""

    def on_device(vocabulary, grammars=None):
        return CudaSampler(vocabulary, grammars, torch.device("cpu"))

    if request.param == "the GPU's sampler":
        monkeypatch.setattr(request.module, "Sampler", on_device)


@pytest.fixture(scope="session")
def prompt_of():
    """count -> token ids of the embedded model that read like English."""
    words = GgufFile(embedded_gguf(), texts=True).metadata["tokenizer.ggml.tokens"]
    numbers = {word: number for number, word in enumerate(words)}
    text = [numbers["Ġ" + word] for word in TEXT.split() if "Ġ" + word in numbers]

    def prompt(count, seed=0):
        order = torch.Generator().manual_seed(seed)
        pieces = []
        while len(pieces) < count:
            first = int(torch.randint(len(text) - 20, (1,), generator=order))
            pieces += text[
                first : first + int(torch.randint(5, 40, (1,), generator=order))
            ]
        return pieces[:count]

    return prompt


@pytest.fixture(scope="session")
def reference():
    """The embedded model in transformers: float32, dequantised by the gguf package."""
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from transformers import LlamaConfig, LlamaForCausalLM

    reader = GGUFReader(embedded_gguf())
    state = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        name = tensor.name.replace("token_embd", "model.embed_tokens").replace(
            "output_norm", "model.norm"
        )
        for theirs, ours in [
            ("blk.", "model.layers."),
            ("attn_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
            ("attn_output", "self_attn.o_proj"),
            *((f"attn_{x}", f"self_attn.{x}_proj") for x in "qkv"),
            *((f"ffn_{x}", f"mlp.{x}_proj") for x in ("gate", "up", "down")),
        ]:
            name = name.replace(theirs, ours)
        for heads, part in ((9, "q_proj"), (3, "k_proj")):
            if part in name:
                values = (
                    values.view(heads, 32, 2, 576).transpose(1, 2).reshape(values.shape)
                )
        state[name] = values
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=100000.0,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


@pytest.fixture(scope="session")
def check():
    """Compare a driven request with a reference model: greedy tokens equal, log-probabilities
    within 1e-3."""

    @torch.inference_mode()
    def compare(request, model, tolerance=1e-3):
        tokens = request.tokens
        new = len(request.tokens) - request.prompt
        keep = len(tokens) if request.prompt_logprobs else new + 1
        logits = model(torch.tensor([tokens]), logits_to_keep=keep).logits[0].float()
        expected = logits.log_softmax(-1)
        skipped = len(tokens) - keep  # positions without logits
        assert (
            tokens[request.prompt :]
            == expected[request.prompt - 1 - skipped : -1].argmax(-1).tolist()
        )
        for position, token in enumerate(request.sampled, request.prompt):
            row = expected[position - 1 - skipped]
            assert token.token_id == tokens[position]
            assert abs(token.logprob - row[token.token_id]) < tolerance
            for token_id, logprob in token.top_logprobs:
                assert abs(logprob - row[token_id]) < tolerance
        if request.prompt_logprobs:
            # more after a drop: known tokens
            assert set(range(1, request.prompt)) <= set(request.prompt_logprobs)
        for position, (logprob, top) in request.prompt_logprobs.items():
            row = expected[position - 1]
            assert abs(logprob - row[tokens[position]]) < tolerance
            assert abs(top[0][1] - row.max()) < tolerance

    return compare
