"""One part of the GPU check in a process of its own: `python -m medha_actors.bench.gpu_part MODULE
FOLDER SECONDS`. Its `run` takes Findings, or the folder alone if it keeps a table of its own."""

from __future__ import annotations

import faulthandler
import importlib
import inspect
import sys
import time
from pathlib import Path

from medha_actors.bench.gpu_findings import Findings


def main() -> None:
    """Run the part; its exit code is 0 if it came to its end."""
    module, folder, seconds = sys.argv[1:]
    faulthandler.enable()
    # Shortly before this process is ended: what it was doing.
    faulthandler.dump_traceback_later(max(1.0, float(seconds) - 2))
    findings = Findings(Path(folder), time.monotonic() + float(seconds))
    run = importlib.import_module(module).run
    takes_folder = "Path" in str(
        next(iter(inspect.signature(run).parameters.values())).annotation
    )
    run(findings.folder if takes_folder else findings)


if __name__ == "__main__":
    main()
