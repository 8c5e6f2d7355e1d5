"""The sampler of a GPU against the CPU's, on CPU tensors: the same code runs on the card."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_actors.config import ModelLoadingConfig
from medha_actors.files.vocabulary import load_vocabulary
from medha_actors.messages import (
    Grammar,
    Introduction,
    SamplingParams,
    Span,
    pack_tokens,
)
from medha_actors.model.constraints import Grammars
from medha_actors.model.cuda.choice import Choice
from medha_actors.model.cuda.parcel import Parcel
from medha_actors.model.cuda.sampler import CudaSampler
from medha_actors.model.draw import uniform, uniforms
from medha_actors.model.guard import Failures
from medha_actors.model.matchers import Matchers
from medha_actors.model.sampler import Sampler

CPU = torch.device("cpu")
VOCABULARY = 1000
RANDOM = ModelLoadingConfig(model_source="random")


@functools.cache
def matchers():
    return Matchers(lambda: load_vocabulary(RANDOM), VOCABULARY)


def both(grammars=False):
    """The two samplers."""
    compilers = [Grammars(matchers()) if grammars else None for _ in range(2)]
    return Sampler(VOCABULARY, compilers[0]), CudaSampler(VOCABULARY, compilers[1], CPU)


def run(sampler, logits, spans):
    pending = sampler.launch(spans, lambda rows: logits[list(rows)].clone(), Failures())
    return pending.finish()


def same(expected, found):
    """Tokens and failures equal, log-probabilities nearly."""
    assert found.failures == expected.failures
    assert len(found.tokens) == len(expected.tokens)
    for one, other in zip(found.tokens, expected.tokens, strict=True):
        assert (one.request_id, one.index, one.token_id, one.forced) == (
            other.request_id,
            other.index,
            other.token_id,
            other.forced,
        )
        same_entries(
            [(one.logprob, one.top_logprobs)], [(other.logprob, other.top_logprobs)]
        )
    assert len(found.prompt_logprobs) == len(expected.prompt_logprobs)
    for one, other in zip(found.prompt_logprobs, expected.prompt_logprobs, strict=True):
        assert (one.request_id, one.start) == (other.request_id, other.start)
        same_entries(one.entries, other.entries)


def same_entries(found, expected):
    assert len(found) == len(expected)
    for (logprob, top), (right, right_top) in zip(found, expected, strict=True):
        assert (logprob is None) == (right is None)
        if right is not None:
            assert logprob == pytest.approx(right, abs=2e-6, rel=1e-6)
        values = [value for _, value in top]
        assert values == pytest.approx(
            [value for _, value in right_top], abs=2e-6, rel=1e-6
        )
        distinct = len({round(value, 4) for value in values}) == len(values)
        if distinct:
            assert [token for token, _ in top] == [token for token, _ in right_top]


PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.just(100),
    min_tokens=st.integers(0, 3),
    temperature=st.sampled_from([0.0, 1e-9, 0.1, 0.7, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 1e-3]),
    top_k=st.sampled_from([0, 1, 5, 50, 999, 1000, 5000]),
    min_p=st.sampled_from([0.0, 1e-3, 0.2, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3, 0.5]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.7, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.3]),
    seed=st.integers(0, 2**64 - 1),
    stop_token_ids=st.sampled_from([(), (3,), (5, 9, 700)]),
    logit_bias=st.sampled_from([(), ((7, 3.0),), ((0, -100.0), (999, 5.0))]),
    logprobs=st.sampled_from([None, None, 0, 3]),
    prompt_logprobs=st.sampled_from([None, None, 0, 2]),
    grammar=st.sampled_from(
        [None, None, None, Grammar("start: /[a-c]{3,9}x/", (259,))]
    ),
)


class Request:
    def __init__(self, name, params, prompt):
        self.name = name
        self.params = params
        self.prompt = prompt
        self.tokens = list(prompt)
        self.over = False

    def introduction(self, known=0):
        """Opened anew where the first `known` tokens will not be told again."""
        return Introduction(self.name, self.params, pack_tokens(self.tokens[:known]))

    def span(self, start):
        """From `start` to the last known token."""
        stop = len(self.tokens)
        index = stop - len(self.prompt)
        packed = pack_tokens(self.tokens[start:])
        return Span(self.name, start, stop, packed, 0, 0, (), True, True, index)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_same_as_on_the_cpu_over_whole_answers(data):
    """Requests of any parameters, together: through prefills, decodes, preemption and company that
    changes."""
    draw = data.draw
    reference, sampler = both(grammars=True)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    requests = []
    for number in range(draw(st.integers(1, 5))):
        count = draw(st.integers(1, 9))
        prompt = torch.randint(8, VOCABULARY, (count,), generator=generator).tolist()
        request = Request(f"r{number}", draw(PARAMS), prompt)
        for each in (reference, sampler):
            each.open(request.introduction())
        requests.append(request)
    told = dict.fromkeys(requests, 0)
    for _ in range(draw(st.integers(1, 5))):
        spans = []
        for request in requests:
            if request.over or draw(st.integers(0, 4)) == 0:
                continue
            if told[request] and draw(st.integers(0, 5)) == 0:
                known = draw(st.integers(0, told[request]))
                for each in (reference, sampler):
                    each.close(request.name)
                    each.open(request.introduction(known))
                told[request] = known
            spans.append(request.span(min(told[request], len(request.tokens) - 1)))
            told[request] = len(request.tokens)
        rows = sum(span.stop - span.start for span in spans)
        logits = torch.randn(rows, VOCABULARY, generator=generator) * draw(
            st.sampled_from([0.5, 2.0, 6.0])
        )
        expected = run(reference, logits, spans)
        found = run(sampler, logits, spans)
        same(expected, found)
        failed = {failure.request_id for failure in expected.failures}
        drawn = {token.request_id: token.token_id for token in expected.tokens}
        for request in requests:
            request.over = request.over or request.name in failed
            if request.name in drawn:
                request.tokens.append(drawn[request.name])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_row_is_the_same_bits_in_any_company(data):
    """Tokens and log-probabilities equal exactly, as nothing is summed in floats."""
    sampler = CudaSampler(VOCABULARY, None, CPU)
    rows = data.draw(st.integers(2, 9))
    seed = data.draw(st.integers(0, 10**6))
    logits = (
        torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3
    )
    spans = []
    for row in range(rows):
        sampler.open(
            Introduction(
                f"r{row}", data.draw(PARAMS.filter(lambda one: not one.grammar))
            )
        )
        spans.append(Span(f"r{row}", 4, 5, pack_tokens([1]), 0, 0, (), True, True, 3))
    together = run(sampler, logits, spans)
    for row in range(rows):
        alone = run(sampler, logits[row : row + 1], [spans[row]])
        assert alone.tokens == together.tokens[row : row + 1]


def test_uniforms_are_those_of_the_reference():
    seeds = [0, 1, 2**64 - 1, 2**63, -5, 123456789]
    indices = [0, 1, 2**31, 7, 10**6, 3]
    expected = [
        uniform(seed, index) for seed, index in zip(seeds, indices, strict=True)
    ]
    assert uniforms(seeds, indices).tolist() == expected


def test_log_probabilities_name_the_first_of_equals():
    sampler = CudaSampler(VOCABULARY, None, CPU)
    sampler.open(
        Introduction("a", SamplingParams(max_tokens=9, temperature=0.0, logprobs=3))
    )
    logits = torch.zeros(1, VOCABULARY)
    logits[0, [900, 30, 31]] = 4.0
    [token] = run(
        sampler, logits, [Span("a", 0, 1, bytes(4), 0, 0, (), True, True, 0)]
    ).tokens
    assert token.token_id == 30
    assert [token_id for token_id, _ in token.top_logprobs] == [30, 31, 900]
    assert token.logprob == token.top_logprobs[0][1]


def test_counts_are_told_once_and_again_after_a_step_back():
    """The prompt's tokens are sent with the first draw, then one a step."""
    params = SamplingParams(max_tokens=9, temperature=0.0, repetition_penalty=2.0)
    sampler = CudaSampler(VOCABULARY, None, CPU)
    sampler.open(Introduction("a", params))
    history = sampler.histories["a"]
    history.record(0, pack_tokens([5, 5, 6, 7]))
    news = sampler.counts.news("a", history, 3, 4)
    at = news.slot * VOCABULARY
    assert (news.prompt - at).tolist() == [5, 5, 6]
    assert news.output == [at + 7]
    history.record(4, pack_tokens([7]))
    news = sampler.counts.news("a", history, 3, 5)
    assert (len(news.prompt), news.output) == (0, [at + 7])
    sampler.counts.step_back("a", 4)
    assert len(sampler.counts.news("a", history, 3, 5).output) == 2


def test_counts_grow_and_slots_are_cleared():
    params = SamplingParams(max_tokens=9, temperature=0.0, presence_penalty=50.0)
    sampler = CudaSampler(VOCABULARY, None, CPU)
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 4] = 3.0
    logits[0, 5] = 2.0
    for number in range(40):
        name = f"r{number}"
        sampler.open(Introduction(name, params))
        span = Span(name, 0, 2, pack_tokens([9, 4]), 0, 0, (), True, True, 1)
        [token] = run(sampler, logits.expand(2, -1), [span]).tokens
        assert token.token_id == 5
        if number % 3 == 0:
            sampler.close(name)
    sampler.open(Introduction("r0", params))
    span = Span("r0", 0, 1, pack_tokens([9]), 0, 0, (), True, True, 0)
    assert run(sampler, logits, [span]).tokens[0].token_id == 4


def test_what_is_pending_outlives_its_request():
    """Closed, and its slot given to another, before anybody has waited."""
    sampler = CudaSampler(VOCABULARY, None, CPU)
    params = SamplingParams(max_tokens=9, seed=4, logprobs=2, presence_penalty=1.0)
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(3))
    span = Span("a", 0, 1, pack_tokens([3]), 0, 0, (), True, True, 0)
    sampler.open(Introduction("a", params))
    expected = run(sampler, logits, [span])
    sampler.close("a")
    sampler.open(Introduction("a", params))
    pending = sampler.launch([span], lambda rows: logits.clone(), Failures())
    sampler.close("a")
    sampler.open(Introduction("b", SamplingParams(max_tokens=9)))
    assert pending.finish() == expected


def test_a_device_without_memory_fails_rows_one_by_one():
    sampler = CudaSampler(VOCABULARY, None, CPU)
    for name in "abc":
        sampler.open(
            Introduction(name, SamplingParams(max_tokens=9, frequency_penalty=0.5))
        )
    spans = [Span(n, 0, 1, pack_tokens([1]), 0, 0, (), True, True, 0) for n in "abc"]
    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(3))
    expected = run(sampler, logits, spans)
    for name in "abc":
        sampler.close(name)
        sampler.open(
            Introduction(name, SamplingParams(max_tokens=9, frequency_penalty=0.5))
        )

    class Scarce(Choice):
        def choose(self, logits, asks):
            if len(logits) > 1:
                raise torch.OutOfMemoryError
            return super().choose(logits, asks)

    sampler.choice = Scarce()
    assert run(sampler, logits, spans) == expected


@pytest.mark.parametrize("likeliest", [False, True])
def test_rows_that_are_no_numbers_fail_alone(likeliest):
    sampler = CudaSampler(VOCABULARY, None, CPU)
    for name in "abcd":
        sampler.open(Introduction(name, SamplingParams(max_tokens=9, temperature=0.0)))
    logits = torch.randn(4, VOCABULARY)
    logits[1, 5] = math.nan
    logits[2, 9] = math.inf
    spans = [Span(n, 0, 1, pack_tokens([1]), 0, 0, (), True, True, 0) for n in "abcd"]
    best = logits.argmax(-1)
    peaks = logits.gather(1, best[:, None])[:, 0]
    given = (lambda rows: (best, peaks)) if likeliest else None
    failures = Failures()
    found = sampler.launch(spans, lambda rows: logits.clone(), failures, given).finish()
    assert [token.request_id for token in found.tokens] == ["a", "d"]
    assert [failure.request_id for failure in found.failures] == ["b", "c"]
    assert all("not numbers" in failure.message for failure in found.failures)


def test_preparing_leaves_nothing():
    sampler = CudaSampler(VOCABULARY, None, CPU)
    sampler.choice.compiles = True
    sampler.prepare()
    assert not sampler.params
    assert not sampler.asked
    assert not sampler.histories


def test_a_parcel_is_one_buffer():
    parcel = Parcel()
    arrays = [np.arange(3, dtype=np.uint8), np.arange(6.0).reshape(2, 3), np.arange(4)]
    for array in arrays:
        parcel.add(array)
    sent = parcel.send(CPU)
    assert len({tensor.untyped_storage().data_ptr() for tensor in sent}) == 1
    for array, tensor in zip(arrays, sent, strict=True):
        assert tensor.numpy().tolist() == array.tolist()
