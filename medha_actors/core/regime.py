"""What batches of one kind really took, against what the profile says of them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

WINDOW = 31  # batches in the moving ratio of actual to predicted time
LARGEST_MARGIN = 1.5


@dataclass(slots=True)
class Regime:
    """What the batches of one kind have taught so far."""

    scale: float = 1.0  # what the profile's seconds are corrected by
    ratios: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    calibrated_s: float = 0.0  # what all stages were to work on them, uncorrected
    worked_s: float = 0.0  # and did

    def learn(self, ratio: float) -> None:
        """A batch took so many times what the profile says."""
        self.ratios.append(min(100.0, max(0.01, ratio)))
        self.scale = median(self.ratios)

    def margin(self) -> float:
        """How much longer than predicted one batch in ten takes, within bounds; some have been
        learned from."""
        slow = sorted(self.ratios)[len(self.ratios) * 9 // 10]
        return min(LARGEST_MARGIN, max(1.0, slow / self.scale))
