"""Results that are read back, and runs beside each other."""

import json

import pytest

from loadgen.errors import LoadgenError
from loadgen.judge.health import examine
from loadgen.show.compare import read_run, read_runs, tables, warnings, write_comparison
from loadgen.show.output import claim_directory
from loadgen.show.results import write_results
from loadgen.show.tables import all_and_classes, as_text, class_table
from tests.loadgen.made import a_run, made
from tests.loadgen.show.written import TERMS, written

pytestmark = pytest.mark.usefixtures("no_figures")


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
