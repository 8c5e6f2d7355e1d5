"""The numbers of a step in one buffer."""

from array import array

import numpy as np
import torch

from medha_actors.messages import Span
from medha_actors.model.cuda.step import Extent, StepBuffer, arrays_of
from medha_actors.model.step_plan import plan_step
from tests.model.cuda.paged_reference import PagedReference

TABLES = {"a": array("i", [4, 9, 2]), "b": array("i", [7])}
SPANS = [
    Span("a", 30, 37, b"", 0, 30, ()),
    Span("b", 40, 41, b"", 32, 8, (), writes=False, groups=(0, 1)),
]
IDS = np.arange(100, 108, dtype=np.int32)


def arrays(spans=SPANS, ids=IDS):
    return arrays_of(plan_step(spans, TABLES, 16), ids, PagedReference().plan_work)


def check(step):
    assert step.positions[:8].tolist() == [*range(30, 37), 40]
    assert step.slots[:8].tolist() == [9 * 16 + 14, 9 * 16 + 15, 32, 33, 34, 35, 36, -1]
    assert step.token_ids[:8].tolist() == IDS.tolist()
    assert step.sequences[:2].tolist() == [[0, 7, 30, 1], [7, 1, 8, 0]]
    assert step.table_starts[:2].tolist() == [0, 3]
    assert step.tables[:4].tolist() == [4, 9, 2, 7]
    assert step.work[:3, 0].tolist() == [2, 0, 1]


def test_a_step_as_it_is():
    step = StepBuffer(torch.device("cpu"), 256).write(arrays())
    check(step)
    assert (step.rows, len(step.sequences), len(step.work)) == (8, 2, 3)
    assert (step.wide, step.slots_of_partials) == (1, 2)


def test_a_step_filled_up():
    buffer = StepBuffer(torch.device("cpu"), 512)
    extent = Extent(13, 5, 9, 4, 6)
    for slab in range(4):  # what lay there before does not show
        buffer.write(arrays([Span("a", 0, 20, b"", 0, 0, ())], None))
        assert buffer.send(arrays(), extent)
        step = buffer.step(extent)
        check(step)
        assert (step.rows, step.slots_of_partials) == (13, 6), slab
        assert step.slots[8:].tolist() == [-1] * 5
        assert step.sequences[2:].tolist() == [[0] * 4] * 3


def test_addresses_depend_on_the_extent_alone_and_are_whole_16_bytes():
    buffer = StepBuffer(torch.device("cpu"), 512)
    extent = Extent(13, 5, 9, 3, 6)
    places = []
    for spans in (SPANS, SPANS[:1]):
        assert buffer.send(arrays(spans, None), extent)
        step = buffer.step(extent)
        views = (
            step.positions,
            step.slots,
            step.token_ids,
            step.sequences,
            step.table_starts,
        )
        views += (step.work, step.merges, step.tables)
        places.append([view.data_ptr() for view in views])
    assert places[0] == places[1]
    assert not any(place % 16 for place in places[0])


def test_what_fits():
    wanted = arrays().extent
    assert wanted == Extent(8, 2, 3, 0, 2)
    assert wanted.holds(wanted)
    for less in ((7, 2, 3, 0, 2), (8, 1, 3, 0, 2), (8, 2, 2, 0, 2), (8, 2, 3, 0, 1)):
        assert not Extent(*less).holds(wanted)
    buffer = StepBuffer(torch.device("cpu"), 120)
    assert buffer.send(arrays(), wanted)
    assert not buffer.send(arrays(), Extent(30, 2, 3, 0, 2))  # no room for the tables


def test_a_larger_step_gets_a_larger_buffer():
    buffer = StepBuffer(torch.device("cpu"), 16)
    for _ in range(2):
        check(buffer.write(arrays()))
