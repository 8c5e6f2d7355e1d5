"""What one step of a stage is, the same for every decoder: the rows of each span, what they may see
in this group's part of the KV cache, where their own keys go, and which rows other groups see too.

Built once from the spans of a message and the page tables of their requests. Plain numbers: no
tensors, no device.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medha_actors.messages import Span

_groups_of = attrgetter("groups")


class SpanRows(NamedTuple):
    """The rows of one span, and the keys they may see in this group."""

    first: int  # row in the step
    stop: int
    cached: int  # tokens in this group's piece before the span; all rows see them
    writes: bool  # the span's own keys follow the cached ones, causal among themselves
    pages: NDArray[np.int32]  # page numbers of the piece
    # all that hold a piece, in sequence order; empty: this one alone
    groups: tuple[int, ...]

    @property
    def rows(self) -> int:
        return self.stop - self.first

    @property
    def tokens(self) -> int:
        """Keys that the last row sees."""
        return self.cached + self.rows if self.writes else self.cached


class GroupRows(NamedTuple):
    """Consecutive rows whose keys lie in the same groups."""

    groups: tuple[int, ...]  # empty: this one alone
    rows: slice
    spans: tuple[SpanRows, ...]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """See the module. `slots` are counted over all pages: page * page_tokens + place in the
    page."""

    rows: int
    positions: NDArray[np.int64]  # of each row in its sequence
    slots: NDArray[np.int64]  # of each row's own key; -1: another group stores it
    spans: tuple[SpanRows, ...]
    runs: tuple[GroupRows, ...]  # all rows
    shared: tuple[GroupRows, ...]  # the runs of several groups, merged in every layer
    alone: bool = False  # nothing else computes meanwhile


def plan_step(
    spans: Sequence[Span],
    tables: Mapping[str, array[int]],
    page_tokens: int,
    alone: bool = False,
) -> StepPlan:
    """The plan for a message's spans; `tables`: the page numbers of each request, those for the
    spans' own keys included."""
    count = sum([span.stop - span.start for span in spans])
    positions = np.empty(count, np.int64)
    slots = np.full(count, -1, np.int64)
    planned = []
    first = 0
    for span in spans:
        stop = first + span.stop - span.start
        table = tables[span.request_id]
        pages = np.array(table, np.int32)
        if (
            stop - first == 1
        ):  # most spans: what numpy does for many rows takes longer for one
            positions[first] = span.start
            if span.writes:
                page, place = divmod(span.piece_tokens, page_tokens)
                slots[first] = table[page] * page_tokens + place
        else:
            positions[first:stop] = np.arange(span.start, span.stop)
            if span.writes:
                slots[first:stop] = _slots(
                    pages, span.piece_tokens, stop - first, page_tokens
                )
        groups = span.groups if len(span.groups) > 1 else ()
        planned.append(
            SpanRows(first, stop, span.piece_tokens, span.writes, pages, groups)
        )
        first = stop
    runs = _runs(planned)
    shared = tuple([run for run in runs if run.groups])
    return StepPlan(count, positions, slots, tuple(planned), runs, shared, alone)


def _slots(
    pages: NDArray[np.int32], start: int, count: int, page_tokens: int
) -> NDArray[np.int64]:
    """Slots of the tokens [start, start + count) of a piece."""
    tokens = np.arange(start, start + count)
    return (
        pages[tokens // page_tokens].astype(np.int64) * page_tokens
        + tokens % page_tokens
    )


def _runs(spans: Sequence[SpanRows]) -> tuple[GroupRows, ...]:
    runs = []
    for groups, alike in itertools.groupby(spans, _groups_of):
        members = tuple(alike)
        runs.append(
            GroupRows(groups, slice(members[0].first, members[-1].stop), members)
        )
    return tuple(runs)
