"""Who is dispatched, on which instances, in which teams: the rounds of LoongServe's global
manager.

Its rules weigh seconds per token: what those gain who wait, by the tokens of their prompts, against
what those lose who decode, by the tokens of their answers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice

import msgspec

from loadgen.records import PlannedRequest
from loadgen.twin.elastic.cost import Costs
from loadgen.twin.elastic.division import Part, divide
from loadgen.twin.elastic.fleet import Answer, Fleet, Placement, Team, place

# of those who wait, a round looks at no more
_LOOKED_AT = 32


class Prefill(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that a team prefills together, from `starts_at` to `ends_at`."""

    requests: list[PlannedRequest]
    team: list[int]
    placements: list[Placement]
    starts_at: float
    ends_at: float


class Running(msgspec.Struct, frozen=True):
    """A prefill on its way, and its requests."""

    prefill: Prefill
    answers: list[Answer]


class Dispatcher:
    """One round after the other. `patient`: see ElasticDeployment."""

    def __init__(self, costs: Costs, fleet: Fleet, patient: bool) -> None:
        self._costs = costs
        self._fleet = fleet
        self._patient = patient
        # KV that was moved: from an instance, to another, from an instant, to another
        self.moves: list[tuple[int, int, float, float]] = []
        # that ended, and what they took from the first token to the last
        self._answers = 0
        self._answers_s = 0.0

    def learn(self, decoded_s: float) -> None:
        """An answer took so long from its first token to its last."""
        self._answers += 1
        self._answers_s += decoded_s

    def round(
        self,
        waiting: Collection[PlannedRequest],
        running: Collection[Running],
        now: float,
    ) -> list[Prefill]:
        """Prefills to begin with the first of those who wait; none: everybody waits on. May move
        KV of decodes."""
        idle = self._fleet.idle()
        chosen = self._prefix(waiting, idle)
        if chosen:
            if self._patient and self._better_later(chosen[0], idle, running, now):
                return []
            return self._divide(chosen, self._gather(chosen, idle, now), now)
        for team in self._fleet.interruptible():
            instances = sorted([*idle, *team.instances])
            chosen = self._prefix(waiting, instances)
            if chosen and self._worth_interrupting(chosen, instances, team, now):
                prefill = self._prefill(chosen, instances, now, team.instances)
                return [] if prefill is None else [prefill]
        return []

    def _prefix(
        self, waiting: Collection[PlannedRequest], instances: Sequence[int]
    ) -> list[PlannedRequest]:
        """The first ones, as many as fit and do not make each other slower; whoever is first may be
        of any length."""
        chosen: list[PlannedRequest] = []
        room = self._fleet.room(instances)
        tokens = 0
        for request in islice(waiting, _LOOKED_AT):
            tokens += request.prompt_tokens
            crowded = chosen and tokens > self._costs.saturating_rows * len(instances)
            if crowded or place([*chosen, request], room) is None:
                break
            chosen.append(request)
        return chosen

    def _better_later(
        self,
        first: PlannedRequest,
        idle: Sequence[int],
        running: Collection[Running],
        now: float,
    ) -> bool:
        """Whether it would have its first token sooner if it waited for prefills to end."""
        lengths = (first.prompt_tokens,)
        done_now = now + self._costs.prefill_s(lengths, idle)
        team = list(idle)
        for one in sorted(running, key=lambda one: one.prefill.ends_at):
            team = sorted({*team, *one.prefill.team})
            if one.prefill.ends_at + self._costs.prefill_s(lengths, team) < done_now:
                return True
        return False

    def _worth_interrupting(
        self,
        chosen: Sequence[PlannedRequest],
        instances: Sequence[int],
        team: Team,
        now: float,
    ) -> bool:
        """Those who wait gain the time until the decode would end, as far as can be told; those who
        decode lose that of the prefill."""
        youngest_s = min([now - answer.token_times[0] for answer in team.answers])
        usual_s = self._answers_s / self._answers if self._answers else 0.0
        gain = (usual_s - youngest_s) * _per_prompt_token(chosen)
        lost_s = self._costs.prefill_s(_lengths(chosen), instances)
        return gain > lost_s * _per_answer_token(team.answers)

    def _gather(
        self, chosen: Sequence[PlannedRequest], idle: Sequence[int], now: float
    ) -> list[int]:
        """The idle instances, and those whose decodes go elsewhere because that pays, the emptiest
        first."""
        fleet = self._fleet
        team = sorted(idle)
        while True:
            decoding = fleet.decoding()
            if len(decoding) < 2:
                return team
            source = decoding[0]
            target = decoding[1]
            seconds = self._move_s(chosen, team, source, target)
            if seconds is None:
                return team
            done_at = max(now, fleet.free_at[source], fleet.free_at[target]) + seconds
            fleet.move(source, target)
            fleet.free_at[source] = fleet.free_at[target] = done_at
            self.moves.append((source, target, done_at - seconds, done_at))
            team = sorted([*team, source])

    def _move_s(
        self,
        chosen: Sequence[PlannedRequest],
        team: Sequence[int],
        source: int,
        target: int,
    ) -> float | None:
        """Seconds to move all KV of an instance to another, so that it can help a team; None: it
        does not fit, or those who wait gain less than those lose who decode there."""
        fleet = self._fleet
        if fleet.reserved[source] + fleet.reserved[target] > fleet.slots:
            return None
        answers = fleet.answers_on(source)
        tokens = sum([answer.pieces[source] for answer in answers])
        move_s = self._costs.move_s(tokens, source, target)
        lengths = _lengths(chosen)
        saved_s = self._costs.prefill_s(lengths, team)
        saved_s -= self._costs.prefill_s(lengths, sorted([*team, source]))
        pays = saved_s * _per_prompt_token(chosen) > move_s * _per_answer_token(answers)
        return move_s if pays else None

    def _divide(
        self, chosen: Sequence[PlannedRequest], team: Sequence[int], now: float
    ) -> list[Prefill]:
        """Requests of similar lengths share a prefill, so that the sum of everybody's seconds per
        prompt token is least."""
        requests = sorted(chosen, key=lambda request: request.prompt_tokens)
        needs = [request.prompt_tokens + request.output_tokens for request in requests]
        rooms = [self._fleet.room((instance,))[instance] for instance in team]

        def cost(part: Part) -> float:
            if sum(needs[part.first : part.stop]) > sum(rooms[part.begin : part.end]):
                return float("inf")
            those = requests[part.first : part.stop]
            seconds = self._costs.prefill_s(
                _lengths(those), team[part.begin : part.end]
            )
            return seconds * _per_prompt_token(those)

        prefills: list[Prefill] = []
        for part in divide(len(requests), len(team), cost):
            those = requests[part.first : part.stop]
            prefill = self._prefill(those, team[part.begin : part.end], now)
            if prefill is None:  # enough room, but no instance has enough for an answer
                prefills.clear()
                break
            prefills.append(prefill)
        whole = None if prefills else self._prefill(requests, team, now)
        return prefills if whole is None else [whole]

    def _prefill(
        self,
        requests: list[PlannedRequest],
        team: Sequence[int],
        now: float,
        preferred: Collection[int] = (),
    ) -> Prefill | None:
        """As soon as all of the team have done what they were given; None: no room."""
        placements = place(requests, self._fleet.room(team), preferred)
        if placements is None:
            return None
        starts_at = max(now, *[self._fleet.free_at[instance] for instance in team])
        return Prefill(
            requests=requests,
            team=list(team),
            placements=placements,
            starts_at=starts_at,
            ends_at=starts_at + self._costs.prefill_s(_lengths(requests), team),
        )


def _lengths(requests: Sequence[PlannedRequest]) -> list[int]:
    return [request.prompt_tokens for request in requests]


def _per_prompt_token(requests: Sequence[PlannedRequest]) -> float:
    """What a second is worth to all of them."""
    return sum([1 / request.prompt_tokens for request in requests])


def _per_answer_token(answers: Sequence[Answer]) -> float:
    """What a second is worth to all of them."""
    return sum([1 / answer.planned.output_tokens for answer in answers])
