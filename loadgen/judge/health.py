"""Did the load generator do what it was told? A run that fails here says little about the server.

Checks of the generator itself (was it late, did it read late, had it CPU left) and of the workload
(are prompts and answers as long as planned, was the run finished). How well the server did is no
matter of health.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from loadgen.judge.latencies import percentile
from loadgen.records import PROBE, RequestRecord, RunRecord

Result = Literal["PASSED", "FAILED", "NOTE", "SKIPPED"]
_OWN = ("Lateness", "Event loop", "CPU")
LATE_S = 0.05  # P99 of lateness and of the event loop's lag

_FOREIGN_SHARE = 0.02  # of the prompts may be cached from elsewhere
_SHORTEST_S = 1.0  # of a run whose use of the processor says something

_BUSY = (
    "this machine is too busy: lower --request-rate, end other work on it, or run medha-loadgen on "
    "another machine than the server"
)
_ADVICE = {
    "Lateness": f"{_BUSY}; --late-threshold-ms allows more, if that is little beside the latencies",
    "Event loop": f"{_BUSY}; --late-threshold-ms allows more, if that is little beside the gaps",
    "CPU": "one process can do no more: lower --request-rate, or run several medha-loadgen at once "
    "(medha-loadgen selftest tells what this machine can do)",
    "Completeness": "let the run end (--num-prompts or --duration make it shorter), or look at the "
    "errors: there is little to judge",
    "Prompt length": "the server counts tokens in another way: try --prompt-format text, or "
    "--tokenizer with the model's tokenizer.json",
    "Output length": "the server heeds no --ignore-eos: leave it out, and read the lengths as they "
    "came",
    "Prefix cache": "the server knew these prompts: leave out --same-prompts, take another --seed, "
    "or restart it",
}


class Check(msgspec.Struct, frozen=True):
    """One finding. NOTE is worth reading but no failure."""

    title: str
    result: Result
    summary: str
    details: tuple[tuple[str, str], ...] = ()

    @property
    def advice(self) -> str:
        """What to do about a failure; nothing otherwise."""
        return _ADVICE[self.title] if self.result == "FAILED" else ""


class Health(msgspec.Struct, frozen=True):
    """All findings."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def verdict(self) -> str:
        """One line."""
        failed = [f"{check.title.lower()} ({check.summary})" for check in self.failures]
        return f"FAILED: {'; '.join(failed)}" if failed else "PASSED"

    @property
    def failures(self) -> list[Check]:
        return [check for check in self.checks if check.result == "FAILED"]

    @property
    def own_failures(self) -> list[Check]:
        """What the load generator itself, or its machine, was too slow for."""
        return [check for check in self.failures if check.title in _OWN]

    def text(self) -> str:
        """health_check_results.txt."""
        rule = "=" * 60
        parts = [f"HEALTH: {self.verdict}\n"]
        for check in self.checks:
            lines = [
                rule,
                check.title.upper(),
                rule,
                f"Result: {check.result}",
                "",
                f"  {check.summary}",
            ]
            if check.advice:
                lines.append(f"  What to do: {check.advice}")
            lines += [f"  {name:<30} {value}" for name, value in check.details]
            parts.append("\n".join(lines) + "\n")
        return "\n".join(parts)


def examine(
    run: RunRecord, *, late_s: float = LATE_S, exact_outputs: bool = False
) -> Health:
    """All checks. `exact_outputs`: answers were told to ignore the end-of-sequence token."""
    load = [record for record in run.records if record.kind != PROBE]
    completed = [record for record in load if record.completed]
    checks = []
    if not run.simulated:
        checks += [
            _lateness(run, late_s),
            _loop_lag(run, late_s),
            _cpu(run),
            _held_back(load),
        ]
    checks += [
        _complete(run, load, completed),
        _prompt_lengths(run, completed),
        _output_lengths(completed, exact_outputs),
        _events(completed),
        _cache(completed, run.config.get("prompt_overhead_tokens", 0)),
    ]
    return Health(tuple(checks))


def _lateness(run: RunRecord, late_s: float) -> Check:
    late = [
        max(0.0, record.sent_at - record.released_at)
        for record in run.records
        if record.sent_at is not None
    ]
    if not late:
        return Check("Lateness", "SKIPPED", "nothing was sent")
    high = percentile(late, 99)
    result: Result = "PASSED" if high <= late_s else "FAILED"
    summary = (
        f"99% of the requests were sent within {1000 * high:.1f} ms of their time; allowed are "
        f"{1000 * late_s:g} ms"
    )
    return Check("Lateness", result, summary, _spread(late))


def _loop_lag(run: RunRecord, late_s: float) -> Check:
    if not run.loop_lags_s:
        return Check("Event loop", "SKIPPED", "the run was too short to tell")
    high = percentile(run.loop_lags_s, 99)
    result: Result = "PASSED" if high <= late_s else "FAILED"
    summary = (
        f"tokens may have been seen {1000 * high:.1f} ms late (P99); allowed are {1000 * late_s:g} "
        "ms"
    )
    return Check("Event loop", result, summary, _spread(run.loop_lags_s))


def _cpu(run: RunRecord) -> Check:
    if run.cpu_share is None:
        return Check("CPU", "SKIPPED", "not measured")
    summary = f"the load generator used {100 * run.cpu_share:.0f}% of a core"
    if run.duration_s < _SHORTEST_S:
        return Check("CPU", "SKIPPED", f"{summary}, in a run too short to judge it")
    return Check("CPU", "PASSED" if run.cpu_share < 0.9 else "FAILED", summary)


def _held_back(load: Sequence[RequestRecord]) -> Check:
    held = sum(record.released_at > record.scheduled_at for record in load)
    if not held:
        return Check("Offered load", "PASSED", "no request was held back")
    summary = (
        f"{held} of {len(load)} requests waited for --max-concurrency: the offered rate was not "
        "reached"
    )
    return Check("Offered load", "NOTE", summary)


def _complete(
    run: RunRecord, load: Sequence[RequestRecord], completed: Sequence[RequestRecord]
) -> Check:
    cancelled = sum(record.cancelled for record in load)
    summary = f"{len(completed)} of {len(load)} requests completed"
    if run.interrupted:
        return Check(
            "Completeness",
            "FAILED",
            f"interrupted: {cancelled} requests given up; {summary}",
        )
    if run.cut_short:
        return Check(
            "Completeness",
            "NOTE",
            f"stopped when the objectives could not be met any more; {summary}",
        )
    if not completed:
        return Check("Completeness", "FAILED", "no request completed")
    return Check(
        "Completeness", "PASSED" if len(completed) == len(load) else "NOTE", summary
    )


def _prompt_lengths(run: RunRecord, completed: Sequence[RequestRecord]) -> Check:
    off = [
        r.usage_prompt_tokens - r.prompt_tokens
        for r in completed
        # the history of a session is text that may become a few tokens more or less
        if r.usage_prompt_tokens is not None and not (r.turn and r.turn.number)
    ]
    title = "Prompt length"
    if not off:
        return Check(title, "SKIPPED", "the server does not tell its token counts")
    wrong = sum(deviation != 0 for deviation in off)
    if not wrong:
        return Check(
            title,
            "PASSED",
            f"all {len(off)} prompts have exactly the planned number of tokens",
        )
    summary = (
        f"{wrong} of {len(off)} prompts differ from the plan, by {min(off):+d} to {max(off):+d} "
        "tokens"
    )
    return Check(title, "FAILED" if run.exact_prompts else "NOTE", summary)


def _output_lengths(completed: Sequence[RequestRecord], exact: bool) -> Check:
    off = [record.generated_tokens - record.output_tokens for record in completed]
    wrong = sum(deviation != 0 for deviation in off)
    if not wrong:
        return Check(
            "Output length",
            "PASSED" if off else "SKIPPED",
            f"all {len(off)} answers are as long as planned",
        )
    summary = (
        f"{wrong} of {len(off)} answers differ from the plan, by {min(off):+d} to {max(off):+d} "
        "tokens"
    )
    return Check(
        "Output length",
        "FAILED" if exact else "NOTE",
        summary + ("" if exact else " (see --ignore-eos)"),
    )


def _events(completed: Sequence[RequestRecord]) -> Check:
    events = sum(len(record.token_times) for record in completed)
    tokens = sum(record.generated_tokens for record in completed)
    if not tokens:
        return Check("Tokens per event", "SKIPPED", "no tokens")
    if events >= 0.98 * tokens:
        return Check(
            "Tokens per event",
            "PASSED",
            f"{events} events with content for {tokens} tokens",
        )
    summary = (
        f"{events} events for {tokens} tokens: gaps (itl) are those between events, not between "
        "tokens"
    )
    return Check("Tokens per event", "NOTE", summary)


def _cache(completed: Sequence[RequestRecord], overhead: int) -> Check:
    """Whoever finds more in the server's cache than the run has sent measures an earlier run. The
    `overhead` of a prompt, a chat template, is alike in all of them."""
    title = "Prefix cache"
    told = [record for record in completed if record.cached_tokens is not None]
    if not told:
        return Check(title, "SKIPPED", "the server does not tell what it had cached")
    prompt = sum(record.prompt_tokens for record in told)
    cached = sum(record.cached_tokens or 0 for record in told)
    known = sum(overhead + (record.known_tokens or 0) for record in told)
    summary = f"{cached} of {prompt} prompt tokens came from the server's cache"
    if cached <= known + _FOREIGN_SHARE * prompt:
        return Check(title, "PASSED", summary)
    summary += (
        f", though only {known} had been sent before: is it warm from an earlier run?"
    )
    return Check(title, "FAILED", summary)


def _spread(seconds: Sequence[float]) -> tuple[tuple[str, str], ...]:
    picks = {"Min": 0, "Median": 50, "P95": 95, "P99": 99, "Max": 100}
    return tuple(
        (name, f"{1000 * percentile(seconds, percent):.2f} ms")
        for name, percent in picks.items()
    )
