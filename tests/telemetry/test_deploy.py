"""deploy/observability, as far as it can be checked without Docker: files, ports, and that every
metric exists."""

import itertools
import json
import re
from pathlib import Path

import pytest
import yaml
from local import LocalController
from prometheus_client.parser import text_string_to_metric_families
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

from deployments.metrics import ReplicaFigures, page
from deployments.telemetry.export import exporter_of
from medha_actors.config import TelemetryConfig, TracingConfig

FOLDER = Path(__file__).parents[2] / "deploy" / "observability"
HOST_PATHS = {"/tmp"}


def read(name: str):
    return yaml.safe_load((FOLDER / name).read_text())


def dashboard() -> dict:
    return json.loads((FOLDER / "grafana/dashboards/medha.json").read_text())


def panels() -> list[dict]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def fleet_panels() -> list[dict]:
    """Of the dashboard for several grids."""
    return json.loads((FOLDER / "grafana/dashboards/fleet.json").read_text())["panels"]


def test_every_volume_is_a_file_here_or_declared():
    compose = read("compose.yaml")
    assert set(compose["services"]) == {"jaeger", "prometheus", "grafana"}
    for service in compose["services"].values():
        assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", service["image"]), (
            "versions are pinned"
        )
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            known = source in compose["volumes"] or source in HOST_PATHS
            assert known or (FOLDER / source).exists(), volume


def test_what_is_mounted_is_what_is_configured():
    compose = read("compose.yaml")
    scrapes = read("prometheus.yaml")["scrape_configs"]
    targets = {
        volume.split(":")[1] for volume in compose["services"]["prometheus"]["volumes"]
    }
    config = next(
        word
        for word in compose["services"]["prometheus"]["command"]
        if word.startswith("--config.file=")
    )
    assert config.removeprefix("--config.file=") in targets
    (medha, ray) = scrapes
    serve = yaml.safe_load((FOLDER.parents[1] / "serve_config.yaml").read_text())
    assert medha["static_configs"][0]["targets"] == [
        f"127.0.0.1:{serve['http_options']['port']}"
    ]
    assert medha["metrics_path"] == "/metrics"
    (ports,) = ray["file_sd_configs"][0]["files"]
    assert ports == f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"
    (provider,) = read("grafana/provisioning/dashboards/medha.yaml")["providers"]
    home = compose["services"]["grafana"]["environment"][
        "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"
    ]
    assert home == f"{provider['options']['path']}/medha.json"


def test_everything_is_published_on_this_host_only_and_found_there(monkeypatch):
    services = read("compose.yaml")["services"]
    published = {tuple(port.split(":")) for port in services["jaeger"]["ports"]}
    assert published == {
        ("127.0.0.1", port, port) for port in ("4317", "4318", "16686")
    }
    assert "--web.listen-address=127.0.0.1:9090" in services["prometheus"]["command"]
    assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert {services[name]["network_mode"] for name in ("prometheus", "grafana")} == {
        "host"
    }
    urls = {
        source["url"]
        for source in read("grafana/provisioning/datasources/medha.yaml")["datasources"]
    }
    assert urls == {"http://127.0.0.1:9090", "http://127.0.0.1:16686"}
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    exporters = {
        name: exporter_of(TracingConfig(exporter=name))._endpoint
        for name in ("otlp_grpc", "otlp_http")
    }
    assert exporters == {
        "otlp_grpc": "localhost:4317",
        "otlp_http": "http://localhost:4318/v1/traces",
    }


def test_data_sources_are_those_of_the_panels():
    sources = {
        source["uid"]: source
        for source in read("grafana/provisioning/datasources/medha.yaml")["datasources"]
    }
    assert {source["type"] for source in sources.values()} == {"prometheus", "jaeger"}
    for panel in (*panels(), *fleet_panels()):
        used = [
            panel["datasource"],
            *(target["datasource"] for target in panel["targets"]),
        ]
        assert all(sources[source["uid"]]["type"] == source["type"] for source in used)


def test_panels_do_not_overlap_and_their_numbers_differ():
    every = dashboard()["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    cells: set[tuple[int, int]] = set()
    for panel in every:
        place = panel["gridPos"]
        mine = set(
            itertools.product(
                range(place["x"], place["x"] + place["w"]),
                range(place["y"], place["y"] + place["h"]),
            )
        )
        assert place["x"] + place["w"] <= 24
        assert not mine & cells, panel["title"]
        cells |= mine


@pytest.fixture
async def samples() -> dict[str, set[str]]:
    """Every sample that /metrics gives, with its labels: the engine's after some work, and a
    replica's."""
    controller = LocalController(stages=2)
    controller.add("a", 3000)
    controller.run()
    replica = ReplicaFigures("r")
    replica.ended("/v1/completions", 200, 0.1)
    replica.tokenized(0.01)
    families = await controller.metrics()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(
        page([*families, *replica.families()], "toy", True)
    ):
        found.setdefault(
            family.name + "_total" if family.type == "counter" else family.name, set()
        )
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


# labels of a family without a sample yet
UNSEEN = {"medha_request_rejected_total": {"status", "model_name"}}


async def test_every_metric_of_the_docs_exists(samples):
    text = (FOLDER.parents[1] / "docs" / "tracing.md").read_text()
    named = set(re.findall(r"`(medha_(?!actors)\w+)", text))
    assert len(named) > 10
    assert named <= set(samples)


def expect_known(expression: str, samples: dict[str, set[str]]) -> None:
    """Every metric of a query is in /metrics, with every label that the query names."""
    assert expression.count("(") == expression.count(")"), expression
    names = set(re.findall(r"\b(?:medha|gen_ai)_\w+", expression))
    assert names, expression
    labels = set(re.findall(r"(\w+)=~?\"", expression))
    for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
        labels |= {label.strip() for label in group.split(",")}
    for name in names:
        assert name in samples, f"{name} is not in /metrics"
        assert labels <= samples[name] | UNSEEN.get(name, set()), expression


async def test_every_metric_and_label_of_the_dashboard_exists(samples):
    assert TelemetryConfig().enabled
    targets = itertools.chain.from_iterable(panel["targets"] for panel in panels())
    expressions = [target["expr"] for target in targets]
    assert len(expressions) > 30
    for expression in expressions:
        expect_known(expression, samples)


async def test_grids_are_told_apart_by_a_label_that_every_series_of_theirs_has(samples):
    """deployments/fleet/reports.py adds it; without a fleet the dashboard is empty."""
    of_a_fleet = {name: labels | {"grid"} for name, labels in samples.items()}
    for panel in fleet_panels():
        for target in panel["targets"]:
            assert "grid" in target["expr"]
            expect_known(target["expr"], of_a_fleet)
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                names = re.findall(r"\bmedha_\w+", target["expr"])
                assert label in of_a_fleet[names[0]]


def alerts() -> list[dict]:
    return read("alerts.yaml")["groups"][0]["rules"]


async def test_every_metric_and_label_of_the_alerts_exists(samples):
    assert len(alerts()) > 8
    for alert in alerts():
        expect_known(alert["expr"], samples)
        told = " ".join(alert["annotations"].values())
        for label in re.findall(r"\$labels\.(\w+)", told):
            assert label in alert["expr"] or label in ("kind", "stage", "group"), alert[
                "alert"
            ]


def test_every_alert_says_what_to_do():
    page = (FOLDER.parents[1] / "docs" / "operations.md").read_text()
    for alert in alerts():
        assert f"`{alert['alert']}`" in page
        assert alert["labels"]["severity"] in ("page", "warn", "info")
        assert alert["annotations"]["summary"]
        assert alert["annotations"]["description"]


def test_kubernetes_has_the_same_alerts():
    file = FOLDER.parent / "kubernetes/overlays/monitoring/rules.yaml"
    assert (
        yaml.safe_load(file.read_text())["spec"]["groups"]
        == read("alerts.yaml")["groups"]
    )


def test_prometheus_reads_the_alerts():
    (file,) = read("prometheus.yaml")["rule_files"]
    mounted = read("compose.yaml")["services"]["prometheus"]["volumes"]
    assert f"./alerts.yaml:{file}:ro" in mounted


def test_the_dashboard_shows_every_figure_that_explains_a_late_request():
    text = json.dumps(dashboard())
    for name in (
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "batch_budget_used_ratio",
        "prefill_relative_slack",
        "predictor_error_ratio",
        "num_preemptions_total",
        "prefill_chunk_tokens",
        "pipeline_bubble_seconds_total",
        "kv_cache_pages",
        "control_plane_seconds_total",
    ):
        assert f"medha_{name}" in text
    for name in ("time_to_first_token", "inter_token_latency", "e2e_request_latency"):
        assert f"sum by (le, class) (rate(medha_{name}_seconds_bucket" in text
