"""Batch: what the rows of a step ask, packed for the device, and carried out there.

Parts that no row asks for send nothing and queue nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from medha_actors.messages import Span
from medha_actors.model.constraints import Constraint
from medha_actors.model.cuda.answers import BROKEN, COLD
from medha_actors.model.cuda.choice import Choice, Drawn, Filters
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
    slot: int  # of its counts


class Batch:
    """Over logits [rows, vocabulary] in the order of `rows`."""

    def __init__(self, rows: Sequence[Row], vocabulary: int, device: torch.device) -> None:
        """Packs and sends."""
        self._vocabulary = vocabulary
        self._parcel = Parcel()
        self._rows = rows
        self.scored = [i for i, row in enumerate(rows) if row.asked.params.logprobs is not None]
        self._at: dict[str, int] = {}
        self._put("scored", np.array(self.scored, np.int64))
        self._pack_masks()
        self._pack_stops()
        self._pack_biases()
        self._pack_penalties()
        self._pack_drawn()
        self._sent = self._parcel.send(device) if self._at else []

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

    def adjust(self, logits: Tensor, counts: Counts, choice: Choice) -> None:
        """Change logits before sampling, as penalties.adjust does."""
        flat = logits.view(-1)
        if "stops" in self._at:
            flat.index_fill_(0, self._get("stops"), -torch.inf)
        if "last stops" in self._at:
            stops = self._get("last stops")
            before = flat.index_select(0, stops)
            flat.index_fill_(0, stops, -torch.inf)
            nothing = logits.amax(-1).index_select(0, stops // self._vocabulary) == -torch.inf
            flat.index_copy_(0, stops, torch.where(nothing, before, -torch.inf))
        if "biased" in self._at:
            flat.index_add_(0, self._get("biased"), self._get("biases").float())
        if "penalised" in self._at:
            for name, add in (
                ("seen in prompt", counts.add_prompt),
                ("seen in output", counts.add_output),
            ):
                if name in self._at:
                    add(self._get(name))
            rows, slots = self._get("penalised"), self._get("slots")
            choice.penalise(logits, rows, counts.table, slots, self._get("penalties").float())

    def choose(self, logits: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
        """The rows' tokens, int64, and flags, int32: BROKEN, COLD."""
        peaks, chosen = logits.max(-1)
        flags = (~peaks.isfinite()).int() * BROKEN
        if "drawn" in self._at:
            rows = self._get("drawn")
            numbers = self._get("draws")
            temperatures = numbers[0].float()
            over = peaks.index_select(0, rows) / temperatures
            drawn = Drawn(rows, temperatures, over, numbers[1])
            floors = (over.double() + numbers[2]).float()
            if "cut" in self._at:
                cuts = self._get("cuts")
                filters = Filters(self._get("cut"), cuts[0].long(), cuts[1])
                found = choice.floors(logits, drawn, floors, filters)
                floors.index_copy_(0, filters.places, found)
            chosen.index_copy_(0, rows, choice.draw(logits, drawn, floors))
            flags.index_add_(0, rows, (~over.isfinite()).int() * COLD)
        return chosen, flags

    def _pack_masks(self) -> None:
        masked = []
        masks = []
        width = -(-self._vocabulary // 8)
        for place, row in enumerate(self._rows):
            if row.allowed is not None:
                masked.append(place)
                mask = np.zeros(width, np.uint8)
                known = row.allowed[:width]
                mask[: len(known)] = known
                masks.append(mask)
        if masks:
            self._put("masked", np.array(masked, np.int64))
            self._put("masks", np.stack(masks))

    def _pack_stops(self) -> None:
        """Those of rows with a grammar apart, for that may let nothing else follow."""
        stops: list[np.ndarray] = []
        last: list[np.ndarray] = []
        for place, row in enumerate(self._rows):
            if row.span.index < row.asked.params.min_tokens:
                cells = place * self._vocabulary + row.asked.stops
                (stops if row.asked.params.grammar is None else last).append(cells)
        self._put("stops", joined(stops))
        self._put("last stops", joined(last))

    def _pack_biases(self) -> None:
        biased = []
        biases = []
        for place, row in enumerate(self._rows):
            if len(row.asked.biased):
                biased.append(place * self._vocabulary + row.asked.biased)
                biases.append(row.asked.biases)
        if biased:
            self._put("biased", joined(biased))
            self._put("biases", np.concatenate(biases))

    def _pack_penalties(self) -> None:
        penalised = []
        for place, row in enumerate(self._rows):
            if row.news is not None:
                penalised.append((place, row.slot, row.news, row.asked.penalties))
        if penalised:
            places, slots, news, penalties = zip(*penalised, strict=True)
            self._put("penalised", np.array(places, np.int64))
            self._put("slots", np.array(slots, np.int64))
            self._put("penalties", np.array(penalties, np.float64).T.copy())
            self._put("seen in prompt", joined([new.prompt for new in news]))
            self._put("seen in output", joined([new.output for new in news]))

    def _pack_drawn(self) -> None:
        drawn: list[int] = []
        seeds = []
        indices = []
        filters = []
        cut = []
        for place, row in enumerate(self._rows):
            if row.asked.drawn:
                if row.asked.cut:
                    cut.append(len(drawn))
                drawn.append(place)
                seeds.append(row.asked.params.seed)
                indices.append(row.span.index)
                filters.append(row.asked.filters)
        if not drawn:
            return
        temperatures, log_min_ps, top_ks, top_ps = np.array(filters, np.float64).T
        self._put("drawn", np.array(drawn, np.int64))
        self._put("draws", np.stack((temperatures, uniforms(seeds, indices), log_min_ps)))
        if cut:
            self._put("cut", np.array(cut, np.int64))
            self._put("cuts", np.stack((top_ks[cut], top_ps[cut])))

    def _put(self, name: str, array: np.ndarray) -> None:
        if array.size:
            self._at[name] = self._parcel.add(array)

    def _get(self, name: str) -> Tensor:
        return self._sent[self._at[name]]
