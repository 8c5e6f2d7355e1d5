"""The kernels of the device's sampler against torch's operators and the CPU's sampler: in Triton's
interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_actors.messages import SamplingParams
from medha_actors.model.cuda.choice import BROKEN, COLD, Asks, Choice
from medha_actors.model.cuda.kernel_choice import KernelChoice
from medha_actors.model.cuda.requests import asked_of
from medha_actors.model.draw import threshold, uniforms

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PLAIN = Choice()
KERNELS = KernelChoice()
VOCABULARIES = [100, 4096, 5000]


def logits_of(rows, vocabulary, seed, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocabulary, generator=generator) * scale).to(DEVICE)


def asks_of(many, vocabulary):
    asked = [asked_of(one, vocabulary) for one in many]
    numbers = torch.tensor([one.numbers for one in asked], dtype=torch.float64)
    shots = torch.from_numpy(uniforms([one.seed for one in many], range(len(many))))
    numbers = torch.cat((numbers.T, shots[None])).contiguous().to(DEVICE)
    return Asks(numbers, any(one.drawn for one in asked), any(one.cut for one in asked))


PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.just(1),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 0, 1, 50, 1024, 10**6]),
    top_p=st.sampled_from([1.0, 1.0, 0.9999, 0.95, 0.3, 1e-300]),
    min_p=st.sampled_from([0.0, 0.0, 0.01, 1.0]),
    seed=st.integers(0, 2**64 - 1),
)


def edge_of(row, one, token):
    """How near, in probability, the shot of a row is to an edge of a token."""
    scaled = row / torch.tensor(one.temperature)
    weights = (scaled - scaled.max()).double().exp()
    weights[scaled < threshold(scaled.numpy(), one)] = 0.0
    reached = weights.cumsum(0) / weights.sum()
    return reached[token], weights[token] / weights.sum()


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_tokens_are_those_of_torch_and_of_the_reference(data):
    rows = data.draw(st.integers(1, 3))
    vocabulary = data.draw(st.sampled_from(VOCABULARIES))
    scale = data.draw(st.sampled_from([0.0, 0.01, 1.0, 8.0]))
    logits = logits_of(rows, vocabulary, data.draw(st.integers(0, 10**6)), scale)
    if data.draw(st.booleans()):
        logits = logits.bfloat16().float()  # equals
    if data.draw(st.booleans()):
        logits[:, ::3] = -torch.inf
    many = [data.draw(PARAMS) for _ in range(rows)]
    asks = asks_of(many, vocabulary)
    expected = PLAIN.choose(logits, asks).tolist()
    found = KERNELS.choose(logits, asks).tolist()
    assert found[1] == expected[1] == [0] * rows
    shots = asks.numbers[4].tolist()
    for row, (one, token, other) in enumerate(
        zip(many, found[0], expected[0], strict=True)
    ):
        if one.temperature == 0.0:
            assert token == other == int(logits[row].argmax())
            continue
        for each in (token, other):
            reached, weight = edge_of(logits[row].cpu(), one, each)
            slack = (
                1e-6 if one.top_p == 1.0 else 2 / vocabulary
            )  # a token more or less passes
            assert reached - weight - slack <= shots[row] <= reached + slack
        assert token == other or one.top_p < 1.0


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_rows_of_every_kind_together_and_alone(vocabulary):
    """Settled among candidates, searched as a whole, drawn from all, greedy: the same beside
    others."""
    kinds = [
        {"temperature": 0.0},
        {},
        {"top_k": 20},
        {"top_k": 3000},
        {"top_p": 0.9},
        {"top_p": 0.9, "temperature": 5.0},
        {"top_k": 50, "top_p": 0.8, "min_p": 0.01},
        {"min_p": 0.3, "top_k": 2000},
    ]
    many = [
        SamplingParams(max_tokens=1, seed=n, **kind) for n, kind in enumerate(kinds)
    ]
    logits = logits_of(len(many), vocabulary, 5, 3.0)
    asks = asks_of(many, vocabulary)
    together = KERNELS.choose(logits, asks)
    for row in range(len(many)):
        one = Asks(asks.numbers[:, row : row + 1].contiguous(), asks.drawn, asks.cut)
        assert (
            KERNELS.choose(logits[row : row + 1], one).tolist()
            == together[:, [row]].tolist()
        )
    assert together.tolist() == PLAIN.choose(logits, asks).tolist()


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_scores(data):
    rows = data.draw(st.integers(1, 3))
    vocabulary = data.draw(st.sampled_from(VOCABULARIES))
    logits = logits_of(rows, vocabulary, data.draw(st.integers(0, 10**6)))
    if data.draw(st.booleans()):
        logits = logits.bfloat16().float()
    logits[:, 7] = -torch.inf
    count = data.draw(st.sampled_from([0, 1, 5, 8, 20, 33]))
    given_ids = torch.tensor(
        [data.draw(st.integers(0, 99)) for _ in range(rows)], device=DEVICE
    )
    expected = PLAIN.score(logits, given_ids, count)
    found = KERNELS.score(logits, given_ids, count)
    assert found.shape == expected.shape == (rows, 1 + 2 * count)
    assert found[:, 1 : 1 + count].tolist() == expected[:, 1 : 1 + count].tolist()
    for columns in (slice(0, 1), slice(1 + count, None)):
        values = found[:, columns].contiguous().view(torch.float32)
        right = expected[:, columns].contiguous().view(torch.float32)
        torch.testing.assert_close(values, right, rtol=1e-6, atol=2e-6)


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_penalties(data):
    vocabulary = data.draw(st.sampled_from(VOCABULARIES))
    logits = logits_of(5, vocabulary, data.draw(st.integers(0, 10**6)))
    rows = torch.tensor([4, 0, 3], device=DEVICE)
    slots = torch.tensor([1, 2, 0], device=DEVICE)
    numbers = st.sampled_from([0.5, 1.0, 1.3])
    penalties = [[data.draw(numbers) for _ in range(3)] for _ in range(3)]
    penalties = torch.tensor(penalties, dtype=torch.float64, device=DEVICE)
    cells = torch.randint(
        3 * vocabulary, (data.draw(st.integers(1, 3000)),), device=DEVICE
    )
    prompts = data.draw(st.integers(0, len(cells)))
    adjusted = []
    tables = []
    for choice in (PLAIN, KERNELS):
        table = torch.zeros(4, vocabulary, dtype=torch.int32, device=DEVICE)
        choice.count(table, cells, prompts)
        changed = logits.clone()
        choice.penalise(changed, rows, table, slots, penalties)
        assert torch.equal(changed[[1, 2]], logits[[1, 2]])
        adjusted.append(changed)
        tables.append(table)
    assert torch.equal(*tables)
    flat = tables[0].view(-1)
    expected = 2 * torch.bincount(cells[prompts:], minlength=4 * vocabulary)
    expected[cells[:prompts]] += 1
    assert torch.equal(flat.long(), expected)
    torch.testing.assert_close(*adjusted, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("choice", [PLAIN, KERNELS], ids=["torch", "kernels"])
@pytest.mark.parametrize("cut", [{}, {"top_k": 50, "top_p": 0.9}, {"top_p": 0.9}])
def test_rows_that_are_no_numbers_break_nothing(choice, cut):
    logits = logits_of(6, 5000, 1)
    logits[0, 5] = torch.nan
    logits[1, 5] = torch.inf
    logits[2] = -torch.inf
    logits[4, 5] = -torch.tensor(torch.nan)
    logits[5, 9] = 1e38
    many = [SamplingParams(max_tokens=1, **cut)] * 5
    many.append(SamplingParams(max_tokens=1, temperature=1e-3, **cut))
    asks = asks_of(many, 5000)
    tokens, flags = choice.choose(logits, asks).tolist()
    assert [flag & BROKEN for flag in flags] == [1, 1, 1, 0, 1, 0]
    assert flags[3] == 0
    assert flags[5] == COLD
    assert all(0 <= token < 5000 for token in tokens)
    alone = Asks(asks.numbers[:, 3:4].contiguous(), asks.drawn, asks.cut)
    assert choice.choose(logits[3:4], alone)[0, 0] == tokens[3]
