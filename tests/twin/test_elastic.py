"""LoongServe-like instances: a case worked by hand, what must hold always, and the costs of our own
grids."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twin_world import request

from loadgen.errors import LoadgenError
from loadgen.records import Turn
from loadgen.twin.cost import profile_of
from loadgen.twin.deployment import Deployment
from loadgen.twin.elastic.cost import Costs, ElasticDeployment, Share
from loadgen.twin.elastic.division import Part, divide
from loadgen.twin.elastic.engine import play_elastic
from loadgen.twin.elastic.fleet import place
from loadgen.twin.hardware import Hardware, hardware_of
from loadgen.twin.models import model_of
from medha_actors.core.group_load import GroupLoad
from medha_actors.core.predictor import ExecutionModel

MODEL = msgspec.structs.replace(model_of("smollm2-135m"), vocabulary=1)
TOKEN_S = 1e-3
# a row takes a millisecond and nothing else takes any time: cases that can be solved by hand
PLAIN = Hardware(
    name="plain",
    flops=2 * (MODEL.layer_parameters * MODEL.layers) / TOKEN_S,
    attention_flops=1e30,
    memory_bytes=1e15,
    memory_speed=1e30,
    link_speed=1e30,
    network_speed=1e30,
    host_speed=1e30,
    matrix_share=1.0,
    kernel_s=0.0,
    collective_s=0.0,
    message_s=0.0,
    control_s=0.0,
)


def plain(instances=4, room_tokens=None, **more):
    """Instances of one device with room for about so many tokens of KV."""
    device = PLAIN
    if room_tokens is not None:
        roomy = Deployment(model=MODEL, device=PLAIN)
        weights = PLAIN.memory_bytes * PLAIN.usable_share - roomy.free_bytes
        token_bytes = roomy.free_bytes / roomy.kv_tokens
        needed = (weights + token_bytes * room_tokens) / PLAIN.usable_share
        device = msgspec.structs.replace(PLAIN, memory_bytes=needed + 1)
    return ElasticDeployment(
        model=MODEL, device=device, tp=1, instances=instances, **more
    )


def a100(tp=2):
    return ElasticDeployment(
        model=model_of("llama-3-8b"),
        device=hardware_of("a100"),
        tp=tp,
        instances=16 // tp,
    )


def first(record):
    return record.token_times[0]


def test_a_worked_example():
    """A long prompt takes all four instances for its 1.0 s; a short one that comes meanwhile waits
    for it. The long one's KV then lies on one instance, and the short one has the other three."""
    load = [request(4000, 11, 0.0, 0, "long"), request(300, 1, 0.1, 1)]
    long, short = play_elastic(plain(), load).records
    assert first(long) == pytest.approx(1.0, rel=1e-3)
    assert first(short) == pytest.approx(1.1, rel=1e-3)
    between = [b - a for a, b in pairwise(long.token_times)]
    assert between == pytest.approx([TOKEN_S] * 10, rel=1e-3)


def test_a_decode_keeps_its_instance_and_lets_short_ones_in():
    """While one decodes, a long prompt has three instances. Who comes then interrupts the decode,
    as soon as answers have been seen to take longer than it has taken so far."""
    load = [
        request(300, 401, 0.0, 0),
        request(300, 401, 1.0, 1),
        request(3000, 2, 1.08, 2, "long"),
        request(100, 2, 1.1, 3),
    ]
    played = play_elastic(plain(), load)
    _, decoding, long, short = played.records
    assert first(long) == pytest.approx(1.08 + 1.0, abs=0.003)
    assert first(short) == pytest.approx(1.1 + 0.1, abs=0.003)
    assert max(b - a for a, b in pairwise(decoding.token_times)) == pytest.approx(
        0.1, abs=0.003
    )
    assert played.preemptions == 1


def test_a_decode_that_is_nearly_over_is_not_interrupted():
    """The gain is the time that a decode still has; beyond what answers usually take it is none."""
    load = [
        request(300, 11, 0.0, 0),
        request(300, 401, 1.0, 1),
        request(3000, 2, 1.08, 2, "long"),
        request(100, 2, 1.2, 3),
    ]
    played = play_elastic(plain(), load)
    assert played.preemptions == 0
    assert first(played.records[3]) > played.records[1].ended_at


def test_decodes_move_together_to_make_room_for_a_long_prompt():
    """Two answers on two instances: one moves to the other's, so that a long prompt has three."""
    seen = []
    load = [
        request(100, 300, 0.0, 0),
        request(100, 300, 0.0, 1),
        request(3000, 1, 0.2, 2, "long"),
    ]
    played = play_elastic(plain(), load, lambda fleet, use: seen.append(use))
    assert [use.what for use in seen].count("move") == 1
    assert first(played.records[2]) == pytest.approx(1.2, abs=0.005)


def test_whoever_is_patient_waits_for_a_larger_team():
    """Three instances are at work for a second: on the fourth alone it would take two."""
    load = [
        request(10, 1000, 0.0, 0),
        request(3000, 1, 0.1, 1, "long"),
        request(2000, 1, 1.05, 2, "long"),
    ]
    hasty = play_elastic(plain(), load).records
    patient = play_elastic(plain(patient=True), load).records
    assert first(hasty[2]) == pytest.approx(1.05 + 2.0, abs=0.01)
    assert first(patient[2]) < first(hasty[2])


class Book:
    """Checks what must hold whenever instances are used, and keeps who used them when."""

    def __init__(self):
        self.uses = []

    def __call__(self, fleet, use):
        self.uses.append(use)
        assert all(0 <= tokens <= fleet.slots for tokens in fleet.reserved)
        placed = []
        for team in fleet.teams:
            placed += team.instances
            held = [sum(answer.pieces.values()) for answer in team.answers]
            known = [a.planned.prompt_tokens + len(a.token_times) for a in team.answers]
            assert held == known
        assert len(placed) == len(set(placed))
        assert not set(placed) & set(fleet.idle())
        self.left = fleet.reserved

    def check(self):
        by_instance = {}
        for use in self.uses:
            for instance in use.instances:
                by_instance.setdefault(instance, []).append(
                    (use.starts_at, use.ends_at)
                )
        for spans in by_instance.values():
            for before, after in pairwise(sorted(spans)):
                assert before[1] <= after[0] + 1e-12


LOADS = st.lists(
    st.tuples(
        st.integers(1, 900),  # prompt
        st.integers(1, 60),  # answer
        st.floats(0.0, 0.6),  # after the one before
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(
    load=LOADS,
    instances=st.integers(1, 5),
    room=st.integers(1000, 4000),
    patient=st.booleans(),
)
def test_nobody_is_lost_and_no_instance_is_in_two_teams(load, instances, room, patient):
    at = 0.0
    requests = []
    for index, (prompt, output, gap) in enumerate(load):
        at += gap
        requests.append(request(prompt, output, at, index))
    book = Book()
    played = play_elastic(plain(instances, room, patient=patient), requests, book)
    for planned, record in zip(requests, played.records, strict=True):
        assert len(record.token_times) == planned.output_tokens
        assert list(record.token_times) == sorted(record.token_times)
        fastest_s = planned.prompt_tokens // instances * TOKEN_S
        assert first(record) >= planned.at + fastest_s * (1 - 1e-3)
    assert book.left == [0] * instances
    assert 0 < played.busy[0] <= 1 + 1e-9
    book.check()


@given(
    loads=st.lists(
        st.tuples(st.integers(1, 500), st.integers(1, 50)), min_size=1, max_size=6
    ),
    rooms=st.lists(st.integers(0, 900), min_size=1, max_size=5),
)
def test_whatever_is_placed_fits_on_the_fewest_instances(loads, rooms):
    requests = [
        request(prompt, output, 0.0, index)
        for index, (prompt, output) in enumerate(loads)
    ]
    room = dict(enumerate(rooms))
    placements = place(requests, room)
    if placements is None:
        needed = sum(prompt + output for prompt, output in loads)
        answers = sum(output for _, output in loads)
        assert needed > sum(rooms) or answers + 500 > max(rooms)
        return
    left = dict(room)
    for planned, placement in zip(requests, placements, strict=True):
        assert sum(placement.pieces.values()) == planned.prompt_tokens
        left[placement.master] -= planned.output_tokens
        for instance, tokens in placement.pieces.items():
            left[instance] -= tokens
    assert min(left.values()) >= 0
    used = [instance for instance in room if left[instance] < room[instance]]
    needed = sum(prompt + output for prompt, output in loads)
    most = sorted(rooms, reverse=True)
    assert needed > sum(most[: len(used) - 1])


@given(
    lengths=st.lists(st.integers(1, 100), min_size=1, max_size=4).map(sorted),
    instances=st.integers(1, 4),
)
def test_no_division_is_cheaper(lengths, instances):
    def cost(part):
        degree = part.end - part.begin
        those = lengths[part.first : part.stop]
        seconds = sum(those) / degree + degree
        return seconds * sum(1 / length for length in those)

    def cheapest(first, begin):
        if first == len(lengths):
            return 0.0
        found = float("inf")
        for stop in range(first + 1, len(lengths) + 1):
            for free in range(begin, instances):
                for end in range(free + 1, instances + 1):
                    part = Part(first, stop, free, end)
                    found = min(found, cost(part) + cheapest(stop, end))
        return found

    parts = divide(len(lengths), instances, cost)
    assert [part.first for part in parts] + [len(lengths)] == [0] + [
        part.stop for part in parts
    ]
    for before, after in pairwise(parts):
        assert before.end <= after.begin
    assert sum(map(cost, parts)) == pytest.approx(cheapest(0, 0))


def test_impossible_divisions_are_none():
    assert divide(2, 2, lambda part: float("inf")) == []


@pytest.mark.parametrize("tp", [1, 2, 8])
def test_one_instance_costs_what_our_own_grid_of_one_stage_costs(tp):
    deployment = a100(tp)
    costs = Costs(deployment)
    model = ExecutionModel(
        profile_of(deployment.model, deployment.device, tp=tp, stages=1)
    )
    control_s = deployment.device.control_s
    prefill = GroupLoad().with_prefill(2048, 0, sample=True)
    ours = model.stage_seconds(prefill)[0] + control_s
    assert costs.prefill_s([2048], [0]) == pytest.approx(ours, rel=1e-9)
    decodes = GroupLoad().with_decode(5000).with_decode(70_000)
    ours = model.stage_seconds(decodes)[0] + control_s
    assert costs.step_s([Share(2, 75_000, 0)], [0]) == pytest.approx(ours, rel=1e-9)


def test_more_instances_are_faster_for_long_prompts_and_slower_for_tiny_ones():
    costs = Costs(a100())
    teams = [list(range(count)) for count in (1, 2, 4, 8)]
    long = [costs.prefill_s([400_000], team) for team in teams]
    assert long == sorted(long, reverse=True)
    assert 7 < long[0] / long[-1] <= 8
    tiny = [costs.prefill_s([8], team) for team in teams]
    assert tiny == sorted(tiny)
    assert costs.prefill_s([100_000], [3, 4]) >= costs.prefill_s(
        [100_000], [2, 3]
    )  # nodes


def test_what_can_never_be_is_refused():
    with pytest.raises(LoadgenError, match="never fits"):
        play_elastic(plain(2, 1000), [request(3000)])
    with pytest.raises(LoadgenError, match="a node has 8"):
        play_elastic(a100(16), [request()])
    turn = Turn(session=0, number=1, count=2, message_tokens=3)
    later = msgspec.structs.replace(request(index=1), after=0, turn=turn)
    with pytest.raises(LoadgenError, match="no sessions"):
        play_elastic(plain(), [request(), later])
    huge = ElasticDeployment(
        model=model_of("llama-3-70b"), device=hardware_of("a100"), tp=1
    )
    with pytest.raises(LoadgenError, match="does not fit"):
        play_elastic(huge, [request()])
