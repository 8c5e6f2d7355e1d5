"""Who is where: the instances, what KV they hold, and the teams that decode."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from loadgen.records import PlannedRequest
from loadgen.twin.elastic.cost import Share


class Placement(NamedTuple):
    """Where a prompt's KV goes, in tokens by instance; the master also has the answer's."""

    master: int
    pieces: dict[int, int]


@dataclass(slots=True, eq=False)
class Answer:
    """One in the making, from the dispatch of its request on."""

    planned: PlannedRequest
    master: int
    pieces: dict[int, int]  # tokens of KV by instance, the prompt's from the beginning
    token_times: array[float] = field(default_factory=lambda: array("d"))

    @property
    def left(self) -> int:
        """Tokens still to come."""
        return self.planned.output_tokens - len(self.token_times)

    def take(self, now: float) -> None:
        """A token; its KV will lie with the master."""
        self.token_times.append(now)
        self.pieces[self.master] += 1


@dataclass(slots=True, eq=False)
class Team:
    """Instances that decode together. `held`: interrupted by a prefill on them."""

    answers: list[Answer]
    held: bool = False

    @property
    def instances(self) -> list[int]:
        """Those with a piece of an answer."""
        found: set[int] = set()
        for answer in self.answers:
            found.update(answer.pieces)
        return sorted(found)

    def shares(self) -> list[Share]:
        """What each of its instances has to do in a step."""
        rows: dict[int, int] = {}
        tokens: dict[int, int] = {}
        exchanged: dict[int, int] = {}
        for answer in self.answers:
            master = answer.master
            rows[master] = rows.get(master, 0) + 1
            exchanged[master] = exchanged.get(master, 0) + len(answer.pieces) - 1
            for instance, count in answer.pieces.items():
                tokens[instance] = tokens.get(instance, 0) + count
        return [
            Share(rows.get(instance, 0), count, exchanged.get(instance, 0))
            for instance, count in tokens.items()
        ]


class Fleet:
    """All instances, each with room for `slots` tokens of KV. An instance prefills, or is in one
    team, or is idle."""

    def __init__(self, instances: int, slots: int) -> None:
        self.slots = slots
        self.reserved = [0] * instances  # tokens, those of answers to come included
        self.free_at = [0.0] * instances  # when each has done what it was given
        self.teams: list[Team] = []
        self._team_of: list[Team | None] = [None] * instances
        self._prefilling: set[int] = set()

    def idle(self) -> list[int]:
        """Instances with nothing to do."""
        return [
            instance
            for instance, team in enumerate(self._team_of)
            if team is None and instance not in self._prefilling
        ]

    def room(self, instances: Iterable[int]) -> dict[int, int]:
        """Tokens that still fit, by instance."""
        return {
            instance: self.slots - self.reserved[instance] for instance in instances
        }

    def interruptible(self) -> list[Team]:
        """Teams that no prefill holds, the one with the most room first."""
        teams = [team for team in self.teams if not team.held]
        return sorted(teams, key=lambda team: -sum(self.room(team.instances).values()))

    def decoding(self) -> list[int]:
        """Instances of teams that no prefill holds, the emptiest first."""
        found: list[int] = []
        for team in self.teams:
            if not team.held:
                found += team.instances
        return sorted(found, key=lambda instance: self.reserved[instance])

    def answers_on(self, instance: int) -> list[Answer]:
        """Those who decode and have a piece there."""
        team = self._team_of[instance]
        answers = [] if team is None else team.answers
        return [answer for answer in answers if instance in answer.pieces]

    def begin(self, planned: PlannedRequest, placement: Placement) -> Answer:
        """Keep the room of a request that is dispatched."""
        answer = Answer(planned, placement.master, dict(placement.pieces))
        self._reserve(answer, 1)
        return answer

    def prefill(self, instances: Collection[int]) -> int:
        """They are at work on a prefill; the teams on them are held, so many."""
        self._prefilling.update(instances)
        held = self._on(instances)
        for team in held:
            team.held = True
        return len(held)

    def prefilled(self, instances: Collection[int], answers: list[Answer]) -> None:
        """The prefill is over: those who have tokens to come decode, with the team that is there
        already; the other instances are free."""
        self._prefilling.difference_update(instances)
        for team in self._on(instances):
            team.held = False
        going_on = [answer for answer in answers if answer.left]
        for answer in answers:
            if not answer.left:
                self._reserve(answer, -1)
        if going_on:
            joined = Team(going_on)
            self._merge([*self._on(joined.instances), joined])

    def finish(self, answers: Collection[Answer]) -> None:
        """They have all their tokens: forget them, and free the instances that hold nothing."""
        for answer in answers:
            self._reserve(answer, -1)
        for team in self._on({answer.master for answer in answers}):
            team.answers = [answer for answer in team.answers if answer.left]
            self._settle(team)

    def move(self, source: int, target: int) -> None:
        """All KV of one decoding instance to another; their teams become one."""
        teams = self._on((source, target))
        for team in teams:
            for answer in team.answers:
                if source in answer.pieces:
                    self._reserve(answer, -1)
                    tokens = answer.pieces.pop(source)
                    answer.pieces[target] = answer.pieces.get(target, 0) + tokens
                    answer.master = target if answer.master == source else answer.master
                    self._reserve(answer, 1)
        self._merge(teams)

    def _on(self, instances: Iterable[int]) -> list[Team]:
        """Teams on these instances, each once."""
        found = [self._team_of[instance] for instance in instances]
        return list(dict.fromkeys([team for team in found if team is not None]))

    def _merge(self, teams: Sequence[Team]) -> None:
        merged = Team([])
        for team in teams:
            merged.answers += team.answers
            if team in self.teams:
                self._dissolve(team)
        self.teams.append(merged)
        self._settle(merged)

    def _settle(self, team: Team) -> None:
        """Its instances are those with a piece; without any it is no more."""
        instances = team.instances
        self._dissolve(team)
        if instances:
            self.teams.append(team)
        for instance in instances:
            self._team_of[instance] = team

    def _dissolve(self, team: Team) -> None:
        self.teams.remove(team)
        self._team_of = [None if one is team else one for one in self._team_of]

    def _reserve(self, answer: Answer, sign: int) -> None:
        """The room of its KV, of which it has `left` tokens still to come; or give it back."""
        for instance, tokens in answer.pieces.items():
            self.reserved[instance] += sign * tokens
        self.reserved[answer.master] += sign * answer.left
        fits = all(
            0 <= self.reserved[instance] <= self.slots for instance in answer.pieces
        )
        assert fits, "more KV than an instance holds"


def place(
    requests: Sequence[PlannedRequest],
    room: Mapping[int, int],
    preferred: Collection[int] = (),
) -> list[Placement] | None:
    """On the fewest instances that hold all of them, in the order of the requests; the preferred
    ones (they decode anyway) first, then those with the most room. None: they do not fit."""
    order = sorted(
        room, key=lambda instance: (instance not in preferred, -room[instance])
    )
    for count in range(1, len(order) + 1):
        left = {instance: room[instance] for instance in order[:count]}
        placements = []
        for request in requests:
            placement = _place_one(request, left)
            if placement is None:
                break
            placements.append(placement)
        else:
            return placements
    return None


def _place_one(request: PlannedRequest, left: dict[int, int]) -> Placement | None:
    """The answer where most room is, the prompt there too and what is too much on the next ones;
    takes it from `left`."""
    by_room = sorted(left, key=lambda instance: -left[instance])
    master = by_room[0]
    if left[master] < request.output_tokens or sum(left.values()) < _tokens(request):
        return None
    left[master] -= request.output_tokens
    missing = request.prompt_tokens
    pieces = {}
    for instance in by_room:
        taken = min(missing, left[instance])
        if taken or instance == master:
            pieces[instance] = taken
            left[instance] -= taken
        missing -= taken
    return Placement(master, pieces)


def _tokens(request: PlannedRequest) -> int:
    return request.prompt_tokens + request.output_tokens
