"""All options of a run, each section for the room that needs it."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from loadgen.judge.options import JudgementOptions
from loadgen.send.options import ServerOptions
from loadgen.show.options import ReportOptions, WatchOptions
from loadgen.workload.options import PaceOptions, WorkloadOptions


class RunOptions(msgspec.Struct, kw_only=True, frozen=True):
    """What `run` and `capacity` are given."""

    server: ServerOptions = ServerOptions()
    workload: WorkloadOptions = WorkloadOptions()
    pace: PaceOptions = PaceOptions()
    judgement: JudgementOptions = JudgementOptions()
    report: ReportOptions = ReportOptions()
    watch: WatchOptions = WatchOptions()


def public(*sections: msgspec.Struct) -> dict[str, Any]:
    """Sections for config.yml, side by side: whatever was set, but no secrets. Header values may be
    some."""
    tree: dict[str, Any] = {}
    for section in sections:
        tree |= msgspec.to_builtins(section)
        if isinstance(section, ServerOptions):
            tree["header"] = [line.split("=", 1)[0] for line in section.header]
    return {
        key: value
        for key, value in tree.items()
        if value not in (None, "", [], {}, math.inf)
    }
