"""Small steps under CUDA's memory checker: no kernel of ours reads or writes where it must not.

Tensors are allocated one by one, so that a step beyond the end of one is not within another.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

from medha_actors.bench.gpu_findings import Findings

_COMMAND = ("compute-sanitizer", "--tool", "memcheck", "--print-limit", "5")
_ALLOCATIONS = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
_STEPS = """
import torch
from medha_actors.bench.gpu_follow import follow
from medha_actors.config import ModelLoadingConfig, RandomWeights
from medha_actors.model.spec import load_spec
from medha_actors.model.stage import Stage

given = RandomWeights(
    layers=2, hidden=256, heads=8, kv_heads=2, head_dim=64, intermediate=512, vocabulary=1000
)
config = ModelLoadingConfig(model_source="random", random=given)
spec = load_spec(config)
for dtype in (torch.bfloat16, torch.float32):
    stage = Stage(spec, config, (0, 2), (0, 1), 0, 40, 16, "cuda", dtype, 1, "auto")
    found = follow(stage, {"a": range(150), "b": range(7), "c": [1]}, generate=3, chunk=64)
    print(dtype, [len(one.tokens) for one in found.values()])
"""


def run(out: Findings) -> None:
    """The checker's summary."""
    if shutil.which(_COMMAND[0]) is None:
        out.say(_COMMAND[0], "not there")
        return
    done = subprocess.run(
        [*_COMMAND, sys.executable, "-c", _STEPS],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | _ALLOCATIONS,
        timeout=max(5.0, out.left_s() - 3),
    )
    print(done.stdout[-20000:], done.stderr[-5000:])
    summary = re.search(r"ERROR SUMMARY: (\d+) errors?", done.stdout)
    if summary is None or done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        out.check("small steps under memcheck", False, " ".join(last)[:150])
    else:
        out.check(
            "small steps under memcheck", summary[1] == "0", f"{summary[1]} errors"
        )
