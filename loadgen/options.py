"""Every option, with its default, in one place; loadgen.cli turns the command line into it."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from loadgen.errors import LoadgenError
from loadgen.workload import PRESETS, Mix


class Options(msgspec.Struct, kw_only=True, frozen=True):
    """Names as on the command line; times in the unit of the flag's name, seconds where it has
    none."""

    # the server
    base_url: str = "http://127.0.0.1:8000"
    model: str | None = None  # None: the first that the server names
    endpoint: str = "/v1/completions"
    header: tuple[str, ...] = ()
    tokenizer: str | None = None
    prompt_format: str = "auto"  # auto | ids | text | approximate
    token_ids: str | None = None  # LO:HI
    ready_check_timeout_sec: float = 0.0
    request_timeout: float = 3600.0
    ignore_eos: bool = False
    temperature: float | None = None
    extra_body: dict[str, Any] = msgspec.field(default_factory=dict)
    send_objectives: bool = False
    # the workload
    workload: str | None = None
    dataset_name: str = "auto"
    dataset_path: str | None = None
    num_prompts: int | None = None
    duration: float = math.inf
    input_len: str | None = None
    output_len: str | None = None
    long_fraction: float | None = None
    long_input_len: str | None = None
    long_output_len: str | None = None
    long_threshold: int = 8192
    scale_lengths: str = "1"
    scale_time: float = 1.0
    max_model_len: int | None = None
    timed_trace_chunk_hash_size: int | None = None
    timed_trace_sec_multiplier: float | None = None
    seed: int = 0
    # the pace
    request_rate: float | None = None
    burstiness: float = 1.0
    arrival: str = "poisson"
    max_concurrency: int | None = None
    ramp_up: float = 0.0
    probe_request_rate: float = 0.0
    probe_input_len: int = 32
    num_warmups: int = 0
    # the judgement
    goodput: tuple[str, ...] = ()
    goodput_long: tuple[str, ...] = ()
    attainment: float = 0.99
    metric_percentiles: str = "50,90,95,99"
    isolated_ttft: str | None = None  # measure | FILE | DIR
    late_threshold_ms: float = 50.0
    # the output
    result_dir: str | None = None
    label: str = ""
    policy: str | None = None
    quiet: bool = False
    live_interval: float | None = None
    fail_unhealthy: bool = False

    @property
    def chat(self) -> bool:
        return self.endpoint.endswith("/chat/completions")

    @property
    def closed_loop(self) -> bool:
        """As in vLLM: a concurrency without a rate. A trace with times of its own is never a closed
        loop."""
        return self.max_concurrency is not None and self.request_rate is None

    def mix(self) -> Mix:
        """Lengths of a synthetic workload: the preset's, with whatever was given beside it."""
        if self.workload is not None and self.workload not in PRESETS:
            raise LoadgenError(f"--workload {self.workload}: known are {', '.join(PRESETS)}")
        base = PRESETS[self.workload] if self.workload else Mix()
        given = {name: getattr(self, name) for name in Mix.__struct_fields__}
        return msgspec.structs.replace(
            base, **{name: value for name, value in given.items() if value is not None}
        )

    def scales(self) -> tuple[float, float]:
        """Factors for prompt and answer lengths."""
        try:
            factors = [float(part) for part in self.scale_lengths.split(":")]
            if len(factors) > 2 or any(not 0 < factor < math.inf for factor in factors):
                raise ValueError
        except ValueError:
            raise LoadgenError(
                f"--scale-lengths {self.scale_lengths}: write FACTOR or PROMPTS:ANSWERS"
            ) from None
        return factors[0], factors[-1]

    def percentiles(self) -> tuple[float, ...]:
        """--metric-percentiles as numbers."""
        try:
            found = tuple(float(part) for part in self.metric_percentiles.split(","))
            if any(not 0 <= percent <= 100 for percent in found):
                raise ValueError
        except ValueError:
            raise LoadgenError(
                f"--metric-percentiles {self.metric_percentiles}: write 50,90,99"
            ) from None
        return found

    def body(self) -> dict[str, Any]:
        """Fields that every request has beside model, prompt and length."""
        body: dict[str, Any] = {}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.ignore_eos:
            body["ignore_eos"] = True
        return body | self.extra_body

    def public(self) -> dict[str, Any]:
        """For config.yml: everything but secrets. Header values may be some."""
        tree = msgspec.to_builtins(self)
        tree["header"] = [line.split("=", 1)[0] for line in self.header]
        return {
            key: value for key, value in tree.items() if value not in (None, "", [], {}, math.inf)
        }
