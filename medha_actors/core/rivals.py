"""The other tenants, as the forecast of one request sees them: each is served until it has had its
share of what the asker's tenant gets meanwhile, as far as it has anything to do, and what it has in
advance."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from medha_actors.core.pace import Newcomer

MOST = 12  # looked at one by one; the others as one
RARE = 0.2  # one newcomer of so much of the wait is a matter of luck


class Rival(NamedTuple):
    """A tenant. `lead_s`: its virtual time less the asker's; `advance_s`: what it may have before
    its turn (core/shares.py); `load_s`: of its prefills that wait, `payable_s`: of those of them
    that its advance could pay for before the asker's; `coming`: those that are expected."""

    weight: float
    lead_s: float
    advance_s: float
    load_s: float
    payable_s: float
    prefills: int
    coming: Sequence[Newcomer] = ()

    def given_s(self, virtual_s: float, wait_s: float, paid: bool) -> float:
        """What of it goes before the asker's virtual time has moved on by so much, within a wait;
        `paid`: the asker goes before all that is not paid for."""
        there_s = self.load_s
        payable_s = self.payable_s
        for newcomer in self.coming:
            coming_s = expected_count(newcomer, wait_s, wait_s) * newcomer.load_s
            there_s += coming_s
            if newcomer.load_s <= self.advance_s:
                payable_s += coming_s
        before_s = min(self.advance_s, payable_s)
        if paid:
            return before_s
        return min(
            there_s, before_s + max(0.0, self.weight * (virtual_s - self.lead_s))
        )


class Rivals:
    """All of them. `weight`, `advance_s`: of the asker's tenant; `paid`: its advance pays for what
    it asks; `unseen`: for each of them there are so many."""

    def __init__(
        self,
        weight: float,
        advance_s: float,
        paid: bool,
        rivals: Sequence[Rival],
        unseen: float = 1.0,
    ) -> None:
        self._weight = weight
        self._advance_s = advance_s
        self._paid = paid
        self._unseen = unseen
        self._rivals = rivals if len(rivals) <= MOST else _merged(rivals)

    def given_s(self, own_s: float, wait_s: float) -> float:
        """What all of them are given while the asker's tenant gets `own_s`."""
        if not self._rivals:
            return 0.0
        return self._unseen * sum(self._given_s(own_s, wait_s))

    def count(self, own_s: float, wait_s: float) -> int:
        """How many of their prefills that is, of those that are here."""
        found = 0.0
        given = self._given_s(own_s, wait_s)
        for rival, given_s in zip(self._rivals, given, strict=True):
            if rival.load_s > 0:
                found += min(1.0, given_s / rival.load_s) * rival.prefills
        return int(self._unseen * found)

    def _given_s(self, own_s: float, wait_s: float) -> list[float]:
        paid = self._paid and own_s <= self._advance_s
        virtual_s = own_s / self._weight
        return [rival.given_s(virtual_s, wait_s, paid) for rival in self._rivals]


def expected_count(newcomer: Newcomer, span_s: float, wait_s: float) -> float:
    """How many of a kind come in a span of a wait: of rare ones a median, not a mean, since most
    often nobody comes."""
    count = newcomer.per_s * span_s
    return max(0.0, count - 0.5) if newcomer.load_s > RARE * wait_s else count


def _merged(rivals: Sequence[Rival]) -> list[Rival]:
    """Those with the most to do, and all others as one."""
    numbers = range(len(rivals))
    largest = heapq.nlargest(
        MOST - 1, numbers, key=lambda number: rivals[number].load_s
    )
    kept = set(largest)
    rest = [rivals[number] for number in numbers if number not in kept]
    weight = sum([rival.weight for rival in rest])
    coming = list[Newcomer]()
    for rival in rest:
        coming += rival.coming
    one = Rival(
        weight=weight,
        lead_s=sum([rival.weight * rival.lead_s for rival in rest]) / weight,
        advance_s=sum([rival.advance_s for rival in rest]),
        load_s=sum([rival.load_s for rival in rest]),
        payable_s=sum([rival.payable_s for rival in rest]),
        prefills=sum([rival.prefills for rival in rest]),
        coming=coming,
    )
    return [*(rivals[number] for number in largest), one]
