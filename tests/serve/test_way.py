"""What a first token takes to its client is learned and told to the engine."""

import pytest

from deployments.way import Way
from medha_actors.messages import Request, TokenEvent
from tests.fakes import finished

BODY = {"prompt": "hi", "max_tokens": 5, "stream": True}


def test_the_way_is_the_median_of_the_last_answers():
    way = Way()
    assert way.seconds == 0.0
    for seconds in (0.01, 0.02, 0.9):
        way.took(seconds)
    assert way.seconds == pytest.approx(0.02)
    for _ in range(40):
        way.took(-3.0)  # another host's clock
    assert way.seconds == 0.0
    way.took(1e9)
    assert way.seconds <= 1.0


async def test_a_stream_teaches_the_way_and_the_next_request_tells_it(start) -> None:
    async def drawn_before(request: Request):
        yield TokenEvent(request.id, 0, ord("a"), request.arrived_at - 0.25)
        yield finished(request, 1)

    service = await start(drawn_before)
    body = {**BODY, "medha": {"late": "shed", "ttft_s": 1.0}}
    for _ in range(2):
        assert (await service.post("/v1/completions", body)).status_code == 200
    first, second = service.engine.requests
    assert first.way_s == 0.0
    assert 0.25 <= second.way_s <= 1.0
    assert second.objectives.late == "shed"
