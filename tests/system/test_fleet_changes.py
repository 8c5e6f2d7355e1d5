"""A fleet behind Serve while it changes under load: it grows and shrinks, its configuration and its
model are replaced. No request is lost, and what the change costs is printed (`-s`)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import urllib.request

import pytest
from fleet_load import Load, grids, loaded, until, until_grids
from serve_process import deploy, serving

from tests.processes import stage_pids

pytestmark = pytest.mark.slow
CPUS = len(os.sched_getaffinity(0))
ONE_STAGE = {
    "model_loading_config": {
        "model_id": "random",
        "model_source": "random",
        "max_model_len_tokens": 4096,
    },
    "parallel": {"spp": 1},
    "actors": {"num_cpus": CPUS / 4},
    "kv_cache": {"budget_bytes": 2**24, "page_tokens": 16},
    "predictor": {"calibrate": False},
}
SMALL = {"model_id": "small", "model_source": "random", "max_model_len_tokens": 2048}
LARGE = {"model_id": "large", "model_source": "random", "max_model_len_tokens": 4096}


def told(what: str, load: Load, began: float, ended: float) -> None:
    """What a change cost those who came meanwhile."""
    before = load.ttft_s(0.99, stop=began)
    during = load.ttft_s(0.99, began, ended)
    print(
        f"\n{what}: {ended - began:.1f} s; {load.finished} of {len(load.asked)} whole; TTFT P99 "
        f"{1000 * before:.0f} ms before, {1000 * during:.0f} ms meanwhile"
    )


async def test_a_fleet_grows_when_work_is_late_and_shrinks_without_losing_a_token(
    tmp_path,
):
    scaling = {
        "min_grids": 1,
        "max_grids": 2,
        "window_s": 5.0,
        "up_after_s": 1.0,
        "down_after_s": 5.0,
        "catch_up_s": 5.0,
    }
    fleet = {"num_grids": 1, "scaling": scaling}
    with serving(tmp_path, **ONE_STAGE, fleet=fleet) as (url, _):
        async with loaded(url, "random", workers=24, prompt=1500, tokens=20) as load:
            began = time.monotonic()
            first = await until_grids(url, 1, limit_s=30)
            both = await until_grids(url, 2, limit_s=120)
            told("1 -> 2", load, began + 1, time.monotonic())
            assert first.keys() < both.keys()
            (new,) = both.keys() - first.keys()
            await until(
                url, lambda now: now.get(new, 0.0) > 0, limit_s=60
            )  # it gets its share
        assert load.wrong == []
        async with loaded(url, "random", workers=1, prompt=50, tokens=20) as load:
            await until_grids(url, 1, limit_s=240)
        assert load.wrong == []


@pytest.mark.parametrize(
    "surge", [False, True], ids=["one by one", "beside the old ones"]
)
async def test_a_change_of_the_configuration_loses_no_request(tmp_path, surge):
    actors = {"num_cpus": CPUS / (8 if surge else 4)}
    args = {**ONE_STAGE, "actors": actors, "fleet": {"num_grids": 2, "surge": surge}}
    with serving(tmp_path, **args) as (url, _):
        async with loaded(url, "random", workers=6, prompt=300, tokens=40) as load:
            old = await until_grids(url, 2, limit_s=30)
            await asyncio.sleep(5)
            began = time.monotonic()
            changed = {**args, "scheduler": {"policy": "edf"}}
            log = tmp_path / "serve.log"
            await asyncio.to_thread(
                deploy, tmp_path / "changed.yaml", url, log, **changed
            )
            await until_replaced(url, old)
            told("another configuration", load, began, time.monotonic())
        assert load.wrong == []


async def test_a_change_of_the_model_mixes_no_two_models(tmp_path):
    """Nobody is cut; whoever comes while the replica has no grid of its own model is told to come
    back (503), and no prompt goes to the wrong model."""
    args = {**ONE_STAGE, "fleet": {"num_grids": 2}}
    random = {
        "vocabulary": 300,
        "layers": 2,
        "heads": 2,
        "kv_heads": 1,
        "hidden": 32,
        "intermediate": 64,
    }
    model = {
        **ONE_STAGE["model_loading_config"],
        "max_model_len_tokens": 2048,
        "random": random,
    }
    with serving(tmp_path, **args) as (url, _):
        async with loaded(url, "random", workers=4, prompt=300, tokens=40) as load:
            old = await until_grids(url, 2, limit_s=30)
            await asyncio.sleep(5)
            began = time.monotonic()
            changed = {**args, "model_loading_config": model}
            log = tmp_path / "serve.log"
            await asyncio.to_thread(
                deploy, tmp_path / "changed.yaml", url, log, **changed
            )
            await until_replaced(url, old)
            told("another model", load, began, time.monotonic())
        assert [wrong for wrong in load.wrong if not wrong.startswith("503")] == []
        assert listed(url) == {"random": 2048}


async def until_replaced(url: str, old: dict[str, float]) -> None:
    """Until only new grids tell of themselves, as many as there were."""

    def replaced(now: dict[str, float]) -> bool:
        return len(now) == len(old) and not now.keys() & old.keys()

    await until(url, replaced, limit_s=180)


def listed(url: str) -> dict[str, int]:
    """The models there are, and their lengths."""
    with urllib.request.urlopen(f"{url}/v1/models", timeout=5) as answer:
        return {one["id"]: one["max_model_len"] for one in json.load(answer)["data"]}


async def test_two_models_share_an_address_and_no_fate(tmp_path):
    shared = {
        key: value for key, value in ONE_STAGE.items() if key != "model_loading_config"
    }
    models = [{**shared, "model_loading_config": loading} for loading in (SMALL, LARGE)]
    with serving(tmp_path, models=models) as (url, pid):
        assert listed(url) == {"small": 2048, "large": 4096}
        async with (
            loaded(url, "large", workers=3, prompt=100, tokens=200) as large,
            loaded(url, "small", workers=3, prompt=100, tokens=200) as small,
        ):
            await asyncio.gather(small.more(5), large.more(5))
            os.kill(stage_pids(pid)[0], signal.SIGKILL)  # of one of the two
            await asyncio.gather(small.more(5), large.more(5))
        assert small.wrong + large.wrong == []
        assert len(await grids(url)) == 2


async def test_changing_one_of_two_models_leaves_the_grid_of_the_other_alone(tmp_path):
    shared = {
        key: value for key, value in ONE_STAGE.items() if key != "model_loading_config"
    }
    models = [{**shared, "model_loading_config": loading} for loading in (SMALL, LARGE)]
    with serving(tmp_path, models=models) as (url, _):
        old = await until_grids(url, 2, limit_s=30)
        async with loaded(url, "large", workers=3, prompt=100, tokens=100) as load:
            changed = [{**models[0], "scheduler": {"policy": "edf"}}, models[1]]
            log = tmp_path / "serve.log"
            await asyncio.to_thread(
                deploy, tmp_path / "changed.yaml", url, log, models=changed
            )
            await until(
                url, lambda now: len(now) == 2 and now.keys() != old.keys(), limit_s=180
            )
            await load.more(20)
        assert load.wrong == []
        assert len(old.keys() & (await grids(url)).keys()) == 1
