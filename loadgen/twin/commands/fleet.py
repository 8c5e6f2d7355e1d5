"""`medha-loadgen fleet`: routers and schedulers compared on a simulated fleet, and its autoscaling
over a day.

Every contender (a router and a scheduling policy) sees the same arrivals on every number of grids:
single requests, one in twenty with a long document, and sessions. A number of grids is enough for a
contender when the wanted share of the requests meets the objectives. Cells are kept in a directory,
so that the command can be cut short and goes on.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import msgspec

from loadgen.errors import LoadgenError
from loadgen.flags import flag
from loadgen.judge.isolated import Points
from loadgen.judge.latencies import percentile, ttfts
from loadgen.judge.metrics import hits_of, measure
from loadgen.judge.objectives import parse_objectives
from loadgen.records import LONG, SHORT, PlannedRequest
from loadgen.show.output import Say
from loadgen.show.tables import Table, as_markdown, as_text
from loadgen.twin.deployment import Deployment
from loadgen.twin.fleet.playing import FleetPlayed, play_fleet
from loadgen.twin.fleet.simulation import FleetOptions
from loadgen.twin.fleet.traffic import Rate, mixed
from loadgen.twin.options import DeploymentOptions, deployment_of, scheduler_of
from loadgen.twin.replay import expect, idle_points, longest_of
from medha_actors.config import SchedulerConfig
from medha_actors.fleet_config import RouterName, RoutingConfig, ScalingConfig
from medha_actors.quantities import Policy

_OURS: Policy = SchedulerConfig().policy
# router, scheduling policy; the last is how vLLM schedules, behind a balancer that knows nothing
CONTENDERS: dict[str, tuple[RouterName, Policy]] = {
    "predicted": ("predicted", _OURS),
    "pools": ("pools", _OURS),
    "prefix": ("prefix", _OURS),
    "two_choices": ("two_choices", _OURS),
    "random": ("random", _OURS),
    "predicted+lars": ("predicted", "lars"),
    "prefix+fcfs": ("prefix", "fcfs_chunked"),
    "two_choices+fcfs": ("two_choices", "fcfs_chunked"),
    "random+fcfs": ("random", "fcfs_chunked"),
}


_START_S = 10.0  # of a grid, in a day; Ray and weights that are near
_LEAST_WINDOW_S = 10.0
_LEAST_WAIT_S = 5.0


class FleetCommand(msgspec.Struct, frozen=True, kw_only=True):
    """What the command is given beside the deployment of one grid."""

    grids: Annotated[
        tuple[int, ...], flag("numbers of them to try", metavar="N", ge=1, le=1024)
    ] = (16,)
    contenders: Annotated[
        tuple[str, ...],
        flag(
            "router; +lars: under LARS, +fcfs: with vLLM's scheduling",
            choices=tuple(CONTENDERS),
        ),
    ] = tuple(CONTENDERS)
    rate: Annotated[float, flag("requests per second", gt=0)] = 80.0
    for_s: Annotated[float, flag("seconds of arrivals", name="--for", gt=0)] = 40.0
    in_sessions: Annotated[float, flag("share of turns of sessions", ge=0, le=1)] = 0.5
    ttft: Annotated[str, flag("objective for the first token", metavar="MS|Nx,MS")] = (
        "3x,1000"
    )
    tpot: Annotated[str, flag("objective between tokens", metavar="MS")] = "150"
    attainment: Annotated[
        float, flag("share of good requests that is enough", gt=0, le=1)
    ] = 0.95
    work_weight: Annotated[
        float, flag("as fleet.routing.work_weight", ge=0, le=100)
    ] = 0.0
    ingresses: Annotated[
        int, flag("routers, each with an eye of its own", ge=1, le=64)
    ] = 2
    swing: Annotated[
        float, flag("--day: how far the rate swings around its mean", ge=0, le=1)
    ] = 0.8
    day: Annotated[
        float | None,
        flag("autoscaling over a day of so many seconds instead", shown="no", gt=0),
    ] = None
    seed: Annotated[int, flag("same seed, same requests")] = 0
    result_dir: Annotated[str, flag("cells are kept there, and fleet.md")] = (
        "results/fleet"
    )
    limit_s: Annotated[float, flag("begin no cell after so many seconds", gt=0)] = 1e9


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a contender on so many grids; TTFT in seconds."""

    contender: str
    grids: int
    good: float  # share of all requests
    good_per_s: float
    short_p50: float
    short_p99: float
    long_p50: float
    long_p99: float
    hit_rate: float
    grid_seconds: float
    most_grids: int
    lost: int  # requests without a whole answer


def fleet(asked: FleetCommand, on: DeploymentOptions, say: Say) -> int:
    """The whole command."""
    unknown = [name for name in asked.contenders if name not in CONTENDERS]
    if unknown:
        raise LoadgenError(f"--contenders: known are {', '.join(CONTENDERS)}")
    began = time.monotonic()
    rate = Rate(asked.rate)
    if asked.day is not None:
        rate = Rate(asked.rate, asked.swing, asked.day)
    requests = mixed(rate, asked.day or asked.for_s, asked.seed, asked.in_sessions)
    deployment = deployment_of(on, longest_of(requests), asked.seed)
    say(
        f"{len(requests)} requests; a grid is {deployment.model.name} on {deployment.devices} x "
        f"{deployment.device.name} ({deployment.name})"
    )
    points = idle_points(deployment, requests)
    folder = Path(asked.result_dir)
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name in asked.contenders:
        for grids in sorted(asked.grids):
            cell = _kept(folder, asked, name, grids)
            if cell is None and time.monotonic() - began < asked.limit_s:
                cell = _play(asked, deployment, requests, points, name, grids)
                _file(folder, asked, name, grids).write_bytes(msgspec.json.encode(cell))
                say(f"{name} on {grids} grids: {100 * cell.good:.1f}% good")
            if cell is not None:
                found.append(cell)
    table = table_of(found, deployment.devices)
    lines = as_markdown(table)
    if asked.day is None:
        lines += "\n\n" + needs(found, asked.attainment, deployment.devices)
    (folder / ("day.md" if asked.day else "fleet.md")).write_text(lines + "\n")
    print(as_text(table))
    if asked.day is None:
        print("\n" + needs(found, asked.attainment, deployment.devices))
    return 0


def _file(folder: Path, asked: FleetCommand, name: str, grids: int) -> Path:
    day = f"-day{asked.day:g}" if asked.day else f"-for{asked.for_s:g}"
    weight = "" if asked.work_weight == 0.0 else f"-weight{asked.work_weight:g}"
    return (
        folder
        / f"{name}-x{grids}-rate{asked.rate:g}{day}-seed{asked.seed}{weight}.json"
    )


def _kept(folder: Path, asked: FleetCommand, name: str, grids: int) -> Found | None:
    file = _file(folder, asked, name, grids)
    if not file.exists():
        return None
    return msgspec.json.decode(file.read_bytes(), type=Found)


def _play(
    asked: FleetCommand,
    deployment: Deployment,
    requests: list[PlannedRequest],
    points: Points,
    name: str,
    grids: int,
) -> Found:
    router, policy = CONTENDERS[name]
    scaling = None
    start = grids
    if asked.day is not None:
        # the shorter the day, the shorter the waits, down to what means anything
        hour_s = asked.day / 24
        scaling = ScalingConfig(
            max_grids=grids,
            window_s=max(_LEAST_WINDOW_S, hour_s / 20),
            up_after_s=max(_LEAST_WAIT_S, hour_s / 100),
            down_after_s=max(2 * _LEAST_WINDOW_S, hour_s / 4),
            catch_up_s=max(_LEAST_WINDOW_S, hour_s / 30),
        )
        start = 1
    played = play_fleet(
        msgspec.structs.replace(
            deployment, replicas=start, scheduler=scheduler_of(policy, {})
        ),
        requests,
        FleetOptions(
            routing=RoutingConfig(router=router, work_weight=asked.work_weight),
            ingresses=asked.ingresses,
            scaling=scaling,
            start_s=_START_S,
        ),
    )
    return found_of(asked, played, points, name, grids)


def found_of(
    asked: FleetCommand, played: FleetPlayed, points: Points, name: str, grids: int
) -> Found:
    """What came of a run."""
    records = played.records
    expect(records, points)
    objectives = parse_objectives((f"ttft:{asked.ttft}", f"tpot:{asked.tpot}"))
    good = [measure(record, objectives).good is True for record in records]
    short = ttfts(records, SHORT)
    long = ttfts(records, LONG)
    span_s = asked.day or asked.for_s
    return Found(
        contender=name,
        grids=grids,
        good=sum(good) / len(good),
        good_per_s=sum(good) / span_s,
        short_p50=percentile(short, 50),
        short_p99=percentile(short, 99),
        long_p50=percentile(long, 50),
        long_p99=percentile(long, 99),
        hit_rate=hits_of([one for one in records if one.completed]).get(
            "hit_rate", 0.0
        ),
        grid_seconds=played.grid_seconds,
        most_grids=max([moment.grids for moment in played.moments]),
        lost=sum([not record.completed for record in records]),
    )


def table_of(found: list[Found], devices: int) -> Table:
    """A line a cell; TTFT as P50 / P99."""
    header = [
        "router, policy",
        "grids",
        "GPUs",
        "good",
        "good/s",
        "short TTFT, ms",
        "long TTFT, s",
    ]
    header += ["hits", "GPU hours", "lost"]
    rows = []
    for one in found:
        router, policy = CONTENDERS[one.contender]
        rows.append(
            [
                f"{router}, {policy}",
                str(one.most_grids),
                str(one.most_grids * devices),
                f"{100 * one.good:.1f}%",
                f"{one.good_per_s:.1f}",
                f"{1000 * one.short_p50:,.0f} / {1000 * one.short_p99:,.0f}",
                f"{one.long_p50:.2f} / {one.long_p99:.2f}",
                f"{100 * one.hit_rate:.0f}%",
                f"{one.grid_seconds * devices / 3600:.1f}",
                str(one.lost),
            ]
        )
    return header, rows


def needs(found: list[Found], attainment: float, devices: int) -> str:
    """The fewest of the tried numbers of grids that were enough, by contender."""
    lines = []
    for name in dict.fromkeys(one.contender for one in found):
        mine = [one for one in found if one.contender == name]
        enough = [one.grids for one in mine if one.good >= attainment]
        most = max(one.grids for one in mine)
        told = (
            f"{min(enough) * devices} GPUs"
            if enough
            else f"more than {most * devices} GPUs"
        )
        router, policy = CONTENDERS[name]
        lines.append(f"{router}, {policy}: {told} for {100 * attainment:g}% good")
    return "\n".join(lines)
