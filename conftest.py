"""For all tests: which start Ray, and who runs beside them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

# Triton's own functions, too, are made for its interpreter or not when they are first imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# A shell that starts the tests in the background has Ctrl-C ignored, which children
# inherit: servers and clients that tests interrupt would never end.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No example has a time limit: how long one takes says how busy the machine is.
settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")

# Tests that start Ray, in the order in which they run: those whose processes wait for
# each other while they spin come last, when the other tests have ended.
RAY: Final = (
    "tests/system/",
    "tests/loadgen/test_experiment.py",
    "tests/telemetry/test_serving.py",
    "tests/telemetry/test_serve_spans.py",
    "tests/actors/",
)


def turn(path: str) -> int:
    """Where a test file stands among those that start Ray; behind them all if it does not."""
    for number, place in enumerate(RAY):
        if path.startswith(place):
            return number
    return len(RAY)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    items.sort(key=lambda item: turn(item.path.relative_to(root).as_posix()))


class TwoLanes(LoadScopeScheduling):
    """With `-n 2`: one worker takes all tests that start Ray, since a machine of two cores has no
    room for two grids of actors; the other one runs the rest beside it."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::")[0]
        return "ray" if turn(path) < len(RAY) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> TwoLanes:
    return TwoLanes(config, log)
