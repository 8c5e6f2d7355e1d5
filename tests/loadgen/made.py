"""Records and runs made by hand."""

from argparse import Namespace
from array import array

from loadgen.flags import fill
from loadgen.records import RequestRecord, RunRecord
from loadgen.workload.options import PaceOptions, WorkloadOptions
from loadgen.workload.plan import build_plan


def plan_of(**given):
    """The plan of a run with these options."""
    arguments = Namespace(**given)
    return build_plan(fill(arguments, WorkloadOptions), fill(arguments, PaceOptions))


def made(index=0, sent=0.0, tokens=(1.0, 1.1, 1.3), kind="short", **more):
    """A completed request with tokens at these seconds after it was sent."""
    times = array("d", [sent + after for after in tokens])
    fields = {
        "index": index,
        "kind": kind,
        "prompt_tokens": 10,
        "output_tokens": len(times),
        "scheduled_at": sent,
        "released_at": sent,
        "sent_at": sent,
        "answered_at": sent,
        "token_times": times,
        "ended_at": times[-1] if len(times) else sent + 1,
        "status": 200,
        "finish_reason": "length",
        "usage_prompt_tokens": 10,
        "usage_completion_tokens": len(times),
        "cached_tokens": 0,
    }
    return RequestRecord(**(fields | more))


def failed(index=0, sent=0.0, error="HTTP 503: full", **more):
    return made(
        index,
        sent,
        (),
        error=error,
        usage_completion_tokens=None,
        finish_reason=None,
        status=503,
        **more,
    )


def a_run(records, **more):
    ends = [record.ended_at for record in records if record.ended_at is not None]
    fields = {
        "records": records,
        "duration_s": max(ends, default=0.0),
        "config": {
            "policy": "lars",
            "model": "m",
            "request_rate": 2.0,
            "seed": 0,
            "nested": {"list": [1, "two"]},
        },
        "started_at": 1_700_000_000.0,
        "loop_lags_s": [0.001] * 20,
        "cpu_share": 0.1,
    }
    return RunRecord(**(fields | more))
