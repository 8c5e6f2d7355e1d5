"""The options of the twin's commands, and the deployment that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec

from loadgen.errors import LoadgenError
from loadgen.flags import check, flag
from loadgen.twin.deployment import Deployment
from loadgen.twin.hardware import hardware_of
from loadgen.twin.models import model_of
from medha_actors.config import SchedulerConfig
from medha_actors.core.predictor import Profile


class DeploymentOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What is simulated: a model on so many devices, under a configuration of the server."""

    model: Annotated[
        str,
        flag(
            "a known model (llama-3-8b, qwen3-30b-a3b, ...) or a Hugging Face config.json"
        ),
    ] = "llama-3-8b"
    gpu: Annotated[str, flag("h100, h200, a100 or cpu-2core")] = "h100"
    tp: Annotated[int, flag("devices that share a stage", ge=1)] = 1
    spp: Annotated[int, flag("pipeline stages", ge=1)] = 1
    kvp: Annotated[int, flag("KV groups", ge=1)] = 1
    replicas: Annotated[int, flag("copies of all that", ge=1)] = 1
    max_tokens_per_kvp_group: Annotated[
        int | None, flag(shown="a kvp-th of the longest request", ge=1)
    ] = None
    tpot_ms: Annotated[float, flag("the server's objective between tokens", gt=0)] = (
        50.0
    )
    policy: Annotated[str, flag("scheduling policy")] = SchedulerConfig().policy
    scheduler: Annotated[
        dict[str, Any],
        flag("more of serve_config.yaml's scheduler section", metavar="JSON"),
    ] = {}
    profile: Annotated[
        str | None,
        flag("a server's calibration instead of the cost model", metavar="FILE|auto"),
    ] = None
    no_prefix_cache: Annotated[bool, flag("as kv_cache.prefix_cache: false")] = False
    host_gb: Annotated[
        float, flag("host memory of a device for the second tier of the cache", ge=0)
    ] = 0.0
    noise: Annotated[float, flag("relative spread of batch times", ge=0)] = 0.0


def deployment_of(
    options: DeploymentOptions, longest: int, seed: int = 0
) -> Deployment:
    """The deployment, with a context for requests of `longest` tokens; raises LoadgenError."""
    check(options)
    measured = None
    if options.profile is not None:
        measured = read_profile(options.profile, options.spp)
    deployment = Deployment(
        model=model_of(options.model),
        device=hardware_of(options.gpu),
        tp=options.tp,
        spp=options.spp,
        kvp=options.kvp,
        replicas=options.replicas,
        max_model_len=longest + 1,
        max_tokens_per_kvp_group=options.max_tokens_per_kvp_group,
        tpot_s=options.tpot_ms / 1000,
        scheduler=scheduler_of(options.policy, options.scheduler),
        measured=measured,
        prefix_cache=not options.no_prefix_cache,
        host_bytes=0 if options.no_prefix_cache else int(options.host_gb * 1e9),
        noise=options.noise,
        seed=seed,
    )
    deployment.check(longest)
    deployment.profile()
    return deployment


def scheduler_of(policy: str, more: dict[str, Any]) -> SchedulerConfig:
    """The section `scheduler` of serve_config.yaml; raises LoadgenError."""
    given = {
        "max_waiting_requests": 10**6,
        "max_running_requests": 256,
        "policy": policy,
    } | more
    try:
        return msgspec.convert(given, SchedulerConfig)
    except msgspec.ValidationError as error:
        raise LoadgenError(f"--policy or --scheduler: {error}") from None


def read_profile(name: str, stages: int | None = None) -> Profile:
    """A calibration of the server: a file, or `auto` for the newest in its cache (of so many
    stages)."""
    path = Path(name)
    if name == "auto":
        cache = Path.home() / ".cache" / "medha" / "profiles"
        newest_first = sorted(
            cache.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True
        )
        for file in newest_first:
            profile = _profile(file)
            if stages is None or len(profile.stages) == stages:
                return profile
        raise LoadgenError(
            f"--profile auto: no calibration below {cache} that fits; start the server once"
        )
    return _profile(path)


def _profile(path: Path) -> Profile:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Profile)
    except OSError as error:
        raise LoadgenError(f"--profile: cannot read {path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise LoadgenError(f"--profile: {path}: {error}") from None
