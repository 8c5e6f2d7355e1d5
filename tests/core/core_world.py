"""A scheduler with a tiny model of the stages beside it: every message is replayed, every count
checked."""

import itertools
from collections import deque

import msgspec
from core_batches import (
    check_alone,
    check_budget,
    check_rows,
    check_span,
    placed_spans,
    spans_in,
)
from core_inputs import config_of, grid_of, model_of, request_of
from core_invariants import check_counts, check_slots
from core_replica import Replica

from medha_actors.core.chunking import LONE_BUDGETS
from medha_actors.core.scheduler import Scheduler
from medha_actors.core.simulator import results_of, token_of
from medha_actors.messages import (
    Accepted,
    FinishedEvent,
    ProgressEvent,
    Resumed,
    TokenEvent,
    pack_tokens,
    unpack_tokens,
)

# what a poisonous span costs
DEATHS = ["its groups", "one of its groups", "no actor", "all"]


class World:
    """Drives a scheduler step by step. `clock` moves by each batch's predicted time."""

    def __init__(self, config, grid, model=None):
        self.config = config
        self.grid = grid
        self.model = model or model_of(grid.stages)
        self.scheduler = self.make()
        self.replicas = [Replica(grid.page_tokens) for _ in range(grid.groups)]
        self.now = 1000.0
        self.flights = deque()
        self.requests = {}
        self.tokens = {}
        self.finished = {}
        self.progress = {}
        self.batches = []
        self.forces = {}  # of each request: tokens that its grammar forces after each draw
        self.landed = set()  # batches whose results have come back
        # Requests whose span at this position kills the groups that compute it, and what is lost.
        self.poison = {}
        self.dies = "its groups"
        self.struck = set()  # requests that were in flight in groups that died
        self.condemned = set()
        self.dropped = set()  # requests whose KV was dropped at some time

    def make(self):
        config = self.config
        return Scheduler(
            config.scheduler,
            config.objectives,
            config.cache_name,
            self.grid,
            self.model,
        )

    def add(self, request):
        answer = self.scheduler.add(request, self.now)
        if isinstance(answer, Accepted):
            self.requests[request.id] = request
            self.tokens[request.id] = []
            self.finished.pop(request.id, None)
        self.check()
        return answer

    @property
    def grace_s(self):
        """What the batches of a lone prefill take of a default deadline."""
        return self.grid.stages * LONE_BUDGETS * self.scheduler.budget_s

    def cancel(self, name):
        self.note(self.scheduler.cancel(name, self.now))

    def expire(self):
        self.note(self.scheduler.expire(self.now))

    def restart(self, lost=None, found=()):
        """All groups (or those in `lost`) lose their caches, and their second tiers but for those
        in `found`; every stage forgets its page tables."""
        lost_batches = {batch.id for batch in self.flights}
        in_flight = {span.request_id for span in spans_in(self.flights)}
        aboard = {
            span.request_id
            for group, span in itertools.chain(*map(placed_spans, self.flights))
            if not lost or group in lost
        }
        for name, state in self.scheduler.live.by_id.items():
            if any(lost is None or piece.group in lost for piece in state.pieces):
                self.dropped.add(name)
        self.flights.clear()
        for event in (events := self.scheduler.restart(self.now, lost, found)):
            assert in_flight == aboard == {event.request_id}, (
                "condemned with others in flight"
            )
            assert event.request_id in self.struck, "condemned for the first death"
            self.condemned.add(event.request_id)
        self.struck |= aboard
        for group, replica in enumerate(self.replicas):
            replica.tables = {}
            replica.seen = {}
            replica.lose(lost_batches)
            if lost is None or group in lost:
                replica.slots = {}
                if group not in found:
                    replica.tier = {}
        self.note(events)

    def deadly(self, batch):
        """The groups that a batch kills."""
        return {
            group
            for group, span in placed_spans(batch)
            if span.start <= self.poison.get(span.request_id, -1) < span.stop
        }

    def die(self, groups):
        lost = {
            "its groups": groups,
            "one of its groups": {min(groups)},
            "no actor": (),
            "all": None,
        }
        self.restart(lost[self.dies])

    def hand_over(self):
        """The scheduler is lost with everything in the stages; whoever knows its requests gives
        them to a new one."""
        live = list(self.scheduler.live.by_id)
        self.dropped.update(live)
        self.scheduler = self.make()
        self.flights.clear()
        self.replicas = [
            Replica(self.grid.page_tokens) for _ in range(self.grid.groups)
        ]
        for name in live:
            known = Resumed(
                token_ids=pack_tokens(self.tokens[name]), first_token_at=self.now
            )
            request = msgspec.structs.replace(self.requests[name], resumed=known)
            assert isinstance(self.scheduler.add(request, self.now), Accepted)
        self.check()

    def launch(self):
        """Dispatch one batch if the pipeline takes it; True if there was one."""
        if len(self.flights) > self.grid.stages:
            return False
        batch = self.scheduler.next_batch(self.now)
        self.check()
        if batch is None:
            return False
        check_budget(self, batch)
        check_alone(self, batch)
        self.replay(batch)
        self.flights.append(batch)
        self.batches.append(batch)
        self.dropped.update(victim for victim, _ in self.scheduler.record.evicted)
        check_slots(self)
        self.now += batch.predicted_s
        return True

    def land(self):
        """The oldest batch comes back; True if there was one."""
        if not self.flights:
            return False
        if deadly := self.deadly(self.flights[0]):
            self.die(deadly)
            return True
        batch = self.flights.popleft()
        self.landed.add(batch.id)
        results = [
            self.forced(result) for result in results_of(batch, (batch.predicted_s,))
        ]
        self.note(self.scheduler.complete(results, self.now))
        return True

    def forced(self, result):
        """The result of a stage that follows the grammars of the requests."""
        tokens = []
        for drawn in result.tokens:
            first = drawn.index + 1
            indices = range(first, first + self.forces.get(drawn.request_id, 0))
            ahead = tuple(token_of(drawn.request_id, index) for index in indices)
            tokens.append(msgspec.structs.replace(drawn, forced=ahead))
        return msgspec.structs.replace(result, tokens=tuple(tokens))

    def drain(self, limit=100_000):
        """Run until nothing is left."""
        for _ in range(limit):
            while self.launch():
                pass
            if not self.land():
                break
        assert not self.scheduler.live.by_id, "requests are stuck"
        assert not self.flights

    def replay(self, batch):
        for message, replica in zip(batch.groups, self.replicas, strict=True):
            if message is not None:
                replica.step(message)
        spans = {}
        for group, span in placed_spans(batch):
            spans.setdefault(span.request_id, []).append((group, span))
        for name, parts in spans.items():
            check_span(self, name, parts)
        check_rows(batch)
        for parts in spans.values():
            for group, span in parts:
                if span.writes:
                    self.replicas[group].write(span, batch.id)

    def known(self, name):
        """Prompt and generated tokens."""
        return unpack_tokens(self.requests[name].prompt_token_ids) + self.tokens[name]

    def note(self, events):
        for event in events:
            name = event.request_id
            assert name not in self.finished, "an event after the last one"
            if isinstance(event, TokenEvent):
                assert event.index == len(self.tokens[name]), "a token lost or doubled"
                assert event.token_id == token_of(name, event.index)
                self.tokens[name].append(event.token_id)
            elif isinstance(event, ProgressEvent):
                self.progress.setdefault(name, []).append(event)
            elif isinstance(event, FinishedEvent):
                assert event.generated_tokens == len(self.tokens[name])
                self.finished[name] = event
        self.check()
        check_slots(self)

    def check(self):
        check_counts(self)


def world_of(
    stages=1,
    groups=1,
    pages=2000,
    cutoff=None,
    page=4,
    length=8000,
    slots=0,
    model=None,
    **scheduler,
):
    grid = grid_of(stages, groups, pages, cutoff, page, length, slots)
    return World(config_of(**scheduler), grid, model)


def decoding_world(count, stages=1, **more):
    """`count` requests that have just finished their prefill."""
    world = world_of(stages, **more)
    for index in range(count):
        world.add(request_of(f"d{index}", 4, 500, world.now))
    while world.scheduler.live.queue or world.flights:
        world.launch() or world.land()
        if all(world.tokens.values()):
            break
    while world.land():
        pass
    return world
