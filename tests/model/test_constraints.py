"""Grammars: the answer is one of theirs, and nobody else notices."""

from __future__ import annotations

import functools
import json
import re

import msgspec
import pytest
import torch
from stage_driver import Driver

from medha_actors.config import ModelLoadingConfig
from medha_actors.errors import ModelError
from medha_actors.files.vocabulary import load_vocabulary
from medha_actors.messages import (
    Grammar,
    Introduction,
    SamplingParams,
    Span,
    pack_tokens,
)
from medha_actors.model.constraints import Grammars
from medha_actors.model.guard import Failures
from medha_actors.model.matchers import Matchers
from medha_actors.model.sampler import Sampler

RANDOM = ModelLoadingConfig(model_source="random")
VOCABULARY = 512
END = 256
GREEDY = SamplingParams(
    max_tokens=60, temperature=0.0, logprobs=3, stop_token_ids=(END,)
)
DRAWN = msgspec.structs.replace(GREEDY, temperature=1.0, seed=3)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Ada", "Alan"]},
        "age": {"type": "integer", "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
CHOICE = 'start: "yes" | "no" | "yes, but"'
REGEX = "start: /[a-c]{3}-[0-9]+x/"
SCHEMA = f"start: %json {json.dumps(PERSON)}"
GRIDS = [(1, 1, ()), (2, 1, ()), (1, 2, (20,)), (2, 3, (5, 37))]


def constrained(text, base=GREEDY, **changes):
    return msgspec.structs.replace(base, grammar=Grammar(text, (END,)), **changes)


def prompt(count, seed):
    ids = torch.randint(
        8, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)
    )
    return ids.tolist()


@functools.cache
def matchers():
    return Matchers(lambda: load_vocabulary(RANDOM), VOCABULARY)


class Row:
    """One request over random logits, with the real sampler and no model."""

    def __init__(self, sampling, start=10, look_ahead=False, boost=()):
        self.sampler = Sampler(VOCABULARY, Grammars(matchers()))
        self.sampling = sampling
        self.start = start
        self.look_ahead = look_ahead
        self.boost = list(boost)
        self.tokens = []
        self.sampled = []
        self.failed = None
        self.sampler.open(Introduction("a", sampling, pack_tokens([1] * start)))

    def logits(self, index):
        values = torch.randn(
            1, VOCABULARY, generator=torch.Generator().manual_seed(1000 + index)
        )
        values[0, self.boost] += 50.0
        return values

    def step(self):
        index = len(self.tokens)
        last = self.tokens[-1] if self.tokens else 1
        at = self.start + index
        span = Span("a", at - 1, at, pack_tokens([last]), 0, 0, (), True, True, index)
        failures = Failures()
        found = (
            self.sampler.launch([span], lambda rows: self.logits(index), failures)
            .finish()
            .tokens
        )
        if failures.all():
            [failure] = failures.all()
            self.failed = failure.message
            return
        if self.look_ahead:
            self.sampler.look_ahead(found)
        self.tokens.append(found[0].token_id)
        self.sampled += found

    def forget(self):
        """As after a preemption: closed, and opened again with what is known."""
        self.sampler.close("a")
        known = pack_tokens([1] * self.start + self.tokens)
        self.sampler.open(Introduction("a", self.sampling, known))

    def run(self, most=60):
        while (
            len(self.tokens) < most and self.failed is None and END not in self.tokens
        ):
            self.step()
        return self

    @property
    def text(self):
        return bytes(token for token in self.tokens if token < END).decode()


FILTERS = [
    {},
    {"temperature": 0.0},
    {"top_k": 3},
    {"top_p": 0.5},
    {"min_p": 0.5},
    {"repetition_penalty": 1.5, "frequency_penalty": 1.0, "presence_penalty": 1.0},
    {"logit_bias": ((END, 100.0), (ord("Z"), 100.0))},
    {"min_tokens": 9},
    {"temperature": 2.0, "seed": 9},
]


@pytest.mark.usefixtures("each_sampler")
@pytest.mark.parametrize("changes", FILTERS, ids=str)
@pytest.mark.parametrize("look_ahead", [False, True])
def test_every_answer_is_one_of_the_grammar(changes, look_ahead):
    for text, right in [
        (CHOICE, lambda answer: answer in ("yes", "no", "yes, but")),
        (REGEX, lambda answer: re.fullmatch(r"[a-c]{3}-[0-9]+x", answer)),
        (SCHEMA, lambda answer: set(json.loads(answer)) == {"name", "age"}),
    ]:
        row = Row(constrained(text, DRAWN, **changes), look_ahead=look_ahead).run()
        assert row.failed is None
        assert row.tokens[-1] == END, row.text
        assert right(row.text), row.text


@pytest.mark.usefixtures("each_sampler")
@pytest.mark.parametrize("at", [0, 1, 4, 11])
def test_a_request_that_begins_again_draws_the_same(at):
    whole = Row(constrained(SCHEMA, DRAWN)).run()
    assert len(whole.tokens) > 12
    again = Row(constrained(SCHEMA, DRAWN), look_ahead=True).run(at)
    again.forget()
    assert again.run().tokens == whole.tokens


@pytest.mark.usefixtures("each_sampler")
def test_what_the_grammar_forbids_has_no_probability():
    row = Row(constrained(CHOICE), boost=[ord("Z")]).run()
    assert row.text in ("yes", "no", "yes, but")
    top = dict(row.sampled[0].top_logprobs)
    allowed = sorted(value for value in top.values() if value > -1e9)
    assert set(list(top)[:2]) == {ord("y"), ord("n")}
    assert sum(torch.tensor(allowed).exp().tolist()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.usefixtures("each_sampler")
def test_min_tokens_hold_where_the_grammar_leaves_a_choice():
    ends = Row(constrained("start: /[ab]+/"), boost=[END]).run()
    assert len(ends.tokens) == 2
    longer = Row(constrained("start: /[ab]+/", min_tokens=8), boost=[END]).run()
    assert len(longer.tokens) == 9
    assert Row(constrained(CHOICE, min_tokens=50)).run().tokens[-1] == END


@pytest.mark.usefixtures("each_sampler")
def test_ignore_eos_goes_on_freely_after_the_end():
    row = Row(constrained('start: "no"', stop_token_ids=()), look_ahead=True)
    for _ in range(6):
        row.step()
    assert row.tokens[:3] == [ord("n"), ord("o"), END]
    assert len(row.tokens) == 6


@pytest.mark.parametrize(
    "text",
    [
        "start: nowhere",
        "start: /[/",
        'start: %json {"type": "strange"}',
        'start: a\na: a a a | a a | /[a-z]/ | ""',  # ever more ways to read it
    ],
)
def test_a_grammar_that_cannot_be_followed_ends_its_request(text):
    row = Row(constrained(text), boost=range(ord("a"), ord("z"))).run(1000)
    assert row.failed is not None
    assert "cannot be followed" in row.failed


@pytest.mark.usefixtures("each_sampler")
def test_no_vocabulary_and_no_end():
    def missing():
        raise ModelError("the file is gone")

    sampler = Sampler(VOCABULARY, Grammars(Matchers(missing, VOCABULARY)))
    for name, ends in (("a", (END,)), ("b", ())):
        sampler.open(
            Introduction(
                name, msgspec.structs.replace(GREEDY, grammar=Grammar(CHOICE, ends))
            )
        )
    sampler.open(Introduction("c", GREEDY))
    spans = [Span(n, 0, 1, pack_tokens([1]), 0, 0, (), True, True, 0) for n in "abc"]
    failures = Failures()
    pending = sampler.launch(
        spans, lambda rows: torch.zeros(len(rows), VOCABULARY), failures
    )
    tokens = pending.finish().tokens
    assert [token.request_id for token in tokens] == ["c"]
    reasons = {failure.request_id: failure.message for failure in failures.all()}
    assert reasons["a"] == "the file is gone"
    assert "no end token" in reasons["b"]


@pytest.mark.usefixtures("each_sampler")
@pytest.mark.parametrize("size", [260, 512, 700])
def test_a_head_of_another_size_than_the_vocabulary(size):
    sampler = Sampler(size, Grammars(Matchers(lambda: load_vocabulary(RANDOM), size)))
    sampler.open(Introduction("a", constrained(CHOICE)))
    logits = torch.zeros(1, size)
    logits[0, size - 1] = 9.0
    span = Span("a", 0, 1, pack_tokens([1]), 0, 0, (), True, True, 0)
    failures = Failures()
    [token] = (
        sampler.launch([span], lambda rows: logits.clone(), failures).finish().tokens
    )
    assert token.token_id in (ord("y"), ord("n"))


def bystanders(driver):
    for number, count in enumerate((3, 40, 90)):
        driver.add(f"by{number}", prompt(count, number), (GREEDY, DRAWN, DRAWN)[number])
    return {f"by{number}": 12 for number in range(3)}


def answers(driver):
    return {
        name: (request.tokens, request.sampled)
        for name, request in driver.requests.items()
        if name.startswith("by")
    }


@pytest.mark.parametrize(("stages", "groups", "cutoffs"), GRIDS)
@pytest.mark.parametrize("text", [SCHEMA, "start: broken", None])
def test_neighbours_are_bit_identical(stages, groups, cutoffs, text):
    grid = {"stages": stages, "groups": groups, "cutoffs": cutoffs}
    alone = Driver(RANDOM, **grid)
    alone.generate(bystanders(alone), 16)
    driver = Driver(RANDOM, **grid)
    counts = bystanders(driver)
    sampling = GREEDY if text is None else constrained(text)
    driver.add("mine", prompt(30, 9), sampling)
    driver.generate({**counts, "mine": 10}, 16)
    assert answers(driver) == answers(alone)
    assert set(driver.failed) == ({"mine"} if text == "start: broken" else set())


@pytest.mark.parametrize(("stages", "groups", "cutoffs"), GRIDS)
def test_recomputed_and_moved_between_groups(stages, groups, cutoffs):
    """A prompt of 30 tokens: the third piece of the last grid begins inside the answer."""
    grid = {"stages": stages, "groups": groups, "cutoffs": cutoffs}

    def generate(drops):
        driver = Driver(RANDOM, **grid)
        driver.add("a", prompt(30, 9), constrained(SCHEMA, DRAWN))
        for count in drops:
            driver.generate({"a": count}, 16)
            driver.drop("a")
        driver.generate({"a": 18}, 7)
        return driver.requests["a"].tokens[30:]

    expected = generate([])
    text = bytes(
        expected[: expected.index(END)] if END in expected else expected
    ).decode()
    assert text.startswith('{"name":"A')
    assert generate([1, 5, 6]) == expected
    assert generate([12]) == expected
