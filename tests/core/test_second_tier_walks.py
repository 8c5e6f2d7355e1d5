"""Sessions that take turns in a cache too small for them, with a second tier, while everything else
happens too: cancellations, deaths, lost groups, new controllers. Core_world checks every step."""

import random
from typing import get_args

import pytest
from core_inputs import config_of, grid_of, model_of, request_of
from core_world import DEATHS, World

from medha_actors.config import Policy


class Walk:
    """A world that a seed leads."""

    def __init__(self, seed):
        self.rng = rng = random.Random(seed)
        self.stages = rng.randint(1, 3)
        groups = rng.choice([1, 1, 2, 3])
        chunk = rng.choice([8, 16, 50])
        config = config_of(
            rng.choice(get_args(Policy)),
            tpot_s=rng.choice([0.02, 0.1, 0.3]),
            max_running_requests=rng.choice([3, 64]),
            min_chunk_tokens=min(chunk, 16),
            max_chunk_tokens=chunk,
            max_batch_tokens=80,
        )
        grid = grid_of(
            self.stages,
            groups,
            pages=rng.randint(22, 40),
            cutoff=rng.choice([None, 16, 40]),
            length=120,
            slots=rng.choice([2, 5, 30, 200]),
        )
        self.world = World(
            config, grid, model_of(self.stages, rng.choice([0.0, 5e-4, 2e-3]))
        )
        self.world.dies = rng.choice(DEATHS)
        self.histories = [[1000 * number + i for i in range(20)] for number in range(5)]
        self.asked = {}  # the session of each request
        self.count = 0

    def turn(self):
        """The next turn of a session, or the same beginning again."""
        session = self.rng.randrange(len(self.histories))
        history = self.histories[session]
        if len(history) > 85:
            history = self.histories[session] = history[: self.rng.randint(8, 40)]
        name = f"r{self.count}"
        self.count += 1
        more = {
            "repetition_penalty": self.rng.choice([1.0, 1.0, 1.3]),
            "prompt_logprobs": self.rng.choice([None] * 9 + [0]),
            "cache_salt": self.rng.choice([""] * 9 + ["x"]),
        }
        prompt = len(history) + self.rng.randint(1, 12)
        output = self.rng.randint(1, 12)
        self.world.add(
            request_of(name, prompt, output, self.world.now, begins=history, **more)
        )
        self.asked[name] = session

    def follow(self):
        """Sessions go on from what has been answered."""
        for name, session in list(self.asked.items()):
            if name in self.world.finished:
                del self.asked[name]
                self.histories[session] = self.world.known(name)

    def disturb(self):
        world = self.world
        groups = range(world.grid.groups)
        some = {group for group in groups if self.rng.random() < 0.5}
        found = {group for group in groups if self.rng.random() < 0.5}
        match self.rng.randrange(8):
            case 0:
                world.restart(some, found)
            case 1:
                world.restart(None, found)
            case 2:
                world.hand_over()
            case _ if self.asked:
                world.cancel(self.rng.choice(list(self.asked)))

    def go(self, steps, disturbed):
        for _ in range(steps):
            if len(self.asked) < 6 and self.rng.random() < 0.4:
                self.turn()
            for _ in range(self.rng.randint(1, 3)):
                self.world.launch()
            for _ in range(self.rng.randint(0, 3)):
                self.world.land()
            self.follow()
            if self.rng.random() < disturbed:
                self.disturb()
        tier = self.world.scheduler.stats().tier
        self.world.drain()
        return tier


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("disturbed", [0.0, 0.05])
def test_whatever_happens_everybody_reads_their_own_tokens(seed, disturbed):
    walk = Walk(seed)
    walk.go(150, disturbed)
    assert set(walk.world.finished) == set(walk.world.requests)
    for name, event in walk.world.finished.items():
        assert event.reason in ("length", "abort") or name in walk.world.condemned
        assert 0 <= event.cached_tokens <= event.prompt_tokens
        assert event.recomputed_tokens >= 0


def test_the_walks_go_through_the_tier():
    tiers = [Walk(seed).go(150, 0.0) for seed in range(8)]
    assert sum(tier.loaded_pages > 10 for tier in tiers) > 3
    assert all(tier.saved_pages for tier in tiers)
