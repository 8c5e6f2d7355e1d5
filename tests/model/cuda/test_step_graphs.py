"""Which steps are replayed, and that a replay is the step."""

import numpy as np
import pytest
import torch

from medha_actors.messages import Span
from medha_actors.model.cuda.graphs import StepGraphs
from medha_actors.model.cuda.step import arrays_of
from medha_actors.model.step_plan import plan_step
from tests.model.cuda.doubles import ReplayingCapture
from tests.model.cuda.paged_reference import PagedReference

CPU = torch.device("cpu")


def positions_and_slots(step, hidden):
    """In the place of layers: what they would see."""
    seen = torch.stack((step.positions, step.slots, step.token_ids), 1).float()
    return seen if hidden is None else seen + hidden


class Graphs:
    def __init__(self, hidden=None):
        self.capture = ReplayingCapture()
        self.attention = PagedReference()
        own = (CPU, self.capture, positions_and_slots, self.attention, hidden)
        self.graphs = StepGraphs(*own, rows=(1, 2, 4))

    def step(self, rows, spans=1, hidden=None):
        """`rows` rows of each of so many spans."""
        names = [str(number) for number in range(spans)]
        tables = {name: np.array([place]) for place, name in enumerate(names)}
        made = [Span(name, 5, 5 + rows, b"", 0, 5, ()) for name in names]
        ids = np.arange(rows * spans, dtype=np.int32)
        arrays = arrays_of(plan_step(made, tables, 16), ids, self.attention.plan_work)
        return self.graphs.run(arrays, hidden)


@pytest.fixture
def graphs():
    made = Graphs()
    made.graphs.prepare()
    return made


def test_the_smallest_that_fits_is_replayed(graphs):
    assert graphs.capture.recorded == [1, 2, 4]
    for rows in (1, 2, 3, 4):
        found = graphs.step(1, rows)
        expected = [[5, 16 * row + 5, row] for row in range(rows)]
        assert found.tolist() == expected
    assert graphs.capture.replayed == [1, 2, 4, 4]


def test_larger_steps_and_chunks_are_not(graphs):
    assert graphs.step(1, 5) is None
    assert graphs.step(3, 1) is None
    assert not graphs.capture.replayed


def test_a_result_outlives_the_next_replay(graphs):
    first = graphs.step(1, 2)
    kept = first.clone()
    graphs.step(1, 1)
    graphs.step(1, 2)
    assert torch.equal(first, kept)


def test_later_stages_bring_their_hidden_states():
    graphs = Graphs((3, torch.float32))
    graphs.graphs.prepare()
    given = torch.full((2, 3), 0.5)
    assert graphs.step(1, 2, given).tolist() == [[5.5, 5.5, 0.5], [5.5, 21.5, 1.5]]


def test_what_is_not_captured_in_time_is_left_out(caplog):
    graphs = Graphs()
    graphs.graphs.prepare(seconds=-1)
    assert "left out" in caplog.text
    assert graphs.step(1, 1) is None


def test_what_cannot_be_captured_is_left_out(caplog, monkeypatch):
    graphs = Graphs()
    record = ReplayingCapture.__call__

    def short_of_memory(self, run):
        if len(self.recorded) == 2:
            raise torch.OutOfMemoryError("no room")
        return record(self, run)

    monkeypatch.setattr(ReplayingCapture, "__call__", short_of_memory)
    graphs.graphs.prepare()
    assert "graphs from 4 rows on are left out: no room" in caplog.text
    assert graphs.step(1, 2) is not None
    assert graphs.step(1, 3) is None


def test_dropped_graphs_are_not_replayed_and_can_be_taken_again(graphs):
    graphs.graphs.drop()
    assert graphs.step(1, 1) is None
    assert graphs.capture.dropped == 3
    graphs.graphs.prepare()
    assert graphs.step(1, 1) is not None
