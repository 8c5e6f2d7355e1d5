"""A detached actor ends by itself when its owner is gone for good.

Stage actors outlive the controller, so that the next one finds them at work. Serve makes a dead
controller anew under the same name within seconds; when it does not, the application is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time

import msgspec
import ray
from ray.util.placement_group import remove_placement_group

_log = logging.getLogger("medha.stage")
_PERIOD_S = 2.0


class Owner(msgspec.Struct, frozen=True):
    """A named actor, and how long its actors wait for it to come back."""

    name: str
    namespace: str
    patience_s: float

    def exists(self) -> bool:
        """Whether an actor of this name lives."""
        try:
            ray.get_actor(self.name, namespace=self.namespace)
        except ValueError:
            return False
        return True


def follow(owner: Owner) -> None:
    """Watch the owner from a thread of this process."""
    threading.Thread(
        target=_watch, args=(owner,), name="owner-watch", daemon=True
    ).start()


def _watch(owner: Owner) -> None:
    seen_at = time.monotonic()
    while True:
        time.sleep(_PERIOD_S)
        # Ray itself is away: its raylet ends this process
        with contextlib.suppress(Exception):
            if owner.exists():
                seen_at = time.monotonic()
        if time.monotonic() - seen_at > owner.patience_s:
            _log.warning(
                "%s has been gone for %g s: ending", owner.name, owner.patience_s
            )
            with contextlib.suppress(Exception):  # a neighbour was faster
                remove_placement_group(ray.util.get_current_placement_group())
            os._exit(0)
