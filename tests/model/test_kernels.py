"""The CPU kernels against plain torch: attention, whole models; and that company changes nothing.
(Linear layers: test_linear.py.)"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from soft_registers import SoftRegisters
from stage_driver import GREEDY, Driver
from test_families import FAMILIES
from transformers import LlamaConfig, LlamaForCausalLM

from medha_actors.config import ModelLoadingConfig
from medha_actors.messages import SamplingParams
from medha_actors.model.kernels import KernelDecoder, cpu, ir
from medha_actors.model.kernels.attention import (
    SPARE_ROWS,
    attend,
    scratch_of,
    tile_address,
)
from medha_actors.model.kernels.attention_matrix import DIMS
from medha_actors.model.kernels.attention_tile import TILE, weight_bytes
from medha_actors.model.kernels.dot import FORM, ByteDot
from medha_actors.model.kernels.ir import V16I, address, compiled, fingerprint, kernel
from medha_actors.model.kernels.matrix_tiles import PERMITTED, TileRegisters
from medha_actors.model.kernels.pack import aligned


@pytest.fixture(autouse=True)
def _on_every_machine(monkeypatch):
    """Use the kernels even where they are not the fast way."""
    monkeypatch.setattr(cpu, "native", lambda: True)


def pool(x, pages, kind, pair):
    """x [tokens, dims] laid out as the attention kernels want it: keys if pair is the dimension's,
    else values."""
    padded = np.zeros((len(pages) * TILE, x.shape[1]), np.float32)
    padded[: len(x)] = x
    tiles = torch.from_numpy(padded).to(kind).view(len(pages), TILE, -1)
    count = 2 if kind == torch.bfloat16 else 1
    if pair == "keys":
        tiles = tiles.view(len(pages), TILE, -1, count).transpose(1, 2).contiguous()
    else:
        tiles = tiles.view(len(pages), TILE // count, count, -1).transpose(2, 3)
    raw = tiles.reshape(-1).view(torch.uint8).numpy().reshape(len(pages), -1)
    out = aligned(raw.size, np.uint8).reshape(raw.shape)
    out[pages] = raw
    return out


@compiled
def _attend(
    code,
    q,
    query_bytes,
    tokens,
    share,
    dims,
    bfloat,
    keys,
    values,
    pages,
    cached,
    writes,
    scratch,
    out,
    lse,
):
    attend(
        code,
        address(q),
        query_bytes,
        tokens,
        share,
        dims,
        bfloat,
        address(keys),
        address(values),
        keys.shape[1],
        1,
        pages,
        cached,
        writes,
        scratch,
        out,
        lse,
    )


ATTENTION = [
    (form, dims, share, SoftRegisters)
    for form in ("float", "pairs", "widened", "registers")
    for dims, share in ((16, 1), (48, 4), (64, 3), (128, 8))
    if form != "registers" or dims % DIMS == 0
]
if PERMITTED:
    ATTENTION += [("registers", *size, TileRegisters) for size in ((64, 3), (128, 8))]


@pytest.mark.parametrize(("form", "dims", "share", "registers"), ATTENTION)
@pytest.mark.parametrize(
    ("cached", "tokens", "writes"),
    [(0, 1, 1), (0, 200, 1), (63, 70, 1), (130, 1, 1), (77, 9, 0)],
)
def test_attention_over_scattered_pages(
    form, dims, share, registers, cached, tokens, writes
):
    """Whatever form this machine would choose; tile registers in memory, and where there are."""
    kind = torch.float32 if form == "float" else torch.bfloat16
    generator = np.random.default_rng(dims + tokens)
    length = cached + tokens * writes
    k, v, q = (
        generator.standard_normal(shape)
        for shape in ((length, dims), (length, dims), (tokens, share, dims))
    )
    k *= np.linspace(0.5, 4, length)[:, None]  # the highest score keeps rising
    scale = math.log2(math.e) / math.sqrt(dims)
    q, k, v = (torch.from_numpy(part).to(kind) for part in (q * scale, k, v))
    pages = generator.permutation(-(-length // TILE)).astype(np.int32)
    rows = tokens * share
    scratch = scratch_of(rows, dims)
    scratch[0].fill(np.nan)  # whatever the step before left there
    padded = torch.cat((q.view(rows, dims), torch.full((SPARE_ROWS, dims), math.nan)))
    size = weight_bytes(form)
    padded = padded.to(torch.bfloat16 if size == 2 else torch.float32)
    out = np.zeros((tokens, share, dims), np.float32)
    lse = np.zeros((tokens, share), np.float32)
    bfloat = kind == torch.bfloat16
    _attend(
        tile_address(form, registers),
        padded.view(torch.uint8).numpy(),
        size,
        tokens,
        share,
        dims,
        int(bfloat),
        pool(k.float().numpy(), pages, kind, "keys"),
        pool(v.float().numpy(), pages, kind, "values"),
        pages,
        cached,
        writes,
        scratch,
        out,
        lse,
    )
    scores = torch.einsum("tsd,kd->tsk", q.double() / math.log2(math.e), k.double())
    if writes:
        hidden = torch.arange(length) > cached + torch.arange(tokens)[:, None]
        scores.masked_fill_(hidden[:, None], -math.inf)
    expected = scores.softmax(-1) @ v.double()
    tolerances = {"float": 5e-6, "widened": 5e-5}
    assert np.abs(out - expected.numpy()).max() < tolerances.get(form, 2e-2)
    assert np.abs(lse - scores.logsumexp(-1).numpy()).max() < 2e-5


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("form", sorted({FORM, "plain"}))
def test_dot_products_of_a_block_are_exact_even_at_the_largest_values(form, bits):
    def emit(e, x, y, sums):
        dot = ByteDot(e, bits, form)
        total = dot.zero()
        for j in range(8):
            words = (e.load(e.at(address, 64 * j), V16I) for address in (x, y))
            total = dot.add(total, dot.prepare(next(words)), next(words))
        e.store(dot.total(total), sums)

    run = _compiled(emit, 3)
    for draw in range(3):
        generator = np.random.default_rng(draw)
        x = generator.integers(0 if draw else 2**bits - 1, 2**bits, (8, 16, 4)).astype(
            np.uint8
        )
        y = generator.integers(-128, 128 if draw else -127, (8, 16, 4)).astype(np.int8)
        sums = np.zeros(16, np.int32)
        run(x.ctypes.data, y.ctypes.data, sums.ctypes.data)
        assert sums.tolist() == (x.astype(int) * y).sum((0, 2)).tolist()


def test_portable_bfloat16_rounds_and_multiplies_like_torch():
    def emit(e, x, y, rounded, sums):
        for half in (0, 1):
            e.store(
                e.bfloat(e.load(e.at(x, 64 * half)), native=False),
                e.at(rounded, 32 * half),
            )
        e.store(
            e.dot_bf16(
                e.constant(3.0), e.load(rounded, V16I), e.load(y, V16I), native=False
            ),
            sums,
        )

    x = torch.randn(32) * 1e3
    y = torch.randn(32).bfloat16()
    # two ties, of which one goes up
    x[:4] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -0.0, 1e8])
    rounded = torch.zeros(32, dtype=torch.bfloat16)
    sums = torch.zeros(16)
    _compiled(emit, 4)(x.data_ptr(), y.data_ptr(), rounded.data_ptr(), sums.data_ptr())
    assert torch.equal(rounded, x.bfloat16())
    expected = (x.bfloat16().double() * y.double()).view(16, 2).sum(1) + 3
    assert torch.allclose(sums.double(), expected, rtol=1e-5, atol=1e-2)


def _compiled(emit, arity):
    from numba import njit  # numba cannot cache what is defined in a function

    inner = kernel(arity, emit)
    if arity == 3:
        return njit(lambda a, b, c: inner(a, b, c))
    return njit(lambda a, b, c, d: inner(a, b, c, d))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, tmp_path, check):
    build, config = FAMILIES[family]
    torch.manual_seed(1)
    model = build(config).eval()
    model.save_pretrained(tmp_path)
    driver = Driver(
        ModelLoadingConfig(model_source=str(tmp_path)), stages=2, page_tokens=64
    )
    assert all(
        isinstance(stage.decoder, KernelDecoder) for stage in driver.pipelines[0]
    )
    prompt = torch.randint(
        200, (150,), generator=torch.Generator().manual_seed(2)
    ).tolist()
    for name, length in (("long", 150), ("short", 3)):
        driver.add(name, prompt[:length], GREEDY)
    driver.generate({"long": 6, "short": 9}, 70)
    for name in ("long", "short"):
        check(driver.remove(name), model)


@pytest.mark.parametrize("cutoffs", [(64,), (1, 90), (0, 128)])
def test_pieces_in_several_groups(cutoffs, tmp_path, check):
    torch.manual_seed(4)
    sizes = {
        "vocab_size": 160,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
    }
    model = LlamaForCausalLM(
        LlamaConfig(
            **sizes, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2
        )
    ).eval()
    model.save_pretrained(tmp_path)
    config = ModelLoadingConfig(model_source=str(tmp_path))
    driver = Driver(config, groups=len(cutoffs) + 1, page_tokens=64, cutoffs=cutoffs)
    prompt = torch.randint(
        160, (140,), generator=torch.Generator().manual_seed(5)
    ).tolist()
    for name, length in (("long", 140), ("short", 5)):
        driver.add(name, prompt[:length], GREEDY)
    driver.generate({"long": 5, "short": 9}, 50)
    for name in ("long", "short"):
        check(driver.remove(name), model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_chunks_and_company_change_no_bit(dtype, prompt_of):
    """The embedded model: log-probabilities are equal, not only close, however a prompt is cut and
    whoever is there."""
    wanted = SamplingParams(
        max_tokens=1, temperature=0.0, logprobs=3, prompt_logprobs=2
    )
    driver = Driver(stages=2, pages=40, page_tokens=64, dtype=dtype)
    found = []
    for chunk, others in ((300, 0), (64, 0), (37, 3)):
        driver.add("it", prompt_of(290), wanted)
        for number in range(others):
            driver.add(str(number), prompt_of(20 + 50 * number, number), wanted)
        driver.generate(
            {"it": 6, **{str(number): 12 for number in range(others)}}, chunk
        )
        for number in range(others):
            driver.remove(str(number))
        done = driver.remove("it")
        found.append((done.sampled, done.prompt_logprobs))
    assert found[0] == found[1] == found[2]


def test_bfloat16_of_the_embedded_model_is_close(reference, prompt_of):
    """int8 activations and a bfloat16 cache: the distributions of the next token stay where they
    were."""
    driver = Driver(pages=10, page_tokens=64, dtype=torch.bfloat16)
    prompt = prompt_of(400)
    driver.add("it", prompt, GREEDY)
    driver.generate({"it": 1}, 128)
    found = driver.remove("it").prompt_logprobs
    with torch.inference_mode():
        logprobs = reference(torch.tensor([prompt])).logits[0].log_softmax(-1)
    differences = [
        found[i][0] - logprobs[i - 1, prompt[i]].item() for i in range(1, len(prompt))
    ]
    assert abs(np.mean(differences)) < 0.02  # no bias
    assert np.std(differences) < 0.2


def test_what_was_measured_elsewhere_is_not_taken_for_this_processors(monkeypatch):
    """Calibrations are kept by the decoder's name: other instructions are another name."""
    here = fingerprint()
    assert here in KernelDecoder.name
    monkeypatch.setattr(ir, "FEATURES", ir.FEATURES - {"avx2"})
    assert fingerprint.__wrapped__() != here
