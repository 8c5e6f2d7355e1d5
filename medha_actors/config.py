"""The one configuration tree: what stands under `args` in serve_config.yaml.

Units are in the names, unknown fields are refused with their path, and nothing is mutated. `None`
means "derive it".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from medha_actors.errors import ConfigError

Policy = Literal["fcfs", "fcfs_chunked", "edf", "lrs", "lars", "hrrn", "spf", "relegation"]
DType = Literal["auto", "float32", "bfloat16", "float16"]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the tree."""


class RandomWeights(_Section, frozen=True):
    """Dimensions of a model with random weights, for tests and benchmarks (`model_source:
    random`)."""

    layers: int = 4
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    intermediate: int = 128
    vocabulary: int = 512
    seed: int = 0


class RopeScaling(_Section, frozen=True):
    """Overrides the model's own RoPE scaling; names and meaning as in a Hugging Face config."""

    rope_type: Literal["linear", "dynamic", "llama3", "yarn"]
    factor: float
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None


class ModelLoadingConfig(_Section, frozen=True):
    """Which model; the names are ray.serve.llm's."""

    model_id: str = "smollm2-135m-instruct"  # the name clients send
    model_source: str = (
        "embedded"  # embedded | random | a Hugging Face directory or hub id | a .gguf file
    )
    dtype: DType = "auto"
    max_model_len_tokens: int | None = (
        None  # None: what the model (with its RoPE scaling) was made for
    )
    rope_scaling: RopeScaling | None = None
    random: RandomWeights = RandomWeights()


class ParallelConfig(_Section, frozen=True):
    """The grid of stage actors: `spp` pipeline stages by `kvp` KV groups (paper, 3.3)."""

    spp: int = 2
    kvp: int = 1
    # A request's piece in one group; the next group is taken when it is full, and the last one
    # takes the rest. None: the longest sequence / kvp, so that its pieces are equal, but at least
    # 8192, below which a second group costs a decode more than it saves (docs/benchmarks.md); in
    # whole pages, and at most all pages of a group.
    max_tokens_per_kvp_group: int | None = None


class ActorConfig(_Section, frozen=True):
    """What each stage actor gets."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_gpus: float = 1.0  # on CUDA; a fraction lets several actors share a GPU
    num_cpus: float = 1.0
    threads: int = 1  # compute threads of a CPU actor
    pin: bool = True  # bind each CPU actor to cores of its own
    attention: Literal["auto", "sdpa", "flash_attn"] = "auto"
    spares: int = 1  # warm processes per node that take the place of a dead stage (CPU only)
    start_timeout_s: float = 300.0
    step_timeout_s: float = 600.0  # a step that takes longer counts as a dead stage
    orphan_timeout_s: float = 30.0  # stage actors wait so long for a new controller, then end


class SchedulerConfig(_Section, frozen=True):
    """LARS, adaptive chunking and batch packing (paper, 4)."""

    policy: Policy = "lars"
    batch_budget_s: float | None = (
        None  # time a batch may take in a stage; None: objectives.tpot_s / (stages + 1)
    )
    fixed_chunk_tokens: int | None = None  # chunked prefill with a constant size, for comparison
    min_chunk_tokens: int = (
        4  # a chunk this small is run even if it does not fit, so that prefill always moves on
    )
    max_chunk_tokens: int = 2048
    max_batch_tokens: int = 4096
    max_running_requests: int = 64  # requests in decode at once
    max_waiting_requests: int = 1000
    space_sharing: bool = True
    long_share: float = (
        1.0  # of the budget that a batch with a long prefill may fill while others are live
    )
    max_yield: float = (
        0.4  # rho_max: the largest share of the budget that a long prefill leaves to short ones
    )


class ObjectivesConfig(_Section, frozen=True):
    """Deadlines: server policy. A client may ask for objectives within the bounds."""

    ttft_multiplier: float = (
        1.5  # deadline = max(multiplier * predicted isolated prefill time, floor)
    )
    ttft_floor_s: float = (
        0.05  # the paper's engine takes 0.5, which holds short requests back for nothing
    )
    tpot_s: float = 0.15
    min_ttft_s: float = 0.05
    min_tpot_s: float = 0.01
    default_timeout_s: float | None = None
    max_timeout_s: float = 86_400.0


class KvCacheConfig(_Section, frozen=True):
    """Bounded memory for keys and values."""

    budget_bytes: int | None = None  # per actor; None: a share of the memory that is free at start
    page_tokens: int = 64


class PredictorConfig(_Section, frozen=True):
    """Calibration of the execution-time model."""

    calibrate: bool = True  # False: analytic guesses, corrected online
    max_seconds: float = 10.0
    cache: bool = True
    probe_context_tokens: int = 4096


class LimitsConfig(_Section, frozen=True):
    """Bounds that every HTTP request is checked against before any work."""

    max_body_bytes: int = 64 * 1024 * 1024
    max_prompts: int = 64
    max_n: int = 16
    max_stop_strings: int = 16
    max_stop_chars: int = 256
    max_stop_token_ids: int = 64
    max_logprobs: int = 20
    max_logit_bias: int = 1024
    max_messages: int = 2048


class StreamConfig(_Section, frozen=True):
    """Server-sent events."""

    keep_alive_s: float = 10.0
    progress_s: float = 1.0  # at most one progress comment or event in this time
    max_buffered_events: int = 4096  # for a reader that does not read


class TracingConfig(_Section, frozen=True):
    """OpenTelemetry spans, sent by OTLP; made from a request's timeline when it has ended."""

    exporter: Literal["none", "otlp_grpc", "otlp_http"] = "none"
    endpoint: str | None = (
        # None: $OTEL_EXPORTER_OTLP_ENDPOINT, else http://localhost:4317 (grpc) or :4318 (http)
        None
    )
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    service_name: str = "medha"
    sample_ratio: float = 1.0  # of new traces; a client's traceparent decides for its own
    always_missed: bool = True  # requests that missed an objective are sent whatever the ratio says
    queue_spans: int = 16_384  # spans that wait for the backend; more are dropped
    timeout_s: float = 5.0
    ui_url: str | None = (
        # with {trace_id}: where to look at a trace, e.g. http://localhost:16686/trace/{trace_id}
        None
    )


class TelemetryConfig(_Section, frozen=True):
    """What is recorded of requests and steps. `enabled: false`: nothing, and /metrics and /medha
    are gone."""

    enabled: bool = True
    timelines: int = 512  # finished requests whose timeline can still be asked for
    max_chunk_spans: int = 96  # per request; longer prefills are coalesced to runs of chunks
    live_page: bool = True
    live_period_s: float = 0.25
    tracing: TracingConfig = TracingConfig()


class MedhaConfig(_Section, frozen=True):
    """Everything."""

    model_loading_config: ModelLoadingConfig = ModelLoadingConfig()
    parallel: ParallelConfig = ParallelConfig()
    actors: ActorConfig = ActorConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    objectives: ObjectivesConfig = ObjectivesConfig()
    kv_cache: KvCacheConfig = KvCacheConfig()
    predictor: PredictorConfig = PredictorConfig()
    limits: LimitsConfig = LimitsConfig()
    stream: StreamConfig = StreamConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    # What is in flight when the server stops, or when a new configuration replaces this one, may
    # take so long to finish; what is left then ends with an error.
    drain_timeout_s: float = 30.0
    accelerator_type: str | None = None
    deployment_config: dict[str, Any] = msgspec.field(
        default_factory=dict
    )  # passed on to serve.deployment
    placement_group_config: dict[str, Any] = msgspec.field(
        default_factory=dict
    )  # {strategy: PACK | SPREAD | ...}


def load(args: Mapping[str, Any]) -> MedhaConfig:
    """Convert and check the `args` of the Serve application; raises ConfigError naming the wrong
    key."""
    if not args:
        raise ConfigError(
            "args: is empty; write at least `args: {model_loading_config: {model_source: "
            "embedded}}`"
        )
    try:
        config = msgspec.convert(args, MedhaConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"args: {error}".replace("`$", "`args")) from None
    for path, value, low, high in _bounds(config):
        if value is not None and not low <= value <= high:
            raise ConfigError(f"args: {path} is {value}, allowed is {low} to {high}")
    return config


def _bounds(config: MedhaConfig) -> list[tuple[str, float | None, float, float]]:
    scheduler, parallel, objectives = config.scheduler, config.parallel, config.objectives
    huge = float(2**50)
    return [
        (
            "model_loading_config.max_model_len_tokens",
            config.model_loading_config.max_model_len_tokens,
            1,
            2**30,
        ),
        ("drain_timeout_s", config.drain_timeout_s, 0, 86_400),
        ("parallel.spp", parallel.spp, 1, 1024),
        ("parallel.kvp", parallel.kvp, 1, 256),
        ("parallel.max_tokens_per_kvp_group", parallel.max_tokens_per_kvp_group, 1, huge),
        ("actors.num_gpus", config.actors.num_gpus, 0.01, 64),
        ("actors.num_cpus", config.actors.num_cpus, 0.01, 1024),
        ("actors.threads", config.actors.threads, 1, 1024),
        ("actors.start_timeout_s", config.actors.start_timeout_s, 1, 86_400),
        ("actors.spares", config.actors.spares, 0, 16),
        ("actors.orphan_timeout_s", config.actors.orphan_timeout_s, 5, 3600),
        ("actors.step_timeout_s", config.actors.step_timeout_s, 1, 86_400),
        ("scheduler.batch_budget_s", scheduler.batch_budget_s, 1e-4, 3600),
        ("scheduler.fixed_chunk_tokens", scheduler.fixed_chunk_tokens, 1, 2**20),
        ("scheduler.min_chunk_tokens", scheduler.min_chunk_tokens, 1, 2**20),
        (
            "scheduler.max_chunk_tokens",
            scheduler.max_chunk_tokens,
            scheduler.min_chunk_tokens,
            2**20,
        ),
        (
            "scheduler.max_batch_tokens",
            scheduler.max_batch_tokens,
            scheduler.max_chunk_tokens,
            2**24,
        ),
        (
            "scheduler.max_running_requests",
            scheduler.max_running_requests,
            1,
            min(65_536, scheduler.max_batch_tokens - 1),
        ),
        ("scheduler.max_waiting_requests", scheduler.max_waiting_requests, 1, 10**6),
        ("scheduler.long_share", scheduler.long_share, 0.01, 1),
        ("scheduler.max_yield", scheduler.max_yield, 0, 0.95),
        ("objectives.ttft_multiplier", objectives.ttft_multiplier, 0.1, 1000),
        ("objectives.ttft_floor_s", objectives.ttft_floor_s, 0, 86_400),
        ("objectives.tpot_s", objectives.tpot_s, objectives.min_tpot_s, 3600),
        ("objectives.min_ttft_s", objectives.min_ttft_s, 0, 3600),
        (
            "objectives.default_timeout_s",
            objectives.default_timeout_s,
            0.001,
            objectives.max_timeout_s,
        ),
        ("kv_cache.budget_bytes", config.kv_cache.budget_bytes, 1, huge),
        ("kv_cache.page_tokens", config.kv_cache.page_tokens, 1, 65_536),
        ("predictor.max_seconds", config.predictor.max_seconds, 0.1, 600),
        ("limits.max_body_bytes", config.limits.max_body_bytes, 1024, 2**34),
        ("stream.keep_alive_s", config.stream.keep_alive_s, 0.05, 3600),
        ("stream.progress_s", config.stream.progress_s, 0, 3600),
        ("telemetry.timelines", config.telemetry.timelines, 1, 100_000),
        ("telemetry.max_chunk_spans", config.telemetry.max_chunk_spans, 4, 10_000),
        ("telemetry.live_period_s", config.telemetry.live_period_s, 0.05, 60),
        ("telemetry.tracing.sample_ratio", config.telemetry.tracing.sample_ratio, 0, 1),
        ("telemetry.tracing.queue_spans", config.telemetry.tracing.queue_spans, 512, 2**24),
        ("telemetry.tracing.timeout_s", config.telemetry.tracing.timeout_s, 0.1, 600),
    ]
