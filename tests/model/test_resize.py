"""A stage whose cache is measured: loaded with few pages, rehearsed, then given the rest."""

import pytest

from medha_actors.config import ModelLoadingConfig
from tests.model.stage_driver import GREEDY, Driver

CONFIG = ModelLoadingConfig(model_source="random")


def generated(driver, seed=5):
    driver.add("r", [(seed * i) % 250 for i in range(200)], GREEDY)
    driver.generate({"r": 6}, 64)
    request = driver.remove("r")
    return request.tokens, request.sampled


@pytest.mark.parametrize("stages", [1, 2])
def test_a_resized_stage_says_what_one_made_so_says(stages):
    expected = generated(Driver(CONFIG, stages=stages, pages=40, attention="sdpa"))
    driver = Driver(CONFIG, stages=stages, pages=4, attention="sdpa")
    for stage in driver.pipelines[0]:
        stage.warm_up()
        stage.rehearse(rows=60, requests=3)
        assert not stage.tables, "what was rehearsed is forgotten"
        assert stage.decoder.cells()[0].shape[1] == 4
        stage.resize(40)
        stage.warm_up()
        assert stage.decoder.cells()[0].shape[1] == 40
    driver.free[0] = list(reversed(range(40)))
    assert generated(driver) == expected


def test_a_rehearsal_is_as_large_as_there_are_pages_for():
    """And nothing where there is no room for a row."""
    driver = Driver(CONFIG, pages=2, attention="sdpa")
    stage = driver.pipelines[0][0]
    rows = []
    launch = stage.launch
    stage.launch = lambda message, *rest: (
        rows.append([span.stop for span in message.spans]) or launch(message, *rest)
    )
    stage.rehearse(rows=4096, requests=64)
    assert rows == [[1, 1]]
    stage.rehearse(rows=32, requests=1)
    assert rows[1:] == [[32], [1]]
