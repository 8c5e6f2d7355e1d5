"""Threads that share a step: the same bits as by one, whatever becomes of a thread."""

from __future__ import annotations

import threading

import pytest
import torch
from stage_driver import GREEDY, Driver
from tiny_experts import made
from transformers import LlamaConfig, LlamaForCausalLM

from medha_actors.config import ModelLoadingConfig
from medha_actors.model.kernels import cpu
from medha_actors.model.kernels.threads import (
    Threads,
    all_done,
    done,
    phases_of,
    take,
)
from medha_actors.model.spec import load_spec

pytestmark = pytest.mark.skipif(
    not cpu.native(), reason="the kernels are for other processors"
)
BIASED = LlamaConfig(
    vocab_size=208,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    max_position_embeddings=256,
    initializer_range=0.2,
    num_attention_heads=4,
    num_key_value_heads=4,
    attention_bias=True,
    mlp_bias=True,
)
LENGTHS = {"long": 200, "short": 37, "one": 1}


def answers(
    config: ModelLoadingConfig,
    dtype: torch.dtype,
    helpers: int,
    chunks: tuple[int, ...] = (8, 130, 50),
) -> list:
    """Tokens and log-probabilities of requests in steps of one row to some hundred: prefills
    together, decodes together, and both."""
    driver = Driver(config, stages=2, dtype=dtype, helpers=helpers)
    vocabulary = load_spec(config).vocabulary
    for seed, (name, length) in enumerate(LENGTHS.items()):
        generator = torch.Generator().manual_seed(seed)
        prompt = torch.randint(vocabulary, (length,), generator=generator).tolist()
        driver.add(name, prompt, GREEDY)
    driver.generate({"one": 3}, chunks[0])
    driver.generate({"long": 4, "one": 6}, chunks[1])
    driver.generate(dict.fromkeys(LENGTHS, 8), chunks[2])
    found = []
    for name in LENGTHS:
        request = driver.remove(name)
        found.append((request.tokens, request.sampled, request.prompt_logprobs))
    return found


def test_the_same_bits_by_however_many_threads():
    config = ModelLoadingConfig(model_source="embedded")
    expected = answers(config, torch.bfloat16, 0)
    for helpers in (1, 2):
        assert answers(config, torch.bfloat16, helpers) == expected


@pytest.mark.parametrize("helpers", [3, 5])
def test_many_threads_share_columns_of_chunks_too(helpers):
    """A chunk of 30 rows is few for them, and is not to be rotated by two of them."""
    config = ModelLoadingConfig(model_source="embedded")
    chunks = (8, 30, 20)
    expected = answers(config, torch.bfloat16, 0, chunks)
    assert answers(config, torch.bfloat16, helpers, chunks) == expected


@pytest.mark.parametrize("model", ["with experts", "with biases"])
def test_experts_and_biases_too(model, tmp_path):
    saved = made("qwen2-moe") if model == "with experts" else LlamaForCausalLM(BIASED)
    saved.save_pretrained(tmp_path)
    config = ModelLoadingConfig(model_source=str(tmp_path))
    expected = answers(config, torch.float32, 0)
    assert answers(config, torch.float32, 2) == expected


def test_every_piece_is_taken_once_and_waited_for():
    threads = Threads(3)
    phases = phases_of(2)
    taken: list[tuple[int, int]] = []

    def job(number: int) -> bool:
        for phase in range(2):
            while (piece := take(phases, phase, 50)) >= 0:
                taken.append((phase, piece))
                done(phases, phase)
            if not all_done(phases, phase, 50, 1000):
                return False
        return True

    threads.run(job, 3)
    assert sorted(taken) == [
        (phase, piece) for phase in range(2) for piece in range(50)
    ]
    assert {phase for phase, _ in taken[:50]} == {0}


def test_who_comes_late_is_not_waited_for():
    threads = Threads(2)
    late = threading.Event()
    phases = phases_of(1)

    def job(number: int) -> bool:
        if number:
            late.wait()
        while take(phases, 0, 4) >= 0:
            done(phases, 0)
        return bool(all_done(phases, 0, 4, 1000))

    threads.run(job, 2)
    late.set()
    threads.run(lambda number: True, 2)


def test_what_goes_wrong_in_a_thread_is_raised():
    threads = Threads(2)
    phases = phases_of(1)

    def job(number: int) -> bool:
        if number:
            take(phases, 0, 1)
            raise ValueError("gone")
        return bool(all_done(phases, 0, 1, 1000))

    with pytest.raises(ValueError, match="gone"):
        threads.run(job, 2)
