"""The sampler on a GPU: the same tokens as on the CPU, and what a step's sampling takes."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import torch
from torch import Tensor

from medha_actors.messages import (
    Introduction,
    SampledToken,
    SamplingParams,
    Span,
    pack_tokens,
)
from medha_actors.model.cuda.choice import Choice
from medha_actors.model.cuda.sampler import CudaSampler
from medha_actors.model.draw import threshold, uniform
from medha_actors.model.guard import Failures
from medha_actors.model.sampler import Sampler

_VOCABULARY: Final = 128_256
_REPEATS: Final = 20
_PROMPT: Final = 64  # tokens known at first; half of them are output
_DRAWN = SamplingParams(max_tokens=100, temperature=0.8)
CASES: Final = {
    "greedy": SamplingParams(max_tokens=100, temperature=0.0),
    "temperature": _DRAWN,
    "top_p 0.95, top_k 50": msgspec.structs.replace(_DRAWN, top_p=0.95, top_k=50),
    "top_p 0.95": msgspec.structs.replace(_DRAWN, top_p=0.95),
    "penalties": msgspec.structs.replace(
        _DRAWN, repetition_penalty=1.1, presence_penalty=0.1, frequency_penalty=0.1
    ),
    "logprobs 5": msgspec.structs.replace(_DRAWN, logprobs=5),
}
# what rows of the comparison ask, in turn
_MIXED: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"temperature": 0.0},
    {"temperature": 1.0, "top_k": 50},
    {"temperature": 1.0, "top_p": 0.95},
    {"top_p": 0.9, "top_k": 40, "min_p": 0.01},
    {"min_p": 0.05},
    {"temperature": 1.5, "top_k": 2000},
    {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.2},
    {
        "logit_bias": ((3, 4.0), (77, -100.0)),
        "min_tokens": 50,
        "stop_token_ids": (5, 6),
    },
    {"logprobs": 5},
)


class _Table:
    """Rows of figures, on disk as soon as they are known."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "sampler.json"
        self._rows: list[dict[str, Any]] = []

    def add(self, what: str, **figures: Any) -> None:
        self._rows.append({"what": what, **figures})
        self._file.write_text(json.dumps(self._rows, indent=1))
        print(what, figures, flush=True)


def run(out: Path) -> None:
    """Needs CUDA; under 40 s."""
    device = torch.device("cuda")
    table = _Table(out)
    with torch.inference_mode():
        _time(table, device)
        _compare_company(table, device)
        for rows, vocabulary in ((2_000, _VOCABULARY), (100_000, 4_096)):
            found = compare(device, rows, vocabulary, most_s=15.0)
            table.add(f"rows of {vocabulary} against the CPU", **found._asdict())


def logits_like_a_model(
    rows: int, vocabulary: int, device: torch.device, seed: int = 0
) -> Tensor:
    """Float32 [rows, vocabulary] with the values of bfloat16: a broad hill, and some hundred tokens
    above it."""
    generator = torch.Generator(device).manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=generator, device=device) * 2.0
    peaks = torch.randint(vocabulary, (rows, 300), generator=generator, device=device)
    heights = torch.rand(rows, 300, generator=generator, device=device).pow(4) * 12.0
    return logits.scatter_add_(1, peaks, heights).bfloat16().float()


class Trial:
    """Requests with the same number of prompt tokens, a row each, that go on step by step."""

    def __init__(self, sampler: Sampler, params: Sequence[SamplingParams]) -> None:
        self.sampler = sampler
        self._step = 0
        generator = torch.Generator().manual_seed(1)
        self._known = torch.randint(
            sampler.vocabulary, (_PROMPT,), generator=generator
        ).tolist()
        for number, one in enumerate(params):
            known = pack_tokens(self._known[:-1])
            sampler.open(Introduction(f"r{number}", one, known))
        self.names = [f"r{number}" for number in range(len(params))]

    def spans(self) -> list[Span]:
        """Of the next step."""
        stop = _PROMPT + self._step
        last = pack_tokens([self._known[self._step % _PROMPT]])
        self._step += 1
        spans = []
        for name in self.names:
            span = Span(
                name, stop - 1, stop, last, 0, 0, (), True, True, stop - _PROMPT // 2
            )
            spans.append(span)
        return spans

    def tokens(self, logits: Tensor) -> dict[str, SampledToken]:
        """Drawn from logits [rows, vocabulary], which stay."""
        failures = Failures()
        pending = self.sampler.launch(
            self.spans(), lambda rows: logits.clone(), failures
        )
        return {token.request_id: token for token in pending.finish().tokens}


def _time(table: _Table, device: torch.device) -> None:
    from medha_actors.model.cuda.kernel_choice import KernelChoice

    variants = [("kernels", KernelChoice()), ("torch", Choice())]
    for rows in (1, 16, 64, 256):
        logits = logits_like_a_model(rows, _VOCABULARY, device)
        flat = torch.randn(rows, _VOCABULARY, device=device)
        for case, params in CASES.items():
            for name, choice in variants:
                _time_one(table, f"{rows} rows, {case}, {name}", choice, params, logits)
        for name, choice in variants:
            params = CASES["top_p 0.95"]
            _time_one(
                table, f"{rows} flat rows, top_p 0.95, {name}", choice, params, flat
            )


def _time_one(
    table: _Table, what: str, choice: Choice, params: SamplingParams, logits: Tensor
) -> None:
    sampler = CudaSampler(_VOCABULARY, None, logits.device, choice)
    many = [msgspec.structs.replace(params, seed=seed) for seed in range(len(logits))]
    trial = Trial(sampler, many)
    device_ms = []
    host_ms = []
    for repeat in range(_REPEATS + 3):
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        spans = trial.spans()
        torch.cuda.synchronize()
        if repeat == 2:
            torch.cuda.set_sync_debug_mode("error")
        # work before it, so that the device does not wait for the host between launches
        torch.cuda._sleep(6_000_000)
        started = time.perf_counter()
        start.record()
        try:
            pending = sampler.launch(spans, lambda rows: logits, Failures())
        except RuntimeError as error:
            table.add(what, failed=str(error)[:300])
            return
        finally:
            torch.cuda.set_sync_debug_mode("default")
        end.record()
        launched = time.perf_counter()
        pending.finish()
        end.synchronize()
        if repeat >= 3:
            device_ms.append(start.elapsed_time(end))
            host_ms.append((launched - started) * 1e3)
    table.add(
        what,
        ms=round(statistics.median(device_ms), 4),
        launch_ms=round(statistics.median(host_ms), 4),
    )


def _compare_company(table: _Table, device: torch.device) -> None:
    """Rows alone and among 64: the same bits."""
    logits = logits_like_a_model(64, _VOCABULARY, device, seed=3)
    params = [_mixed(number) for number in range(64)]
    together = Trial(CudaSampler(_VOCABULARY, None, device), params).tokens(logits)
    differ = 0
    for number, one in enumerate(params):
        alone = Trial(CudaSampler(_VOCABULARY, None, device), [one])
        [found] = alone.tokens(logits[number : number + 1]).values()
        expected = together[f"r{number}"]
        differ += (found.token_id, found.logprob, found.top_logprobs) != (
            expected.token_id,
            expected.logprob,
            expected.top_logprobs,
        )
    table.add("64 rows alone and together", differ=differ)


class Compared(NamedTuple):
    """Rows on the device against the CPU's sampler."""

    rows: int
    differ: int
    unexplained: int  # of those that differ, farther from an edge than rounding goes
    furthest_from_an_edge: float  # in probability
    logprob_difference: float
    seconds: float


def compare(
    device: torch.device, rows: int, vocabulary: int, most_s: float
) -> Compared:
    """Draw rows of every kind in both ways; fewer than `rows` if that takes too long."""
    started = time.perf_counter()
    differ = 0
    unexplained = 0
    furthest = 0.0
    logprob = 0.0
    block = min(1000, rows, 16_000_000 // vocabulary)
    done = 0
    while done < rows and time.perf_counter() - started < most_s:
        logits = logits_like_a_model(block, vocabulary, device, seed=done)
        params = [_mixed(done + number) for number in range(block)]
        found = Trial(CudaSampler(vocabulary, None, device), params).tokens(logits)
        host = logits.cpu()
        reference = Trial(Sampler(vocabulary), params)
        expected = reference.tokens(host)
        for number, name in enumerate(reference.names):
            one = found[name]
            other = expected[name]
            if one.token_id != other.token_id:
                differ += 1
                distance = _distance(host[number], params[number], one, other)
                furthest = max(furthest, distance)
                unexplained += distance > 1e-4
            elif one.logprob is not None and other.logprob is not None:
                logprob = max(logprob, abs(one.logprob - other.logprob))
        done += block
    seconds = round(time.perf_counter() - started, 1)
    return Compared(done, differ, unexplained, furthest, logprob, seconds)


def _distance(
    row: Tensor, params: SamplingParams, one: SampledToken, other: SampledToken
) -> float:
    """How far, in probability, the shot is from an edge between two tokens: rounding decides where
    it is near one. Rows whose logits were changed first, or that are not drawn: 1."""
    if params.temperature == 0.0 or params.penalised or params.logit_bias:
        return 1.0
    scaled = row / params.temperature
    weights = (scaled - scaled.max()).double().exp()
    weights[scaled < threshold(scaled.numpy(), params)] = 0.0
    reached = weights.cumsum(0) / weights.sum()
    edge = min(one.token_id, other.token_id)
    between = reached[edge : max(one.token_id, other.token_id)]
    return float((between - uniform(params.seed, one.index)).abs().min())


def _mixed(number: int) -> SamplingParams:
    return msgspec.structs.replace(_DRAWN, seed=number, **_MIXED[number % len(_MIXED)])
