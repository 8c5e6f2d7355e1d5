"""A stage actor whose device is asynchronous: the CPU, but whoever waits for it hears late.

In a module of their own, which Ray's workers can import.
"""

import time

from medha_actors.actors.stage import StageActor
from medha_actors.model.device import Host, Mark

LATE_S = 0.001


class LateMark(Mark):
    """There at once; who waits is told a little later."""

    def __init__(self):
        self.at = time.perf_counter()
        self.waited = False

    def wait(self):
        time.sleep(LATE_S)
        self.waited = True

    def since(self, earlier):
        return self.at - earlier.at


class LateHost(Host):
    """See above."""

    asynchronous = True

    def mark(self):
        return LateMark()


class LateStage(StageActor):
    """Serves as on a GPU: launches, and a finisher waits."""

    def __init__(self, device, owner):
        super().__init__(device, owner)
        self._device = LateHost()
