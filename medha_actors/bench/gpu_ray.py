"""Real actors on one GPU: tests/gpu/ray_one_gpu.py."""

from __future__ import annotations

import importlib
import importlib.util

from medha_actors.bench.gpu_findings import Findings

_SCRIPT = "tests.gpu.ray_one_gpu"


def run(out: Findings) -> None:
    """What the script finds; a row says so if it or Ray is missing."""
    for needed in ("ray", _SCRIPT):
        if importlib.util.find_spec(needed) is None:
            out.say(needed, "not there")
            return
    importlib.import_module(_SCRIPT).run(out)
