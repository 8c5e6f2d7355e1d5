"""The serve_config.yaml of a planned deployment; its `args` are what medha_actors.config.load
accepts."""

from __future__ import annotations

from typing import Any

import msgspec

from loadgen.twin.cost import PAGE_TOKENS
from loadgen.twin.deployment import Deployment


def arguments(deployment: Deployment) -> dict[str, Any]:
    """`args` of the application: what differs from the server's defaults."""
    cpu = deployment.device.is_cpu
    loading: dict[str, Any] = {
        "model_id": deployment.model.name,
        "model_source": deployment.model.source,
    }
    if not cpu or deployment.max_model_len > deployment.model.max_positions:
        loading["max_model_len_tokens"] = deployment.max_model_len
    if deployment.max_model_len > deployment.model.max_positions:
        factor = -(-deployment.max_model_len // deployment.model.max_positions)
        loading["rope_scaling"] = {"rope_type": "yarn", "factor": float(factor)}
    parallel: dict[str, Any] = {"spp": deployment.spp, "kvp": deployment.kvp}
    if deployment.tp > 1:
        parallel["tp"] = deployment.tp
    if deployment.kvp > 1:
        parallel["max_tokens_per_kvp_group"] = deployment.cutoff
    return {
        "model_loading_config": loading,
        "parallel": parallel,
        "actors": {"device": "cpu" if cpu else "cuda"},
        "scheduler": {
            "policy": deployment.scheduler.policy,
            "max_running_requests": deployment.scheduler.max_running_requests,
        },
        "objectives": {"tpot_s": round(deployment.tpot_s, 6)},
        "kv_cache": {
            "page_tokens": PAGE_TOKENS,
            "budget_bytes": int(deployment.free_bytes),
            "prefix_cache": deployment.prefix_cache,
            "host_bytes": deployment.host_bytes,
        },
        **(
            {"fleet": {"num_grids": deployment.replicas}}
            if deployment.replicas > 1
            else {}
        ),
        **({} if cpu else {"accelerator_type": deployment.device.name.upper()}),
    }


def serve_config(deployment: Deployment) -> str:
    """YAML for `serve run`. Several replicas are as many grids (docs/fleet.md)."""
    notes = [
        f"# {deployment.devices} x {deployment.device.name}: {deployment.name}, planned by "
        "medha-loadgen plan"
    ]
    application = {
        "name": "medha",
        "route_prefix": "/",
        "import_path": "deployments.app:build_app",
        "args": arguments(deployment),
    }
    body = msgspec.yaml.encode({"applications": [application]}).decode()
    return "\n".join(notes) + f"\n{body}"
