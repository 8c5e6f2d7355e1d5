"""The runner of the GPU check, with parts that do what goes wrong on a GPU."""

import json

import pytest

from medha_actors.bench import gpu_report
from medha_actors.bench.gpu import PARTS, Part, run_parts
from medha_actors.bench.gpu_findings import Findings, read_rows

CARD = {"card": "NVIDIA H100 80GB HBM3", "torch": "2.11.0"}
GOOD = """
def run(out):
    out.add("step", 5.0, "ms", most=6.2)
    out.add("share", 0.4, least=0.5)
    out.check("equal", True)
    out.say("clock", "1980 MHz")
"""
ABORTS = """
import os
def run(out):
    out.add("before", 1.0)
    os.abort()
"""
HANGS = """
import signal
def run(out):
    out.check("began", out.left_s() > 0)
    signal.pause()
"""
TABLE = """
import json
from pathlib import Path
def run(out: Path):
    rows = [{"what": "decode of 1 at 1K", "graph ms": 5, "eager ms": 9.5, "names": {"a": 1}}]
    rows += [{"what": "step", "error": 2e-3, "error of torch": 1e-3, "different": []}]
    (out / "own.json").write_text(json.dumps(rows + [{"what": "_replays", "failed": "no"}]))
    links = {"device": "H100", "rows": [{"transport": "ipc", "hop 2048 ms": 0.4, "sum": "refused"}]}
    (out / "ways.json").write_text(json.dumps(links))
    (out / "zcut.json").write_text('[{"what": "cut')
    raise KeyError("later")
"""
RAISES = """
def run(out):
    raise RuntimeError("CUDA error: device-side assert triggered")
"""


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Names and sources -> parts whose modules can be imported, here and in a child."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def made(limit_s=20.0, **sources):
        for name, source in sources.items():
            (tmp_path / f"planted_{name}.py").write_text(source)
        return [Part(name, f"planted_{name}", limit_s) for name in sources]

    return made


def ran(parts, tmp_path, budget_s=60.0):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    outcomes = run_parts(parts, budget_s, scratch, tmp_path / "results")
    return {outcome.part: outcome for outcome in outcomes}


def test_one_crash_costs_only_its_part(parts, tmp_path):
    found = ran(parts(aborts=ABORTS, raises=RAISES, good=GOOD), tmp_path)
    assert found["aborts"].how.startswith("ended by SIGABRT")
    assert [row["name"] for row in found["aborts"].rows] == ["before"]
    assert "device-side assert" in found["raises"].how
    assert found["good"].how == "done"
    assert [row.get("met") for row in found["good"].rows] == [True, False, True, None]
    assert not any(outcome.good for outcome in found.values())
    assert "device-side assert" in (tmp_path / "results" / "log.txt").read_text()


def test_a_part_that_hangs_is_ended_at_its_limit(parts, tmp_path):
    found = ran(parts(limit_s=3.0, hangs=HANGS), tmp_path)
    assert found["hangs"].how.startswith("ended at its limit")
    assert found["hangs"].rows[0]["met"]


def test_what_is_missing_and_what_has_no_time_are_named(parts, tmp_path):
    missing = Part("links", "medha_actors.bench.gpu_that_is_not_there", 10)
    found = ran([missing, *parts(good=GOOD)], tmp_path, budget_s=5.0)
    assert found["links"].how == "not there"
    assert found["links"].good
    assert found["good"].how == "no time left"
    assert not found["good"].good


def test_the_report_says_which_targets_were_met(parts, tmp_path):
    outcomes = list(ran(parts(good=GOOD), tmp_path).values())
    lines = gpu_report.table(CARD, outcomes).splitlines()
    assert lines[0].startswith("card NVIDIA H100")
    assert [line.split()[-1] for line in lines[2:5]] == ["yes", "NO", "yes"]
    assert gpu_report.summary(outcomes).splitlines() == [
        "2 of 3 targets met",
        "missed: good: share: 0.4 >= 0.5",
    ]
    page = gpu_report.write(CARD, outcomes, tmp_path)
    assert page.name.startswith("gpu-h100-80gb-hbm3-20")
    assert "| good | step | 5 ms | <= 6.2 | yes |" in page.read_text()
    kept = json.loads(page.with_suffix(".json").read_text())
    assert kept["parts"][0]["rows"][0]["value"] == 5.0


def test_a_part_may_keep_a_table_of_its_own(parts, tmp_path):
    rows = ran(parts(table=TABLE), tmp_path)["table"].rows
    assert (tmp_path / "results" / "files" / "table-own.json").exists()
    found = [(row["name"], row["value"], row.get("met")) for row in rows]
    assert found == [
        ("decode of 1 at 1K: graph ms", 5.0, True),
        ("decode of 1 at 1K: eager ms", 9.5, None),
        ("step: error", 2e-3, False),
        ("step: error of torch", 1e-3, None),
        ("step: different", "[]", True),
        ("_replays: failed", "no", False),
        ("ipc: hop 2048 ms", 0.4, False),
        ("ipc: sum", "refused", None),
    ]


def test_a_row_that_a_crash_cut_short_is_left_out(tmp_path):
    Findings(tmp_path, 0.0).add("whole", 1.0)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"name": "cut')
    assert [row["name"] for row in read_rows(tmp_path)] == ["whole"]


def test_all_parts_fit_into_nine_minutes():
    """A part that has less to do leaves its time to those behind it."""
    assert sum(part.limit_s for part in PARTS) <= 600
    assert len({part.name for part in PARTS}) == len(PARTS)
