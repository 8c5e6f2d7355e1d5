"""The search for the highest rate, and the prediction for the idle server."""

from types import SimpleNamespace

import pytest

from loadgen.capacity.doubt import Doubt
from loadgen.capacity.outcome import summary
from loadgen.capacity.search import (
    SearchOptions,
    StopSearchError,
    Trial,
    find_capacity,
)
from loadgen.errors import LoadgenError
from loadgen.judge.isolated import (
    lengths_to_measure,
    measure_isolated,
    monotone,
    predict,
    read_points,
)
from loadgen.judge.objectives import parse_objectives
from tests.loadgen.made import failed, made


async def search(limit, **options):
    """Find the capacity of a server that holds up to `limit` requests/s; returns it and the rates
    tried."""
    tried = []

    async def measure(rate):
        tried.append(rate)
        return Trial(rate, 1.0 if rate <= limit else 0.5, rate <= limit)

    return await find_capacity(measure, SearchOptions(**options)), tried


@pytest.mark.parametrize("limit", [0.013, 0.9, 1.0, 7.3, 480.0])
async def test_finds_the_limit_within_the_tolerance(limit):
    found, tried = await search(limit, tolerance=0.05, max_runs=40)
    assert found.best <= limit < found.failed
    assert found.failed <= found.best * 1.05
    assert len(tried) < 22
    assert found.complete


async def test_a_server_that_holds_everything():
    found, tried = await search(1e9, highest=50.0)
    assert (found.best, found.failed) == (50.0, None)
    assert tried == [1, 2, 4, 8, 16, 32, 50]
    assert "highest rate allowed" in summary(found)


async def test_a_server_that_holds_nothing():
    found, _ = await search(0.0, max_runs=40)
    assert found.best is None
    assert summary(found) == "the objectives held at no rate that was tried"


async def test_runs_out_of_runs_or_is_stopped():
    found, tried = await search(7.3, max_runs=4)
    assert (found.best, len(tried), found.complete) == (4.0, 4, False)

    async def stopped(rate):
        raise StopSearchError

    assert not (await find_capacity(stopped, SearchOptions())).complete


def test_lengths_are_spread_evenly_on_a_logarithmic_axis():
    assert lengths_to_measure([10, 500, 10_000], 4) == [10, 100, 1000, 10_000]
    assert lengths_to_measure([64, 64]) == [64]


async def test_the_least_of_three_counts_for_short_prompts_and_one_for_long_ones():
    asked = []

    async def ask(request):
        asked.append(request.prompt_tokens)
        return made(
            tokens=(5.0,) if request.prompt_tokens > 100 else (0.3 - len(asked) / 100,)
        )

    points = await measure_isolated([10, 1000], ask)
    assert points == [(10, pytest.approx(0.27)), (1000, 5.0)]
    assert asked == [10, 10, 10, 1000]


async def test_a_token_without_text_came_when_the_answer_ended():
    async def ask(request):
        record = made(sent=1.0, tokens=())
        record.usage_completion_tokens = 1
        record.ended_at = 1.25
        return record

    assert await measure_isolated([10], ask) == [(10, pytest.approx(0.25))]


async def test_an_idle_server_that_refuses():
    async def ask(request):
        return failed()

    with pytest.raises(LoadgenError, match="at 10 prompt tokens: HTTP 503"):
        await measure_isolated([10], ask)


def test_prediction_between_and_beyond_the_points():
    points = [(10, 0.1), (100, 1.0), (1000, 100.0)]
    assert predict(points, 10) == pytest.approx(0.1)
    assert predict(points, 31.622776601683793) == pytest.approx(0.316, rel=0.01)
    assert predict(points, 2000) == pytest.approx(400.0)
    assert predict(points, 1) == pytest.approx(0.1)
    assert predict([(64, 2.0)], 9) == 2.0


def test_points_of_an_earlier_run(tmp_path):
    (tmp_path / "isolated_ttft.json").write_text('{"points": [[100, 1.0], [10, 0.1]]}')
    assert read_points(tmp_path) == [(10, 0.1), (100, 1.0)]
    for content, message in (
        ("{}", "points"),
        ('{"points": []}', "no usable"),
        ('{"points": [[0, 1]]}', "no usable"),
    ):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(LoadgenError, match=message):
            read_points(tmp_path / "x.json")
    with pytest.raises(LoadgenError, match="cannot read"):
        read_points(tmp_path / "none.json")


def test_a_hopeless_trial_is_seen_before_it_ends():
    objectives = parse_objectives(["ttft:1000", "e2el:3000"])
    records = [
        made(0, sent=10.0, tokens=(0.5, 0.6)),  # good
        made(1, sent=10.0, tokens=(1.5,)),  # too late
        failed(2, sent=10.0),
        made(3, sent=10.0, tokens=(), ended_at=None),  # waits for its first token
        made(4, sent=10.0, tokens=(0.5,), ended_at=None),  # runs
        made(5, sent=10.0, tokens=(1.5,), ended_at=None),  # runs, and was late already
        made(6, sent=10.0, tokens=(9.0,), kind="probe"),
        made(7, sent=10.0, tokens=(9.0,), cancelled=True),
    ]
    doubt = Doubt(objectives, allowed=2)
    driver = SimpleNamespace(records=records[:6])
    doubt.look(driver, now=10.9)
    assert doubt.bad == 3
    driver.records = records
    doubt.look(driver, now=11.1)
    assert doubt.bad == 4
    records[3].token_times.append(11.2)
    records[3].ended_at = 11.3
    doubt.look(driver, now=13.1)
    assert doubt.bad == 5  # number 3 ended badly; number 4 is past its time in all


def test_shorter_prompts_take_no_longer_than_longer_ones():
    assert monotone([(1, 0.3), (2, 0.1), (3, 0.2)]) == [(1, 0.1), (2, 0.1), (3, 0.2)]
