"""Sampling: statistics, filters, penalties, log-probabilities, and draws that depend on nothing but
their own row."""

from __future__ import annotations

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_actors.messages import Introduction, SamplingParams, Span, pack_tokens
from medha_actors.model.draw import draw, most_likely, threshold, uniform
from medha_actors.model.guard import Failures
from medha_actors.model.sampler import Sampler

BASE = SamplingParams(max_tokens=100)
VOCABULARY = 50


def params(**changes):
    return msgspec.structs.replace(BASE, **changes)


def logits_of(rows, seed=0, scale=2.0, vocabulary=VOCABULARY):
    return (
        torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))
        * scale
    )


def test_uniform_numbers_are_uniform_and_independent():
    draws = torch.tensor(
        [[uniform(seed, index) for index in range(200)] for seed in range(100)]
    )
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = torch.histc(draws, 20)
    assert (counts - 1000).abs().max() < 150
    assert (
        abs(
            torch.corrcoef(
                torch.stack((draws[:, :-1].flatten(), draws[:, 1:].flatten()))
            )[0, 1]
        )
        < 0.03
    )
    assert (
        abs(
            torch.corrcoef(torch.stack((draws[:-1].flatten(), draws[1:].flatten())))[
                0, 1
            ]
        )
        < 0.03
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"top_k": 9, "top_p": 0.8, "min_p": 0.02},
    ],
)
def test_frequencies_are_the_probabilities(changes):
    one = params(**changes)
    logits = logits_of(1, scale=1.0)
    count = 6_000
    drawn = draw(
        logits.expand(500, -1),
        [params(**changes, seed=seed) for seed in range(500)],
        [0] * 500,
    )
    parts = [drawn]
    for index in range(1, count // 500):
        parts.append(
            draw(
                logits.expand(500, -1),
                [params(**changes, seed=seed) for seed in range(500)],
                [index] * 500,
            )
        )
    frequency = torch.bincount(torch.cat(parts), minlength=VOCABULARY) / count
    expected = filtered(logits[0], one)
    assert (frequency[expected == 0] == 0).all()
    assert (frequency - expected).abs().max() < 4 * (0.25 / count) ** 0.5


def filtered(logits, one):
    """The distribution after temperature, min_p, top_k, top_p, written naively."""
    probabilities = (logits.double() / one.temperature).softmax(-1)
    probabilities[probabilities < one.min_p * probabilities.max()] = 0
    if one.top_k:
        probabilities[
            probabilities
            < probabilities.topk(min(one.top_k, len(probabilities)))[0][-1]
        ] = 0
    probabilities /= probabilities.sum()
    order = probabilities.argsort(descending=True)
    before = probabilities[order].cumsum(0) - probabilities[order]
    probabilities[order[before >= one.top_p]] = 0
    return (probabilities / probabilities.sum()).float()


@settings(max_examples=200)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.01, 0.3, 3.0]),
    st.sampled_from([0, 1, 7, 1500, 5000]),
    st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.001, 0.3, 1.0]),
)
def test_what_the_filters_keep(seed, scale, top_k, top_p, min_p):
    one = params(top_k=top_k, top_p=top_p, min_p=min_p)
    row = logits_of(1, seed, scale, 3000)[0]
    count = int((row >= threshold(row.numpy(), one)).sum())
    expected = int((filtered(row, one) > 0).sum())
    # rounding may move the edge of top_p by one token
    assert abs(count - expected) <= (top_p < 1.0)


def test_a_draw_never_gives_a_masked_token():
    logits = torch.full((2, 1000), -torch.inf)
    logits[0, [3, 300]] = torch.tensor([0.0, -1.0])
    logits[1, 999] = 0.0
    for index in range(300):
        first, second = draw(logits, [params(seed=1)] * 2, [index] * 2).tolist()
        assert first in (3, 300)
        assert second == 999


def test_the_most_likely():
    logits = logits_of(7, vocabulary=1000)
    assert most_likely(logits).tolist() == logits.argmax(-1).tolist()


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.data())
def test_a_draw_does_not_depend_on_its_company(seed, data):
    rows = data.draw(st.integers(1, 9))
    logits = logits_of(rows, seed)
    choices = [{}, {"top_p": 0.9}, {"top_k": 3}, {"temperature": 0.7}]
    many = [
        params(seed=seed + row, **data.draw(st.sampled_from(choices)))
        for row in range(rows)
    ]
    indices = [data.draw(st.integers(0, 1000)) for _ in range(rows)]
    together = draw(logits, many, indices).tolist()
    alone = [
        draw(logits[row : row + 1], [many[row]], [indices[row]]).item()
        for row in range(rows)
    ]
    assert together == alone


def run(sampler, logits, spans):
    failures = Failures()
    pending = sampler.launch(spans, lambda rows: logits[list(rows)].clone(), failures)
    tokens, prompt_logprobs, failed = pending.finish()
    assert failed == ()
    return tokens, prompt_logprobs


def decode(request_id, index, token=1, start=10, **changes):
    return Span(
        request_id,
        start + index,
        start + index + 1,
        pack_tokens([token]),
        0,
        0,
        (),
        True,
        True,
        index,
        **changes,
    )


@pytest.mark.usefixtures("each_sampler")
def test_greedy_and_cold_rows_take_the_most_likely_token():
    sampler = Sampler(VOCABULARY)
    sampler.open(Introduction("a", params(temperature=0.0)))
    sampler.open(Introduction("b", params(temperature=1e-9)))
    sampler.open(Introduction("c", params(temperature=0.01)))
    logits = logits_of(3)
    tokens, prompt = run(
        sampler, logits, [decode("a", 0), decode("b", 0), decode("c", 0)]
    )
    assert [token.token_id for token in tokens] == logits.argmax(-1).tolist()
    assert [token.logprob for token in tokens] == [None] * 3
    assert prompt == ()


@pytest.mark.usefixtures("each_sampler")
def test_min_tokens_hide_the_stop_tokens_and_bias_moves_logits():
    sampler = Sampler(VOCABULARY)
    logits = logits_of(1)
    first, second = logits[0].topk(2)[1].tolist()
    sampler.open(
        Introduction(
            "a",
            params(temperature=0.0, min_tokens=2, stop_token_ids=(first,), logprobs=1),
        )
    )
    for index, expected in ((0, second), (1, second), (2, first)):
        (token,), _ = run(sampler, logits, [decode("a", index)])
        assert token.token_id == expected
        assert (
            token.top_logprobs[0][0] == first
        )  # log-probabilities are the model's own
    sampler.open(
        Introduction(
            "b", params(temperature=0.0, logit_bias=((7, 100.0), (first, -100.0)))
        )
    )
    assert run(sampler, logits, [decode("b", 0)])[0][0].token_id == 7


@pytest.mark.usefixtures("each_sampler")
@pytest.mark.parametrize("dropped", [False, True])
def test_penalties_count_by_position(dropped):
    """Prompt [3, 3, 4], output [5, 5]; a prefill that is computed again, in other chunks, counts
    nothing twice."""
    one = params(
        temperature=0.0,
        repetition_penalty=2.0,
        presence_penalty=0.25,
        frequency_penalty=0.5,
        logprobs=0,
    )
    sampler = Sampler(VOCABULARY)
    sampler.open(Introduction("a", one))
    logits = torch.full((3, VOCABULARY), -10.0)
    logits[:, 3:7] = torch.tensor([8.0, -4.0, 9.0, 3.9])
    spans = [Span("a", 0, 3, pack_tokens([3, 3, 4]), 0, 0, (), True, True, 0)]
    assert run(sampler, logits, spans)[0][0].token_id == 5  # 9 against 8 / 2
    run(sampler, logits, [decode("a", 1, 5, 2)])
    if dropped:
        sampler.close("a")
        sampler.open(Introduction("a", one))
        run(sampler, logits, [Span("a", 0, 2, pack_tokens([3, 3]), 0, 0, ())])
        spans = [Span("a", 2, 5, pack_tokens([4, 5, 5]), 0, 2, (), True, True, 2)]
    else:
        spans = [decode("a", 2, 5, 2)]
    adjusted = logits[-1:].clone()
    sampler.histories["a"].record(spans[0].start, spans[0].token_ids)
    sampler.histories["a"].penalise(adjusted[0], one, 3, 5)
    assert adjusted[0, 3:7].tolist() == [
        4.0,
        -8.0,
        9.0 / 2 - 2 * 0.5 - 0.25,
        pytest.approx(3.9),
    ]
    assert run(sampler, logits, spans)[0][0].token_id == 3


@pytest.mark.usefixtures("each_sampler")
def test_a_group_that_joins_late_is_told_the_earlier_tokens():
    one = params(temperature=0.0, repetition_penalty=4.0)
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 8] = 2.0
    logits[0, 9] = 1.0
    sampler = Sampler(VOCABULARY)
    sampler.open(Introduction("a", one, pack_tokens([8, 2])))
    assert (
        run(
            sampler,
            logits,
            [Span("a", 2, 3, pack_tokens([1]), 0, 0, (), True, True, 0)],
        )[0][0].token_id
        == 9
    )


@pytest.mark.usefixtures("each_sampler")
def test_logprobs_of_sampled_and_prompt_tokens():
    sampler = Sampler(VOCABULARY)
    sampler.open(
        Introduction("a", params(seed=5, logprobs=2, prompt_logprobs=1, top_k=3))
    )
    sampler.open(Introduction("b", params(temperature=0.0, logprobs=0)))
    logits = logits_of(5)
    expected = logits.log_softmax(-1)
    spans = [
        Span("a", 10, 14, pack_tokens([1, 2, 3, 4]), 0, 0, (), next_token_id=9),
        decode("b", 0),
    ]
    tokens, (found,) = run(sampler, logits, spans)
    assert [token.request_id for token in tokens] == ["b"]
    assert tokens[0].top_logprobs == ()
    assert tokens[0].logprob == pytest.approx(expected[4].max().item())
    assert (found.request_id, found.start) == ("a", 10)
    for row, (following, (logprob, top)) in enumerate(
        zip([2, 3, 4, 9], found.entries, strict=True)
    ):
        assert logprob == pytest.approx(expected[row, following].item())
        assert top == (
            (expected[row].argmax().item(), pytest.approx(expected[row].max().item())),
        )
    sampled, prompt = run(
        sampler,
        logits,
        [Span("a", 10, 14, pack_tokens([1, 2, 3, 4]), 0, 0, (), True, True, 0)],
    )
    assert len(prompt[0].entries) == 3
    assert sampled[0].logprob == pytest.approx(expected[3, sampled[0].token_id].item())
    assert len(sampled[0].top_logprobs) == 2


@pytest.mark.usefixtures("each_sampler")
def test_groups_that_do_not_write_say_nothing():
    sampler = Sampler(VOCABULARY)
    sampler.open(Introduction("a", None))
    assert run(
        sampler,
        logits_of(1),
        [Span("a", 5, 6, pack_tokens([1]), 0, 5, (), writes=False)],
    ) == ((), ())


@pytest.mark.usefixtures("each_sampler")
def test_a_greedy_token_of_the_prompt_equals_the_largest_log_probability():
    """Exactly: harnesses compare the two numbers. Ties and large logits included."""
    vocabulary = 50_000
    logits = torch.cat(
        [logits_of(300, scale=s, vocabulary=vocabulary) for s in (0.01, 2.0, 50.0)]
    )
    logits[:10] = logits[:10].round(decimals=3)
    greedy = most_likely(logits).tolist()
    sampler = Sampler(vocabulary)
    sampler.open(Introduction("a", params(prompt_logprobs=1)))
    span = Span(
        "a", 0, 900, pack_tokens([0, *greedy[:-1]]), 0, 0, (), next_token_id=greedy[-1]
    )
    _, (found,) = run(sampler, logits, [span])
    assert all(logprob == top[0][1] for logprob, top in found.entries)
    assert len(found.entries) == 900
