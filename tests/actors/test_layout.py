"""Grids fitted to the GPUs that are there."""

import pytest

from medha_actors.actors.layout import chosen_device, described, fitted, turns
from medha_actors.config import load
from medha_actors.errors import ConfigError


def config_of(device="auto", num_gpus=None, **parallel):
    return load(
        {"actors": {"device": device, "num_gpus": num_gpus}, "parallel": parallel}
    )


@pytest.mark.parametrize(
    ("device", "gpus", "parallel", "stages", "part"),
    [
        ("auto", 1, {"spp": 2}, 1, 1.0),  # the quickstart on one GPU
        ("auto", 2, {"spp": 2}, 2, 1.0),
        ("auto", 8, {"spp": 2}, 2, 1.0),
        ("auto", 3, {"spp": 4}, 3, 1.0),
        ("auto", 1, {"spp": 2, "kvp": 2}, 1, 0.5),
        ("auto", 4, {"spp": 4, "kvp": 2}, 2, 1.0),
        ("auto", 1, {"spp": 1, "tp": 4}, 1, 0.25),
        ("cuda", 1, {"spp": 2}, 2, 0.5),
        ("cuda", 1, {"spp": 3}, 3, 0.3333),
        ("cuda", 2, {"spp": 3}, 3, 0.5),
        ("cuda", 2, {"spp": 3, "tp": 2}, 3, 0.25),  # two teams on one GPU, whole
        ("cuda", 2, {"spp": 1, "tp": 4}, 1, 0.5),  # a team over both
        ("cuda", 8, {"spp": 2, "tp": 4}, 2, 1.0),
    ],
)
def test_more_actors_than_gpus_are_fewer_stages_or_share(
    device, gpus, parallel, stages, part
):
    asked = config_of(device, **parallel)
    config = fitted(asked, gpus)
    assert (config.parallel.spp, config.actors.num_gpus) == (stages, part)
    assert (config.parallel.kvp, config.parallel.tp) == (
        asked.parallel.kvp,
        asked.parallel.tp,
    )
    teams = stages * config.parallel.kvp
    of_a_team = config.parallel.tp * part
    assert teams * of_a_team <= gpus
    if of_a_team < 1:  # a bundle is on one GPU
        assert teams <= gpus * (1 // of_a_team)


def test_what_is_said_of_gpus_is_done():
    asked = config_of(num_gpus=0.25, spp=2)
    assert fitted(asked, 1) is asked
    assert described(asked, asked, 1) == ""
    assert fitted(config_of(spp=2), 0) == config_of(spp=2)


def test_what_was_made_of_the_layout_is_told():
    asked = config_of(spp=4, kvp=2)
    assert described(asked, fitted(asked, 8), 8) == ""
    assert described(asked, fitted(asked, 4), 4) == "4 GPU(s): 2 stages instead of 4"
    told = described(asked, fitted(asked, 1), 1)
    assert told == "1 GPU(s): 1 stages instead of 4, 0.5 of a GPU for each actor"


def test_a_build_of_torch_for_cpus_is_named_with_its_cure(caplog):
    cure = (
        r"torch 2\.13\.0\+cpu is a build for CPUs alone: pip install torch --index-url"
    )
    with pytest.raises(ConfigError, match=cure):
        chosen_device("cuda", 2, "2.13.0+cpu")
    assert chosen_device("auto", 2, "2.13.0+cpu") == "cpu"
    assert len(caplog.messages) == 1
    assert "pip install torch --index-url" in caplog.messages[0]
    assert "\n" not in caplog.messages[0]


@pytest.mark.parametrize(
    ("asked", "gpus", "torch", "device"),
    [
        ("auto", 0, "2.13.0+cpu", "cpu"),
        ("auto", 0, "2.13.0", "cpu"),
        ("auto", 1, "2.13.0", "cuda"),
        ("auto", 1, "2.11.0+cu130", "cuda"),
        ("cuda", 1, "2.11.0+cu130", "cuda"),
        ("cpu", 4, "2.11.0+cu130", "cpu"),
    ],
)
def test_the_device_is_the_gpu_where_there_is_one(asked, gpus, torch, device):
    assert chosen_device(asked, gpus, torch) == device


def test_stages_on_one_gpu_take_turns():
    a = ("node", "0")
    b = ("node", "1")
    assert turns([{a}, {a}]) == [[0], [1]]
    assert turns([{a}, {b}]) == [[0, 1]]
    assert turns([{a}, {b}, {a}, {a, b}]) == [[0, 1], [2], [3]]
    assert turns([{("node", "0")}, {("other", "0")}]) == [[0, 1]]
