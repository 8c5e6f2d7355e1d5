"""The options of the twin's commands, and the deployment that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from loadgen.errors import LoadgenError
from loadgen.twin.deployment import Deployment
from loadgen.twin.hardware import hardware_of
from loadgen.twin.models import model_of
from medha_actors.config import SchedulerConfig
from medha_actors.core.predictor import Profile


class TwinOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What stands beside the options of a real run."""

    model: str = "llama-3-8b"
    gpu: str = "h100"
    tp: int = 1
    spp: int = 1
    kvp: int = 1
    replicas: int = 1
    max_tokens_per_kvp_group: int | None = None
    tpot_ms: float = 50.0
    policy: str = "lars"
    scheduler: dict[str, Any] = {}
    profile: str | None = None
    noise: float = 0.0
    seed: int = 0


def deployment_of(options: TwinOptions, longest: int) -> Deployment:
    """The deployment, with a context for requests of `longest` tokens; raises LoadgenError."""
    counts = {
        "--tp": options.tp,
        "--spp": options.spp,
        "--kvp": options.kvp,
        "--replicas": options.replicas,
    }
    for flag, value in counts.items():
        if value < 1:
            raise LoadgenError(f"{flag} must be at least 1")
    if options.tpot_ms <= 0 or options.noise < 0:
        raise LoadgenError("--tpot-ms must be above 0, --noise not below")
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
        measured=None if options.profile is None else read_profile(options.profile, options.spp),
        noise=options.noise,
        seed=options.seed,
    )
    deployment.check(longest)
    deployment.profile()
    return deployment


def scheduler_of(policy: str, more: dict[str, Any]) -> SchedulerConfig:
    """The section `scheduler` of serve_config.yaml; raises LoadgenError."""
    given = {"max_waiting_requests": 10**6, "max_running_requests": 256, "policy": policy} | more
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
        for file in sorted(
            cache.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True
        ):
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
