"""The plan of a step: rows, slots and runs from spans, for any cut of requests over groups."""

from __future__ import annotations

from array import array

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medha_actors.messages import Span
from medha_actors.model.step_plan import plan_step

PAGE = 4


def span(name, start, stop, cached, writes=True, groups=()):
    ids = bytes(4 * (stop - start))
    return Span(
        name, start, stop, ids, start - cached, cached, (), writes, groups=groups
    )


def test_rows_slots_and_runs_of_a_mixed_step():
    spans = [
        span("a", 9, 12, 5, writes=False, groups=(0, 1)),
        span("b", 6, 8, 2, groups=(0, 1)),
        span("c", 3, 4, 3, groups=(1,)),
        span("d", 0, 2, 0),
    ]
    tables = {
        "a": array("i", [7, 3]),
        "b": array("i", [5]),
        "c": array("i", [2]),
        "d": [6],
    }
    plan = plan_step(spans, tables, PAGE)
    assert plan.rows == 8
    assert plan.positions.tolist() == [9, 10, 11, 6, 7, 3, 0, 1]
    assert plan.slots.tolist() == [-1, -1, -1, 22, 23, 11, 24, 25]
    assert [(run.groups, run.rows, len(run.spans)) for run in plan.runs] == [
        ((0, 1), slice(0, 5), 2),
        ((), slice(5, 8), 2),  # one group alone shares nothing
    ]
    assert plan.shared == plan.runs[:1]
    assert [one.tokens for one in plan.spans] == [5, 4, 4, 2]


def test_pages_are_the_plans_own():
    """The table grows in the next step, while a stage may still look at the plan of this one."""
    table = array("i", [4])
    plan = plan_step([span("a", 0, 1, 0)], {"a": table}, PAGE)
    table.append(9)
    assert plan.spans[0].pages.tolist() == [4]
    assert plan.spans[0].pages.dtype == np.int32


@st.composite
def requests(draw):
    """Spans that are all written here, with pages of their own."""
    spans = []
    tables = {}
    free = draw(st.permutations(range(60)))
    for number in range(draw(st.integers(1, 6))):
        cached = draw(st.integers(0, 20))
        count = draw(st.integers(1, 9))
        groups = draw(st.sampled_from([(), (1,), (0, 1), (1, 2)]))
        spans.append(
            span(str(number), cached + 3, cached + 3 + count, cached, groups=groups)
        )
        tables[str(number)] = array("i", free[9 * number : 9 * number + 9])
    return spans, tables


@given(requests())
def test_every_row_is_in_one_run_and_has_a_slot_of_its_own(case):
    spans, tables = case
    plan = plan_step(spans, tables, PAGE)
    assert len(set(plan.slots.tolist())) == plan.rows
    covered = []
    for run in plan.runs:
        covered += range(run.rows.start, run.rows.stop)
        for one in run.spans:
            assert run.rows.start <= one.first < one.stop <= run.rows.stop
    assert covered == list(range(plan.rows))
    for one, given_span in zip(plan.spans, spans, strict=True):
        last = given_span.piece_tokens + one.rows - 1
        page = tables[given_span.request_id][last // PAGE]
        assert plan.slots[one.stop - 1] == page * PAGE + last % PAGE
    for before, after in zip(plan.runs, plan.runs[1:], strict=False):
        assert before.groups != after.groups
