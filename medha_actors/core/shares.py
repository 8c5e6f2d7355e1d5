"""Virtual times: who of several tenants is served next (start-time fair queueing).

Each tenant has a virtual time: the predicted seconds of work that it was given, over its weight.
The one with the smallest goes next, so among those who always have something to do, each gets its
share of all that is done: never more than one batch ahead of it, nor further behind than its share
of (n - 1) batches.

A tenant that asks for less than its share should not have to wait for it bit by bit. So what one
leaves to others is its advance, up to a bound; prefills that its advance pays for go before all
that are not paid for, and cost no virtual time. Who always has something to do leaves nothing.

While nobody waits nothing is counted, and all begin anew: nobody lost anything. A tenant begins
with a part of the most that it may have in advance, and has that part more each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# of the most: what one has in advance that is not known, and what is added whenever nobody waits
FIRST = 0.2
SAVED = 1024  # advances that are remembered then
KEPT = 64  # of tenants with nothing to do, before those are looked for that need not be known


@dataclass(slots=True)
class Account:
    """What one tenant has been given. `advance_s`: of work that it may have before its turn;
    `present`: it has something to do."""

    weight: float
    virtual_s: float
    advance_s: float
    present: bool = False


class Shares:
    """Of one queue. `weights`: by tenant, 1 for those that are not there; `most_advance_s`: the
    most that one may have before its turn; `accounts`: of those who have something to do, and of
    others that were given something of late."""

    def __init__(self, weights: Mapping[str, float], most_advance_s: float) -> None:
        self.most_advance_s = most_advance_s
        self._weights = weights
        self.accounts: dict[str, Account] = {}
        self._present = 0
        self._saved_s: dict[str, float] = {}  # advances of when nobody waited last
        self._floor_s = 0.0  # where the one stood that was served last

    def __len__(self) -> int:
        """Tenants that are known."""
        return len(self.accounts)

    def of(self, tenant: str) -> Account:
        """A tenant's account; of one that has nothing to do, as it would begin."""
        account = self.accounts.get(tenant)
        if account is None:
            weight = self._weights.get(tenant, 1.0)
            advance_s = self._saved_s.get(tenant, 0.0) + FIRST * self.most_advance_s
            return Account(weight, self._floor_s, min(advance_s, self.most_advance_s))
        if account.present or account.virtual_s >= self._floor_s:
            return account
        left_s = (self._floor_s - account.virtual_s) * account.weight
        advance_s = min(self.most_advance_s, account.advance_s + left_s)
        return Account(account.weight, self._floor_s, advance_s)

    def joined(self, tenant: str) -> None:
        """It has something to do again."""
        account = self.accounts[tenant] = self.of(tenant)
        account.present = True
        self._present += 1

    def left(self, tenant: str) -> None:
        """It has nothing to do any more."""
        self.accounts[tenant].present = False
        self._present -= 1
        if not self._present:
            self._rest()
        elif len(self.accounts) > 2 * self._present + KEPT:
            self._forget()

    def pays(self, advance_s: float, work_s: float, load_s: float) -> bool:
        """Whether an advance pays for what is left of a prefill, all of whose work is so much."""
        return load_s <= advance_s and work_s <= self.most_advance_s

    def wants(self, tenant: str, by_s: float) -> bool:
        """Whether it has something to do, or has been given more than others by so much."""
        account = self.of(tenant)
        return (
            account.present
            or (account.virtual_s - self._floor_s) * account.weight > by_s
        )

    def served(self, tenant: str, seconds: float, paid: bool) -> None:
        """Work of a tenant goes that was waiting; `paid`: by its advance."""
        account = self.accounts[tenant]
        if paid:
            account.advance_s -= seconds
            return
        self._floor_s = max(self._floor_s, account.virtual_s)
        account.virtual_s += seconds / account.weight

    def charged(self, tenant: str, seconds: float) -> None:
        """It has been given this besides, while somebody waits."""
        if self._present:
            account = self.accounts[tenant] = self.of(tenant)
            account.virtual_s += seconds / account.weight

    def _rest(self) -> None:
        """Nobody waits: all begin anew, with a little more in advance."""
        if len(self._saved_s) > SAVED:
            self._saved_s.clear()
        for tenant in self.accounts:
            self._saved_s[tenant] = self.of(tenant).advance_s
        self.accounts.clear()
        self._floor_s = 0.0

    def _forget(self) -> None:
        """Those who would begin like anybody."""
        idle = [
            tenant for tenant, account in self.accounts.items() if not account.present
        ]
        for tenant in idle:
            account = self.of(tenant)
            if (
                account.virtual_s <= self._floor_s
                and account.advance_s >= self.most_advance_s
            ):
                del self.accounts[tenant]
