"""The results directory: complete, readable by machines and by people, and the same for a simulated
run."""

import csv
import itertools
import json

import pytest

from loadgen.errors import LoadgenError
from loadgen.judge.health import examine
from loadgen.show.output import claim_directory
from loadgen.show.results import write_results
from loadgen.workload.traces import TraceOptions, read_trace
from tests.loadgen.made import a_run, failed
from tests.loadgen.show.written import TERMS, written

pytestmark = pytest.mark.usefixtures("no_figures")


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
    expected |= {f"metrics/{name}.csv" for name in metrics}
    expected |= {f"metrics/{name}.png" for name in metrics}
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


def test_config_is_yaml(results):
    import yaml

    assert yaml.safe_load((results / "config.yml").read_text())["nested"] == {
        "list": [1, "two"]
    }


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
