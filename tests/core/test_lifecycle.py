"""From arrival to the last event: admission, timeouts, a full cache, what is told on the way."""

import msgspec
import pytest
from core_batches import opened_in, spans_of
from core_inputs import request_of
from core_world import decoding_world, world_of

from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.simulator import results_of
from medha_actors.messages import (
    Accepted,
    Grammar,
    PromptLogprobs,
    PromptLogprobsEvent,
    Rejected,
)


def test_instants_are_reported():
    world = world_of()
    start = world.now
    world.add(request_of("a", 3000, 3, start))
    world.drain()
    event = world.finished["a"]
    assert (
        start
        == event.arrived_at
        == event.scheduled_at
        < event.prefilled_at
        == event.first_token_at
    )
    assert event.first_token_at < event.finished_at
    work_s = world.scheduler.table.seconds(0, 3000)
    assert event.deadline_at == pytest.approx(start + 1.5 * work_s + world.grace_s)


def test_prompt_log_probabilities_are_reported_once():
    world = world_of(pages=40)
    world.add(request_of("a", 64, 2, world.now, prompt_logprobs=1))

    def score(batch):
        """What a stage answers: one entry for each known token after a position of the span."""
        results = results_of(batch, (batch.predicted_s,))
        spans = [span for span in spans_of(batch) if span.start < 64]
        scored = []
        for span in spans:
            after = range(span.start + 1, span.stop + (span.next_token_id >= 0))
            scored.append(
                PromptLogprobs(
                    span.request_id, span.start, tuple((-float(at), ()) for at in after)
                )
            )
        return [msgspec.structs.replace(results[0], prompt_logprobs=tuple(scored))]

    scores = []
    restarted = False
    while world.scheduler.live.by_id:
        batch = world.scheduler.next_batch(world.now)
        events = world.scheduler.complete(score(batch), world.now)
        for event in events:
            if isinstance(event, PromptLogprobsEvent):
                scores += [
                    (event.start + 1 + index, entry[0])
                    for index, entry in enumerate(event.entries)
                ]
        if not restarted:
            restarted = True
            world.scheduler.restart(world.now)
    assert scores == [(at, -float(at)) for at in range(1, 64)]


def test_a_late_group_learns_the_tokens_only_if_something_looks_back():
    grammar = Grammar("start: /a/", (0,))
    for looks_back, changes in (
        (False, {}),
        (True, {"repetition_penalty": 1.3}),
        (True, {"presence_penalty": 0.5}),
        (True, {"grammar": grammar}),
    ):
        world = world_of(groups=2, cutoff=20)
        world.add(request_of("a", 30, 1, world.now, **changes))
        world.drain()
        told = [sequence.token_ids for sequence in opened_in(world.batches)]
        assert [len(tokens) // 4 for tokens in told] == [0, 20 if looks_back else 0]


def test_what_is_asked_in_one_batch_comes_back_in_order():
    world = world_of(stages=2)
    world.add(request_of("a", 1000, 1, world.now))
    world.launch()
    world.launch()
    with pytest.raises(ValueError, match="before batch"):
        world.scheduler.complete(results_of(world.flights[1], (0.1,)), world.now)


def test_acceptance_tells_deadline_and_prediction():
    world = world_of(model=ExecutionModel.analytic(token_s=1e-3))
    first = world.add(request_of("a", 2000, 1, world.now))
    assert isinstance(first, Accepted)
    assert first.deadline_at == pytest.approx(world.now + 3.0 + world.grace_s, rel=0.01)
    assert first.predicted_ttft_s == pytest.approx(2.0, rel=0.01)
    short = world.add(request_of("b", 10, 1, world.now))
    assert short.ttft_objective_s == pytest.approx(0.05 + world.grace_s)  # the floor
    asked = world.add(request_of("c", 10, 1, world.now, ttft_s=0.001))
    assert asked.ttft_objective_s == pytest.approx(0.05)  # the server's bound
    second = world.add(request_of("d", 2000, 1, world.now))
    assert second.predicted_ttft_s == pytest.approx(4.0, rel=0.1)


def test_what_cannot_run_is_refused_with_its_numbers():
    world = world_of(pages=10, length=100)
    too_long = (
        "the prompt is too long: 90 tokens > 21 maximum in prompt, with 20 to generate"
    )
    too_large = "maximum context length is 41 tokens (of KV cache)"
    cases = [
        (request_of("a", 0), "prompt has no tokens"),
        (request_of("b", 1, 0), "max_tokens is 0"),
        (request_of("c", 90, 20), too_long),
        (request_of("d", 30, 20), too_large),
    ]
    for request, message in cases:
        answer = world.add(request)
        assert isinstance(answer, Rejected)
        assert answer.status == 400
        assert message in answer.message
    assert answer.code == "context_length_exceeded"
    assert world.scheduler.max_tokens == 41
    assert isinstance(world.add(request_of("f", 31, 11)), Rejected)
    assert isinstance(world.add(request_of("e", 30, 11)), Accepted)
    assert world.add(request_of("e", 30, 11)).status == 400
    world.drain()


def test_a_full_queue_refuses_for_now():
    world = world_of(max_waiting_requests=2)
    for index in range(2):
        assert isinstance(
            world.add(request_of(f"r{index}", 10, 1, world.now)), Accepted
        )
    answer = world.add(request_of("r2", 10, 1, world.now))
    assert (answer.status, answer.code) == (429, "queue_full")
    assert answer.retry_after_s >= 1
    world.drain()


def test_timeouts():
    world = world_of()
    world.add(request_of("slow", 4000, 5, world.now, timeout_s=0.5))
    world.add(request_of("quick", 10, 1, world.now, timeout_s=1.5))
    assert world.scheduler.next_wake(world.now) == world.now + 0.5
    world.launch()
    world.expire()
    assert not world.finished
    world.now += 0.5
    world.expire()
    assert world.finished["slow"].reason == "timeout"
    assert "0.5 s" in world.finished["slow"].message
    world.drain()
    assert world.finished["quick"].reason == "length"
    assert world.scheduler.next_wake(world.now) is None
    assert world.scheduler.cancel("unknown", world.now) == []


def test_when_the_cache_is_full_the_request_with_most_slack_yields_and_nothing_is_lost():
    world = world_of(pages=16)
    world.add(request_of("urgent", 16, 40, world.now, ttft_s=0.1))
    world.add(request_of("patient", 16, 40, world.now, ttft_s=100.0))
    world.drain()
    assert world.scheduler.stats().evictions_total > 0
    assert world.finished["urgent"].recomputed_tokens == 0
    assert world.finished["patient"].recomputed_tokens > 0
    assert [len(world.tokens[name]) for name in ("urgent", "patient")] == [40, 40]


def test_waiting_work_is_valued_anew_when_the_machine_changes():
    world = world_of(model=ExecutionModel.analytic(token_s=1e-3))
    for name in ("a", "b"):
        world.add(request_of(name, 4000, 1, world.now))
    waiting = world.scheduler.live.by_id["b"]
    assert waiting.remaining_s == waiting.total_work_s == pytest.approx(4.0)
    world.launch()
    world.scheduler.complete(
        results_of(world.flights.popleft(), (3 * world.batches[0].predicted_s,)),
        world.now,
    )
    assert waiting.remaining_s == waiting.total_work_s == pytest.approx(12.0)
    world.drain()


def test_the_same_input_gives_the_same_batches():
    def run():
        world = world_of(2, 2, pages=40, cutoff=50)
        for index in range(12):
            world.add(request_of(f"r{index}", 10 + 37 * index % 90, 6, world.now))
            world.launch()
        world.drain()
        return world.batches

    assert run() == run()


def test_statistics():
    world = decoding_world(2)
    world.add(request_of("a", 4000, 1, world.now))
    world.add(request_of("b", 4000, 1, world.now))
    world.launch()
    stats = world.scheduler.stats()
    assert (
        stats.running,
        stats.prefilling,
        stats.waiting,
        stats.batches_in_flight,
    ) == (2, 1, 1, 1)
    assert 0.4 < stats.kv_usage < 0.6
    assert stats.prompt_tokens_total == 8
    assert stats.generation_tokens_total == sum(
        len(tokens) for tokens in world.tokens.values()
    )
    assert stats.predictor_error_p50 == pytest.approx(0.0)
    assert stats.backlog_s > 0
