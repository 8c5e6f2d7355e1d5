"""Linear layers on the CPU kernels: every kind of weights, against the gguf package's values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quantised import random_blocks, values_of
from soft_registers import SoftRegisters

from medha_actors.files.gguf_kinds import KINDS
from medha_actors.model.gguf_blocks import (
    IQ4_NL,
    IQ4_XS,
    Q4_0,
    Q4_K,
    Q6_K,
    Q8_0,
    UNPACK,
)
from medha_actors.model.gguf_weights import dequantise
from medha_actors.model.kernels import cpu, pack
from medha_actors.model.kernels.dot import FORM
from medha_actors.model.kernels.linear import HERE, Machine, linear_address
from medha_actors.model.kernels.matrix_tiles import PERMITTED
from medha_actors.model.kernels.pack import pack_blocks, pack_dense

WIDTH = 512
OUTPUTS = 48
ROWS = 67
TOLERANCES = {"float32": 1e-6, "int16": 4e-5, "int8": 1e-2}
NAMES = {number: KINDS[number].name for number in UNPACK}
# One without and one with a zero, alone and in groups; the others with `-m slow`.
TYPICAL = [
    kind
    if kind in (Q4_0, Q4_K, Q6_K, Q8_0)
    else pytest.param(kind, marks=pytest.mark.slow)
    for kind in UNPACK
]


def layers(width=WIDTH):
    return cpu.CpuLayers(
        cpu.Dimensions(width, width, 1, 1, 32, 1e-5), [], 1, 64, bfloat=True
    )


def activations(rows=ROWS, width=WIDTH):
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, width, generator=generator)
    gain = torch.rand(width, generator=generator) + 0.5
    return (
        x,
        gain,
        torch.nn.functional.rms_norm(x.double(), (width,), gain.double(), 1e-5),
    )


@pytest.mark.parametrize("kind", UNPACK, ids=NAMES.get)
@pytest.mark.parametrize("scale", [1e-6, 0.1, 6e4])
def test_blocks_are_read_as_the_gguf_package_does(kind, scale):
    raw = random_blocks(kind, 32, WIDTH, scale=scale)
    found = dequantise(torch.from_numpy(raw), kind, torch.float32)
    assert np.array_equal(found.numpy(), values_of(raw, kind))


@pytest.mark.parametrize("form", TOLERANCES)
@pytest.mark.parametrize("kind", UNPACK, ids=NAMES.get)
def test_every_kind_of_blocks_and_number_of_rows(kind, form):
    raw = random_blocks(kind, OUTPUTS, WIDTH)
    x, gain, normed = activations()
    expected = normed @ torch.from_numpy(values_of(raw, kind)).double().T
    stack = (pack_blocks(torch.from_numpy(raw), kind, form),)
    found = layers().logits(x, gain, stack)
    assert (found - expected).norm() < TOLERANCES[form] * expected.norm()
    # a row's result does not depend on the rows beside it
    for rows in (1, 2, 3, 5, 12, 15, 16, 21, 31):
        assert torch.equal(layers().logits(x[:rows], gain, stack), found[:rows])


@pytest.mark.parametrize("kind", UNPACK, ids=NAMES.get)
@pytest.mark.parametrize("scale", [1e-6, 6e4])
def test_the_smallest_and_the_largest_scales(kind, scale):
    """Below float16's normal numbers, and near its end."""
    raw = random_blocks(kind, OUTPUTS, WIDTH, scale=scale)
    x, gain, normed = activations(5)
    expected = normed @ torch.from_numpy(values_of(raw, kind)).double().T
    assert expected.norm() > 0
    for form, tolerance in TOLERANCES.items():
        found = layers().logits(
            x, gain, (pack_blocks(torch.from_numpy(raw), kind, form),)
        )
        assert (found - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("kind", UNPACK, ids=NAMES.get)
def test_weights_are_held_without_any_rounding(kind):
    """A row that is 1 at one input and 0 elsewhere picks that input's weights: equal to the last
    bit where there is no minimum to be added, and within one rounding of it elsewhere."""
    raw = random_blocks(kind, OUTPUTS, WIDTH, seed=1)
    values = torch.from_numpy(values_of(raw, kind))
    stack = (pack_blocks(torch.from_numpy(raw), kind, "float32"),)
    picked = torch.eye(WIDTH)
    ones = torch.ones(WIDTH)
    # with this eps the norm leaves such rows as they are
    flat = cpu.CpuLayers(
        cpu.Dimensions(WIDTH, WIDTH, 1, 1, 32, 1 - 1 / WIDTH), [], 1, 64, bfloat=True
    )
    found = flat.logits(picked, ones, stack).T
    torch.testing.assert_close(
        found, values, rtol=2e-7, atol=2e-7 * values.abs().max().item()
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)]
)
def test_dense_matrices(dtype, tolerance):
    values = torch.randn(OUTPUTS, WIDTH, generator=torch.Generator().manual_seed(1)).to(
        dtype
    )
    x, gain, normed = activations()
    expected = normed @ values.double().T
    stack = (pack_dense(values),)
    found = layers().logits(x, gain, stack)
    assert (found - expected).norm() < tolerance * expected.norm()
    for rows in (1, 2, 3, 5, 12, 15, 16, 21, 31):
        assert torch.equal(layers().logits(x[:rows], gain, stack), found[:rows])


@pytest.mark.parametrize("form", TOLERANCES)
def test_unlike_matrices_side_by_side(form):
    """Each part's outputs are what they are alone, whatever form of activations its neighbour
    takes."""
    first, last = (
        pack_blocks(torch.from_numpy(random_blocks(kind, 32, WIDTH)), kind, form)
        for kind in (Q4_K, Q6_K)
    )
    dense = pack_dense(torch.randn(16, WIDTH).bfloat16())
    x, gain, _ = activations()
    for stack in ((first, last), (first, dense, last), (dense, first)):
        alone = [layers().logits(x, gain, (part,)) for part in stack]
        assert torch.equal(layers().logits(x, gain, stack), torch.cat(alone, 1))


@pytest.mark.parametrize("kind", UNPACK, ids=NAMES.get)
def test_memory_of_a_weight(kind):
    """No more than the file's, but for 2 bits in 100 of alignment and IQ4's table, looked up when
    it is packed."""
    _, values, size = KINDS[kind]
    raw = torch.from_numpy(random_blocks(kind, OUTPUTS, WIDTH))
    packed = pack_blocks(raw, kind, "int8")
    assert packed.data.nbytes == packed.layout.weight_bytes * OUTPUTS * WIDTH
    table = 0.5 if kind in (IQ4_NL, IQ4_XS) else 0
    assert packed.layout.weight_bytes <= size / values + table + 0.05


@pytest.mark.parametrize("kind", TYPICAL, ids=NAMES.get)
@pytest.mark.parametrize(
    "form", sorted({"pairs", "plain"} - {FORM}) if FORM != "plain" else []
)
def test_narrow_machines_find_the_same(kind, form, monkeypatch):
    """AVX2's instructions and none at all, in tiles as narrow as there."""
    check_machine(Machine(form, wide=False), kind, monkeypatch, rows=7)


@pytest.mark.skipif(not PERMITTED, reason="no tile registers here")
@pytest.mark.parametrize("kind", TYPICAL, ids=NAMES.get)
def test_tile_registers_change_no_bit(kind, monkeypatch):
    """The width is that of two segments of weights that are unpacked together."""
    machine = HERE._replace(tiles=None)
    check_machine(machine, kind, monkeypatch, rows=100, width=1792)


@pytest.mark.parametrize("kind", [Q4_0, Q6_K], ids=NAMES.get)
def test_their_products_are_right_where_there_are_none(kind, monkeypatch):
    """With registers in memory: what is loaded from where is the same."""
    machine = HERE._replace(tiles=SoftRegisters)
    check_machine(machine, kind, monkeypatch, rows=45, width=1792)


def check_machine(machine, kind, monkeypatch, rows, width=WIDTH):
    """Its kernels give the bits that this machine's give."""
    raw = torch.from_numpy(random_blocks(kind, OUTPUTS, width))
    x, gain, _ = activations(rows, width)
    for activation_form in ("int8", "int16", "float32"):
        stack = (pack_blocks(raw, kind, activation_form),)
        expected = layers(width).logits(x, gain, stack)
        with monkeypatch.context() as patch:
            patch.setattr(
                pack, "linear_address", lambda *of: linear_address(*of, machine)
            )
            found = layers(width).logits(x, gain, stack)
        assert torch.equal(found, expected)
