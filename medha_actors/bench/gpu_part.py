"""One part of the GPU check in a process of its own: `python -m medha_actors.bench.gpu_part MODULE
FOLDER SECONDS`."""

from __future__ import annotations

import faulthandler
import importlib
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
    importlib.import_module(module).run(findings)


if __name__ == "__main__":
    main()
