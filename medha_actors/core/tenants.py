"""The prefills of all tenants: virtual time picks the tenant (core/shares.py), the policy orders
those of each (core/policies.py), `priority` included. First come those that an advance pays for.

With one tenant it is that tenant's queue, in the same order at the same cost.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from medha_actors.core.orders import ORDERS, Tuning
from medha_actors.core.pace import Newcomer
from medha_actors.core.policies import PrefillQueue
from medha_actors.core.request import RequestState
from medha_actors.core.rivals import Rival, Rivals
from medha_actors.core.shares import Account, Shares
from medha_actors.core.standing import Standing
from medha_actors.core.tally import Tally
from medha_actors.quantities import Policy
from medha_actors.tuning import FairnessConfig, OrderConfig

Key = tuple[int, float, float, bool, float, int]
KEPT_FREE = 8  # one of so many places is kept free for what an advance pays for
COMPARED = 32  # tenants whose first prefills are compared, where they are paid for
LOOKED_AT = 64  # tenants, by a forecast; others are taken to be like them
# kinds of turns: what has begun and runs to its end, what an advance pays for, what
# else is within a batch of who is furthest behind, the rest
BEGUN, PAID, UNPAID, BEYOND = range(4)


class TenantQueues:
    """All requests whose prefill is not wholly dispatched. `shares`: who has been given what;
    `started`: those that hold KV already, by serial; `tally`: what is told of tenants;
    `quantum_s`: of a batch."""

    def __init__(
        self,
        policy: Policy,
        given: OrderConfig,
        fairness: FairnessConfig,
        quantum_s: float,
    ) -> None:
        """`quantum_s`: what a batch gives one prefill at most."""
        self.order = ORDERS[policy]
        self.shares = Shares(fairness.weights, fairness.most_advance_s)
        self.started: dict[int, RequestState] = {}
        self.tally = Tally(fairness.weights)
        self._policy = policy
        self._tuning = Tuning(given)
        self.quantum_s = quantum_s
        self._queues: dict[str, PrefillQueue] = {}  # in which somebody is
        self._count = 0
        # as they are until something changes: they are asked for twice for a batch
        self._known_turns: list[tuple[int, float, int, str]] | None = None
        self._empty = PrefillQueue(policy, tuning=self._tuning)

    def __len__(self) -> int:
        return self._count

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return self._count - len(self.started)

    @property
    def tenants(self) -> int:
        """How many have prefills here."""
        return len(self._queues)

    @property
    def names(self) -> list[str]:
        """Of those that have prefills here."""
        return list(self._queues)

    def of(self, tenant: str) -> PrefillQueue:
        """A tenant's own; to look at."""
        return self._queues.get(tenant, self._empty)

    def put(self, state: RequestState) -> None:
        """Enter a request, or move it to where its counts say it belongs now."""
        self._known_turns = None
        queue = self._queues.get(state.tenant)
        if queue is None:
            queue = PrefillQueue(self._policy, tuning=self._tuning)
            self._queues[state.tenant] = queue
            self.shares.joined(state.tenant)
        before = len(queue)
        queue.put(state)
        self._count += len(queue) - before
        if state.pieces:
            self.started[state.serial] = state
        else:
            self.started.pop(state.serial, None)

    def remove(self, state: RequestState) -> None:
        """Take a request out; nothing happens if it is not here."""
        self._known_turns = None
        queue = self._queues.get(state.tenant)
        if queue is None:
            return
        before = len(queue)
        queue.remove(state)
        self._count += len(queue) - before
        self.started.pop(state.serial, None)
        if not queue:
            del self._queues[state.tenant]
            self.shares.left(state.tenant)
        if not self._queues:
            self._tuning.backlog_s = 0.0  # no rounding adds up

    def ordered(
        self, now: float, more: Callable[[], bool] = lambda: True
    ) -> Iterator[RequestState]:
        """Requests in the order in which they are served at `now`; the queues must not change
        meanwhile. `more`: whether those are wanted, too, whose tenants would get more than a batch
        ahead of others."""
        if len(self._queues) == 1:
            [queue] = self._queues.values()
            return queue.ordered(now)
        return self._by_share(now, more)

    def _by_share(self, now: float, more: Callable[[], bool]) -> Iterator[RequestState]:
        """As if each were given a chunk in turn. First comes what has begun, under an order that
        runs prefills to their end; then what is paid for, the shortest first."""
        turns = self._turns()
        lines: dict[str, _Line] = {}
        least_s = math.inf  # the virtual time of who is furthest behind
        paid = False
        while turns:
            kind, rank, number, tenant = turns[0]
            line = lines.get(tenant)
            if line is None:
                line = _Line(self._queues[tenant].ordered(now), self.shares.of(tenant))
                lines[tenant] = line
            state = line.first
            if state is None:
                heapq.heappop(turns)
                continue
            load_s = min(state.load_s, self.quantum_s) / line.weight
            actual = self._kind(state, line.advance_s)
            place = state.load_s if actual == PAID else line.virtual_s
            if actual == UNPAID and kind >= UNPAID:
                least_s = min(least_s, line.virtual_s)
                if (
                    paid
                    or line.virtual_s + load_s > least_s + self.quantum_s / line.weight
                ):
                    actual = BEYOND
            if (actual, place) > (
                kind,
                rank,
            ):  # its turn was taken to be an earlier one
                heapq.heapreplace(turns, (actual, place, number, tenant))
                continue
            if kind == BEYOND and not more():
                return
            yield state
            if actual == PAID:
                paid = True
                line.advance_s -= load_s * line.weight
            else:
                line.virtual_s += load_s
            line.first = next(line.rest, None)
            heapq.heapreplace(turns, (BEGUN, -math.inf, number, tenant))

    def _turns(self) -> list[tuple[int, float, int, str]]:
        """Of each tenant: the best turn that its first prefill may have, as a kind and a rank among
        these, its place among those who came, its name; a heap."""
        if self._known_turns is not None:
            return list(self._known_turns)
        accounts = self.shares.accounts
        preemptive = self.order.preemptive
        turns = []
        for number, (tenant, queue) in enumerate(self._queues.items()):
            account = accounts[tenant]
            if not preemptive and queue.started:
                turns.append((BEGUN, -math.inf, number, tenant))
            elif account.advance_s > 0:
                turns.append(
                    (PAID, 0.0 if number < COMPARED else math.inf, number, tenant)
                )
            else:
                turns.append((UNPAID, account.virtual_s, number, tenant))
        heapq.heapify(turns)
        self._known_turns = list(turns)
        return turns

    def _kind(self, state: RequestState, advance_s: float) -> int:
        if state.pieces and not self.order.preemptive:
            return BEGUN
        paid = self.shares.pays(advance_s, state.total_work_s, state.load_s)
        return PAID if paid else UNPAID

    def pays(self, state: RequestState) -> bool:
        """Whether its tenant's advance pays for the rest of a prefill."""
        advance_s = self.shares.of(state.tenant).advance_s
        return self.shares.pays(advance_s, state.total_work_s, state.load_s)

    def hurries(self, state: RequestState) -> bool:
        """Whether one that is not here yet would be paid for beside what waits of its tenant."""
        if len(self.shares) < 2:
            return False
        advance_s = self.shares.of(state.tenant).advance_s
        own_s = self.payable_s(state.tenant, advance_s)
        return self.shares.pays(advance_s, state.total_work_s, state.load_s + own_s)

    def payable_s(self, tenant: str, most_s: float) -> float:
        """Loads of a tenant's prefills that are not above `most_s`, but for what is left of such as
        no advance pays for."""
        payable_s = sum(
            [load_s for load_s in self.of(tenant).loads_s() if load_s <= most_s]
        )
        for state in self.started.values():
            long = state.total_work_s > self.shares.most_advance_s
            if long and state.tenant == tenant and state.load_s <= most_s:
                payable_s -= state.load_s
        return max(0.0, payable_s)

    def yields(self, state: RequestState) -> bool:
        """Whether it leaves places free for others than its own tenant."""
        return len(self.shares) > 1 and not self.pays(state)

    def served(self, state: RequestState, seconds: float) -> None:
        """So much of a prefill that is here goes out."""
        self._known_turns = None
        self.shares.served(state.tenant, seconds, self.pays(state))
        self.tally.served(state.request.tenant, seconds)

    def charged(self, tenant: str, seconds: float) -> None:
        """It has been given this besides."""
        self._known_turns = None
        self.shares.charged(tenant, seconds)

    def hurried(self, now: float) -> RequestState | None:
        """The prefill that goes first, if it is paid for and others have to make way for it."""
        if len(self.shares) < 2:
            return None
        first = next(self.ordered(now), None)
        return first if first is not None and self.pays(first) else None

    def key(self, state: RequestState, now: float) -> Key:
        """The sort key of one request at `now`, by which those that have begun are compared."""
        inner = self.of(state.tenant).key(state, now)
        if len(self._queues) == 1:
            return UNPAID, 0.0, *inner
        account = self.shares.of(state.tenant)
        kind = self._kind(state, account.advance_s)
        return kind, state.load_s if kind == PAID else account.virtual_s, *inner

    @property
    def moves(self) -> int:
        """How often what is learned has moved the places of all."""
        return self._tuning.moves

    def offset(self, state: RequestState) -> tuple[float, float]:
        """How far a request's place among its tenant's lies behind its arrival, and the width of
        its lane."""
        return self._empty.offset(state)

    def standing(self, state: RequestState, last_s: float, yields_s: float) -> Standing:
        """Who of its own tenant stands before a request that is not here (core/policies.py)."""
        return self.of(state.tenant).standing(state, last_s, yields_s)

    def rivals(self, state: RequestState, newcomers: Sequence[Newcomer]) -> Rivals:
        """The other tenants, who have prefills here or are expected to, as one sees them that is
        not here yet."""
        coming: dict[str, list[Newcomer]] = {}
        for newcomer in newcomers:
            coming.setdefault(newcomer.tenant, []).append(newcomer)
        mine = self.shares.of(state.tenant)
        paid = self.hurries(state)
        if len(self.shares) < 2 and coming.keys() <= {state.tenant}:
            return Rivals(mine.weight, mine.advance_s, True, ())
        others = [name for name in {**coming, **self._queues} if name != state.tenant]
        found = []
        shorter_s = (
            state.load_s if paid else math.inf
        )  # what is paid for goes by its length
        for other in others[:LOOKED_AT]:
            account = self.shares.of(other)
            loads_s = self.of(other).loads_s()
            rival = Rival(
                weight=account.weight,
                lead_s=account.virtual_s - mine.virtual_s,
                advance_s=account.advance_s,
                load_s=sum(loads_s),
                payable_s=self.payable_s(other, min(account.advance_s, shorter_s)),
                prefills=len(loads_s),
                coming=coming.get(other, ()),
            )
            found.append(rival)
        unseen = len(others) / LOOKED_AT if len(others) > LOOKED_AT else 1.0
        return Rivals(mine.weight, mine.advance_s, paid, found, unseen)

    def beside_s(self, tenant: str, most: int) -> list[float]:
        """Loads of the first prefills of other tenants."""
        loads_s = list[float]()
        for other, queue in itertools.islice(self._queues.items(), most):
            if other != tenant:
                loads_s += queue.loads_s(most)
        return loads_s

    def work_s(self) -> float:
        """Remaining prefill work of all."""
        return max(0.0, self._tuning.backlog_s)


class _Line:
    """A tenant's prefills in its order, the first of them, and its account as it would be if all
    before that had been served."""

    __slots__ = ("advance_s", "first", "rest", "virtual_s", "weight")

    def __init__(self, rest: Iterator[RequestState], account: Account) -> None:
        self.rest = rest
        self.first = next(rest, None)
        self.advance_s = account.advance_s
        self.virtual_s = account.virtual_s
        self.weight = account.weight
