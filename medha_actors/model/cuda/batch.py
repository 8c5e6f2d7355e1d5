"""Batch: what the rows of a step ask, packed for the device, and carried out there.

What no row asks for sends nothing and launches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from medha_actors.messages import Span
from medha_actors.model.constraints import Constraint
from medha_actors.model.cuda.choice import Asks, Choice
from medha_actors.model.cuda.counts import Counts, News
from medha_actors.model.cuda.parcel import Parcel
from medha_actors.model.cuda.requests import Asked, joined
from medha_actors.model.draw import uniforms


class Row(NamedTuple):
    """A row to be drawn from, and what the host knows of it."""

    number: int  # of the step
    span: Span
    asked: Asked
    constraint: Constraint | None
    allowed: np.ndarray | None  # by its grammar, a bit for each token
    news: News | None  # what its penalties have not counted yet


class Batch:
    """Over logits [rows, vocabulary] in the order of `rows`."""

    def __init__(
        self, rows: Sequence[Row], vocabulary: int, counts: Counts, choice: Choice
    ) -> None:
        """Packs and sends."""
        self._rows = rows
        self._vocabulary = vocabulary
        self._counts = counts
        self._choice = choice
        self._device = counts.table.device
        self._parcel = Parcel()
        self._at: dict[str, int] = {}
        self._prompts = 0
        self.scored: list[int] = []
        self._drawn = False
        self._cut = False
        masked: list[int] = []
        ended: list[int] = []
        biased: list[int] = []
        penalised: list[int] = []
        for place, row in enumerate(rows):
            asked = row.asked
            self._drawn = self._drawn or asked.drawn
            self._cut = self._cut or asked.cut
            if asked.plain:
                continue
            if asked.params.logprobs is not None:
                self.scored.append(place)
            if row.allowed is not None:
                masked.append(place)
            if row.span.index < asked.params.min_tokens:
                ended.append(place)
            if len(asked.biased):
                biased.append(place)
            if row.news is not None:
                penalised.append(place)
        if self._drawn:
            self._pack_asks()
        if self.scored:
            self._put("scored", np.array(self.scored, np.int64))
        if masked:
            self._pack_masks(masked)
        if ended:
            self._pack_stops(ended)
        if biased:
            self._pack_biases(biased)
        if penalised:
            self._pack_penalties(penalised)
        self._sent = self._parcel.send(self._device) if self._at else []

    def of_scored(self, values: Tensor) -> Tensor:
        """The rows of `values` whose log-probabilities are asked for, copied."""
        return values.index_select(0, self._get("scored"))

    def mask(self, logits: Tensor) -> None:
        """Make minus infinity what grammars forbid."""
        if "masked" not in self._at:
            return
        rows = self._get("masked")
        bits = torch.arange(8, dtype=torch.uint8, device=logits.device)
        allowed = (self._get("masks")[:, :, None] >> bits) & 1
        forbidden = allowed.view(len(rows), -1)[:, : self._vocabulary] == 0
        held = logits.index_select(0, rows).masked_fill_(forbidden, -torch.inf)
        logits.index_copy_(0, rows, held)

    def adjust(self, logits: Tensor) -> None:
        """Change logits before sampling, as penalties.adjust does."""
        flat = logits.view(-1)
        if "stops" in self._at:
            flat.index_fill_(0, self._get("stops"), -torch.inf)
        if "last stops" in self._at:
            stops = self._get("last stops")
            before = flat.index_select(0, stops)
            flat.index_fill_(0, stops, -torch.inf)
            nothing = (
                logits.amax(-1).index_select(0, stops // self._vocabulary) == -torch.inf
            )
            flat.index_copy_(0, stops, torch.where(nothing, before, -torch.inf))
        if "biased" in self._at:
            flat.index_add_(0, self._get("biased"), self._get("biases").float())
        if "penalised" in self._at:
            table = self._counts.table
            if "stale" in self._at:
                table.index_fill_(0, self._get("stale"), 0)
            if "news" in self._at:
                self._choice.count(table, self._get("news"), self._prompts)
            penalties = self._get("penalties")
            rows = self._get("penalised")
            slots = self._get("slots")
            self._choice.penalise(logits, rows, table, slots, penalties)

    def choose(self, logits: Tensor) -> Tensor:
        """See Choice."""
        if self._drawn:
            numbers = self._get("asks")
        else:
            numbers = torch.empty(0, dtype=torch.float64, device=self._device)
        return self._choice.choose(logits, Asks(numbers, self._drawn, self._cut))

    def _pack_asks(self) -> None:
        numbers = np.empty((5, len(self._rows)))
        numbers[:4] = np.array([row.asked.numbers for row in self._rows]).T
        seeds = [row.asked.params.seed for row in self._rows]
        numbers[4] = uniforms(seeds, [row.span.index for row in self._rows])
        self._put("asks", numbers)

    def _pack_masks(self, places: list[int]) -> None:
        masks = np.zeros((len(places), -(-self._vocabulary // 8)), np.uint8)
        for mask, place in zip(masks, places, strict=True):
            allowed = self._rows[place].allowed
            assert allowed is not None
            known = allowed[: len(mask)]
            mask[: len(known)] = known
        self._put("masked", np.array(places, np.int64))
        self._put("masks", masks)

    def _pack_stops(self, places: list[int]) -> None:
        """Those of rows with a grammar apart, for that may let nothing else follow."""
        stops: list[np.ndarray] = []
        last: list[np.ndarray] = []
        for place in places:
            asked = self._rows[place].asked
            cells = place * self._vocabulary + asked.stops
            (stops if asked.params.grammar is None else last).append(cells)
        self._put("stops", joined(stops))
        self._put("last stops", joined(last))

    def _pack_biases(self, places: list[int]) -> None:
        cells = [
            place * self._vocabulary + self._rows[place].asked.biased
            for place in places
        ]
        self._put("biased", joined(cells))
        self._put(
            "biases",
            np.concatenate([self._rows[place].asked.biases for place in places]),
        )

    def _pack_penalties(self, places: list[int]) -> None:
        slots = []
        prompts = []
        outputs: list[int] = []
        penalties = []
        for place in places:
            row = self._rows[place]
            assert row.news is not None
            slots.append(row.news.slot)
            prompts.append(row.news.prompt)
            outputs += row.news.output
            penalties.append(row.asked.penalties)
        self._put("penalised", np.array(places, np.int64))
        self._put("slots", np.array(slots, np.int64))
        self._put("penalties", np.array(penalties, np.float64).T.copy())
        seen = joined([*prompts, np.array(outputs, np.int64)])
        self._prompts = len(seen) - len(outputs)
        self._put("news", seen)
        self._put("stale", np.array(self._counts.take_stale(), np.int64))

    def _put(self, name: str, array: np.ndarray) -> None:
        if array.size:
            self._at[name] = self._parcel.add(array)

    def _get(self, name: str) -> Tensor:
        return self._sent[self._at[name]]
