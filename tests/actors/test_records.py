"""Records: what is remembered of an answer, for how long, and in how much memory."""

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from medha_actors.actors.records import Records
from medha_actors.messages import (
    Accepted,
    FinishedEvent,
    PromptLogprobsEvent,
    Request,
    Resumed,
    SamplingParams,
    TokenEvent,
    pack_tokens,
    unpack_tokens,
)

ACCEPTED = Accepted(
    deadline_at=5.0, ttft_objective_s=4.0, tpot_objective_s=0.1, predicted_ttft_s=2.0
)


def request_of(
    name: str, answer: str | None = "a", prompt: int = 3, **sampling
) -> Request:
    return Request(
        id=name,
        answer_id=answer,
        prompt_token_ids=pack_tokens(range(prompt)),
        sampling=SamplingParams(max_tokens=1000, **sampling),
    )


def resumed_of(name: str, tokens: list[int], answer: str = "a", **sampling) -> Request:
    known = Resumed(token_ids=pack_tokens(tokens), first_token_at=9.0)
    return msgspec.structs.replace(request_of(name, answer, **sampling), resumed=known)


def token(name: str, index: int) -> TokenEvent:
    return TokenEvent(name, index, 100 + index, 10.0 + index)


def ending(name: str, reason: str = "length") -> FinishedEvent:
    return FinishedEvent(request_id=name, reason=reason)


def known(records: Records, answer: str = "a", now: float = 0.0) -> list[int] | None:
    record = records.find(answer, now)
    return None if record is None else unpack_tokens(record.token_ids)


@pytest.fixture
def records() -> Records:
    return Records(60.0, 10**6)


def test_a_record_grows_and_ends(records):
    records.begin(request_of("r"), ACCEPTED, 0.0)
    assert records.superseded_by(request_of("s")) is None
    assert records.superseded_by(resumed_of("s", [])) == "r"
    assert records.superseded_by(resumed_of("r", [])) is None
    records.happened([token("r", 0), token("other", 0), token("r", 1)], 1.0)
    record = records.find("a", 2.0)
    assert record.tokens == 2
    assert unpack_tokens(record.token_ids) == [100, 101]
    assert (record.request, record.accepted) == (request_of("r"), ACCEPTED)
    assert (record.first_token_at, record.finished, record.scored) == (10.0, None, ())
    records.happened([token("r", 2), ending("r")], 3.0)
    assert records.superseded_by(resumed_of("s", [])) is None
    assert records.find("a", 62.9).finished == ending("r")
    assert records.find("a", 63.0) is None
    assert (len(records), records.size) == (0, 0)


def test_a_client_that_went_away_is_no_end_of_the_answer(records):
    records.begin(request_of("r"), ACCEPTED, 0.0)
    records.happened([token("r", 0), ending("r", "abort")], 1.0)
    assert records.find("a", 2.0).finished is None
    records.begin(resumed_of("s", [100]), ACCEPTED, 30.0)
    assert records.superseded_by(resumed_of("t", [])) == "s"
    records.happened([token("s", 1)], 31.0)
    assert known(records, now=1000.0) == [100, 101]  # it runs: it does not grow old
    assert records.find("a", 1000.0).request == request_of("s")


def test_the_older_stream_of_an_answer_says_nothing_more(records):
    records.begin(request_of("r"), ACCEPTED, 0.0)
    records.happened([token("r", 0), token("r", 1), token("r", 2)], 1.0)
    records.begin(resumed_of("s", [100]), ACCEPTED, 2.0)
    records.happened(
        [ending("r", "abort"), token("s", 1)], 3.0
    )  # generated again: known
    assert known(records) == [100, 101, 102]
    assert records.superseded_by(resumed_of("t", [])) == "s"
    records.happened([token("s", 2), token("s", 3)], 4.0)
    assert known(records) == [100, 101, 102, 103]


def test_a_new_controller_learns_from_what_the_request_brings(records):
    records.begin(resumed_of("r", [100, 101]), ACCEPTED, 0.0)
    records.happened([token("r", 2)], 1.0)
    record = records.find("a", 2.0)
    assert (unpack_tokens(record.token_ids), record.first_token_at) == (
        [100, 101, 102],
        9.0,
    )
    assert record.request.resumed is None


def test_log_probabilities_are_kept_only_where_asked_for_and_whole(records):
    asked = request_of("r", logprobs=1, prompt_logprobs=1)
    records.begin(asked, ACCEPTED, 0.0)
    events = [
        PromptLogprobsEvent("r", 0, ((-1.0, ()), (-2.0, ((7, -0.5),)))),
        TokenEvent("r", 0, 100, 10.0, -0.25, ((100, -0.25),)),
    ]
    records.happened(events, 1.0)
    record = records.find("a", 2.0)
    assert list(record.events()) == events
    assert record.prompt_logprobs_until == 3
    records.begin(resumed_of("s", [100], logprobs=1, prompt_logprobs=1), ACCEPTED, 3.0)
    again = [PromptLogprobsEvent("s", 0, ((-1.0, ()),)), token("s", 0)]
    records.happened(again, 4.0)
    assert list(records.find("a", 5.0).events()) == events
    # Another controller never saw them.
    records.begin(resumed_of("t", [100], "b", logprobs=1), ACCEPTED, 6.0)
    assert records.find("b", 7.0) is None


def test_an_id_used_by_two_requests_is_nobodys(records):
    records.begin(request_of("r"), ACCEPTED, 0.0)
    records.begin(request_of("s"), ACCEPTED, 1.0)
    records.happened([token("r", 0), token("s", 0)], 2.0)
    assert records.find("a", 3.0) is None
    records.begin(resumed_of("t", []), ACCEPTED, 4.0)
    assert records.find("a", 5.0) is None
    records.begin(request_of("u"), ACCEPTED, 61.0)  # the first two are forgotten
    assert known(records, now=62.0) == []


def test_a_record_with_a_hole_is_none(records):
    records.begin(request_of("r"), ACCEPTED, 0.0)
    records.happened([token("r", 0), token("r", 2)], 1.0)
    assert records.find("a", 2.0) is None


def test_nothing_is_kept_where_nothing_can_be_resumed(records):
    records.begin(request_of("r", None), ACCEPTED, 0.0)
    assert len(records) == 0
    off = Records(0.0, 10**6)
    off.begin(request_of("r"), ACCEPTED, 0.0)
    assert len(off) == 0


def test_the_oldest_end_goes_first_when_memory_is_short():
    records = Records(60.0, 15_000)
    for name in "abc":
        records.begin(request_of(name, name, prompt=1000), ACCEPTED, 0.0)
    for name in "bac":
        records.happened([token(name, 0), ending(name)], 1.0)
    assert [known(records, name) for name in "abc"] == [[100], None, [100]]


def test_one_that_outgrows_the_memory_is_given_up():
    records = Records(60.0, 4096)
    records.begin(request_of("r", "a"), ACCEPTED, 0.0)
    records.begin(request_of("s", "b"), ACCEPTED, 0.0)
    for index in range(1000):
        records.happened([token("r", index)], 1.0)
    assert records.find("a", 2.0) is None
    assert known(records, "b") == []
    assert records.size <= 4096


class Machine(RuleBasedStateMachine):
    """Any order of events: a record that is found is right, and memory stays bounded."""

    LIMIT = 12_000

    def __init__(self) -> None:
        super().__init__()
        self.records = Records(60.0, self.LIMIT)
        self.now = 0.0
        self.number = 0
        self.said: dict[str, int] = {}  # tokens so far by answer
        self.live: dict[str, str] = {}  # request by answer

    @rule(
        answer=st.sampled_from("xyz"), prompt=st.integers(1, 600), scored=st.booleans()
    )
    def begin(self, answer: str, prompt: int, scored: bool) -> None:
        self.number += 1
        answer = f"{answer}{self.number}"
        sampling = {"logprobs": 0} if scored else {}
        request = request_of(f"r{self.number}", answer, prompt, **sampling)
        self.records.begin(request, ACCEPTED, self.now)
        self.said[answer] = 0
        self.live[answer] = request.id

    @rule(data=st.data(), count=st.integers(1, 200))
    def speak(self, data, count: int) -> None:
        for answer in self.some(data, self.live):
            start = self.said[answer]
            name = self.live[answer]
            events = [token(name, start + i) for i in range(count)]
            self.records.happened(events, self.now)
            self.said[answer] += count

    @rule(data=st.data(), reason=st.sampled_from(["stop", "abort", "error"]))
    def end(self, data, reason: str) -> None:
        for answer in self.some(data, self.live):
            self.records.happened([ending(self.live.pop(answer), reason)], self.now)

    @rule(data=st.data())
    def resume(self, data) -> None:
        for answer in self.some(data, self.said):
            record = self.records.find(answer, self.now)
            if record is None or record.finished is not None:
                continue
            self.number += 1
            shown = data.draw(st.integers(0, record.tokens))
            request = msgspec.structs.replace(
                record.request,
                id=f"r{self.number}",
                resumed=Resumed(token_ids=record.token_ids[: 4 * shown]),
            )
            self.records.begin(request, ACCEPTED, self.now)
            self.live[answer] = request.id
            again = [
                token(request.id, index) for index in range(shown, self.said[answer])
            ]
            self.records.happened(again, self.now)

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    def some(self, data, answers) -> list[str]:
        names = sorted(answers)
        return [data.draw(st.sampled_from(names))] if names else []

    @invariant()
    def right(self) -> None:
        assert 0 <= self.records.size <= self.LIMIT
        for answer, tokens in self.said.items():
            record = self.records.find(answer, self.now)
            if record is None:
                continue
            assert unpack_tokens(record.token_ids) == [100 + i for i in range(tokens)]
            if record.request.sampling.logprobs is not None:
                scored = [
                    event for event in record.events() if isinstance(event, TokenEvent)
                ]
                assert [event.index for event in scored] == list(range(tokens))
        if len(self.records) == 0:
            assert self.records.size == 0


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestRecords = Machine.TestCase
