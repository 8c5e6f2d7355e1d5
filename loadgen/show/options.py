"""What is written, and what is seen while a run is under way."""

from __future__ import annotations

from typing import Annotated

import msgspec

from loadgen.flags import flag


class ReportOptions(msgspec.Struct, kw_only=True, frozen=True):
    """Where the results go, and the name they go by."""

    result_dir: Annotated[
        str | None, flag("new directory for the results", shown="results/TIME-LABEL")
    ] = None
    label: Annotated[str, flag("name of the run in tables and figures")] = ""


class WatchOptions(msgspec.Struct, kw_only=True, frozen=True):
    """What concerns a run against a real server only."""

    policy: Annotated[
        str | None, flag("scheduling policy that the server runs, as a label")
    ] = None
    quiet: Annotated[bool, flag("no live view")] = False
    live_interval: Annotated[
        float | None, flag("seconds between its updates", gt=0)
    ] = None
    fail_unhealthy: Annotated[bool, flag("exit with 3 if the health check fails")] = (
        False
    )
