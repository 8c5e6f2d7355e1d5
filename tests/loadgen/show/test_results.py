"""The results directory: complete, readable by machines and by people, and the same for a simulated
run."""

import csv
import itertools
import json
import re
import sys
from pathlib import Path

import pytest

from loadgen.errors import LoadgenError
from loadgen.judge.health import examine
from loadgen.judge.objectives import parse_objectives
from loadgen.judge.options import Terms
from loadgen.show.compare import read_run, read_runs, tables, warnings, write_comparison
from loadgen.show.figures import plain_ticks
from loadgen.show.output import claim_directory
from loadgen.show.results import write_results
from loadgen.show.tables import all_and_classes, as_text, class_table
from loadgen.workload.traces import TraceOptions, read_trace
from tests.loadgen.made import a_run, failed, made

sys.path.append(str(Path(__file__).parents[2] / "telemetry"))
from chromium import browse, executable

TERMS = Terms(
    objectives=parse_objectives(["ttft:1500", "tpot:200"]),
    percentiles=(50, 99),
    attainment=0.9,
)


def some_records():
    records = [
        made(
            i,
            sent=i / 2,
            tokens=(0.5 + i / 20, 0.6 + i / 20, 0.8 + i / 20),
            isolated_ttft_s=0.4,
        )
        for i in range(20)
    ]
    records += [
        made(20 + i, sent=i, tokens=(4.0, 4.2), kind="long", isolated_ttft_s=3.0)
        for i in range(3)
    ]
    records += [made(30, sent=1.0, tokens=(0.2,), kind="probe"), failed(31, sent=2.0)]
    records[0].blocks = (7, 8)
    records[0].block_tokens = 5
    return records


def written(directory, **more):
    claim_directory(directory)
    run = a_run(some_records(), **more)
    return write_results(run, TERMS, examine(run), directory)


@pytest.fixture(autouse=True)
def no_figures(request, monkeypatch):
    """Drawing takes seconds: the figures are drawn once, by `results`, and where a test is about
    them."""
    request.getfixturevalue("results")
    monkeypatch.setattr("loadgen.show.figures.available", lambda: False)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    directory = tmp_path_factory.mktemp("results") / "run"
    written(directory, label="first <run>", isolated=[(10, 0.4)])
    return directory


def test_the_tree(results):
    found = {
        str(path.relative_to(results)) for path in results.rglob("*") if path.is_file()
    }
    metrics = {"ttfc", "tbc", "tpot", "end_to_end_latency", "normalized_ttft"}
    expected = {
        "config.yml",
        "health_check_results.txt",
        "result.json",
        "report.html",
        "isolated_ttft.json",
        "traces/trace.jsonl",
    }
    expected |= {f"metrics/{name}.{end}" for name in metrics for end in ("csv", "png")}
    expected |= {f"metrics/{name}.png" for name in ("ttft_over_time", "throughput")}
    expected |= {"metrics/request_level_metrics.jsonl"}
    expected |= {
        f"metrics/{n}.json"
        for n in ("summary_stats", "slo_results", "throughput_metrics", "chrome_trace")
    }
    assert found == expected
    assert not any(":" in name for name in found)


def test_result_json_has_vllms_keys(results):
    result = json.loads((results / "result.json").read_text())
    for key in (
        "date",
        "model_id",
        "num_prompts",
        "request_rate",
        "duration",
        "completed",
        "failed",
        "total_input_tokens",
    ):
        assert key in result, key
    for metric in ("ttft", "tpot", "itl", "e2el"):
        for statistic in ("mean", "median", "std", "p50", "p99"):
            assert f"{statistic}_{metric}_ms" in result
    assert (result["num_prompts"], result["completed"], result["failed"]) == (24, 23, 1)
    assert result["request_goodput"] == pytest.approx(20 / result["duration"])
    assert set(result["classes"]) == {"all", "short", "long", "probe"}
    assert result["classes"]["probe"]["requests"] == 1
    assert result["policy"] == "lars"
    assert result["errors"] == {"HTTP 503: full": 1}


def test_rows_are_veekshas_and_leave_out_what_is_undefined(results):
    rows = [
        json.loads(line)
        for line in (results / "metrics" / "request_level_metrics.jsonl")
        .read_text()
        .splitlines()
    ]
    assert len(rows) == 25
    first = rows[0]
    last = rows[-1]
    assert first["ttfc"] == pytest.approx(0.5)
    assert first["tbc"] == pytest.approx([0.1, 0.2])
    assert first["end_to_end_latency"] == pytest.approx(0.8)
    assert (
        first["num_total_prompt_tokens"],
        first["num_output_tokens"],
        first["success"],
    ) == (
        10,
        3,
        True,
    )
    assert last["success"] is False
    assert {"ttfc", "tpot", "end_to_end_latency"}.isdisjoint(last)


def test_summaries(results):
    metrics = results / "metrics"
    stats = json.loads((metrics / "summary_stats.json").read_text())
    assert stats["Number of Requests"] == 24
    assert stats["Number of Errored Requests"] == 1
    slos = json.loads((metrics / "slo_results.json").read_text())
    assert slos["all_slos_met"] is False
    short = next(
        row
        for row in slos["results"]
        if row["class"] == "short" and row["metric"] == "ttfc"
    )
    assert short["share_met"] == pytest.approx(20 / 21)
    assert short["met"] is True
    long = next(
        row
        for row in slos["results"]
        if row["class"] == "long" and row["metric"] == "ttfc"
    )
    assert (long["met"], long["observed_value"], long["threshold"]) == (
        False,
        pytest.approx(4.0),
        1.5,
    )
    throughput = json.loads((metrics / "throughput_metrics.json").read_text())
    assert throughput["tpot_based_throughput"] == pytest.approx(
        1 / ((20 * 0.15 + 3 * 0.2) / 23)
    )


def test_cdf_tables(results):
    with (results / "metrics" / "ttfc.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["", "cdf", "Time to First Chunk", "short", "long"]
    assert len(rows) == 102
    assert float(rows[1][3]) == pytest.approx(0.5)
    assert float(rows[101][2]) == pytest.approx(4.0)


def test_chrome_trace_bars_do_not_overlap(results):
    events = json.loads((results / "metrics" / "chrome_trace.json").read_text())[
        "traceEvents"
    ]
    bars = sorted(
        (e["pid"], e["tid"], e["ts"], e["ts"] + e["dur"])
        for e in events
        if e["ph"] == "X"
    )
    assert len(bars) > 40
    for before, after in itertools.pairwise(bars):
        assert before[:2] != after[:2] or before[3] <= after[2] + 0.2


def test_the_trace_can_be_replayed(results):
    requests = read_trace(results / "traces" / "trace.jsonl", TraceOptions())
    assert len(requests) == 24
    assert {request.kind for request in requests} == {"short", "long"}
    with_blocks = next(request for request in requests if request.blocks)
    assert (with_blocks.blocks, with_blocks.block_tokens) == ((7, 8), 5)


def test_the_report_is_one_file_and_escapes(results):
    page = (results / "report.html").read_text()
    assert "first &lt;run&gt;" in page
    assert page.count("data:image/png;base64,") == 7
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "TTFT P99" in page
    assert "HTTP 503: full" in page


@pytest.mark.skipif(executable() is None, reason="needs Chromium")
async def test_the_report_fits_a_phone(results):
    async with browse((results / "report.html").as_uri()) as page:
        phone = {"width": 375, "height": 812, "deviceScaleFactor": 2, "mobile": True}
        await page.call("Emulation.setDeviceMetricsOverride", **phone)
        await page.until("document.readyState === 'complete' && innerWidth === 375")
        rights = (
            "[...document.images].map(image => image.getBoundingClientRect().right)"
        )
        widest = f"Math.max(...{rights})"
        assert await page.evaluate("document.documentElement.scrollWidth") == 375
        assert 300 < await page.evaluate(widest) <= 375
        health = "[...document.querySelectorAll('.wide')].at(-1)"
        assert await page.evaluate(f"{health}.scrollWidth <= {health}.clientWidth")


def test_nothing_in_the_report_is_wider_than_a_phone(results):
    page = (results / "report.html").read_text()
    assert 'name="viewport" content="width=device-width' in page
    assert "minmax(min(480px, 100%), 1fr)" in page
    assert page.count("<table>") == page.count('<div class="wide"><table>') > 2


@pytest.mark.parametrize(
    ("ends", "labels", "unlabelled"),
    [
        ((0.1, 9), ["0.1", "0.2", "0.5", "1", "2", "5"], []),
        (
            (0.001, 1),
            ["0.001", "0.002", "0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "0.5"],
            [],
        ),
        (
            (0.02, 100),
            ["0.02", "0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "50"],
            [],
        ),
        (
            (0.01, 400),
            ["0.01", "0.1", "1", "10", "100"],
            [0.02, 0.05, 0.2, 0.5, 2, 5, 20, 50, 200],
        ),
        ((0.12, 0.19), ["0.12", "0.13", "0.14", "0.15", "0.16"], []),
    ],
)
def test_logarithmic_axes_have_ticks_at_1_2_and_5(ends, labels, unlabelled):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.subplots()
    axes.set(xscale="log", xlim=ends)
    plain_ticks(axes, "x")
    low, high = ends
    shown = [
        t.get_text()
        for t in axes.get_xticklabels()
        if low <= t.get_position()[0] <= high
    ]
    assert shown[: len(labels)] == labels
    between = [value for value in axes.get_xticks(minor=True) if low <= value <= high]
    assert between == pytest.approx(unlabelled)


def test_config_is_yaml(results):
    import yaml

    assert yaml.safe_load((results / "config.yml").read_text())["nested"] == {
        "list": [1, "two"]
    }


def test_pictures_are_pictures(results):
    for path in (results / "metrics").glob("*.png"):
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_without_matplotlib_there_are_tables(tmp_path):
    written(tmp_path / "run")
    assert not list(tmp_path.rglob("*.png"))
    assert (
        "matplotlib is not installed" in (tmp_path / "run" / "report.html").read_text()
    )


def test_a_simulated_run_writes_the_same_tree(tmp_path, results):
    result = written(tmp_path / "run", simulated=True, isolated=[(10, 0.4)])
    assert result["endpoint_type"] == "simulation"

    def names(top):
        return {
            str(path.relative_to(top))
            for path in top.rglob("*")
            if path.suffix != ".png"
        }

    assert names(tmp_path / "run") == names(results)


@pytest.mark.parametrize("records", [[], [failed()]])
def test_a_run_in_which_nothing_was_answered(tmp_path, records):
    run = a_run(records)
    claim_directory(tmp_path / "run")
    result = write_results(run, TERMS, examine(run), tmp_path / "run")
    assert result["completed"] == 0
    assert not any("ttft" in key for key in result)
    assert (tmp_path / "run" / "report.html").exists()
    assert not list(tmp_path.rglob("*.csv"))


def test_directories_that_hold_something_are_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(LoadgenError, match="exists already"):
            claim_directory(path)
    with pytest.raises(LoadgenError, match="cannot create"):
        claim_directory(tmp_path / "file" / "below")


def test_reading_back_gives_the_same_figures(results):
    run = read_run(results)
    assert run.name == "first <run>"
    assert len(run.requests) == 25
    assert run.requests[0].ttft == pytest.approx(0.5)
    assert list(run.requests[0].record.token_times) == pytest.approx([0.5, 0.6, 0.8])


def test_comparing(tmp_path, results, monkeypatch):
    written(tmp_path / "other", label="other")
    monkeypatch.setattr("loadgen.show.figures.available", lambda: True)
    runs = read_runs([results, tmp_path / "other"])
    found = dict(tables(runs))
    assert found["short requests"][0] == ["", "first <run>", "other"]
    assert ["short: TTFT P99", "1x", "1x"] in found["Relative to first <run>"][1]
    assert warnings(runs) == []
    write_comparison(runs, tmp_path / "compare")
    assert {path.name for path in (tmp_path / "compare").iterdir()} == {
        "compare.md",
        "compare.html",
        "compare.png",
    }
    assert "| TTFT P99, ms |" in (tmp_path / "compare" / "compare.md").read_text()
    page = (tmp_path / "compare" / "compare.html").read_text()
    assert "Relative to first &lt;run&gt;" in page
    assert page.count("<h2>") == len([rows for _, (_, rows) in found.items() if rows])


def test_comparing_needs_results(tmp_path, results):
    with pytest.raises(LoadgenError, match="at least two"):
        read_runs([results])
    with pytest.raises(LoadgenError, match="no results directory"):
        read_runs([results, tmp_path])
    (tmp_path / "result.json").write_text("{}")
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "request_level_metrics.jsonl").write_text("")
    with pytest.raises(LoadgenError, match="no results directory"):
        read_runs([results, tmp_path])


def test_runs_that_differ_are_pointed_out(tmp_path, results):
    written(tmp_path / "same")
    claim_directory(tmp_path / "late")
    late = a_run([made(released_at=-1.0)])
    write_results(late, TERMS, examine(late), tmp_path / "late")
    doubts = warnings(read_runs([tmp_path / "same", tmp_path / "late"]))
    assert any("health check failed" in doubt for doubt in doubts)
    assert any("num_prompts" in doubt for doubt in doubts)


def test_text_tables(results):
    text = as_text(
        class_table(all_and_classes(json.loads((results / "result.json").read_text())))
    )
    lines = text.splitlines()
    assert lines[0].split() == ["all", "short", "long", "probe"]
    assert any(line.startswith("TTFT / idle TTFT P50") for line in lines)
    assert len({len(line) for line in lines[1:2]}) == 1
