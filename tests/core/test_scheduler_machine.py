"""Whatever happens in whatever order: counts, pages and tokens stay right, and every request
finishes."""

from typing import get_args

import msgspec
from core_inputs import config_of, grid_of, model_of, request_of
from core_world import DEATHS, World
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from medha_actors.quantities import Policy


def last_computed(request):
    """The position after the last one that is computed: nobody needs the last token's KV."""
    return request.prompt_tokens + request.sampling.max_tokens - 1


class SchedulerMachine(RuleBasedStateMachine):
    """Random arrivals, of new and known beginnings, cancellations, restarts and timeouts between
    the steps of a small grid with little KV."""

    @initialize(
        policy=st.sampled_from(get_args(Policy)),
        stages=st.integers(1, 3),
        groups=st.integers(1, 3),
        pages=st.integers(12, 40),
        cutoff=st.sampled_from([None, 7, 16, 40]),
        running=st.sampled_from([2, 5, 64]),
        chunk=st.sampled_from([3, 16, 50]),
        tpot_s=st.sampled_from([0.01, 0.03, 0.3]),
        fixed=st.sampled_from([None, None, None, 10]),
        prefix_cache=st.sampled_from([True, True, True, False]),
        dies=st.sampled_from(DEATHS),
        slots=st.sampled_from([0, 0, 1, 2, 5, 60]),
        page_s=st.sampled_from([0.0, 1e-3, 3e-3, 1.0]),
        lends=st.booleans(),
    )
    def start(
        self,
        policy,
        stages,
        groups,
        pages,
        cutoff,
        running,
        chunk,
        tpot_s,
        fixed,
        prefix_cache,
        dies,
        slots,
        page_s,
        lends,
    ):
        config = config_of(
            policy,
            tpot_s=tpot_s,
            max_running_requests=running,
            min_chunk_tokens=min(chunk, 16),
            max_chunk_tokens=chunk,
            max_batch_tokens=max(64, chunk),
            fixed_chunk_tokens=fixed,
            prefix_cache=prefix_cache,
        )
        grid = grid_of(stages, groups, pages, cutoff, length=120, slots=slots)
        self.world = World(config, grid, model_of(stages, page_s, lends))
        self.world.dies = dies
        self.count = 0
        self.killed = False  # by something else than a poisonous request

    @rule(
        prompt=st.integers(1, 90),
        output=st.integers(1, 20),
        timeout_s=st.sampled_from([None, None, 0.2]),
        priority=st.sampled_from([0, 0, 0, -1, 2]),
        tenant=st.sampled_from(["", "", "a", "b"]),
        forced=st.sampled_from([0, 0, 1, 5, 40]),
    )
    def add(self, prompt, output, timeout_s, priority, tenant, forced):
        world = self.world
        world.forces[f"r{self.count}"] = forced
        request = request_of(
            f"r{self.count}",
            prompt,
            output,
            world.now,
            timeout_s=timeout_s,
            priority=priority,
        )
        world.add(msgspec.structs.replace(request, tenant=tenant))
        self.count += 1

    @precondition(lambda self: self.count)
    @rule(
        data=st.data(),
        copies=st.integers(1, 3),
        kept=st.integers(1, 110),
        more=st.integers(0, 30),
        output=st.integers(1, 20),
        salt=st.sampled_from(["", "", "", "x"]),
        cache=st.sampled_from([True, True, True, False]),
        penalty=st.sampled_from([1.0, 1.0, 1.3]),
        scored=st.sampled_from([None, None, None, 0]),
        forced=st.sampled_from([0, 0, 3]),
    )
    def add_with_a_known_beginning(
        self, data, copies, kept, more, output, salt, cache, penalty, scored, forced
    ):
        """As the next turn of a chat, or several of the same prompt."""
        world = self.world
        earlier = f"r{data.draw(st.integers(0, self.count - 1))}"
        if earlier not in world.requests:
            return
        begins = world.known(earlier)[:kept]
        for _ in range(copies):
            world.forces[f"r{self.count}"] = forced
            request = request_of(
                f"r{self.count}",
                len(begins) + more,
                output,
                world.now,
                begins=begins,
                cache_salt=salt,
                cache=cache,
                repetition_penalty=penalty,
                prompt_logprobs=scored,
            )
            world.add(request)
            self.count += 1

    @rule(
        prompt=st.integers(1, 90),
        output=st.integers(1, 20),
        position=st.integers(0, 108),
        forced=st.sampled_from([0, 2]),
    )
    def add_poison(self, prompt, output, position, forced):
        """The pipeline dies whenever this request's token at `position` is computed."""
        self.world.forces[f"r{self.count}"] = forced
        request = request_of(f"r{self.count}", prompt, output, self.world.now)
        self.world.poison[request.id] = position
        self.world.add(request)
        self.count += 1

    @rule(times=st.integers(1, 4))
    def launch(self, times):
        for _ in range(times):
            self.world.launch()

    @rule(times=st.integers(1, 4))
    def land(self, times):
        for _ in range(times):
            self.world.land()

    @rule(times=st.integers(1, 10))
    def step(self, times):
        for _ in range(times):
            while self.world.launch():
                pass
            self.world.land()

    @precondition(lambda self: self.count)
    @rule(data=st.data())
    def cancel(self, data):
        self.world.cancel(f"r{data.draw(st.integers(0, self.count - 1))}")

    @rule()
    def restart(self):
        self.killed = True
        self.world.restart()

    @rule()
    def hand_over(self):
        self.world.hand_over()

    @rule(data=st.data())
    def lose_some_groups(self, data):
        self.killed = True
        some = st.sets(st.integers(0, self.world.grid.groups - 1))
        self.world.restart(data.draw(some), found=data.draw(some))

    @rule()
    def expire(self):
        self.world.expire()
        wake = self.world.scheduler.next_wake(self.world.now)
        assert wake is None or wake > self.world.now

    def teardown(self):
        if not hasattr(self, "world"):
            return
        world = self.world
        world.drain()
        assert set(world.finished) == set(world.requests)
        for name, event in world.finished.items():
            if event.reason == "length":
                assert (
                    event.generated_tokens == world.requests[name].sampling.max_tokens
                )
                if world.forces[name]:
                    continue  # its last tokens need not have been computed
                # what others have computed of its beginning does it no harm
                poison = world.poison.get(name, 10**6)
                last = last_computed(world.requests[name])
                assert (
                    poison >= last
                    or poison < event.cached_tokens
                    or name in world.dropped
                )
            elif event.reason == "error":
                assert name in world.condemned
                assert name in world.poison or self.killed
        assert all(
            world.scheduler.live.kv.available(g) == world.grid.pages_per_group
            for g in range(world.grid.groups)
        )


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=120, stateful_step_count=30, suppress_health_check=list(HealthCheck)
)
