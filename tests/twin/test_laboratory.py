"""The policy laboratory: what it plays, that it goes on where it stopped, and its statistics."""

import csv
import io
import itertools

import msgspec
import pytest

from loadgen.__main__ import main
from loadgen.records import LONG, PlannedRequest
from loadgen.twin.cells import Cell, Finding, Shelf
from loadgen.twin.pairs import FIGURES, as_csv, mark, page, pairs, spread
from loadgen.twin.scenarios import (
    LAX,
    TIGHT,
    deadlines_of,
    objectives_of,
    scenario_of,
    window,
)


def trace_of(count, gap_s=2.0):
    return [
        PlannedRequest(
            index=i,
            prompt_tokens=100 + i,
            output_tokens=1,
            at=gap_s * i,
            blocks=(1,),
            block_tokens=64,
        )
        for i in range(count)
    ]


def test_every_seed_is_the_next_window_of_a_trace_at_one_request_a_second():
    trace = trace_of(10)
    first = window(trace, 4, 0)
    second = window(trace, 4, 1)
    third = window(trace, 4, 2)  # over the end
    assert [r.prompt_tokens for r in first] == [100, 101, 102, 103]
    assert [r.prompt_tokens for r in second] == [104, 105, 106, 107]
    assert [r.prompt_tokens for r in third] == [108, 109, 100, 101]
    for one in (first, second, third):
        assert [r.index for r in one] == [0, 1, 2, 3]
        assert [r.at for r in one] == pytest.approx([0.0, 4 / 3, 8 / 3, 4.0])
        assert not any(r.blocks for r in one)


def test_a_third_of_the_clients_each_asks_for_less_nothing_and_more():
    scenario = scenario_of("convoy", 60, 0)
    plain = deadlines_of(scenario, "default")
    mixed = deadlines_of(scenario, "mixed")
    assert {name for name, _ in plain.values()} == {"default"}
    assert not objectives_of(plain)
    asked = objectives_of(mixed)
    longs = [r.index for r in scenario.requests if r.kind == LONG]
    for index, (name, seconds) in mixed.items():
        factor = {"tight": TIGHT, "default": 1.0, "lax": LAX}[name]
        wanted = max(0.05, factor * plain[index][1])  # the server's least objective
        assert seconds == pytest.approx(wanted)
        assert (index in asked) == (name != "default")
    assert longs
    counts = [
        sum(name == kind for name, _ in mixed.values())
        for kind in ("tight", "default", "lax")
    ]
    assert counts == [20, 20, 20]


def finding_of(policy, seed, **figures):
    values = {
        "scenario": "convoy",
        "load": 0.75,
        "asking": "default",
        "noise": 0.03,
        "policy": policy,
        "seed": seed,
        "kept_by": {},
    }
    numbers = {
        field.name: 0.0
        for field in msgspec.structs.fields(Finding)
        if field.name not in values and field.type is float
    }
    return Finding(**(numbers | values | figures))


def test_a_mean_has_a_standard_error():
    assert spread([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1 / 3**0.5))
    assert not spread([1.0]).clear


def test_differences_are_paired_by_seed():
    """The seeds differ by far more than the policies, but always in the same way."""
    policies = {
        "lars": {
            seed: finding_of("lars", seed, short_p50=10.0 * seed) for seed in range(4)
        },
        "new": {
            seed: finding_of("new", seed, short_p50=10.0 * seed - 1)
            for seed in (1, 2, 3, 9)
        },
    }
    figure = next(figure for figure in FIGURES if figure.title == "short P50")
    difference = pairs(policies, "new", "lars", figure)
    assert difference == (-1.0, 0.0)
    assert mark(difference, figure) == " +"  # less is better
    assert pairs(policies, "lars", "lars", figure) is None
    assert pairs(policies, "absent", "lars", figure) is None
    good = next(figure for figure in FIGURES if figure.title == "good")
    assert mark(spread([-0.5, -0.4, -0.6]), good) == " -"
    assert mark(spread([-0.5, 0.4, 0.3]), good) == ""


def test_tables_for_docs_and_for_spreadsheets():
    findings = [
        finding_of(policy, seed, good=0.5 + 0.1 * seed, short_p50=1.5)
        for policy, seed in itertools.product(("lars", "spf"), (0, 1))
    ]
    text = page(findings, "lars")
    assert "### convoy, load 0.75, objectives default, noise 3%" in text
    assert "| lars | 2 | 55.0 ± 5.0% | 1.50 ± 0.00 |" in text
    rows = list(csv.DictReader(io.StringIO(as_csv(findings, "lars"))))
    assert len(rows) == 2 * len(FIGURES)
    first = rows[0]
    assert (first["policy"], first["figure"], first["mean"]) == ("lars", "good", "0.55")
    assert first["minus_lars"] == ""


def test_a_laboratory_goes_on_where_it_stopped(capsys, tmp_path):
    command = [
        "laboratory",
        "--quick",
        "--scenarios",
        "convoy",
        "--policies",
        "lars",
        "spf",
    ]
    command += ["--loads", "0.75", "--result-dir", str(tmp_path)]
    assert main([*command, "--limit-s", "1e-9"]) == 0
    assert "2 cells are left" in capsys.readouterr().err
    assert main(command) == 0
    once = (tmp_path / "laboratory.csv").read_text()
    capsys.readouterr()
    assert main([*command, "--workers", "2"]) == 0
    assert "2 of 2 cells were played before" in capsys.readouterr().err
    assert (tmp_path / "laboratory.csv").read_text() == once
    assert "spf" in (tmp_path / "laboratory.md").read_text()


def test_a_cell_is_played_the_same_twice(tmp_path):
    cell = Cell(
        scenario="convoy",
        load=1.0,
        asking="mixed",
        noise=0.1,
        seed=3,
        policy="boost",
        count=60,
    )
    played = Shelf(tmp_path).play(cell)
    assert played == Shelf(tmp_path).finding(cell) == Shelf(None).play(cell)
    assert {"tight", "default", "lax"} <= played.kept_by.keys()
