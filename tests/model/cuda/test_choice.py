"""The kernels of the device's sampler against torch's operators: in Triton's interpreter where
there is no GPU."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton's own functions are made
pytest.importorskip("triton")

from medha_actors.messages import SamplingParams
from medha_actors.model.cuda.choice import Choice, Drawn, Filters
from medha_actors.model.cuda.kernel_choice import KernelChoice
from medha_actors.model.draw import draw, threshold

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PLAIN = Choice()
VOCABULARIES = [100, 4096, 5000, 10_007]


def logits_of(rows, vocabulary, seed, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocabulary, generator=generator) * scale).to(DEVICE)


def drawn_of(logits, temperatures, shots):
    temperatures = torch.tensor(temperatures, dtype=torch.float32, device=DEVICE)
    rows = torch.arange(len(logits), device=DEVICE)
    shots = torch.tensor(shots, dtype=torch.float64, device=DEVICE)
    return Drawn(rows, temperatures, logits.amax(-1) / temperatures, shots)


@settings(max_examples=25, deadline=None)
@given(st.data())
@pytest.mark.parametrize("looks", [False, True])
def test_floors_are_those_of_the_reference(looks, data):
    rows = data.draw(st.integers(1, 3))
    vocabulary = data.draw(st.sampled_from(VOCABULARIES))
    scale = data.draw(st.sampled_from([0.0, 0.01, 1.0, 8.0]))
    logits = logits_of(rows, vocabulary, data.draw(st.integers(0, 10**6)), scale)
    if data.draw(st.booleans()):
        logits = logits.bfloat16().float()  # equals
    if data.draw(st.booleans()):
        logits[:, ::3] = -torch.inf
    many = []
    for _ in range(rows):
        one = SamplingParams(
            max_tokens=1,
            temperature=data.draw(st.sampled_from([0.3, 1.0, 1.7])),
            top_k=data.draw(st.sampled_from([0, 1, 50, 1024, 1500, 10**6])),
            top_p=data.draw(st.sampled_from([1.0, 0.9999, 0.95, 0.3, 1e-300])),
            min_p=data.draw(st.sampled_from([0.0, 0.0, 0.01, 1.0])),
        )
        many.append(one)
    drawn = drawn_of(logits, [one.temperature for one in many], [0.5] * rows)
    least = torch.tensor([one.min_p for one in many], dtype=torch.float64, device=DEVICE).log()
    floors = (drawn.peaks.double() + least).float()
    filters = Filters(
        drawn.rows,
        torch.tensor([one.top_k for one in many], device=DEVICE),
        torch.tensor([one.top_p for one in many], dtype=torch.float64, device=DEVICE),
    )
    for choice in (PLAIN, KernelChoice(looks)):
        found = choice.floors(logits, drawn, floors, filters)
        scaled = (logits / drawn.temperatures[:, None]).cpu()
        for row, one in enumerate(many):
            expected = threshold(scaled[row].numpy(), one)
            weights = (scaled[row] - scaled[row].max()).double().exp()
            passes = weights[scaled[row] >= found[row].cpu()].sum()
            right = weights[scaled[row] >= expected].sum()
            # rounding may move the edge of top_p by one token, and that token's equals
            values = scaled[row].unique()
            between = (values >= min(expected, found[row].cpu())) & (
                values < max(expected, found[row].cpu())
            )
            assert abs(passes - right) <= 1e-6 * right or between.sum() <= 1, (passes, right)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_tokens_are_those_of_the_reference(data):
    rows = data.draw(st.integers(1, 4))
    vocabulary = data.draw(st.sampled_from(VOCABULARIES))
    logits = logits_of(rows, vocabulary, data.draw(st.integers(0, 10**6)))
    shots = [data.draw(st.sampled_from([0.0, 0.1, 0.5, 0.999, 1 - 2.0**-48])) for _ in range(rows)]
    drawn = drawn_of(logits, [0.8] * rows, shots)
    floors = drawn.peaks - data.draw(st.sampled_from([0.0, 1.0, 5.0, torch.inf]))
    expected = PLAIN.draw(logits, drawn, floors)
    assert KernelChoice().draw(logits, drawn, floors).tolist() == expected.tolist()
    scaled = logits / drawn.temperatures[:, None]
    assert (scaled.gather(1, expected[:, None])[:, 0] >= floors).all()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_most_likely_and_the_spread(data):
    rows = data.draw(st.integers(1, 4))
    vocabulary = data.draw(st.sampled_from(VOCABULARIES))
    logits = logits_of(rows, vocabulary, data.draw(st.integers(0, 10**6)))
    if data.draw(st.booleans()):
        logits = logits.bfloat16().float()
    logits[:, 7] = -torch.inf
    count = data.draw(st.sampled_from([1, 5, 8, 20, 32, 33, 100]))
    kernels = KernelChoice()
    assert kernels.tops(logits, count).tolist() == PLAIN.tops(logits, count).tolist()
    peaks = logits.amax(-1)
    found = kernels.spread(logits, peaks).double() / PLAIN.spread(logits, peaks).double()
    assert (found - 1).abs().max() < 1e-6


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_penalties(data):
    vocabulary = data.draw(st.sampled_from(VOCABULARIES))
    logits = logits_of(5, vocabulary, data.draw(st.integers(0, 10**6)))
    rows = torch.tensor([4, 0, 3], device=DEVICE)
    slots = torch.tensor([1, 2, 0], device=DEVICE)
    counts = torch.randint(0, 5, (4, vocabulary), dtype=torch.int32).to(DEVICE)
    numbers = st.sampled_from([0.5, 1.0, 1.3])
    penalties = torch.tensor([[data.draw(numbers) for _ in range(3)] for _ in range(3)])
    penalties = penalties.to(DEVICE)
    expected, found = logits.clone(), logits.clone()
    PLAIN.penalise(expected, rows, counts, slots, penalties)
    KernelChoice().penalise(found, rows, counts, slots, penalties)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(found[[1, 2]], logits[[1, 2]])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter
@pytest.mark.parametrize("choice", [PLAIN, KernelChoice(), KernelChoice(looks=False)])
def test_rows_that_are_no_numbers_break_nothing(choice):
    logits = logits_of(4, 5000, 1)
    logits[0, 5], logits[1, 5], logits[2] = torch.nan, torch.inf, -torch.inf
    drawn = drawn_of(logits, [1.0] * 4, [0.5] * 4)
    every = torch.full((4,), 0.9, dtype=torch.float64, device=DEVICE)
    filters = Filters(drawn.rows, torch.full((4,), 50, device=DEVICE), every)
    floors = torch.full_like(drawn.peaks, -torch.inf)
    floors.copy_(choice.floors(logits, drawn, floors, filters))
    tokens = choice.draw(logits, drawn, floors).tolist()
    assert all(0 <= token < 5000 for token in tokens)
    one = SamplingParams(max_tokens=1, top_k=50, top_p=0.9)
    assert choice.draw(logits, drawn, floors)[3] == PLAIN.draw(logits, drawn, floors)[3]
    assert 0 <= int(draw(logits[3:].cpu(), [one], [0])) < 5000
