"""/metrics: what Prometheus' own parser makes of it, and that the figures are right."""

import pytest
from local import LocalController
from prometheus_client.parser import text_string_to_metric_families

from deployments.metrics import ReplicaFigures, page
from medha_actors.telemetry.histogram import Family, Histogram, exposition
from medha_actors.telemetry.reports import Asked

# vLLM's stems, which dashboards are made for (prefix medha_ for its vllm:)
STEMS = [
    "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions",
    "prompt_tokens", "generation_tokens", "request_success", "time_to_first_token_seconds",
    "inter_token_latency_seconds", "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds", "request_queue_time_seconds", "request_prefill_time_seconds",
    "iteration_tokens_total",
]  # fmt: skip
OURS = [
    "batch_budget_used_ratio", "predictor_error_ratio", "prefill_relative_slack",
    "prefill_chunk_tokens", "num_evictions", "pipeline_bubble_seconds", "kv_cache_pages",
    "control_plane_seconds", "steps", "stage_busy_seconds", "kvp_exchange_seconds",
    "request_objective", "controller_tasks",
]  # fmt: skip


def parsed(text: str) -> dict:
    return {family.name: family for family in text_string_to_metric_families(text)}


async def scrape(controller: LocalController) -> dict:
    return parsed(page(await controller.metrics(), "toy", True))


def value(families: dict, name: str, sample: str | None = None, **labels) -> float:
    found = [
        s.value
        for s in families[name].samples
        if s.name == (sample or s.name)
        and labels.items() <= s.labels.items()
        and "created" not in s.name
    ]
    assert len(found) == 1, found
    return found[0]


async def test_every_promised_name_is_there_and_parses():
    controller = LocalController()
    controller.add("a", 3000)
    controller.run()
    families = await scrape(controller)
    assert {f"medha_{stem}" for stem in [*STEMS, *OURS]} <= set(families)
    server = ("request_duration", "time_to_first_token", "time_per_output_token")
    assert {f"gen_ai_server_{stem}_seconds" for stem in server} <= set(families)
    assert families["medha_iteration_tokens_total"].type == "histogram"
    for family in families.values():
        assert {sample.labels["model_name"] for sample in family.samples} <= {"toy"}


async def test_the_figures_are_those_of_the_requests():
    controller = LocalController(stages=2)
    controller.add("long", 20_000)
    controller.run(3)
    for i in range(5):
        controller.add(f"short{i}", 900)
    waiting = await scrape(controller)
    assert value(waiting, "medha_num_requests_waiting") == 5
    assert value(waiting, "medha_kv_cache_pages", state="used") == 20_000 / 16
    controller.run()
    families = await scrape(controller)
    assert value(families, "medha_prompt_tokens") == 24_500
    assert value(families, "medha_generation_tokens") == 24
    assert value(families, "medha_request_success", finished_reason="length") == 6
    for name, each in (
        ("time_to_first_token", 1),
        ("inter_token_latency", 3),
        ("e2e_request_latency", 1),
    ):
        name = f"medha_{name}_seconds"
        counts = {
            s.labels["class"]: s.value
            for s in families[name].samples
            if s.name == f"{name}_count"
        }
        assert counts == {"short": 5 * each, "long": each, "medium": 0, "huge": 0}
    assert (
        value(families, "medha_prefill_chunk_tokens", "medha_prefill_chunk_tokens_sum")
        == 24_500
    )
    assert (
        value(families, "medha_num_preemptions")
        == controller.scheduler.stats().preemptions_total
        > 0
    )
    assert value(families, "medha_kv_cache_pages", state="used") == 0
    slack = families["medha_prefill_relative_slack"]
    assert {s.labels["class"] for s in slack.samples} == {"short", "long"}
    steps = controller.scheduler.stats().batches_total
    name = "medha_batch_budget_used_ratio"
    assert (
        value(families, name, f"{name}_count")
        == value(families, "medha_steps")
        == steps
    )
    name = "medha_predictor_error_ratio"
    assert value(families, name, f"{name}_bucket", le="0.01") == steps, (
        "time was as predicted"
    )


async def test_idle_time_without_requests_is_no_bubble():
    controller = LocalController(stages=1)
    controller.add("a")
    controller.run()
    controller.now += 3600
    controller.add("b")
    controller.run()
    families = await scrape(controller)
    assert value(families, "medha_pipeline_bubble_seconds", stage="0") < 1


async def test_a_stage_that_waits_for_work_in_hand_is_a_bubble():
    controller = LocalController(stages=2)
    controller.add("a", 16)
    controller.run()  # one decode at a time: each stage idles while the other works
    families = await scrape(controller)
    busy = value(families, "medha_stage_busy_seconds", stage="0", group="0")
    assert (
        value(families, "medha_pipeline_bubble_seconds", stage="0", group="0")
        > busy / 2
    )


async def test_a_refusal_is_counted():
    controller = LocalController()
    controller.add("huge", 10**6)
    families = await scrape(controller)
    assert value(families, "medha_request_rejected", status="400") == 1


async def test_replicas_figures_stand_beside_each_other_and_leave_with_them():
    controller = LocalController()
    for name, requests in (("r1", 2), ("r2", 3)):
        figures = ReplicaFigures(name)
        for _ in range(requests):
            figures.ended("/v1/completions", 200, 0.5)
        for _ in range(2):  # reports are whole, so repeating one changes nothing
            await controller.report(name, figures.families())
    families = await scrape(controller)
    total = {
        s.labels["replica"]: s.value for s in families["medha_http_requests"].samples
    }
    assert total == {"r1": 2, "r2": 3}
    assert (
        value(
            families,
            "medha_http_request_duration_seconds",
            "medha_http_request_duration_seconds_count",
            replica="r2",
        )
        == 3
    )
    controller.observer.gone("r1")
    families = await scrape(controller)
    assert [s.labels["replica"] for s in families["medha_http_requests"].samples] == [
        "r2"
    ]


def test_labels_are_escaped():
    family = Family("x", "gauge", "Text", {(("name", 'a "quoted"\\ back\nline'),): 1.0})
    (parsed_family,) = text_string_to_metric_families(exposition([family]))
    assert parsed_family.samples[0].labels == {"name": 'a "quoted"\\ back\nline'}


@pytest.mark.parametrize(
    ("observed", "bucket"), [(0.0, 0), (1.0, 0), (1.001, 1), (2.0, 1), (99.0, 2)]
)
def test_a_bound_belongs_to_its_bucket(observed, bucket):
    histogram = Histogram.of((1.0, 2.0))
    histogram.observe(observed)
    assert histogram.counts.index(1) == bucket


async def test_the_controller_says_which_unsampled_requests_missed():
    controller = LocalController(
        objectives={"ttft_floor_s": 0.05, "ttft_multiplier": 1.0}
    )
    controller.add("punctual", 16)
    controller.run()
    controller.add("late", 2000)
    controller.now += 10
    controller.run()
    found = await controller.take_timelines(Asked(["punctual"], ["late", "unknown"]))
    assert [(t.id, t.missed()) for t in found] == [
        ("punctual", ()),
        ("late", ("ttft",)),
    ]
    assert await controller.take_timelines(Asked([], ["punctual"])) == []


async def test_a_batch_that_only_loads_is_counted_as_such():
    controller = LocalController(pages=40, slots=100)
    for name, prompt in (("a", 500), ("b", 600), ("a", 500)):
        controller.add(name, prompt)
        controller.run()
    families = await scrape(controller)
    loaded = value(
        families, "medha_kv_offload_load_pages", "medha_kv_offload_load_pages_total"
    )
    assert loaded == 29, "31 full pages, of which 2 had stayed"
    assert value(families, "medha_external_prefix_cache_hits") == 16 * loaded
    assert value(families, "medha_external_prefix_cache_queries") == 1600 - 2 * 16
    assert value(families, "medha_kv_offload_store_pages") >= loaded
    assert 0 < value(families, "medha_kv_offload_usage_perc") < 1
    chunks = [
        timeline.chunks_total for timeline in await controller.find_timelines("a")
    ]
    assert min(chunks) == 1, "the second time it computed its last tokens alone"
