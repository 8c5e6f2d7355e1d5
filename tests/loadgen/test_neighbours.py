"""Two tenants' loads at once against a scripted server: each has its key, and the greedy one stops
with the modest one."""

from pathlib import Path

import pytest

from loadgen.experiment.neighbours import (
    GREEDY,
    MODEST,
    as_tenant,
    headers_of,
    paced,
    side_by_side,
    with_keys,
)
from loadgen.experiment.options import Conditions, ExperimentOptions
from tests.loadgen.commands import result_of
from tests.loadgen.scripted import ScriptedServer

pytestmark = pytest.mark.usefixtures("plain")


def test_keys_are_made_once_and_kept_from_others(tmp_path: Path) -> None:
    assert headers_of(tmp_path) == {}
    config = {"applications": [{"args": {}}]}
    changed = with_keys(config, tmp_path)
    file = Path(changed["applications"][0]["args"]["api_keys"]["file"])
    assert file.stat().st_mode & 0o077 == 0
    headers = headers_of(tmp_path)
    assert set(headers) == {MODEST, GREEDY}
    with_keys(config, tmp_path)
    assert headers_of(tmp_path) == headers


async def test_the_greedy_one_stops_with_the_modest_one(tmp_path: Path) -> None:
    asked = ExperimentOptions(
        input_len="16", output_len="1", num_prompts=10, long_fractions=(0,)
    )
    with ScriptedServer() as server:
        options = asked.options(
            server.url,
            tmp_path / "x",
            0.0,
            Conditions(isolated_ttft="measure", request_rate=20.0),
        )
        places = {MODEST: tmp_path / MODEST, GREEDY: tmp_path / GREEDY}
        modest = as_tenant(paced(options, 20.0, 10, 1), "Bearer one", places[MODEST])
        greedy = as_tenant(paced(options, 40.0, 400, 2), "Bearer two", places[GREEDY])
        statuses = await side_by_side(modest, greedy, lambda line: None)
    assert statuses == [0, 0]
    assert result_of(places[MODEST])["completed"] == 10
    assert 0 < result_of(places[GREEDY])["completed"] < 300
    assert "Bearer" not in (places[MODEST] / "config.yml").read_text()
