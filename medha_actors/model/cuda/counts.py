"""Counts: how often each request has seen each token, on the device; for penalties.

A cell is twice the count in the output, and one more if the token is in the prompt. A step adds
what is new; after a step back a row is counted anew, so that it always is what the history says.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import torch

from medha_actors.model.guard import require_known
from medha_actors.model.penalties import History

_FIRST: Final = 8  # rows of the first table


class News(NamedTuple):
    """What a row of the table lacks: cells of the flat table, int64."""

    slot: int
    prompt: np.ndarray
    output: np.ndarray


class _Row:
    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.prompt = 0
        self.counted = 0  # positions


class Counts:
    """Rows for the requests that look back."""

    def __init__(self, vocabulary: int, device: torch.device) -> None:
        self.vocabulary = vocabulary
        self.table = torch.zeros(0, vocabulary, dtype=torch.int32, device=device)
        self._rows: dict[str, _Row] = {}
        self._free: list[int] = []
        self._stale: list[int] = []

    def _slot(self, request_id: str) -> int:
        """The request's row in the table; it is given one if it has none."""
        row = self._rows.get(request_id)
        if row is None:
            if not self._free:
                self._grow()
            row = _Row(self._free.pop())
            self._rows[request_id] = row
            self._stale.append(row.slot)
        return row.slot

    def close(self, request_id: str) -> None:
        """Forget a request."""
        row = self._rows.pop(request_id, None)
        if row is not None:
            self._free.append(row.slot)

    def step_back(self, request_id: str, position: int) -> None:
        """Tokens from `position` on are told again."""
        row = self._rows.get(request_id)
        if row is not None and position < row.counted:
            self.close(request_id)

    def news(self, request_id: str, history: History, prompt: int, stop: int) -> News:
        """What to add so that the request's row says positions [0, stop), of which the first
        `prompt` are the prompt. It counts as added. RowError if the model has no such token."""
        row = self._rows.get(request_id)
        if row is not None and (row.counted > stop or row.prompt != prompt):
            self.close(request_id)
        at = self._slot(request_id) * self.vocabulary
        row = self._rows[request_id]
        new = history.tokens[row.counted : stop].numpy().astype(np.int64)
        if len(new):
            require_known("the prompt", int(new.min()), int(new.max()), self.vocabulary)
        border = max(prompt - row.counted, 0)
        row.prompt = prompt
        row.counted = stop
        return News(row.slot, at + new[:border], at + new[border:])

    def take_stale(self) -> list[int]:
        """Rows of the table that are to be cleared before what is new is added."""
        stale, self._stale = self._stale, []
        return stale

    def _grow(self) -> None:
        had = len(self.table)
        grown = self.table.new_zeros(max(_FIRST, 2 * had), self.vocabulary)
        grown[:had] = self.table
        self.table = grown
        self._free = list(range(len(grown) - 1, had - 1, -1))
