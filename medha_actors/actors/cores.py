"""Cores that an actor has to itself.

Grids do not know of each other. So whoever takes a core binds a name for it on its host, which
the system frees when the process ends; who finds one taken leaves its place to the system.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable


class Cores:
    """Those of one actor; none at first."""

    def __init__(self) -> None:
        self._names: list[socket.socket] = []

    def take(self, cores: Iterable[int]) -> bool:
        """These instead of those before. False: somebody else has one of them, and this actor has
        none."""
        self.leave()
        for core in cores:
            name = socket.socket(socket.AF_UNIX)
            self._names.append(name)
            try:
                name.bind(f"\0medha-core-{core}")
            except OSError:
                self.leave()
                return False
        return True

    def leave(self) -> None:
        """Have none."""
        for name in self._names:
            name.close()
        self._names = []
