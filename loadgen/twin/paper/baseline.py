"""LoongServe's place in the paper's comparisons: elastic instances on the same devices.

LoongServe's authors ran instances of two devices; our own grid has stages of eight. The rows are
given for both, and the figure for what lies between.
"""

from __future__ import annotations

from loadgen.judge.latencies import percentile, ttfts
from loadgen.records import LONG, SHORT
from loadgen.show.output import Say
from loadgen.twin.elastic.cost import ElasticDeployment
from loadgen.twin.elastic.engine import play_elastic
from loadgen.twin.hardware import hardware_of
from loadgen.twin.models import model_of
from loadgen.twin.paper.common import RATE, Outcome, paper_deployment, paper_mix, played

_DEVICES = 16
_DRAWS = 5  # of the mix and its arrivals
# name of the system in figures: devices of an instance
ELASTIC = {"esp_tp2": 2, "esp_tp8": 8}
WHAT = {
    "esp_tp2": "LoongServe-like, TP2 ESP8",
    "esp_tp8": "LoongServe-like, TP8 ESP2",
    "fcfs": "FCFS on our engine in its place",
}


def elastic(tp: int, patient: bool = False) -> ElasticDeployment:
    """The paper's 16 A100 with Llama-3 8B as elastic instances."""
    return ElasticDeployment(
        model=model_of("llama-3-8b"),
        device=hardware_of("a100"),
        tp=tp,
        instances=_DEVICES // tp,
        patient=patient,
    )


def name_of(tp: int) -> str:
    """Instances of so many devices."""
    return f"TP{tp} ESP{_DEVICES // tp}"


def elastic_fleets(count: int, say: Say) -> Outcome:
    """TTFT of short and long ones by the size of the instances, with and without waiting for a
    larger team, beside LARS and FCFS; and the median of the short ones in other draws."""
    requests = paper_mix(count, RATE, 0.05)
    runs = {}
    for tp in (1, 2, 4, 8):
        for patient in (False, True):
            say(f"elastic instances of {tp}, patient {patient}")
            name = name_of(tp) + (", waits" if patient else "")
            runs[name] = played(elastic(tp, patient), requests)
    for policy in ("fcfs", "lars"):
        say(f"elastic: {policy}")
        runs[policy] = played(paper_deployment().with_policy(policy), requests)
    figure = {}
    for name, run in runs.items():
        short = ttfts(run.records, SHORT)
        long = ttfts(run.records, LONG)
        figure[name] = {
            "short P50": percentile(short, 50),
            "short P90": percentile(short, 90),
            "short P99": percentile(short, 99),
            "long P50": percentile(long, 50),
            "long P99": percentile(long, 99),
        }
    draws = {}
    for tp in (1, 2, 4, 8):
        say(f"elastic instances of {tp}, {_DRAWS} draws")
        draws[name_of(tp)] = [_short_median(tp, count, seed) for seed in range(_DRAWS)]
    return Outcome(figures={"elastic": {"runs": figure, "draws": draws}})


def _short_median(tp: int, count: int, seed: int) -> float:
    run = play_elastic(elastic(tp), paper_mix(count, RATE, 0.05, seed))
    return percentile(ttfts(run.records, SHORT), 50)
