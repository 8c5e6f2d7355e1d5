"""What a first token takes from the engine to its client: learned by each ingress replica, and told
to the engine with every request, so that it is part of what is announced."""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Final

_WINDOW: Final = 31  # answers
_MOST_S: Final = 1.0  # more is a client that does not read, or another host's clock


class Way:
    """The way back, in seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._taken = deque[float](maxlen=_WINDOW)

    def took(self, seconds: float) -> None:
        """A first token that was drawn so long ago is on the wire."""
        self._taken.append(min(max(seconds, 0.0), _MOST_S))
        self.seconds = median(self._taken)
