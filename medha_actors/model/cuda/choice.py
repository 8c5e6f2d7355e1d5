"""Choice: from logits to tokens, all rows of a step at once, without a word from the host.

What decides is formed from whole numbers: a token's weight is exp(logit - largest), rounded to
multiples of 2**-40. Sums of whole numbers are exact in any order, so a row's token and its
log-probabilities are the same bits whatever is computed beside it, and however a sum is cut up.

Here on torch's operators, for any device; `kernel_choice.py` says the same in a tenth of the
launches and passes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

UNIT: Final = 2.0**40  # the weight of the most likely token; 2**22 of them fit an int64
BROKEN: Final = 1  # a row's logits are no numbers
COLD: Final = 2  # they are none over its temperature
_BLOCK: Final = 256  # tokens summed together before the cumulative sum
_LOW: Final = 2**32 - 1


class Asks(NamedTuple):
    """What each row asks. `numbers`: float64 [5, rows]: the temperature (0: the most likely token),
    the log of min_p, top_k (0: off), top_p (1: off), and the shot in [0, 1)."""

    numbers: Tensor
    drawn: bool  # some row has a temperature
    cut: bool  # some row that is drawn has a top_k or top_p


class Choice:
    """On torch's operators. `compiles`: whether first calls take seconds."""

    compiles = False

    def choose(self, logits: Tensor, asks: Asks) -> Tensor:
        """int32 [2, rows]: the token of each row of logits [rows, vocabulary], and a flag: 0, or
        BROKEN and COLD.

        Drawn is the first token whose cumulative weight exceeds the shot, of those that min_p,
        top_k and top_p let pass in this order. Equal logits pass together.
        """
        peaks, tokens = logits.max(-1)
        flags = (~peaks.isfinite()).int() * BROKEN
        if asks.drawn:
            numbers = asks.numbers
            temperatures = numbers[0].float()
            warm = temperatures > 0
            temperatures = torch.where(warm, temperatures, 1.0)
            over = peaks / temperatures
            floors = (over.double() + numbers[1]).float()
            scaled = logits / temperatures[:, None]
            if asks.cut:
                floors = _floors(scaled, over, floors, numbers[2].long(), numbers[3])
            drawn = _draw(weights_of(scaled, over, floors), numbers[4])
            tokens = torch.where(warm, drawn, tokens)
            flags = flags | (warm & ~over.isfinite()).int() * COLD
        return torch.stack((tokens.int(), flags))

    def penalise(
        self,
        logits: Tensor,
        rows: Tensor,
        counts: Tensor,
        slots: Tensor,
        penalties: Tensor,
    ) -> None:
        """Change some rows of logits [rows, vocabulary] in place. `counts`: see Counts.

        `penalties`: float64 [3, n], those for repetition, presence and frequency.
        """
        x = logits.index_select(0, rows)
        cells = counts.index_select(0, slots)
        repetition, presence, frequency = penalties.float()[:, :, None].unbind(0)
        x = torch.where(
            cells > 0, torch.where(x > 0, x / repetition, x * repetition), x
        )
        output = (cells >> 1).float()
        x = x - frequency * output - presence * (output > 0).float()
        logits.index_copy_(0, rows, x)

    def count(self, table: Tensor, cells: Tensor, prompts: int) -> None:
        """Add to a table of counts, see Counts: cells int64 [n] of the flat table, the first
        `prompts` of them tokens of prompts, the others of outputs; some may be named often."""
        flat = table.view(-1)
        prompt = cells[:prompts]
        output = cells[prompts:]
        flat.scatter_(
            0, prompt, flat.gather(0, prompt) | 1
        )  # the same cell is given the same
        flat.scatter_add_(0, output, torch.full_like(output, 2, dtype=torch.int32))

    def score(self, logits: Tensor, token_ids: Tensor, count: int) -> Tensor:
        """int32 [rows, 1 + 2 * count]: the bits of the given tokens' log-probabilities, the `count`
        most likely tokens (of equals the first), the bits of theirs."""
        peaks = logits.amax(-1)
        least = torch.full_like(peaks, -torch.inf)
        spread = (weights_of(logits, peaks, least).sum(-1).double() / UNIT).log()
        tokens = token_ids[:, None].long()
        if count:
            keys = _keys(logits).topk(count).values
            tokens = torch.cat((tokens, _LOW - (keys & _LOW)), 1)
        offsets = (peaks.double() + spread)[:, None]
        logprobs = (
            (logits.gather(1, tokens).double() - offsets).float().view(torch.int32)
        )
        return torch.cat((logprobs[:, :1], tokens[:, 1:].int(), logprobs[:, 1:]), 1)


def weights_of(scaled: Tensor, peaks: Tensor, floors: Tensor) -> Tensor:
    """int64, like `scaled` [rows, n]: weights of logits over temperature, 0 below `floors`."""
    shares = (scaled - peaks[:, None]).exp()
    passes = (scaled >= floors[:, None]) & (shares <= 1.0)  # what is no number does not
    return torch.where(passes, shares * UNIT + 0.5, 0.0).long()


def _floors(
    scaled: Tensor, peaks: Tensor, floors: Tensor, top_ks: Tensor, top_ps: Tensor
) -> Tensor:
    """The smallest logit over temperature that top_k and then top_p let pass of those that `floors`
    do."""
    best = scaled.sort(-1, descending=True).values
    vocabulary = best.shape[1]
    kth = best.gather(1, (top_ks - 1).clamp(0, vocabulary - 1)[:, None])[:, 0]
    floors = torch.where(top_ks > 0, torch.maximum(kth, floors), floors)
    reached = weights_of(best, peaks, floors).cumsum(-1)
    wanted = (top_ps * reached[:, -1].double()).ceil().long().clamp_min(1)
    last = torch.searchsorted(reached, wanted[:, None]).clamp_max_(vocabulary - 1)
    nucleus = torch.maximum(best.gather(1, last)[:, 0], floors)
    return torch.where(top_ps < 1.0, nucleus, floors)


def _draw(weights: Tensor, shots: Tensor) -> Tensor:
    vocabulary = weights.shape[1]
    missing = -vocabulary % _BLOCK
    padded = F.pad(weights, (0, missing)) if missing else weights
    blocks = padded.view(len(weights), -1, _BLOCK)
    ends = blocks.sum(-1).cumsum(-1)
    totals = ends[:, -1]
    targets = torch.minimum((shots * totals.double()).long(), totals - 1)[:, None]
    hit = torch.searchsorted(ends, targets, right=True).clamp_max_(ends.shape[1] - 1)
    starts = torch.where(hit > 0, ends.gather(1, (hit - 1).clamp_min(0)), 0)
    inside = blocks.gather(1, hit[:, :, None].expand(-1, 1, _BLOCK))[:, 0]
    token = torch.searchsorted(inside.cumsum(-1) + starts, targets, right=True)
    return (hit * _BLOCK + token)[:, 0].clamp_max_(vocabulary - 1)


def _keys(logits: Tensor) -> Tensor:
    """int64: they order by logit and then by token."""
    bits = (logits + 0.0).view(torch.int32)  # of the two zeros the positive one
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    tokens = torch.arange(logits.shape[1], device=logits.device)
    return (ordered.long() << 32) | (_LOW - tokens)
