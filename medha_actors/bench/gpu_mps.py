"""The links between two processes that share a GPU under CUDA's Multi-Process Service: without it
they take turns on the GPU, and each turn costs a tenth of a millisecond or two.

Starts a service of its own for the time of the measuring, and ends it. It changes no setting of the
card.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_CONTROL = "nvidia-cuda-mps-control"
_QUIT_S = 20.0


def run(out: Path) -> None:
    """Print the table of gpu_links under the service, write it to the folder `out`."""
    if shutil.which(_CONTROL) is None:
        print(f"no {_CONTROL} here")
        return
    with tempfile.TemporaryDirectory(prefix="medha-mps-") as folder:
        environment = dict(
            os.environ, CUDA_MPS_PIPE_DIRECTORY=folder, CUDA_MPS_LOG_DIRECTORY=folder
        )
        subprocess.run([_CONTROL, "-d"], env=environment, check=True)
        try:
            measured = [sys.executable, "-m", "medha_actors.bench.gpu_links", str(out)]
            subprocess.run(measured, env=environment, check=True)
        finally:
            subprocess.run(
                [_CONTROL], env=environment, input=b"quit", timeout=_QUIT_S, check=False
            )
