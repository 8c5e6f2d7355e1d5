"""What is found in the page store: keys of pages, and the longest hit they give."""

import random
from itertools import pairwise

import pytest
from core_inputs import grid_of, request_of

from medha_actors.core.kv_plan import KvPlan
from medha_actors.core.page_keys import PageKeys, root_key
from medha_actors.core.request import Milestones, RequestState
from medha_actors.messages import pack_tokens


def test_keys_are_chained_over_model_salt_and_tokens():
    def keys(tokens, salt="", model="m", adapter=""):
        packed = pack_tokens(tokens)
        made = PageKeys(
            root_key(model, adapter, salt), 4, lambda a, b: packed[4 * a : 4 * b]
        )
        return [made[page] for page in range(len(tokens) // 4)]

    plain = keys(range(12))
    assert plain == keys(range(12))
    assert keys([*range(8), 99, 9, 10, 11])[:2] == plain[:2]
    others = [
        keys(range(12), salt="x"),
        keys(range(12), model="n"),
        keys(range(12), adapter="x"),
        keys([99, *range(1, 12)]),
    ]
    for other in others:
        assert not set(other) & set(plain)
    assert root_key("a", "bc", "") != root_key("ab", "c", "")
    assert all(one != other for one, other in pairwise(plain))


def test_hits_are_right_whatever_was_cached_before():
    """A page table against sets of prefixes: what KvPlan finds is the longest common beginning."""
    rng = random.Random(5)
    plan = KvPlan(grid_of(pages=400))
    cached = []
    for number in range(60):
        base = (
            rng.choice(cached)[: rng.randint(0, 40)]
            if cached and rng.random() < 0.8
            else []
        )
        tokens = base + [rng.randrange(3) for _ in range(rng.randint(1, 40))]
        state = RequestState(
            request=request_of(f"r{number}", len(tokens), begins=tokens),
            serial=number,
            milestones=Milestones(0.0, 1.0),
            tpot_s=1.0,
            timeout_at=9e9,
            prompt=len(tokens),
            goal=len(tokens),
        )
        state.keys = PageKeys(root_key("m", "", ""), 4, state.tokens)
        common = max((_common(tokens, other) for other in cached), default=0)
        found = plan.search.hits(state.keys, state.hit_limit)
        assert (found[0].tokens if found else 0) == min(
            common, len(tokens) - 1
        ) // 4 * 4
        pieces = plan.place(state.goal, [0], [0], *found)
        assert pieces is not None
        state.dispatched = state.computed = found[0].tokens if found else 0
        plan.reserve(state, pieces)
        plan.take(state, state.goal)
        state.computed = state.goal
        plan.publish(state)
        plan.release(state)
        assert plan.available(0) == 400
        cached.append(tokens[: len(tokens) // 4 * 4])


@pytest.mark.parametrize(
    ("cached", "expected"),
    [
        (({0, 1, 2, 3, 4, 5}, {2}), [(0, 0, 6)]),
        (({0, 1, 2, 3}, {2, 3, 4, 5, 6, 7}), [(0, 0, 2), (1, 8, 6)]),
        (({0, 1, 2, 3}, {4, 5}), [(0, 0, 4), (1, 16, 2)]),
        (({0}, {0, 1, 2}), [(1, 0, 3)]),
        (({0}, {1, 2, 3}), [(0, 0, 1)]),  # a piece below the cutoff is not left
    ],
)
def test_a_hit_goes_to_another_group_where_that_leads_further(cached, expected):
    plan = KvPlan(grid_of(groups=2, pages=20, cutoff=8))
    packed = pack_tokens(range(40))
    keys = PageKeys(root_key("m", "", ""), 4, lambda a, b: packed[4 * a : 4 * b])
    for group, pages in enumerate(cached):
        for page in pages:
            plan.store.publish(group, plan.store.take(group), keys[page])
    found = plan.search.hits(keys, 40)[0]
    stretches = [(one.group, one.start, len(one.pages)) for one in found.stretches]
    assert stretches == expected


def _common(one, other):
    count = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        count += 1
    return count
