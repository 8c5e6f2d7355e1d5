"""schemathesis over /openapi.json: a thousand cases, and no answer that is not described."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conformance.environments import SCRIPTS
from tests.conformance.scripted import scripted_server, serving

CASES = 1_000  # at least
# made at random for each route, beside those that every schema gives rise to
EACH = "5"


def test_a_thousand_cases(tmp_path: Path) -> None:
    with serving(scripted_server(most=4).asgi()) as url:
        done = subprocess.run(
            [sys.executable, SCRIPTS / "schemathesis_cases.py", url, "any"],
            env={**os.environ, "MEDHA_SERVER": "scripted", "MEDHA_CASES": EACH},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    assert done.returncode == 0, done.stdout[-6000:]
    [cases] = re.findall(r"(\d+) generated", done.stdout)
    assert int(cases) >= CASES
