"""deploy/: manifests and image, as far as they can be checked without Kubernetes and Docker."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from ray import __version__ as ray_version

from deployments import haproxy
from deployments.launcher import DEFAULTS
from medha_actors.config import load

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
BASE = yaml.safe_load((KUBERNETES / "base/rayservice.yaml").read_text())
GPU = yaml.safe_load((KUBERNETES / "overlays/gpu/rayservice.yaml").read_text())
IMAGE = (DEPLOY / "Dockerfile").read_text()


def serve_config(service):
    return yaml.safe_load(service["spec"]["serveConfigV2"])


def groups():
    cluster = BASE["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@pytest.mark.parametrize("service", [BASE, GPU], ids=["cpu", "gpu"])
def test_the_configuration_is_one_that_the_server_takes(service):
    config = serve_config(service)
    (application,) = config["applications"]
    assert application["import_path"] == "deployments.app:build_app"
    load(application["args"])
    ports = BASE["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"][
        "containers"
    ][0]["ports"]
    assert {"containerPort": config["http_options"]["port"], "name": "serve"} in ports


def test_the_workers_have_room_for_the_grid():
    parallel = load(serve_config(BASE)["applications"][0]["args"]).parallel
    cpus = groups()[1]["template"]["spec"]["containers"][0]["resources"]["requests"][
        "cpu"
    ]
    assert int(cpus) >= parallel.spp * parallel.kvp
    overlay = yaml.safe_load(
        (KUBERNETES / "overlays/gpu/kustomization.yaml").read_text()
    )
    changes = yaml.safe_load(overlay["patches"][1]["patch"])
    grid = load(serve_config(GPU)["applications"][0]["args"]).parallel
    assert int(changes[0]["value"]["limits"]["nvidia.com/gpu"]) == grid.spp * grid.kvp
    for change in changes:
        place = BASE
        for part in change["path"].strip("/").split("/"):
            place = place[
                int(part) if part.isdigit() else part
            ]  # it is there to be replaced


def test_what_is_in_flight_may_finish_before_anything_is_killed():
    for service in (BASE, GPU):
        drain_s = load(serve_config(service)["applications"][0]["args"]).drain_timeout_s
        assert BASE["spec"]["rayClusterDeletionDelaySeconds"] > drain_s
        for group in groups():
            assert group["template"]["spec"]["terminationGracePeriodSeconds"] > drain_s


def test_ray_is_the_same_everywhere_and_asks_for_a_token():
    cluster = BASE["spec"]["rayClusterConfig"]
    in_image = re.search(r"RAY_VERSION=(\S+)", IMAGE)[1]
    assert str(cluster["rayVersion"]) == in_image == ray_version
    assert cluster["authOptions"] == {"mode": "token"}


def test_no_container_is_root_or_takes_what_it_has_not_asked_for():
    for group in groups():
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        resources = container["resources"]
        assert resources["limits"]["memory"] == resources["requests"]["memory"]
        assert container["image"].startswith("medha-on-ray:")
    assert IMAGE.rindex("\nUSER ray") > IMAGE.rindex("\nRUN ")


def test_every_resource_of_every_kustomization_is_there():
    for file in KUBERNETES.rglob("kustomization.yaml"):
        kustomization = yaml.safe_load(file.read_text())
        named = [*kustomization["resources"]]
        named += [
            patch["path"]
            for patch in kustomization.get("patches", [])
            if "path" in patch
        ]
        for name in named:
            assert (file.parent / name).exists(), f"{file}: {name}"


def test_every_part_of_the_service_is_under_the_policy():
    policy = yaml.safe_load((KUBERNETES / "base/networkpolicy.yaml").read_text())
    label = policy["spec"]["podSelector"]["matchLabels"].items()
    for group in groups():
        assert label <= group["template"]["metadata"]["labels"].items()


def test_the_image_has_what_the_packages_need():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    copied = re.findall(r"^COPY (.+) \S+$", IMAGE, re.MULTILINE)
    sources = " ".join(copied).split()
    assert {package.removesuffix("*") for package in packages} <= set(sources)
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in allowed
    torch = next(
        one for one in project["project"]["dependencies"] if one.startswith("torch")
    )
    assert f'"{torch}"' in IMAGE
    scripts = project["project"]["scripts"]
    assert "medha-serve" in scripts
    assert (
        re.search(r'^CMD \["medha-serve", "(\S+)"\]$', IMAGE, re.MULTILINE)[1] in IMAGE
    )


def test_the_image_sets_what_medha_serve_would():
    for name, value in DEFAULTS.items():
        if (
            name != "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"
        ):  # there is a load balancer
            assert f"{name}={value}" in IMAGE, name
    assert f"RAY_SERVE_HAPROXY_BINARY_PATH=/usr/local/bin/{haproxy.PROGRAM}" in IMAGE
    served = yaml.safe_load((DEPLOY / "serve_config.yaml").read_text())
    load(served["applications"][0]["args"])
    assert served["http_options"]["host"] == "0.0.0.0"
