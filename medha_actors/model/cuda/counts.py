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
_NOTHING: Final = np.empty(0, np.int64)


class News(NamedTuple):
    """What a row of the table lacks: cells of the flat table, int64."""

    slot: int
    prompt: np.ndarray
    output: list[int]


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
            row = None
        if row is None:
            row = self._open(request_id)
            row.prompt = prompt
        at = row.slot * self.vocabulary
        counted = row.counted
        row.counted = stop
        if prompt <= counted == stop - 1:  # as in every decode
            token_id = int(history.tokens[counted])
            require_known("the prompt", token_id, token_id, self.vocabulary)
            return News(row.slot, _NOTHING, [at + token_id])
        new = history.tokens[counted:stop].astype(np.int64)
        if len(new):
            require_known("the prompt", int(new.min()), int(new.max()), self.vocabulary)
        border = max(prompt - counted, 0)
        new += at
        return News(row.slot, new[:border], new[border:].tolist())

    def take_stale(self) -> list[int]:
        """Rows of the table that are to be cleared before what is new is added."""
        stale = self._stale
        self._stale = []
        return stale

    def _open(self, request_id: str) -> _Row:
        if not self._free:
            self._grow()
        row = _Row(self._free.pop())
        self._rows[request_id] = row
        self._stale.append(row.slot)
        return row

    def _grow(self) -> None:
        had = len(self.table)
        grown = self.table.new_zeros(max(_FIRST, 2 * had), self.vocabulary)
        grown[:had] = self.table
        self.table = grown
        self._free = list(range(len(grown) - 1, had - 1, -1))
