"""`medha-loadgen promises`: does what is announced come true, and is it in time? The laboratory's
workloads in the twin, the time to first token over what was announced on arrival, the deadlines
that were met, and the calibration curve."""

from __future__ import annotations

import itertools
from typing import Annotated

import msgspec

from loadgen.errors import LoadgenError
from loadgen.flags import flag
from loadgen.judge.promises import Promises, promises_of
from loadgen.records import RequestRecord
from loadgen.show.output import Say
from loadgen.show.tables import as_text
from loadgen.twin.admission.calibration import curve_of
from loadgen.twin.cells import POLICIES
from loadgen.twin.options import scheduler_of
from loadgen.twin.replay import play
from loadgen.twin.scenarios import SCENARIOS, Scenario, capacity_of, scenario_of

KEPT = 0.9  # of the announcements are to come true
LATE = 0.02  # and no more than that may be late


class PromisesOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command is given."""

    policies: Annotated[tuple[str, ...], flag(metavar="NAME")] = (
        "lars",
        "spf",
        "dspf",
        "dboost",
    )
    loads: Annotated[
        tuple[float, ...], flag("of the capacity", metavar="SHARE", gt=0, le=10)
    ] = (
        0.5,
        0.75,
        0.9,
        2.0,
    )
    scenarios: Annotated[tuple[str, ...], flag(metavar="NAME")] = ("convoy",)
    num_prompts: Annotated[int, flag("requests of a cell", ge=20)] = 300
    seeds: Annotated[int, flag("of arrivals and noise", ge=1, le=1000)] = 2
    noise: Annotated[float, flag("relative spread of a batch's time", ge=0, le=1)] = (
        0.03
    )
    late: Annotated[str, flag("accept, shed or queue: what becomes of who is late")] = (
        "accept"
    )
    curve: Annotated[bool, flag("print the calibration curves, too")] = False
    traces: Annotated[
        str | None, flag("the whole traces", shown="the samples", metavar="DIR")
    ] = None


def promises(asked: PromisesOptions, say: Say) -> int:
    """The whole command."""
    _refuse_unknown(asked)
    header = [
        "",
        "kind",
        "requests",
        "true",
        "late",
        "in time",
        "ratio P10",
        "P50",
        "P90",
    ]
    rows = []
    for name in asked.scenarios:
        scenarios = [
            scenario_of(name, asked.num_prompts, seed, asked.traces)
            for seed in range(asked.seeds)
        ]
        rates = [capacity_of(scenario) for scenario in scenarios]
        for load, policy in itertools.product(asked.loads, asked.policies):
            records: list[RequestRecord] = []
            for scenario, rate in zip(scenarios, rates, strict=True):
                records += _played(scenario, rate * load, policy, asked)
            title = f"{name} {load:g} {policy}"
            say(title)
            rows += [[title, *_cells(found)] for found in promises_of(records)]
            if asked.curve:
                print(f"{title}\n{as_text(curve_of(records))}\n")
    print(as_text((header, rows)))
    print(
        f"\ntrue: 0.8 to 1.25 times what was announced (goal {100 * KEPT:g}%); late: more than"
    )
    print(
        f"that (goal: at most {100 * LATE:g}%); in time: within the deadline it was given"
    )
    return 0


def _refuse_unknown(asked: PromisesOptions) -> None:
    for kind, given, known in (
        ("policies", asked.policies, POLICIES),
        ("scenarios", asked.scenarios, SCENARIOS),
        ("late", (asked.late,), ("accept", "shed", "queue")),
    ):
        if unknown := set(given) - set(known):
            raise LoadgenError(
                f"--{kind} {', '.join(sorted(unknown))}: known are {known}"
            )


def _cells(found: Promises) -> list[str]:
    """A row of the table, but for its title."""
    shares = (found.true, found.late, found.in_time)
    ratios = (found.p10, found.p50, found.p90)
    return [
        found.kind,
        str(found.count),
        *(f"{100 * share:.1f}%" for share in shares),
        *(f"{ratio:.2f}" for ratio in ratios),
    ]


def _played(
    scenario: Scenario, rate: float, policy: str, asked: PromisesOptions
) -> list[RequestRecord]:
    name, more = POLICIES[policy]
    scheduler = scheduler_of(name, {**more, "admission": {"late": asked.late}})
    deployment = msgspec.structs.replace(
        scenario.deployment, noise=asked.noise, scheduler=scheduler
    )
    sent = [
        msgspec.structs.replace(request, at=(request.at or 0.0) / rate)
        for request in scenario.requests
    ]
    return play(deployment, sent).records
