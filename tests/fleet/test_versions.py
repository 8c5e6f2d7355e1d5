"""The version of a deployment of grids, by which Serve knows what to replace."""

import copy

import pytest
from ray import serve
from ray.serve._private.config import DeploymentConfig
from ray.serve._private.deploy_utils import get_deploy_args

from deployments.fleet.versions import keep_version, version_of

ARGS = {"model_loading_config": {"model_id": "small"}, "fleet": {"num_grids": 2}}


class Grid:
    """Something to deploy."""


@pytest.fixture
def deployment():
    made = serve.deployment(name="grids", num_replicas=3)(Grid)
    keep_version(made, "ours")
    return made


def arrived(deployment, monkeypatch):
    """The configuration that Serve's controller gets, in an application of another version."""
    monkeypatch.setattr(
        "ray.runtime_context.RuntimeContext.get_job_id", lambda self: "job"
    )
    config = deployment._deployment_config
    told = get_deploy_args(
        "grids", deployment._replica_config, False, False, config, "theirs"
    )
    return DeploymentConfig.from_proto_bytes(told["deployment_config_proto_bytes"])


def test_serve_is_told_our_version_and_not_the_applications(deployment, monkeypatch):
    assert arrived(deployment, monkeypatch).version == "ours"
    assert arrived(deployment.options(), monkeypatch).version == "ours"
    assert arrived(copy.deepcopy(deployment), monkeypatch).version == "ours"


def test_everything_else_is_told_as_it_was(deployment, monkeypatch):
    plain = arrived(serve.deployment(name="grids", num_replicas=3)(Grid), monkeypatch)
    ours = arrived(deployment, monkeypatch)
    assert plain.version == "theirs"
    plain.version = ours.version
    assert ours == plain


def test_other_options_can_still_be_set(deployment):
    assert deployment.options(num_replicas=5).num_replicas == 5


def test_a_version_is_that_of_all_a_grid_is_made_of():
    version = version_of(ARGS, {})
    assert version == version_of(copy.deepcopy(ARGS), {})
    assert version == version_of(dict(reversed(ARGS.items())), {})
    others = [
        version_of({**ARGS, "drain_timeout_s": 5}, {}),
        version_of(ARGS, {"working_dir": "s3://code/2.zip"}),
    ]
    assert len({version, *others}) == 3
