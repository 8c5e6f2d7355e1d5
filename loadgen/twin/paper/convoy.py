"""Short requests behind long ones: figures 1 (long fraction), 13 (policies), 9 (capacity) and 14
(reserved pools)."""

from __future__ import annotations

from functools import partial

from loadgen.judge.latencies import percentile, ttfts
from loadgen.records import LONG, SHORT
from loadgen.show.output import Say
from loadgen.twin.deployment import Deployment
from loadgen.twin.paper.common import Outcome, Row, capacity, paper_deployment, paper_mix, played

FRACTIONS = (0.0, 0.01, 0.02, 0.03, 0.05)
POLICIES = ("fcfs", "fcfs_chunked", "edf", "lrs", "lars")
RATE = 0.75
_OVERLOAD = (
    "at 0.75/s with 5% long this grid is offered about as much long prefill as it can do, so under "
    "FCFS the backlog, and with it the ratio, grows with the length of the run; the baseline is "
    "FCFS on the same engine, not LoongServe"
)


def convoy(count: int, say: Say) -> Outcome:
    """Figure 1: TTFT of all requests by the share of long ones; FCFS without preemption against
    LARS."""
    lines: dict[str, list[tuple[float, float, float]]] = {"fcfs": [], "lars": []}
    for policy, points in lines.items():
        for fraction in FRACTIONS:
            say(f"convoy: {policy}, {100 * fraction:g}% long")
            run = played(paper_deployment().with_policy(policy), paper_mix(count, RATE, fraction))
            values = ttfts(run.records)
            points.append((fraction, percentile(values, 50), percentile(values, 99)))
    worst = lines["fcfs"][-1]
    best = lines["lars"][-1]
    rows = [
        Row(
            key="convoy",
            what="TTFT P50, FCFS over LARS, 5% long, 0.75/s, 16 A100, 8B (paper: LoongServe)",
            theirs=(30, 30),
            ours=worst[1] / best[1],
            why=_OVERLOAD,
        ),
        Row(
            key="convoy",
            what="TTFT P99, likewise",
            theirs=(174, 174),
            ours=worst[2] / best[2],
            at_least=False,
            why=(
                "P99 of all requests is a long request's own prefill under LARS: minutes of work "
                "on 16 A100 that no order of service removes, see the row for short ones alone"
            ),
        ),
    ]
    short = {
        policy: ttfts(
            played(paper_deployment().with_policy(policy), paper_mix(count, RATE, 0.05)).records,
            SHORT,
        )
        for policy in lines
    }
    ratio = percentile(short["fcfs"], 99) / percentile(short["lars"], 99)
    rows.append(
        Row(
            key="convoy",
            what="TTFT P99 of short requests alone, likewise",
            theirs=(174, 174),
            ours=ratio,
            why=_OVERLOAD,
        )
    )
    return Outcome(rows=rows, figures={"convoy": lines})


def policies(count: int, say: Say) -> Outcome:
    """Figure 13: normalised TTFT of all policies at 0.75/s."""
    times = {}
    for policy in POLICIES:
        say(f"policies: {policy}")
        run = played(paper_deployment().with_policy(policy), paper_mix(count, RATE, 0.05))
        by_class = {
            kind: ttfts(run.records, kind, normalised=True).tolist() for kind in (SHORT, LONG)
        }
        times[policy] = by_class | {"all": ttfts(run.records, normalised=True).tolist()}
    means = {policy: sum(values["all"]) / len(values["all"]) for policy, values in times.items()}
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
                _OVERLOAD + "; normalised by the idle TTFT of this twin (tens of ms for a chat), "
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


def _short_p90_ok(policy: str, count: int, rate: float) -> bool:
    run = played(paper_deployment().with_policy(policy), paper_mix(count, rate, 0.05))
    return (
        percentile(ttfts(run.records, SHORT), 90) <= 1.0
        and percentile(ttfts(run.records, LONG, normalised=True), 90) <= 3.0
    )


def rates(count: int, say: Say) -> Outcome:
    """Figure 9: P90 of short requests' TTFT by rate, and the rate at which it is still
    acceptable."""
    tried = (0.0625, 0.125, 0.25, 0.5, 0.75)
    lines = {}
    for policy in ("fcfs", "fcfs_chunked", "edf", "lars"):
        say(f"capacity: {policy}")
        runs = [
            played(paper_deployment().with_policy(policy), paper_mix(count, rate, 0.05))
            for rate in tried
        ]
        lines[policy] = [
            (rate, percentile(ttfts(run.records, SHORT), 90))
            for rate, run in zip(tried, runs, strict=True)
        ]
    best = {}
    for policy in ("fcfs", "lars"):
        holds = partial(_short_p90_ok, policy, count)
        best[policy] = capacity(holds, 0.01, 2.0, 0.15)
    rows = [
        Row(
            key="capacity",
            what="highest rate with acceptable TTFT, LARS over FCFS (fig. 9)",
            theirs=(5, 5.7),
            ours=best["lars"] / best["fcfs"],
            why=(
                "acceptable: P90 of short ones within 1 s, of long ones within 3 times idle. Under "
                "FCFS the share of short ones that wait is the load of the long ones: P90 allows a "
                "load near 10%, P80 near 20%, so the percentile sets the ratio; LoongServe's "
                "elastic groups also spare some short ones"
            ),
        )
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

        best[shared] = capacity(partial(_nearly_all_good, deployment, count), 0.2, 1.5, 0.06)
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
        "shared, LARS (16 GPUs)": {k: ttfts(shared.records, k).tolist() for k in (SHORT, LONG)}
    }
    split = {}
    for kind in (SHORT, LONG):
        own = tuple(request for request in requests if request.kind == kind)
        split[kind] = ttfts(played(half, own).records).tolist()
    times["pools of 8 and 8 GPUs, FCFS"] = split
    return Outcome(figures={"pools": times})
