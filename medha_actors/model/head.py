"""Head: what the sampler asks of the last stage in one step, computed by all ranks together.

Each rank has the head's rows of some tokens. The first rank samples; what it needs of the others it
asks for, and they answer until it is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from medha_actors.model.decoder import Decoder
from medha_actors.model.draw import most_likely
from medha_actors.model.team import Team
from medha_actors.model_shares import Share

_LOGITS: Final = 0
_LIKELIEST: Final = 1
_NOTHING: Final = torch.empty(0, dtype=torch.int32)


class Head:
    """Over the hidden states x [rows, hidden] of one step, the same on every rank."""

    def __init__(
        self, decoder: Decoder, shares: Sequence[Share], team: Team, x: Tensor
    ) -> None:
        """`shares`: of every rank."""
        self._decoder = decoder
        self._tokens = [share.vocabulary for share in shares]
        self._team = team
        self._x = x

    def logits(self, rows: Sequence[int]) -> Tensor:
        """Float32 [rows, vocabulary], for the caller to keep, for some rows of the step (first
        rank)."""
        self._ask(_LOGITS, rows)
        return self._logits(rows)

    def likeliest(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The most likely token of each of some rows and its logit, NaN where one is (first
        rank)."""
        self._ask(_LIKELIEST, rows)
        return self._likeliest(rows)

    def finish(self) -> None:
        """Nothing more is asked in this step (first rank)."""
        if self._team.ranks > 1:
            self._team.gather(_NOTHING)

    def assist(self) -> None:
        """Answer until the first rank is done (the others)."""
        while True:
            asked = self._team.gather(_NOTHING)[0].tolist()
            if not asked:
                return
            what, *rows = asked
            if what == _LOGITS:
                self._logits(rows)
            else:
                self._likeliest(rows)

    def _ask(self, what: int, rows: Sequence[int]) -> None:
        if self._team.ranks > 1:
            self._team.gather(torch.tensor((what, *rows), dtype=torch.int32))

    def _logits(self, rows: Sequence[int]) -> Tensor:
        own = self._own(rows)
        if self._team.ranks == 1:
            return own
        parts = self._team.gather(own)
        return torch.cat([part.view(len(rows), -1) for part in parts], 1).to(own.device)

    def _likeliest(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        own = self._own(rows)
        ids = most_likely(own)
        peaks = own.gather(1, ids[:, None])[:, 0]
        if self._team.ranks == 1:
            return ids, peaks
        first = self._tokens[self._team.rank].first
        numbers = torch.stack(((ids + first).int(), peaks.view(torch.int32)))
        every = torch.stack(self._team.gather(numbers)).view(-1, 2, len(rows))
        every_peak = every[:, 1].view(torch.float32)
        best = most_likely(every_peak.T.contiguous())[
            None
        ]  # of equals the first, as everywhere
        chosen = every[:, 0].long().gather(0, best)[0]
        return chosen.to(own.device), every_peak.gather(0, best)[0].to(own.device)

    def _own(self, rows: Sequence[int]) -> Tensor:
        """This rank's logits, float32 [rows, its tokens]."""
        x = self._x
        if len(rows) < len(x):
            numbers = torch.tensor(rows, pin_memory=x.is_cuda)
            x = x.index_select(0, numbers.to(x.device, non_blocking=True))
        return self._decoder.logits(x)
