"""schemathesis: cases made of /openapi.json; no 5xx, and every answer is as described."""

from __future__ import annotations

import os
from pathlib import Path

from checks import URL, check, command, end

CASES = os.environ.get("MEDHA_CASES", "50")  # made at random, for each route
REAL = os.environ.get("MEDHA_SERVER", "real") == "real"
# The live page's events do not end; and what a scripted engine did is not recorded.
LEFT_OUT = "^/medha/live$" if REAL else "^/medha"
hooks = {"SCHEMATHESIS_HOOKS": "most_tokens"} if REAL else {}

with check(f"{CASES} cases at random for each route, beside those of every schema"):
    command(
        "st",
        *(
            "run",
            f"{URL}/openapi.json",
            "--max-examples",
            CASES,
            "--generation-deterministic",
        ),
        *("--phases", "examples,coverage,fuzzing", "--suppress-health-check", "all"),
        *("--continue-on-failure", "--no-shrink"),
        # What fits the schema may be refused (a long prompt), what does not may do (null, 1.0).
        *("--exclude-checks", "positive_data_acceptance,negative_data_rejection"),
        *("--exclude-path-regex", LEFT_OUT),
        PYTHONPATH=str(Path(__file__).parent),
        **hooks,
    )

end()
