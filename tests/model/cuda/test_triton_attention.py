"""The attention kernels for CUDA, interpreted on the CPU, against float64; what the compiler makes
of them for GPUs that are not here; and the backend among the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stage_driver import GREEDY, Driver

from medha_actors.config import ModelLoadingConfig, RandomWeights
from medha_actors.errors import ModelError

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
os.environ.setdefault(
    "TRITON_DEFAULT_FP_FUSION", "1"
)  # said to be so, for it warns otherwise
pytest.importorskip("triton", reason="needs triton, which is there for Linux on x86_64")

from medha_actors.bench.gpu_attention_cases import (
    Model,
    Rows,
    largest_errors,
    make_case,
)
from medha_actors.model.backend import choose_attention
from medha_actors.model.cuda.attention import TritonAttention, tiles_for

CPU = torch.device("cpu")
FLOAT32 = Model(heads=4, kv_heads=2, head_dim=16, page_tokens=64, dtype=torch.float32)
RAGGED = (
    Rows(1, 37, True),
    Rows(1, 64, False),
    Rows(7, 20, True),
    Rows(1, 0, True),
    Rows(2, 0, False),
    Rows(50, 100, True),
    Rows(20, 63, False),
)
MODELS = {
    "pages of 16": FLOAT32._replace(page_tokens=16),
    "pages of 64": FLOAT32,
    "pages of 256": FLOAT32._replace(page_tokens=256),
    "pages of 48": FLOAT32._replace(page_tokens=48),
    "no sharing": FLOAT32._replace(kv_heads=4),
    "a share of 7": FLOAT32._replace(heads=7, kv_heads=1),
    "a share of 20": FLOAT32._replace(heads=20, kv_heads=1),
    "heads of 24": FLOAT32._replace(head_dim=24),
}


def errors(spans, model, **options):
    case = make_case(spans, model, CPU, poisoned=True, **options)
    case.run()
    return largest_errors(case)


@pytest.mark.parametrize("name", MODELS)
def test_ragged_rows_equal_float64(name):
    """Nobody reads what it must not: that is NaN."""
    error, lse_error = errors(RAGGED, MODELS[name])
    assert error < 1e-6
    assert lse_error < 2e-6


def test_a_token_major_pool_is_read_as_well():
    assert errors(RAGGED, FLOAT32, token_major=True)[0] < 1e-6


@pytest.mark.parametrize("pieces", [1, 2, 3, 4])
def test_pieces_are_merged_exactly(pieces):
    """A row alone, and a chunk whose first rows see nothing of the last piece."""
    keys = 128 * pieces - 10
    spans = [Rows(1, keys - 1, True), Rows(3, keys, False), Rows(20, keys - 20, True)]
    case = make_case(spans, FLOAT32, CPU, poisoned=True, shortest=100)
    assert set(case.step.merges[:, 3].tolist()) == ({pieces} if pieces > 1 else set())
    case.run()
    error, lse_error = largest_errors(case)
    assert error < 1e-6
    assert lse_error < 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bits_are_as_exact_as_their_results(dtype):
    bound = {torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
    error, lse_error = errors(RAGGED, FLOAT32._replace(dtype=dtype))
    assert error < bound
    assert lse_error < 2e-6


def test_a_row_has_the_same_bits_whatever_is_batched_beside_it():
    spans = [Rows(1, 300, True), Rows(9, 30, True)]
    together = make_case([*spans, Rows(1, 5, True)], FLOAT32, CPU, shortest=128)
    together.run()
    last = make_case([*spans, Rows(30, 70, True)], FLOAT32, CPU, shortest=128)
    last.layer.fill_(1)
    for number in range(2):
        last.layer[:, last.pages[number]] = together.layer[:, together.pages[number]]
    last.q[:10] = together.q[:10]
    last.run()
    assert torch.equal(last.out[:10], together.out[:10])
    assert torch.equal(last.lse[:10], together.lse[:10])


def test_behind_what_the_header_counts_nothing_is_read():
    """As in a recorded launch, whose arrays are as long as its bucket wants them."""
    spans = [Rows(1, 300, True), Rows(1, 40, True)]
    case = make_case(spans, FLOAT32, CPU, poisoned=True, shortest=128)
    longer = {}
    for name in ("work", "merges"):
        array = getattr(case.step, name)
        rest = torch.full((30, array.shape[1]), 2**30, dtype=torch.int32)
        longer[name] = torch.cat([array, rest])
    padded = case._replace(step=case.step._replace(**longer))
    padded.run()
    assert largest_errors(padded)[0] < 1e-6


RANDOM = ModelLoadingConfig(
    model_source="random",
    dtype="float32",
    random=RandomWeights(layers=2, vocabulary=300),
)


def drive(**options):
    driver = Driver(RANDOM, pages=6, page_tokens=64, **options)
    for seed, length in enumerate((150, 20, 1)):
        tokens = torch.randint(
            300, (length,), generator=torch.Generator().manual_seed(seed)
        )
        driver.add(str(length), tokens.tolist(), GREEDY)
    driver.generate({"150": 4, "20": 5, "1": 3}, 130)
    return {
        name: (request.tokens, [entry[0] for entry in request.prompt_logprobs.values()])
        for name, request in driver.requests.items()
    }


def test_a_stage_gives_the_same_tokens_as_with_sdpa(monkeypatch):
    expected = drive(stages=2)
    monkeypatch.setattr(
        "medha_actors.model.backend.choose_attention", lambda *_: "triton"
    )
    for name, (tokens, logprobs) in drive(stages=2).items():
        assert tokens == expected[name][0]
        assert logprobs == pytest.approx(expected[name][1], abs=1e-4)


def test_what_hinders_it_is_said():
    obstacle = TritonAttention.obstacle(CPU, torch.float32, 64)
    assert obstacle == "needs CUDA, not cpu"
    with pytest.raises(ModelError, match="attention triton needs CUDA, not cpu"):
        choose_attention("triton", CPU, torch.float32, 64)
    with pytest.raises(ModelError, match="at most 64 query heads of a key head"):
        tiles_for(128, 1, 64, torch.bfloat16, CPU)
    if not torch.cuda.is_available():
        found = TritonAttention.obstacle(torch.device("cuda"), torch.bfloat16, 64)
        assert found is not None
        assert found.startswith("does not run here: ")


WANTED = [
    (80, "bfloat16", 128, "wide", 64),
    (80, "bfloat16", 128, "narrow", 64),
    (90, "bfloat16", 128, "wide", 64),
    (90, "bfloat16", 128, "middle", 64),
    (90, "bfloat16", 128, "narrow", 64),
    (90, "float16", 64, "wide", 16),
    (90, "bfloat16", 256, "wide", 64),
    (90, "bfloat16", 256, "narrow", 64),
    (90, "float32", 128, "narrow", 64),
    (90, "bfloat16", 128, "merge", 64),
    (100, "bfloat16", 128, "wide", 64),
    (100, "bfloat16", 128, "narrow", 64),
]
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What the assembler says of the kernels for other GPUs; see compiled.py."""
    root = Path(__file__).parents[3]
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
    }
    command = [
        sys.executable,
        str(Path(__file__).parent / "compiled.py"),
        json.dumps(WANTED),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(WANTED, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_it_compiles_for_gpus_that_are_not_here(compiled, wanted):
    found = compiled[wanted]
    capability, dtype, _, kernel, _ = wanted
    assert found["spilled"] == 0
    assert found["shared"] <= SHARED_MEMORY[capability]
    if kernel == "merge":
        return
    if dtype != "float32":
        assert found["asynchronous loads"] > 0
    if kernel == "narrow":
        assert found["registers"] <= 255
    elif capability == 90 and dtype != "float32":
        assert found["wgmma"] > 0
