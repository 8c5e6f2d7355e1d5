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

import msgspec
import numpy as np

from loadgen.compare import LoadedRun, read_run
from loadgen.errors import LoadgenError
from loadgen.health import examine
from loadgen.isolated import read_points
from loadgen.metrics import RequestMetrics, load_of, measure_all, values_of
from loadgen.records import PlannedRequest
from loadgen.results import Terms, claim_directory, write_results
from loadgen.run import Say
from loadgen.tables import Table, as_text
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


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """What the command was given."""

    directory: str
    serve_config: str | None = None
    profile: str = "auto"
    model: str = "smollm2-135m"
    gpu: str = "cpu-2core"
    raw: bool = False
    metrics: tuple[str, ...] = ()
    result_dir: str | None = None


def fidelity(options: Replay, say: Say) -> int:
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
    rows, within = compare(
        record.requests, [m for each in runs for m in measure_all(each, Terms().objectives)]
    )
    print(as_text((["", "real", "twin", "twin / real", ""], rows)))
    print(f"\n{as_text(batches_table(metrics, replays[0].stamps))}")
    print("\nevery figure within 10%" if within else "\nnot every figure is within 10%")
    if options.result_dir is not None:
        directory = Path(options.result_dir)
        claim_directory(directory)
        write_results(run, Terms(), examine(run), directory)
        content = {"correction": msgspec.to_builtins(correction), "rows": rows, "within": within}
        (directory / "fidelity.json").write_text(json.dumps(content, indent=2) + "\n")
    return 0 if within else 1


def deployment_of(options: Replay, record: LoadedRun) -> Deployment:
    """The server's configuration and calibration; raises LoadgenError."""
    beside = Path(options.directory) / "serve_config.json"  # an experiment leaves it there
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
        request.record.prompt_tokens + request.record.output_tokens for request in record.requests
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
        measured=profile,
    )


def metrics_beside(directory: str) -> tuple[str, ...]:
    """The server's /metrics before and after the run, if an experiment kept them with its
    results."""
    files = [Path(directory) / name for name in ("server_before.txt", "server_after.txt")]
    return tuple(map(str, files)) if all(file.exists() for file in files) else ()


def _config(path: str | None) -> MedhaConfig:
    """The arguments of the first application in a serve_config.yaml."""
    if path is None:
        return MedhaConfig()
    try:
        import yaml

        tree = yaml.safe_load(Path(path).read_text())
        return load(tree["applications"][0]["args"])
    except ImportError:
        raise LoadgenError("--serve-config needs PyYAML, which comes with ray[serve]") from None
    except OSError as error:
        raise LoadgenError(f"--serve-config: cannot read {path}: {error.strerror}") from None
    except Exception as error:  # YAML, missing keys, and every ConfigError: one line is enough
        raise LoadgenError(f"--serve-config {path}: {error}") from None


def requests_of(record: LoadedRun) -> list[PlannedRequest]:
    """What was sent, when it was sent, and as many tokens as were generated. Probes are part of the
    load."""
    found = []
    for number, request in enumerate(
        sorted(record.requests, key=lambda r: r.record.sent_at or 0.0)
    ):
        entry = request.record
        if entry.sent_at is None or not entry.completed:
            continue
        found.append(
            PlannedRequest(
                index=number,
                prompt_tokens=entry.usage_prompt_tokens or entry.prompt_tokens,
                output_tokens=max(1, entry.generated_tokens),
                at=entry.sent_at,
                kind=entry.kind,
            )
        )
    if not found:
        raise LoadgenError("the record has no completed request")
    return found


def compare(
    real: Sequence[RequestMetrics], twin: Sequence[RequestMetrics]
) -> tuple[list[list[str]], bool]:
    """P50 and P90 of TTFT and TBT, all and by class."""
    rows, within = [], True
    kinds = [kind for kind in ("short", "long") if load_of(real, kind)]
    for kind in [None, *kinds] if len(kinds) > 1 else [None]:
        for metric, title in (("ttft", "TTFT"), ("itl", "TBT")):
            a, b = values_of(load_of(real, kind), metric), values_of(load_of(twin, kind), metric)
            if not len(a) or not len(b):
                continue
            for percent in (50, 90):
                measured, simulated = (
                    float(np.percentile(a, percent)),
                    float(np.percentile(b, percent)),
                )
                ratio = simulated / measured if measured else float("inf")
                good = abs(ratio - 1) <= TOLERANCE
                within = within and (good or kind is not None)
                cells = [
                    f"{1000 * measured:,.1f} ms",
                    f"{1000 * simulated:,.1f} ms",
                    f"{ratio:.2f}",
                ]
                rows.append(
                    [f"{kind or 'all'}: {title} P{percent}", *cells, "ok" if good else "off"]
                )
    return rows, within


def batches_table(metrics: Sequence[str], stamps: Sequence[Stamp]) -> Table:
    """Number and size of batches and chunks; beside the server's own, if its /metrics before and
    after were kept."""
    chunks = [size for stamp in stamps for size in stamp[4]]
    in_batches, few = (
        sum(stamp[1] + stamp[2] for stamp in stamps),
        sum(size <= SMALL_CHUNK for size in chunks),
    )
    columns: dict[str, tuple[float, ...]] = {
        "twin": (len(stamps), in_batches, len(chunks), sum(chunks), few)
    }
    if metrics:
        before, after = (
            (*batches_and_tokens(name), *chunks_and_tokens(name, SMALL_CHUNK)) for name in metrics
        )
        columns = {"real": tuple(b - a for a, b in zip(before, after, strict=True))} | columns
    rows = [
        ["batches"],
        ["tokens in a batch, mean"],
        ["prefill chunks"],
        ["tokens in a chunk, mean"],
    ]
    rows.append([f"chunks of at most {SMALL_CHUNK} tokens"])
    for batches, tokens, count, prefilled, small in columns.values():
        means = f"{tokens / max(batches, 1):,.1f}", f"{prefilled / max(count, 1):,.1f}"
        cells = (
            f"{batches:,.0f}",
            means[0],
            f"{count:,.0f}",
            means[1],
            f"{100 * small / max(count, 1):.0f}%",
        )
        for row, cell in zip(rows, cells, strict=True):
            row.append(cell)
    return ["", *columns], rows
