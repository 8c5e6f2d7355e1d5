"""A scheduler with a tiny model of the stages beside it: every message is replayed, every count
checked."""

from collections import deque

import msgspec
from core_inputs import config_of, grid_of, model_of, request_of
from core_invariants import check_counts, check_slots
from core_replica import Replica

from medha_actors.core.chunking import LONE_BUDGETS
from medha_actors.core.predictor import load_of
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
        # Requests whose span at this position kills the groups that compute it, and
        # what is lost.
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
        in_flight = {
            span.request_id for batch in self.flights for span in spans_of(batch)
        }
        aboard = {
            span.request_id
            for batch in self.flights
            for group, message in enumerate(batch.groups)
            if message is not None and (not lost or group in lost)
            for span in message.spans
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
            for group, message in enumerate(batch.groups)
            if message is not None
            for span in message.spans
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
        self.check_budget(batch)
        self.check_alone(batch)
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
        for group, message in enumerate(batch.groups):
            for span in message.spans if message else ():
                spans.setdefault(span.request_id, []).append((group, span))
        for name, parts in spans.items():
            self.check_span(name, parts)
        for shared in {
            span.groups for parts in spans.values() for _, span in parts if span.groups
        }:
            orders = [
                [s.request_id for s in batch.groups[group].spans if s.groups == shared]
                for group in shared
            ]
            assert orders.count(orders[0]) == len(orders), (
                "groups that merge partials agree on whose rows are where"
            )
        for parts in spans.values():
            for group, span in parts:
                if span.writes:
                    self.replicas[group].write(span, batch.id)

    def known(self, name):
        """Prompt and generated tokens."""
        return unpack_tokens(self.requests[name].prompt_token_ids) + self.tokens[name]

    def check_span(self, name, parts):
        """One request's span as all its groups see it: pieces cover [0, start) exactly, with the
        right tokens."""
        request = self.requests[name]
        first = parts[0][1]
        assert len(parts) == max(1, len(first.groups))
        parts = sorted(parts, key=lambda part: part[1].piece_start)
        if first.groups:
            assert tuple(group for group, _ in parts) == first.groups
        known = self.known(name)

        def readable(slot):
            """Of others: what has come back, under the same salt, if both take part at all."""
            writer = self.requests[slot.owner]
            same = writer.cache_salt == request.cache_salt
            return same and writer.cache and request.cache and slot.batch in self.landed

        cached = []
        for group, span in parts:
            assert (span.start, span.stop, span.groups) == (
                first.start,
                first.stop,
                first.groups,
            )
            assert unpack_tokens(span.token_ids) == known[span.start : span.stop]
            replica = self.replicas[group]
            if request.sampling.repetition_penalty != 1:
                assert replica.seen[name] == span.stop, "penalties need all tokens"
            cached += replica.read(name, span.piece_start, span.piece_tokens, readable)
        assert cached == list(enumerate(known[: first.start])), (
            "every token's KV in exactly one piece"
        )
        assert [span.writes for _, span in parts] == [False] * (len(parts) - 1) + [True]
        last = parts[-1][1]
        assert last.sample == (last.stop == len(known))
        assert not last.sample or last.index == len(self.tokens[name])

    def check_alone(self, batch):
        """What was in flight when the pipeline died is a span of its own, and alone in flight."""
        for flown in [*self.flights, batch]:
            for span in spans_of(flown):
                state = self.scheduler.live.by_id.get(span.request_id)
                if state is None or max(span.start, state.danger.start) >= min(
                    span.stop, state.danger.stop
                ):
                    continue
                assert span.start >= state.danger.start
                assert span.stop <= state.danger.stop
                assert not self.flights, "a suspect is not alone"
                assert {other.request_id for other in spans_of(batch)} == {state.id}

    def check_budget(self, batch):
        """Groups keep to the budget, but for decodes alone and for the smallest chunk, which keeps
        prefill going."""
        config = self.config.scheduler
        alone = len(self.scheduler.live.by_id) == 1
        for message in filter(None, batch.groups):
            load = load_of(message)
            assert load.rows <= config.max_batch_tokens
            if any(self.is_forced(span) for span in message.spans):
                continue  # one request with forced tokens never waits for room
            if (
                load.prefill_rows > config.min_chunk_tokens
                and config.fixed_chunk_tokens is None
            ):
                assert self.model.predict(load) <= batch.budget_s * (
                    LONE_BUDGETS if alone else 1
                ) * (1 + 1e-9)

    def is_forced(self, span):
        """A decode of several tokens."""
        state = self.scheduler.live.by_id[span.request_id]
        return span.start >= state.goal and span.stop - span.start > 1

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


def spans_of(batch):
    return [span for message in batch.groups if message for span in message.spans]


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


def prefilled(world, name):
    """Positions that were computed for a request before its first token, as ranges."""
    spans = [
        span
        for b in world.batches
        for span in spans_of(b)
        if span.request_id == name and span.writes
    ]
    return [
        (span.start, span.stop) for span in spans if not span.sample or span.index == 0
    ]
