"""Short requests behind long ones: figures 1 (long fraction), 13 (policies), 9 (capacity) and 14
(reserved pools)."""

from __future__ import annotations

from functools import partial

from loadgen.judge.latencies import percentile, ttfts
from loadgen.records import LONG, SHORT
from loadgen.show.output import Say
from loadgen.twin.deployment import Deployment
from loadgen.twin.paper.baseline import ELASTIC, WHAT, elastic
from loadgen.twin.paper.common import (
    RATE,
    Outcome,
    Row,
    capacity,
    paper_deployment,
    paper_mix,
    played,
)
from loadgen.twin.replay import Played

FRACTIONS = (0.0, 0.01, 0.02, 0.03, 0.05)
POLICIES = ("fcfs", "fcfs_chunked", "edf", "lrs", "lars")
_OVERLOAD = (
    "at 0.75/s with 5% long this grid is offered about as much long prefill as it can do, so "
    "whatever serves in order of arrival has a backlog, and with it a ratio, that grows with the "
    "length of the run"
)
_WHY = {
    "esp_tp2": _OVERLOAD
    + "; with small instances one is mostly left over that decodes: short ones "
    "interrupt it for milliseconds, and half of them do not notice the long ones",
    "esp_tp8": _OVERLOAD
    + "; a long request has both instances, or one for twice as long",
    "fcfs": _OVERLOAD + "; FCFS has no instances to spare",
}
_ALL_P99 = (
    "P99 of all requests is a long request's own prefill under LARS: minutes of work on 16 A100 "
    "that no order of service removes, see the row for short ones alone"
)


def _run(system: str, count: int, rate: float, fraction: float) -> Played:
    """One of our own policies, or elastic instances, under the paper's mix."""
    requests = paper_mix(count, rate, fraction)
    if system in ELASTIC:
        return played(elastic(ELASTIC[system]), requests)
    return played(paper_deployment().with_policy(system), requests)


def convoy(count: int, say: Say) -> Outcome:
    """Figure 1: TTFT of all requests by the share of long ones; the baselines against LARS."""
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for system in (*WHAT, "lars"):
        lines[system] = []
        for fraction in FRACTIONS:
            say(f"convoy: {system}, {100 * fraction:g}% long")
            values = ttfts(_run(system, count, RATE, fraction).records)
            point = (fraction, percentile(values, 50), percentile(values, 99))
            lines[system].append(point)
    best = ttfts(_run("lars", count, RATE, 0.05).records)
    best_short = ttfts(_run("lars", count, RATE, 0.05).records, SHORT)
    rows = []
    for system, what in WHAT.items():
        run = _run(system, count, RATE, 0.05)
        values = ttfts(run.records)
        short = ttfts(run.records, SHORT)
        rows += [
            Row(
                key="convoy",
                what=f"TTFT P50, {what}, over LARS, 5% long, 0.75/s, 16 A100, 8B",
                theirs=(30, 30),
                ours=percentile(values, 50) / percentile(best, 50),
                why=_WHY[system],
            ),
            Row(
                key="convoy",
                what="TTFT P99, likewise",
                theirs=(174, 174),
                ours=percentile(values, 99) / percentile(best, 99),
                why=_ALL_P99,
            ),
            Row(
                key="convoy",
                what="TTFT P99 of short requests alone, likewise",
                theirs=(174, 174),
                ours=percentile(short, 99) / percentile(best_short, 99),
                why=_WHY[system],
            ),
        ]
    return Outcome(rows=rows, figures={"convoy": lines})


def policies(count: int, say: Say) -> Outcome:
    """Figure 13: normalised TTFT of all policies at 0.75/s."""
    times = {}
    for policy in POLICIES:
        say(f"policies: {policy}")
        run = played(
            paper_deployment().with_policy(policy), paper_mix(count, RATE, 0.05)
        )
        by_class = {
            kind: ttfts(run.records, kind, normalised=True).tolist()
            for kind in (SHORT, LONG)
        }
        times[policy] = by_class | {"all": ttfts(run.records, normalised=True).tolist()}
    means = {
        policy: sum(values["all"]) / len(values["all"])
        for policy, values in times.items()
    }
    rows = [
        Row(
            key="policies",
            what=f"mean normalised TTFT, {policy} over LARS, 0.75/s (fig. 13)",
            theirs=(56, 91),
            ours=means[policy] / means["lars"],
            why=why,
        )
        for policy, why in (
            (
                "fcfs",
                _OVERLOAD
                + "; normalised by the idle TTFT of this twin (tens of ms for a chat), "
                "which a wait of minutes exceeds a thousandfold",
            ),
            (
                "edf",
                "as above: with deadlines that are missed under overload EDF serves late long "
                "requests first",
            ),
        )
    ]
    return Outcome(rows=rows, figures={"policies": times})


def _short_p90_ok(system: str, count: int, rate: float) -> bool:
    records = _run(system, count, rate, 0.05).records
    return (
        percentile(ttfts(records, SHORT), 90) <= 1.0
        and percentile(ttfts(records, LONG, normalised=True), 90) <= 3.0
    )


def rates(count: int, say: Say) -> Outcome:
    """Figure 9: P90 of short requests' TTFT by rate, and the rate at which it is still
    acceptable."""
    tried = (0.0625, 0.125, 0.25, 0.5, 0.75)
    lines = {}
    for system in (*ELASTIC, "fcfs", "fcfs_chunked", "edf", "lars"):
        say(f"capacity: {system}")
        lines[system] = [
            (
                rate,
                percentile(ttfts(_run(system, count, rate, 0.05).records, SHORT), 90),
            )
            for rate in tried
        ]
    best = {}
    for system in (*WHAT, "lars"):
        holds = partial(_short_p90_ok, system, count)
        best[system] = capacity(holds, 0.01, 2.0, 0.15)
    rows = [
        Row(
            key="capacity",
            what=f"highest rate with acceptable TTFT, LARS over {what} (fig. 9)",
            theirs=(5, 5.7),
            ours=best["lars"] / best[system],
            why=(
                "acceptable: P90 of short ones within 1 s, of long ones within 3 times idle. In "
                "order of arrival the share of short ones that wait is the load of the long ones: "
                "P90 allows a load near 10%, P80 near 20%, so the percentile sets the ratio"
            ),
        )
        for system, what in WHAT.items()
    ]
    return Outcome(rows=rows, figures={"capacity": {"lines": lines, "best": best}})


def _nearly_all_good(deployment: Deployment, count: int, rate: float) -> bool:
    """Whether 95% of all requests have their first token in 3 times the idle TTFT, or 1 s."""
    run = played(deployment, paper_mix(count, rate, 0.05))
    good = 0
    for record in run.records:
        allowed_s = max(1.0, 3 * (record.isolated_ttft_s or 0))
        if len(record.token_times):
            good += record.token_times[0] - (record.sent_at or 0) <= allowed_s
    return good >= 0.95 * len(run.records)


def sharing(count: int, say: Say) -> Outcome:
    """Multi-prefill batching: the rate at which 90% of all requests meet 3 times their idle TTFT
    (or 1 s)."""
    best = {}
    for shared in (False, True):
        say(f"space sharing {shared}")
        deployment = paper_deployment().with_policy("lars", space_sharing=shared)

        best[shared] = capacity(
            partial(_nearly_all_good, deployment, count), 0.2, 1.5, 0.06
        )
    rows = [
        Row(
            key="sharing",
            what="throughput of space sharing over plain LARS",
            theirs=(1.6, 1.8),
            ours=best[True] / best[False],
            why=(
                "short prompts are 2-3% of the prompt tokens of this mix and their chunks ride in "
                "the slack of the budget in both variants, since our plain LARS already packs "
                "several prefills into one batch: sharing only decides who goes first. The paper's "
                "plain LARS runs one prefill per batch"
            ),
        )
    ]
    return Outcome(rows=rows)


def pools(count: int, say: Say) -> Outcome:
    """Figure 14: GPUs reserved for long requests against all GPUs for everybody."""
    say("reserved pools")
    requests = paper_mix(count, 0.5, 0.05)
    shared = played(paper_deployment().with_policy("lars"), requests)
    half = paper_deployment(spp=1).with_policy("fcfs_chunked")
    times = {
        "shared, LARS (16 GPUs)": {
            k: ttfts(shared.records, k).tolist() for k in (SHORT, LONG)
        }
    }
    split = {}
    for kind in (SHORT, LONG):
        own = tuple(request for request in requests if request.kind == kind)
        split[kind] = ttfts(played(half, own).records).tolist()
    times["pools of 8 and 8 GPUs, FCFS"] = split
    return Outcome(figures={"pools": times})
