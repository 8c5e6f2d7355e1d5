"""The experiments: which cells in which order, what is left to do, the table, and one with a real
server."""

import itertools
import sys
from pathlib import Path

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from loadgen.__main__ import main
from loadgen.errors import LoadgenError
from loadgen.experiment import command
from loadgen.experiment.cells import CHUNKS, CONVOY, FAIRNESS, OVERLOAD, rounds
from loadgen.experiment.command import experiment
from loadgen.experiment.options import ExperimentOptions, with_defaults
from loadgen.experiment.serving import read_config, serving, url_of, varied
from loadgen.experiment.table import draw_frontier, table
from medha_actors.config import load

sys.path.append(str(Path(__file__).parent.parent / "system"))
from serve_process import free_port

ROOT = Path(__file__).parents[2]


def test_every_variant_gets_every_cell_and_repeats_begin_elsewhere():
    order = list(rounds(["a", "b", "c"], [0.0, 0.05], [0.5, 0.9], 2))
    assert [variant for variant, _ in order] == ["a", "b", "c", "b", "c", "a"]
    cells = list(itertools.chain.from_iterable(group for _, group in order))
    assert len({cell.name for cell in cells}) == len(cells) == 3 * 2 * 2 * 2
    assert cells[0].name == "a-long0-load50-r0"


@pytest.mark.parametrize(
    "scheduler",
    [*CONVOY.values(), *CHUNKS.values(), *OVERLOAD.values(), *FAIRNESS.values()],
    ids=str,
)
def test_every_variant_is_a_valid_configuration_and_changes_nothing_else(scheduler):
    config = read_config(ROOT / "serve_config.yaml")
    before = msgspec.json.encode(config)
    changed = varied(config, scheduler)
    assert msgspec.json.encode(config) == before
    load(changed["applications"][0]["args"])
    assert url_of(changed) == "http://127.0.0.1:8000"


def test_a_flood_is_short_prompts_at_multiples_of_the_capacity_unless_asked_otherwise():
    flood = with_defaults(ExperimentOptions(kind="overload", loads=(3.0,)))
    assert (flood.loads, flood.long_fractions, flood.goodput) == (
        (3.0,),
        (0.0,),
        ("ttft:1000",),
    )
    convoy = ExperimentOptions(goodput=("ttft:1.5x",))
    assert with_defaults(ExperimentOptions()) == convoy
    assert with_defaults(ExperimentOptions(loads=(0.9,))).loads == (0.9,)


def canned(ttft: float, tbt: float) -> dict:
    figures = {
        "ttft": {"median": ttft, "p99": 2 * ttft},
        "normalized_ttft": {"median": 1.5, "p99": 3.0},
    }
    every = {
        "itl": {"p99": tbt},
        "total_token_throughput": 1234.5,
        "completion_rate": 1.0,
        "announced_true": 0.9,
    }
    return {
        "request_throughput": 2.0,
        "classes": {"short": figures, "long": figures, "all": every},
    }


def test_the_table_has_medians_of_the_repeats_and_says_what_is_missing():
    header, body = table(
        {
            "lars": [canned(100, 50), canned(300, 60), canned(110, 70)],
            "none": [{"classes": {}}],
        }
    )
    assert body[0] == [
        "lars",
        "110 ms",
        "220 ms",
        "1.50",
        "3.00",
        "60 ms",
        "110 ms",
        "220 ms",
        "-",
        "-",
        "90%",
        "-",
        "1,234",
        "-",
        "100%",
    ]
    assert body[1] == ["none", *["-"] * (len(header) - 1)]


def test_the_frontier_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    rows = {
        f"{name}, 5% long, load 0.75": [canned(1000 / (i + 1), 10 * (i + 1))]
        for i, name in enumerate(CHUNKS)
    }
    assert draw_frontier(rows, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--serve-config", "nowhere.yaml"], "nowhere.yaml: No such file"),
        (["--variants", "lottery"], "--variants lottery: known are lars, fcfs"),
        (["--serve-config", "pyproject.toml"], "is no Serve configuration"),
    ],
)
def test_a_wrong_flag_is_one_line(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert (
        main(["experiment", "convoy", "--result-dir", str(tmp_path), *arguments]) != 0
    )
    assert message in capsys.readouterr().err


def toy(tmp_path: Path) -> Path:
    """A configuration with a tiny model."""
    application = {
        "name": "medha",
        "route_prefix": "/",
        "import_path": "deployments.app:build_app",
        "args": {
            "model_loading_config": {
                "model_source": "random",
                "model_id": "toy",
                "dtype": "float32",
                "max_model_len_tokens": 8192,
            },
            "parallel": {"spp": 1},
            "actors": {"num_cpus": 0.5, "spares": 0},
            "kv_cache": {"budget_bytes": 2**25},
            "predictor": {"calibrate": False},
        },
    }
    http = {"host": "127.0.0.1", "port": free_port()}
    file = tmp_path / "serve_config.json"
    file.write_bytes(
        msgspec.json.encode({"http_options": http, "applications": [application]})
    )
    return file


@pytest.mark.slow
async def test_a_real_server_for_each_variant_and_nothing_twice(
    tmp_path, plain, monkeypatch
):
    monkeypatch.chdir(ROOT)
    asked = ExperimentOptions(
        serve_config=str(toy(tmp_path)),
        result_dir=str(tmp_path / "out"),
        variants=("lars",),
        num_prompts=12,
        capacity=20.0,
        input_len="64",
        long_input_len="4100:4200",
        output_len="4",
        long_fractions=(0.2,),
        goodput=("ttft:60000",),
    )
    said: list[str] = []
    (_, body), file = await experiment(asked, said.append)
    assert [row[0] for row in body] == ["lars, 20% long, load 0.75"]
    assert all(row[-1] == "100%" for row in body)
    assert "-" not in body[0][1:]
    assert "lars" in file.read_text()
    # for `fidelity --metrics`
    (counted,) = (tmp_path / "out").glob("cells/*/server_after.txt")
    assert "medha_batch_calibrated_seconds_total" in counted.read_text()
    assert (
        read_config(counted.parent / "serve_config.json")["applications"][0]["args"][
            "scheduler"
        ]["policy"]
        == "lars"
    )

    def nothing(*_):
        raise AssertionError("all cells are there already")

    monkeypatch.setattr(command, "serving", nothing)
    (_, again), _ = await experiment(asked, said.append)
    assert again == body


async def test_a_server_that_is_there_already_is_not_taken_for_ours(
    tmp_path, monkeypatch
):
    async def health(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_get("/health", health)
    async with TestServer(app) as other:
        config = read_config(toy(tmp_path))
        config["http_options"]["port"] = other.port
        with pytest.raises(
            LoadgenError, match=r"answers at http://127\.0\.0\.1:.* already"
        ):
            async with serving(config, tmp_path / "server"):
                pass
