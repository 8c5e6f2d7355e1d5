"""Sessions, and what of a workload's prompts is known from earlier ones."""

from itertools import pairwise

import pytest

from loadgen.errors import LoadgenError
from loadgen.records import PlannedRequest
from loadgen.workload.sessions import SESSIONS, as_answered, sessions
from loadgen.workload.sharing import with_known
from tests.loadgen.made import made, plan_of


def chats(count=50, seed=0, kinds=("chat",), **more):
    mixes = [SESSIONS[kind] for kind in kinds]
    return sessions(mixes, count, seed, long_threshold=8192, **more)


def by_session(requests):
    found = {}
    for request in requests:
        found.setdefault(request.turn.session, []).append(request)
    return list(found.values())


def test_a_turn_holds_everything_said_before_and_a_message():
    for turns in by_session(chats()):
        assert [request.turn.number for request in turns] == list(
            range(turns[0].turn.count)
        )
        assert [request.after for request in turns] == [
            None,
            *(request.index for request in turns[:-1]),
        ]
        assert turns[0].prompt_tokens == 200 + turns[0].turn.message_tokens
        assert (turns[0].blocks, turns[0].block_tokens) == ((-1,), 200)
        for before, after in pairwise(turns):
            history = before.prompt_tokens + before.output_tokens
            assert after.prompt_tokens == history + after.turn.message_tokens
            assert after.turn.pause_s >= 1.0
            assert not after.blocks


def test_same_seed_same_sessions_and_more_of_them_leave_the_others_alone():
    assert chats(20, 3) == chats(20, 3)
    assert chats(20, 3) != chats(20, 4)
    few = chats(20, 3, kinds=("chat", "agent"))
    assert chats(40, 3, kinds=("chat", "agent"))[: len(few)] == few


def test_chats_and_agents():
    kinds = {
        request.blocks
        for request in chats(60, kinds=("chat", "agent"))
        if request.blocks
    }
    assert kinds == {(-1,), (-2,)}
    agents = chats(60, kinds=("agent",))
    assert sum(request.turn.pause_s for request in agents) / len(agents) < 5
    assert max(request.prompt_tokens for request in agents) > 10_000


def test_sessions_arrive_and_their_turns_follow():
    plan = plan_of(
        sessions=("chat",), num_sessions=30, request_rate=2.0, turns="3", seed=1
    )
    assert plan.sessions == 30
    assert len(plan.requests) == 90
    assert "in 30 sessions" in plan.describe()
    instants = [request.at for request in plan.requests if request.turn.number == 0]
    assert instants == sorted(instants)
    assert all(request.at is None for request in plan.requests if request.turn.number)
    faster = plan_of(
        sessions=("chat",), num_sessions=30, request_rate=4.0, turns="3", seed=1
    )
    assert [request.at for request in faster.requests if request.at] == pytest.approx(
        [instant / 2 for instant in instants]
    )


def test_a_session_ends_where_the_context_does():
    plan = plan_of(
        sessions=("agent",),
        num_sessions=20,
        request_rate=1.0,
        turns="10",
        max_model_len=4000,
    )
    assert plan.dropped > 0
    for turns in by_session(plan.requests):
        assert [request.turn.number for request in turns] == list(range(len(turns)))
        assert {request.turn.count for request in turns} == {len(turns)}
        assert turns[-1].prompt_tokens + turns[-1].output_tokens <= 4000


def test_turns_of_sessions_that_come_too_late_are_left_out_with_them():
    plan = plan_of(sessions=("chat",), request_rate=2.0, turns="2", duration=10.0)
    assert 10 <= plan.sessions <= 35
    assert len(plan.requests) == 2 * plan.sessions
    with pytest.raises(LoadgenError, match="no request is due within"):
        plan_of(sessions=("chat",), num_sessions=3, request_rate=0.001, duration=0.001)


def test_scales_and_lengths_of_ones_own():
    plan = plan_of(
        sessions=("chat",),
        num_sessions=2,
        system_len=0,
        input_len="100",
        output_len="40",
        turns="2",
        pause_ms="3000",
        scale_lengths="0.5",
        scale_time=2.0,
    )
    sizes = [
        (request.prompt_tokens, request.output_tokens) for request in plan.requests
    ]
    assert sizes == [(50, 20), (120, 20)] * 2
    assert [request.turn.pause_s for request in plan.requests] == [0.0, 6.0] * 2
    assert [request.known_tokens for request in plan.requests] == [0, 69] * 2


def test_turns_may_follow_at_once():
    plan = plan_of(sessions=("agent",), num_sessions=3, turns="4", pause_ms="0")
    assert {request.turn.pause_s for request in plan.requests} == {0.0}


def test_what_a_turn_knows_is_what_its_history_came_to():
    first, second = by_session(chats())[0][:2]
    before = made(
        first.index,
        prompt_tokens=first.prompt_tokens,
        usage_prompt_tokens=900,
        tokens=(1.0, 2.0),
    )
    turn = as_answered(second, before)
    assert turn.prompt_tokens == 902 + second.turn.message_tokens
    assert turn.known_tokens == 901


def test_sessions_know_their_history_and_the_prompt_of_their_kind():
    plan = plan_of(sessions=("chat",), num_sessions=5, turns="3", request_rate=1.0)
    known = {(r.turn.session, r.turn.number): r.known_tokens for r in plan.requests}
    assert known[0, 0] == 0
    assert all(known[session, 0] == 200 for session in range(1, 5))
    for before, after in pairwise(plan.requests):
        if after.turn.number:
            assert after.known_tokens == before.prompt_tokens + before.output_tokens - 1


def blocks(index, prompt, *ids):
    return PlannedRequest(
        index=index, prompt_tokens=prompt, output_tokens=1, blocks=ids, block_tokens=100
    )


@pytest.mark.parametrize(
    ("prompts", "known"),
    [
        ([(250, 1, 2, 3), (250, 1, 2, 3)], [0, 250]),
        # a longer last block
        ([(250, 1, 2, 3), (300, 1, 2, 3), (300, 1, 2, 3)], [0, 250, 300]),
        ([(250, 1, 2, 3), (230, 1, 2, 3)], [0, 230]),
        (
            [(250, 1, 2, 3), (300, 1, 4, 3)],
            [0, 100],
        ),  # the same block, but after another
        ([(300, 1, 2, 3), (200, 2, 3)], [0, 0]),
        (
            [(300, 1, 2, 3), (450, 1, 2, 3)],
            [0, 300],
        ),  # tokens of its own behind its blocks
    ],
)
def test_blocks_that_earlier_prompts_begin_with(prompts, known):
    requests = [blocks(index, *prompt) for index, prompt in enumerate(prompts)]
    assert [request.known_tokens for request in with_known(requests)] == known


def test_where_nothing_is_shared_nothing_is_known():
    assert {request.known_tokens for request in plan_of(num_prompts=5).requests} == {
        None
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"turns": "3"}, "--turns needs --sessions"),
        (
            {"sessions": ("chat",), "num_prompts": 9},
            "--sessions and --num-prompts exclude",
        ),
        (
            {"sessions": ("chat",), "dataset_path": "x"},
            "--sessions and --dataset-path exclude",
        ),
        (
            {"sessions": ("chat",), "request_rate": 1.0, "max_concurrency": 2},
            "not both",
        ),
    ],
)
def test_what_does_not_go_together(given, message):
    with pytest.raises(LoadgenError, match=message):
        plan_of(**given)
