"""A version for each deployment of grids, so that a change to one model leaves the others alone.

Serve replaces the replicas of a deployment whose version changes. Ray 2.60 gives all deployments
of an application the same one, made of all its args, and has no option for another. So the
deployment gets a configuration that keeps the version it has. Where a later Serve writes versions
elsewhere, all grids are replaced again, which tests/system/test_fleet_changes.py would show.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from ray import serve
from ray.serve._private.config import DeploymentConfig

_CONFIG: Final = "_deployment_config"  # Serve's own attribute of a deployment


class KeptVersion(DeploymentConfig):
    """One that keeps its version, whatever Serve gives it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "version":
            super().__setattr__(name, value)


def keep_version(deployment: serve.Deployment, version: str) -> None:
    """`version`: what this deployment has from now on."""
    given: DeploymentConfig = getattr(deployment, _CONFIG)
    fields = {**dict(given), "version": version}
    names = {*given.model_fields_set, "version"}
    setattr(deployment, _CONFIG, KeptVersion.model_construct(names, **fields))


def version_of(args: dict[str, Any], runtime_env: dict[str, Any]) -> str:
    """Equal for all that a grid is made of: `args` of its model, and where its code comes from."""
    made_of = json.dumps([args, runtime_env], sort_keys=True, default=str)
    return hashlib.sha256(made_of.encode()).hexdigest()
