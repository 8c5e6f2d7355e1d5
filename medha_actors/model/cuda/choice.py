"""Choice: from logits to tokens, all rows of a step at once, without a word from the host.

What decides is formed from whole numbers: a token's weight is exp(logit - largest), rounded to
multiples of 2**-40. Sums of whole numbers are exact in any order, so a row's token and its
log-probabilities are the same bits whatever is computed beside it, and however a sum is cut up.

Here on torch's operators, for any device; `kernel_choice.py` says the same with fewer passes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

UNIT: Final = 2.0**40  # the weight of the most likely token; 2**22 of them fit an int64
_BLOCK: Final = 256  # tokens summed together before the cumulative sum
_LOW: Final = 2**32 - 1


class Drawn(NamedTuple):
    """The rows that are drawn, [n] each."""

    rows: Tensor  # int64: which rows of the logits
    temperatures: Tensor  # float32
    peaks: Tensor  # float32: the largest logit over the temperature
    shots: Tensor  # float64 in [0, 1)


class Filters(NamedTuple):
    """What top_k and top_p ask of some rows of Drawn, [n] each."""

    places: Tensor  # int64: which of Drawn
    top_ks: Tensor  # int64; 0: off
    top_ps: Tensor  # float64; 1: off


class Choice:
    """On torch's operators. `compiles`: whether first calls take seconds."""

    compiles = False

    def penalise(
        self, logits: Tensor, rows: Tensor, counts: Tensor, slots: Tensor, penalties: Tensor
    ) -> None:
        """Change some rows of logits [rows, vocabulary] in place. `counts`: see Counts.

        `penalties`: float32 [3, n], those for repetition, presence and frequency.
        """
        x = logits.index_select(0, rows)
        cells = counts.index_select(0, slots)
        repetition, presence, frequency = penalties[:, :, None].unbind(0)
        moved = torch.where(x > 0, x / repetition, x * repetition)
        x = torch.where((cells > 0) & (repetition != 1.0), moved, x)
        output = (cells >> 1).float()
        x = x - frequency * output - presence * (output > 0).float()
        logits.index_copy_(0, rows, x)

    def floors(self, logits: Tensor, drawn: Drawn, floors: Tensor, filters: Filters) -> Tensor:
        """For the rows of `filters`, the smallest logit over temperature that top_k and then top_p
        let pass of those that `floors` [rows of Drawn] do. Equal logits pass together."""
        places = filters.places
        floor = floors.index_select(0, places)
        peaks = drawn.peaks.index_select(0, places)
        scaled = _scaled(logits, drawn, places).sort(-1, descending=True).values
        vocabulary = scaled.shape[1]
        cut = (filters.top_ks > 0) & (filters.top_ks < vocabulary)
        kth = scaled.gather(1, (filters.top_ks - 1).clamp(0, vocabulary - 1)[:, None])[:, 0]
        floor = torch.where(cut, torch.maximum(kth, floor), floor)
        weights = weights_of(scaled, peaks, floor)
        reached = weights.cumsum(-1)
        wanted = share_of(filters.top_ps, reached[:, -1])
        last = torch.searchsorted(reached, wanted[:, None]).clamp_max_(vocabulary - 1)
        nucleus = scaled.gather(1, last)[:, 0]
        return torch.where(filters.top_ps < 1.0, torch.maximum(nucleus, floor), floor)

    def draw(self, logits: Tensor, drawn: Drawn, floors: Tensor) -> Tensor:
        """int64 [n]: the first token whose cumulative weight exceeds the shot, among the logits
        over temperature that are not below `floors` [n]."""
        weights = weights_of(_scaled(logits, drawn), drawn.peaks, floors)
        missing = -weights.shape[1] % _BLOCK
        padded = F.pad(weights, (0, missing)) if missing else weights
        blocks = padded.view(len(weights), -1, _BLOCK)
        ends = blocks.sum(-1).cumsum(-1)
        targets = target_of(drawn.shots, ends[:, -1])[:, None]
        hit = torch.searchsorted(ends, targets, right=True).clamp_max_(ends.shape[1] - 1)
        starts = torch.where(hit > 0, ends.gather(1, (hit - 1).clamp_min(0)), 0)
        inside = blocks.gather(1, hit[:, :, None].expand(-1, 1, _BLOCK))[:, 0]
        token = torch.searchsorted(inside.cumsum(-1) + starts, targets, right=True)
        return (hit * _BLOCK + token)[:, 0].clamp_max_(weights.shape[1] - 1)

    def spread(self, logits: Tensor, peaks: Tensor) -> Tensor:
        """int64 [rows]: the sum of all weights of each row, whose largest logit is given."""
        return weights_of(logits, peaks, torch.full_like(peaks, -torch.inf)).sum(-1)

    def tops(self, logits: Tensor, count: int) -> Tensor:
        """int64 [rows, count]: the most likely tokens of each row, of equals the first."""
        keys = _keys(logits, torch.arange(logits.shape[1], device=logits.device))
        return tokens_of(keys.topk(count).values)


def target_of(shots: Tensor, totals: Tensor) -> Tensor:
    """int64 [n]: the cumulative weight that must be exceeded, below the total."""
    return torch.minimum((shots * totals.double()).long(), totals - 1)


def share_of(top_ps: Tensor, totals: Tensor) -> Tensor:
    """int64 [n]: the weight that top_p wants."""
    return (top_ps * totals.double()).ceil().long().clamp_min(1)


def tokens_of(keys: Tensor) -> Tensor:
    """The tokens of keys that order by logit and then by token."""
    return _LOW - (keys & _LOW)


def _scaled(logits: Tensor, drawn: Drawn, places: Tensor | None = None) -> Tensor:
    rows, temperatures = drawn.rows, drawn.temperatures
    if places is not None:
        rows, temperatures = rows.index_select(0, places), temperatures.index_select(0, places)
    return logits.index_select(0, rows) / temperatures[:, None]


def weights_of(scaled: Tensor, peaks: Tensor, floors: Tensor) -> Tensor:
    """int64, like `scaled` [rows, n]: weights of logits over temperature, 0 below `floors`."""
    shares = (scaled - peaks[:, None]).exp()
    passes = (scaled >= floors[:, None]) & (shares <= 1.0)  # what is no number does not
    return torch.where(passes, shares * UNIT + 0.5, 0.0).long()


def _keys(logits: Tensor, tokens: Tensor) -> Tensor:
    bits = (logits + 0.0).view(torch.int32)  # of the two zeros the positive one
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 32) | (_LOW - tokens)
