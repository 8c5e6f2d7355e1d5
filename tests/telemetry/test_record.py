"""What the scheduler remembers of its decisions: slack, who took whose turn, who lost its KV for
whom."""

from local import LocalController

from medha_actors.core.record import waiting
from medha_actors.messages import Resumed, pack_tokens


def test_slacks_are_those_of_the_prefills_in_their_order():
    controller = LocalController()
    controller.add("a", 300)
    controller.add("b", 500)
    batch = controller.scheduler.next_batch(controller.now)
    record = controller.scheduler.record
    assert record.batch_id == batch.id
    assert {slack.request_id for slack in record.slacks} == {
        s.request_id for s in batch.groups[0].spans
    }
    assert all(slack.slack_s > 0 for slack in record.slacks)


def test_a_preempted_prefill_names_who_took_its_turn():
    controller = LocalController()
    controller.add("long", 20_000)
    controller.run(2)
    for i in range(4):
        controller.add(f"short{i}", 900)
    pairs = []
    while len(controller.scheduler.live.queue):
        controller.run(1)
        pairs += controller.scheduler.record.preempted
    assert pairs
    assert len(pairs) == controller.scheduler.stats().preemptions_total
    assert pairs[0][0] == "long"
    assert [gap.by for gap in controller.observer.recorder.live["long"].gaps] == [
        by for who, by in pairs if who == "long"
    ]


def test_an_evicted_request_names_for_whom():
    controller = LocalController(
        stages=1, pages=8, scheduler={"max_running_requests": 8}
    )
    controller.add("a", 47)
    controller.add(
        "b", 63
    )  # four pages each hold the prompts and at most one token more
    controller.run()
    timelines = controller.observer.recorder.finished
    evicted = []
    for timeline in timelines.values():
        gaps = [gap for gap in timeline.gaps if gap.kind == "evicted"]
        evicted += [(timeline.id, gap.by) for gap in gaps]
    assert controller.scheduler.stats().evictions_total == len(evicted) > 0
    assert all(victim in timelines and by in timelines for victim, by in evicted)


def test_the_queue_is_shown_in_the_policys_order_with_predicted_ends():
    controller = LocalController()
    for i, prompt in enumerate((8000, 200, 3000)):
        controller.add(f"r{i}", prompt)
    rows = waiting(controller.scheduler.live.queue, 1, controller.now, 10)
    assert [row.request_id for row in rows] == [
        s.id for s in controller.scheduler.live.queue.ordered(controller.now)
    ]
    assert [row.finish_in_s for row in rows] == sorted(row.finish_in_s for row in rows)
    assert len(waiting(controller.scheduler.live.queue, 1, controller.now, 2)) == 2


def test_a_resumed_request_had_its_first_token_long_ago():
    controller = LocalController()
    known = Resumed(token_ids=pack_tokens([7, 8]), first_token_at=900.0)
    controller.add("back", resumed=known)
    controller.run()
    timeline = controller.observer.recorder.finished["back"]
    assert timeline.first_token_at == 900.0
    assert timeline.tokens > 2
    assert len(controller.observer.figures.requests.ttft_s) == 0
    assert max(controller.observer.figures.requests.tbt_s) < 100.0
