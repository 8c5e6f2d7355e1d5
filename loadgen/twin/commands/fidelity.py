"""`medha-loadgen fidelity`: replay a recorded real run in the twin, with the server's own
calibration, and compare.

The twin gets the record's arrivals and lengths, nothing of its latencies. What no profile knows is
the way from the client to the scheduler and back, and how much slower the machine runs while
clients and servers share its cores than it did during calibration. Both come from elsewhere than
the load's latencies: from the record's measurements of the idle server (isolated_ttft.json), TTFT =
path + scale * (TTFT on the idle twin), by least squares of relative errors; and, where /metrics was
saved before and after the run, from the server itself: its correction of its predictions for
prefill and decode, the spread of batch times around them, and the seconds that its stages worked in
all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from loadgen.errors import LoadgenError
from loadgen.flags import flag
from loadgen.judge.health import examine
from loadgen.judge.isolated import read_points
from loadgen.judge.latencies import percentile
from loadgen.judge.metrics import (
    RequestMetrics,
    by_warmth,
    load_of,
    measure_all,
    values_of,
)
from loadgen.judge.options import Terms
from loadgen.records import LONG, SHORT, PlannedRequest, Turn
from loadgen.show.compare import LoadedRun, read_run
from loadgen.show.output import Say, claim_directory
from loadgen.show.results import write_results
from loadgen.show.tables import Table, as_text
from loadgen.twin.correction import (
    Correction,
    as_busy,
    batches_and_tokens,
    busy_s,
    chunks_and_tokens,
    correction_of,
    own_correction,
    replay,
)
from loadgen.twin.deployment import Deployment
from loadgen.twin.hardware import hardware_of
from loadgen.twin.models import model_of
from loadgen.twin.options import read_profile
from loadgen.twin.replay import run_of
from medha_actors.config import MedhaConfig, load
from medha_actors.core.simulator import Stamp

TOLERANCE = 0.10
SMALL_CHUNK = 16  # tokens
REPLAYS = 5  # with noise: seeds whose requests are taken together


class FidelityOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command is given."""

    directory: str
    serve_config: Annotated[
        str | None,
        flag("the server's serve_config.yaml", shown="its defaults", metavar="FILE"),
    ] = None
    profile: Annotated[str, flag("the server's calibration", metavar="FILE|auto")] = (
        "auto"
    )
    model: Annotated[str, flag("for sizes of the KV cache")] = "smollm2-135m"
    gpu: Annotated[str, flag("likewise")] = "cpu-2core"
    raw: Annotated[bool, flag("no calibration on the record's idle measurements")] = (
        False
    )
    metrics: Annotated[
        tuple[str, str] | None,
        flag(
            "the server's /metrics, saved before and after the run",
            metavar=("BEFORE", "AFTER"),
        ),
    ] = None
    result_dir: Annotated[
        str | None, flag("also write the simulated run and fidelity.json there")
    ] = None


def fidelity(options: FidelityOptions, say: Say) -> int:
    """The whole command; 0 if every figure lies within 10%, else 1."""
    record = read_run(Path(options.directory))
    deployment = deployment_of(options, record)
    requests = requests_of(record)
    correction = Correction()
    points_file = Path(options.directory) / "isolated_ttft.json"
    if not options.raw and points_file.exists():
        correction = correction_of(deployment, read_points(points_file))
    metrics = options.metrics or metrics_beside(options.directory)
    if not options.raw and metrics:
        correction = own_correction(metrics, correction)
        correction = as_busy(busy_s(metrics), deployment, requests, correction)
    say(f"{len(requests)} requests; {correction}")
    replays = [
        replay(deployment, requests, correction, seed)
        for seed in range(REPLAYS if correction.noise else 1)
    ]
    runs = [
        run_of(deployment, played, [], {"replayed": options.directory}, "twin")
        for played in replays
    ]
    run = runs[0]
    simulated: list[RequestMetrics] = []
    for each in runs:
        simulated += measure_all(each, Terms().objectives)
    rows, within = compare(record.requests, simulated)
    print(as_text((["", "real", "twin", "twin / real", ""], rows)))
    print(f"\n{as_text(batches_table(metrics, replays[0].stamps))}")
    print("\nevery figure within 10%" if within else "\nnot every figure is within 10%")
    if options.result_dir is not None:
        directory = Path(options.result_dir)
        claim_directory(directory)
        write_results(run, Terms(), examine(run), directory)
        content = {
            "correction": msgspec.to_builtins(correction),
            "rows": rows,
            "within": within,
        }
        (directory / "fidelity.json").write_text(json.dumps(content, indent=2) + "\n")
    return 0 if within else 1


def deployment_of(options: FidelityOptions, record: LoadedRun) -> Deployment:
    """The server's configuration and calibration; raises LoadgenError."""
    beside = (
        Path(options.directory) / "serve_config.json"
    )  # an experiment leaves it there
    path = options.serve_config or (str(beside) if beside.exists() else None)
    config = _config(path)
    profile = read_profile(options.profile, config.parallel.spp)
    if len(profile.stages) != config.parallel.spp:
        raise LoadgenError(
            f"the profile has {len(profile.stages)} stages, the server {config.parallel.spp}: name "
            "it with --profile"
        )
    scheduler = config.scheduler
    policy = record.result.get("policy")
    if policy is not None and path is None:
        try:
            scheduler = msgspec.convert(
                msgspec.to_builtins(scheduler) | {"policy": policy}, type(scheduler)
            )
        except msgspec.ValidationError:
            raise LoadgenError(
                f"the record's policy {policy!r} is none of ours: name its --serve-config"
            ) from None
    longest = max(
        request.record.prompt_tokens + request.record.output_tokens
        for request in record.requests
    )
    objectives = msgspec.to_builtins(config.objectives)
    return Deployment(
        model=model_of(options.model),
        device=hardware_of(options.gpu),
        spp=config.parallel.spp,
        kvp=config.parallel.kvp,
        max_tokens_per_kvp_group=config.parallel.max_tokens_per_kvp_group,
        max_model_len=max(8192, longest + 1),
        tpot_s=objectives.pop("tpot_s"),
        objectives=objectives,
        scheduler=scheduler,
        prefix_cache=config.kv_cache.prefix_cache,
        host_bytes=config.kv_cache.host_bytes,
        measured=profile,
    )


def metrics_beside(directory: str) -> tuple[str, ...]:
    """The server's /metrics before and after the run, if an experiment kept them with its
    results."""
    files = [
        Path(directory) / name for name in ("server_before.txt", "server_after.txt")
    ]
    return tuple(map(str, files)) if all(file.exists() for file in files) else ()


def _config(path: str | None) -> MedhaConfig:
    """The arguments of the first application in a serve_config.yaml."""
    if path is None:
        return MedhaConfig()
    try:
        tree = msgspec.yaml.decode(Path(path).read_bytes())
        return load(tree["applications"][0]["args"])
    except OSError as error:
        raise LoadgenError(
            f"--serve-config: cannot read {path}: {error.strerror}"
        ) from None
    except Exception as error:
        # YAML, missing keys, and every ConfigError: one line is enough
        raise LoadgenError(f"--serve-config {path}: {error}") from None


def requests_of(record: LoadedRun) -> list[PlannedRequest]:
    """What was sent, when it was sent, and as many tokens as were generated. Probes are part of the
    load. Turns of sessions too are sent when they were, whatever the twin has answered by then."""
    in_order = sorted(
        record.requests, key=lambda request: request.record.sent_at or 0.0
    )
    planned = []
    last: dict[int, PlannedRequest] = {}  # of each session
    for number, request in enumerate(in_order):
        entry = request.record
        if entry.sent_at is None or not entry.completed:
            continue
        sent = PlannedRequest(
            index=number,
            prompt_tokens=entry.usage_prompt_tokens or entry.prompt_tokens,
            output_tokens=max(1, entry.generated_tokens),
            at=entry.sent_at,
            kind=entry.kind,
            blocks=entry.blocks,
            block_tokens=entry.block_tokens,
            known_tokens=entry.known_tokens,
        )
        if entry.turn is not None:
            sent = _as_turn(sent, entry.turn, last.get(entry.turn.session))
            last[entry.turn.session] = sent
        planned.append(sent)
    if not planned:
        raise LoadgenError("the record has no completed request")
    return planned


def _as_turn(
    sent: PlannedRequest, turn: Turn, before: PlannedRequest | None
) -> PlannedRequest:
    """A turn of a session behind the one before; its message is what its prompt has more."""
    if before is None:
        return msgspec.structs.replace(sent, turn=turn)
    message = sent.prompt_tokens - before.prompt_tokens - before.output_tokens
    if (
        message < 1
    ):  # a few tokens of the answer became fewer, and there was no more in it
        return sent
    turn = msgspec.structs.replace(turn, message_tokens=message)
    return msgspec.structs.replace(sent, turn=turn, after=before.index)


def compare(
    real: Sequence[RequestMetrics], twin: Sequence[RequestMetrics]
) -> tuple[list[list[str]], bool]:
    """P50 and P90 of TTFT and TBT, all and by class, warm and cold."""
    rows: list[list[str]] = []
    within = True
    parts = {"all": (load_of(real), load_of(twin))}
    kinds = {kind: load_of(real, kind) for kind in (SHORT, LONG)}
    if all(kinds.values()):
        parts |= {
            kind: (requests, load_of(twin, kind)) for kind, requests in kinds.items()
        }
    in_twin = by_warmth(twin)
    parts |= {
        kind: (part, in_twin.get(kind, [])) for kind, part in by_warmth(real).items()
    }
    for kind, (of_real, of_twin) in parts.items():
        for metric, title in (("ttft", "TTFT"), ("itl", "TBT")):
            measured = values_of(of_real, metric)
            simulated = values_of(of_twin, metric)
            if not len(measured) or not len(simulated):
                continue
            for percent in (50, 90):
                name = f"{kind}: {title} P{percent}"
                row, good = _compared(
                    name, percentile(measured, percent), percentile(simulated, percent)
                )
                rows.append(row)
                within = within and (good or kind != "all")
    return rows, within


def _compared(
    name: str, measured_s: float, simulated_s: float
) -> tuple[list[str], bool]:
    """A line of the table, and whether the twin is near enough."""
    ratio = simulated_s / measured_s if measured_s else float("inf")
    good = abs(ratio - 1) <= TOLERANCE
    verdict = "ok" if good else "off"
    row = [
        name,
        f"{1000 * measured_s:,.1f} ms",
        f"{1000 * simulated_s:,.1f} ms",
        f"{ratio:.2f}",
        verdict,
    ]
    return row, good


def batches_table(metrics: Sequence[str], stamps: Sequence[Stamp]) -> Table:
    """Number and size of batches and chunks; beside the server's own, if its /metrics before and
    after were kept."""
    columns = {"twin": _work_of(stamps)}
    if metrics:
        before = _work_so_far(metrics[0])
        after = _work_so_far(metrics[1])
        real = _Work(*(b - a for a, b in zip(before, after, strict=True)))
        columns = {"real": real} | columns
    rows = [
        ["batches"],
        ["tokens in a batch, mean"],
        ["prefill chunks"],
        ["tokens in a chunk, mean"],
        [f"chunks of at most {SMALL_CHUNK} tokens"],
    ]
    for work in columns.values():
        rows[0].append(f"{work.batches:,.0f}")
        rows[1].append(f"{work.tokens / max(work.batches, 1):,.1f}")
        rows[2].append(f"{work.chunks:,.0f}")
        rows[3].append(f"{work.chunk_tokens / max(work.chunks, 1):,.1f}")
        rows[4].append(f"{100 * work.small_chunks / max(work.chunks, 1):.0f}%")
    return ["", *columns], rows


class _Work(NamedTuple):
    """Batches and prefill chunks, and the tokens in them."""

    batches: float
    tokens: float
    chunks: float
    chunk_tokens: float
    small_chunks: float


def _work_of(stamps: Sequence[Stamp]) -> _Work:
    sizes: list[int] = []
    for stamp in stamps:
        sizes += stamp[4]
    return _Work(
        batches=len(stamps),
        tokens=sum(stamp[1] + stamp[2] for stamp in stamps),
        chunks=len(sizes),
        chunk_tokens=sum(sizes),
        small_chunks=sum(size <= SMALL_CHUNK for size in sizes),
    )


def _work_so_far(page: str) -> _Work:
    return _Work(*batches_and_tokens(page), *chunks_and_tokens(page, SMALL_CHUNK))
