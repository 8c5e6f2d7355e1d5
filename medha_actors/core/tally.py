"""What is told of tenants: figures by name, of a bounded number of names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import msgspec

NAMED = 32  # tenants with figures of their own, beside those that have a weight
OTHERS = "(others)"  # no API key's tenant may be called so
NOBODY = "(none)"  # requests without a tenant, where others have one


class TenantStats(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant's requests now, and its work since the start."""

    tenant: str
    weight: float
    waiting: int  # prefills that are not wholly dispatched
    running: int  # requests past their prefill
    backlog_s: float  # predicted seconds of what waits
    prefill_s: float  # predicted seconds of prefill that went out


class Tally:
    """Work by tenant. The first tenants get names of their own; later ones are told together."""

    def __init__(self, always: Collection[str] = ()) -> None:
        self._always = frozenset(always)
        self._named: set[str] = set()
        self.prefill_s = defaultdict[str, float](float)

    def __bool__(self) -> bool:
        """Whether requests have tenants."""
        return bool(self._named)

    def name(self, tenant: str) -> str:
        """What a tenant's figures are told under."""
        if not tenant:
            return NOBODY
        if tenant in self._named:
            return tenant
        if tenant not in self._always and len(self._named - self._always) >= NAMED:
            return OTHERS
        self._named.add(tenant)
        return tenant

    def served(self, tenant: str, seconds: float) -> None:
        """Prefill of a tenant goes out."""
        self.prefill_s[self.name(tenant)] += seconds
