"""Exchange: what the KV groups of one stage tell each other inside a step."""

from __future__ import annotations

import time

import torch

from medha_actors.actors.links import Link


class Exchange:
    """Partial attention outputs between the KV groups of one stage (paper, 3.3), once per layer, inside the step."""

    def __init__(self, group: int, peers: dict[int, Link]) -> None:
        self._group = group
        self._peers = peers
        self._seconds = 0.0

    def take_seconds(self) -> float:
        """Seconds spent here since the last call: sending, and waiting for the other groups."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def all_gather(self, groups: tuple[int, ...], partial: torch.Tensor) -> list[torch.Tensor]:
        """Give this group's partial, get those of all `groups` in their order.

        Every pair talks in an order both know (the lower group sends first), so full socket buffers cannot deadlock.
        """
        began = time.perf_counter()
        gathered = {self._group: partial}
        for peer in sorted(groups):
            if peer == self._group:
                continue
            link = self._peers[peer]
            if self._group < peer:
                link.send(b"", partial)
            received = link.recv()[1]
            if self._group > peer:
                link.send(b"", partial)
            assert received is not None
            gathered[peer] = received.to(partial.device)
        self._seconds += time.perf_counter() - began
        return [gathered[group] for group in groups]
