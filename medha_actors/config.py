"""The one configuration tree: what stands under `args` in serve_config.yaml.

Units are in the names, unknown fields are refused with their path, every number has bounds, and
nothing is mutated. `None` means "derive it".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from medha_actors.bounds import Bounds, check, explained, numbers
from medha_actors.errors import ConfigError
from medha_actors.fleet_config import FleetConfig
from medha_actors.grid_config import ActorConfig, ParallelConfig
from medha_actors.quantities import (
    LOOPBACK,
    Bytes,
    ChunkTokens,
    Count,
    DType,
    Name,
    Options,
    Origin,
    Place,
    Policy,
    RopeFactor,
    Seconds,
    Share,
    Tokens,
    Variable,
)
from medha_actors.tuning import AdmissionConfig, FairnessConfig, OrderConfig, Section


class RandomWeights(Section, frozen=True):
    """Dimensions of a model with random weights, for tests and benchmarks (`model_source:
    random`)."""

    layers: Annotated[int, Meta(ge=1, le=4096)] = 4
    hidden: Annotated[int, Meta(ge=1, le=2**20)] = 64
    heads: Annotated[int, Meta(ge=1, le=4096)] = 4
    kv_heads: Annotated[int, Meta(ge=1, le=4096)] = 2
    head_dim: Annotated[int, Meta(ge=2, le=4096)] = 16
    intermediate: Annotated[int, Meta(ge=1, le=2**22)] = 128
    vocabulary: Annotated[int, Meta(ge=2, le=2**24)] = 512
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0


class RopeScaling(Section, frozen=True):
    """Overrides the model's own RoPE scaling; names and meaning as in a Hugging Face config."""

    rope_type: Literal["linear", "dynamic", "llama3", "yarn"]
    factor: Annotated[float, Meta(ge=1e-3, le=1e6)]
    original_max_position_embeddings: Tokens | None = None
    low_freq_factor: RopeFactor | None = None
    high_freq_factor: RopeFactor | None = None
    beta_fast: RopeFactor | None = None
    beta_slow: RopeFactor | None = None
    attention_factor: RopeFactor | None = None


class ModelLoadingConfig(Section, frozen=True):
    """Which model; the names are ray.serve.llm's."""

    model_id: Name = "smollm2-135m-instruct"  # the name clients send
    # embedded | random | a Hugging Face directory or hub id | a .gguf file
    model_source: Place = "embedded"
    dtype: DType = "auto"
    # None: what the model (with its RoPE scaling) was made for
    max_model_len_tokens: Tokens | None = None
    rope_scaling: RopeScaling | None = None
    random: RandomWeights = RandomWeights()


class SchedulerConfig(Section, frozen=True):
    """The order of prefills, adaptive chunking and batch packing (paper, 4)."""

    policy: Policy = "dboost"
    order: OrderConfig = OrderConfig()
    admission: AdmissionConfig = AdmissionConfig()
    fairness: FairnessConfig = FairnessConfig()
    # time a batch may take in a stage; None: objectives.tpot_s / (stages + 1)
    batch_budget_s: Annotated[float, Meta(ge=1e-4, le=3600.0)] | None = None
    # chunked prefill with a constant size, for comparison
    fixed_chunk_tokens: ChunkTokens | None = None
    # a chunk this small is run even if it does not fit, so that prefill always moves on
    min_chunk_tokens: ChunkTokens = 4
    max_chunk_tokens: ChunkTokens = 2048
    max_batch_tokens: Annotated[int, Meta(ge=1, le=2**24)] = 4096
    max_running_requests: Count = 64  # requests in decode at once
    max_waiting_requests: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000
    space_sharing: bool = True
    # of the budget that a batch with a long prefill may fill while others are live
    long_share: Annotated[float, Meta(ge=0.01, le=1.0)] = 1.0
    # rho_max: the largest share of the budget that a long prefill leaves to short ones
    max_yield: Annotated[float, Meta(ge=0.0, le=0.95)] = 0.4


class ObjectivesConfig(Section, frozen=True):
    """Deadlines: server policy. A client may ask for objectives within the bounds."""

    # deadline = max(multiplier * (path + drag * predicted isolated prefill), floor) +
    # grace (docs/policies.md)
    ttft_multiplier: Annotated[float, Meta(ge=0.1, le=1000.0)] = 1.5
    # the paper's engine takes 0.5, which holds short requests back for nothing
    ttft_floor_s: Seconds = 0.05
    tpot_s: Annotated[float, Meta(ge=1e-4, le=3600.0)] = 0.15
    min_ttft_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 0.05
    min_tpot_s: Annotated[float, Meta(ge=1e-4, le=3600.0)] = 0.01
    default_timeout_s: Annotated[float, Meta(ge=0.001, le=1e9)] | None = None
    max_timeout_s: Annotated[float, Meta(ge=0.001, le=1e9)] = 86_400.0


class KvCacheConfig(Section, frozen=True):
    """Bounded memory for keys and values."""

    # per actor; None: a share of the memory that is free at start
    budget_bytes: Bytes | None = None
    page_tokens: Count = 64
    # pages of equal beginnings are computed once: a request's cache_salt (by default
    # its API key's) says whose it may use
    prefix_cache: bool = True
    # per actor, of host memory that pages go to when they have to make room; 0: they are dropped
    host_bytes: Annotated[int, Meta(ge=0, le=2**50)] = 0
    disk: Place | None = None  # a folder: the host_bytes are of a file there


class PredictorConfig(Section, frozen=True):
    """Calibration of the execution-time model."""

    calibrate: bool = True  # False: analytic guesses, corrected online
    max_seconds: Annotated[float, Meta(ge=0.1, le=600.0)] = 10.0
    cache: bool = True
    probe_context_tokens: Tokens = 4096


class LimitsConfig(Section, frozen=True):
    """Bounds that every HTTP request is checked against before any work."""

    max_body_bytes: Annotated[int, Meta(ge=1024, le=2**34)] = 64 * 1024 * 1024
    # bodies over 1 MB that are read and tokenised at once, all together; more get 503
    max_large_bodies_bytes: Annotated[int, Meta(ge=1024, le=2**36)] = 256 * 1024 * 1024
    # /tokenize and /detokenize do more than the context, if this is more
    max_tokenize_tokens: Annotated[int, Meta(ge=1, le=2**24)] = 131_072
    # of one request, times n; the engine gets a few at a time
    max_prompts: Count = 4096
    # all prompts of a request together; the context, if that is more
    max_prompts_tokens: Tokens = 2**20
    max_n: Count = 16
    max_stop_strings: Annotated[int, Meta(ge=0, le=1024)] = 128
    max_stop_chars: Count = 256
    max_stop_token_ids: Annotated[int, Meta(ge=0, le=65_536)] = 64
    max_logprobs: Annotated[int, Meta(ge=0, le=1024)] = 20
    max_logit_bias: Annotated[int, Meta(ge=0, le=2**20)] = 1024
    max_messages: Count = 2048
    max_tools: Count = 128
    # of response_format, structured_outputs and forced tools
    max_grammar_bytes: Annotated[int, Meta(ge=1, le=2**24)] = 65_536
    grammar_timeout_s: Annotated[float, Meta(ge=0.01, le=60.0)] = 2.0


class StreamConfig(Section, frozen=True):
    """Server-sent events."""

    comments: bool = True  # in silences, for proxies that end silent streams
    # the first after so much silence, others after so much
    first_comment_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 1.0
    keep_alive_s: Annotated[float, Meta(ge=0.05, le=3600.0)] = 10.0
    # at most one progress comment or event in this time
    progress_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 1.0
    # for a reader that does not read
    max_buffered_events: Annotated[int, Meta(ge=1, le=2**24)] = 4096
    # how long a cut stream may be resumed; 0: never
    resume_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 60.0
    # of memory for that; the oldest go first
    resume_bytes: Annotated[int, Meta(ge=0, le=2**40)] = 128 * 1024 * 1024


class ApiKeysConfig(Section, frozen=True):
    """Where the API keys are (docs/access.md); without any, everybody may ask. They are read at
    start, on every node with an ingress replica."""

    file: Place | None = None
    environment: Variable | None = None  # the name of a variable


class CorsConfig(Section, frozen=True):
    """Pages of which origins may read our answers in a browser."""

    # `loopback`: pages of this host; `*`: all; others as browsers write them: https://chat.example
    origins: Annotated[tuple[Origin, ...], Meta(max_length=64)] = (LOOPBACK,)


class TracingConfig(Section, frozen=True):
    """OpenTelemetry spans, sent by OTLP; made from a request's timeline when it has ended."""

    exporter: Literal["none", "otlp_grpc", "otlp_http"] = "none"
    # None: $OTEL_EXPORTER_OTLP_ENDPOINT, else http://localhost:4317 (grpc) or :4318 (http)
    endpoint: Place | None = None
    headers: Annotated[dict[str, str], Meta(max_length=64)] = msgspec.field(
        default_factory=dict
    )
    service_name: Name = "medha"
    # of new traces; a client's traceparent decides for its own
    sample_ratio: Share = 1.0
    # requests that missed an objective are sent whatever the ratio says
    always_missed: bool = True
    # spans that wait for the backend; more are dropped
    queue_spans: Annotated[int, Meta(ge=512, le=2**24)] = 16_384
    timeout_s: Annotated[float, Meta(ge=0.1, le=600.0)] = 5.0
    # with {trace_id}: where to look at a trace, e.g. http://localhost:16686/trace/{trace_id}
    ui_url: Place | None = None


class TelemetryConfig(Section, frozen=True):
    """What is recorded of requests and steps. `enabled: false`: nothing, and /metrics and /medha
    are gone."""

    enabled: bool = True
    # finished requests whose timeline can still be asked for
    timelines: Annotated[int, Meta(ge=1, le=100_000)] = 512
    # per request; longer prefills are coalesced to runs of chunks
    max_chunk_spans: Annotated[int, Meta(ge=4, le=10_000)] = 96
    live_page: bool = True
    live_period_s: Annotated[float, Meta(ge=0.05, le=60.0)] = 0.25
    tracing: TracingConfig = TracingConfig()


class MedhaConfig(Section, frozen=True):
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
    api_keys: ApiKeysConfig = ApiKeysConfig()
    cors: CorsConfig = CorsConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    fleet: FleetConfig = FleetConfig()
    # What is in flight when the server stops, or when a new configuration replaces this
    # one, may take so long to finish; what is left then ends with an error.
    drain_timeout_s: Seconds = 30.0
    accelerator_type: Name | None = None
    # passed on to serve.deployment
    deployment_config: Options = msgspec.field(default_factory=dict)
    # {strategy: PACK | SPREAD | ...}
    placement_group_config: Options = msgspec.field(default_factory=dict)

    @property
    def cache_name(self) -> str | None:
        """What cached pages are found under by other requests; None: they are not."""
        return (
            self.model_loading_config.model_id if self.kv_cache.prefix_cache else None
        )


def load(args: Mapping[str, Any]) -> MedhaConfig:
    """Convert and check the `args` of the Serve application; raises ConfigError naming the wrong
    key, its value and what is allowed."""
    if not args:
        raise ConfigError(
            "args: is empty; write at least `args: {model_loading_config: {model_source: "
            "embedded}}`"
        )
    try:
        config = msgspec.convert(args, MedhaConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(explained(str(error), args, MedhaConfig)) from None
    # "not a number" is neither below nor above a bound, so the conversion lets it pass
    for path, bounds in (*numbers(MedhaConfig), *_relations(config)):
        check(config, path, bounds)
    for tenant, weight in config.scheduler.fairness.weights.items():
        if math.isnan(weight):
            raise ConfigError(
                f"args: scheduler.fairness.weights: {tenant} has no number"
            )
    return config


def _relations(config: MedhaConfig) -> list[tuple[str, Bounds]]:
    """Bounds that depend on other fields."""
    scheduler = config.scheduler
    objectives = config.objectives
    cache = config.kv_cache
    rows = min(65_536, scheduler.max_batch_tokens - 1)
    scaling = config.fleet.scaling
    grids: list[tuple[str, Bounds]] = []
    if scaling is not None:
        bounds = Bounds(scaling.min_grids, scaling.max_grids)
        grids = [
            ("fleet.scaling.min_grids", Bounds(1, scaling.max_grids)),
            ("fleet.num_grids", bounds),
        ]
    return [
        *grids,
        ("scheduler.max_chunk_tokens", Bounds(scheduler.min_chunk_tokens, 2**20)),
        ("scheduler.max_batch_tokens", Bounds(scheduler.max_chunk_tokens, 2**24)),
        ("scheduler.max_running_requests", Bounds(1, rows)),
        (
            "kv_cache.host_bytes",
            Bounds(int(cache.disk is not None), 2**50 * cache.prefix_cache),
        ),
        ("objectives.tpot_s", Bounds(objectives.min_tpot_s, 3600)),
        ("objectives.default_timeout_s", Bounds(0.001, objectives.max_timeout_s)),
    ]
