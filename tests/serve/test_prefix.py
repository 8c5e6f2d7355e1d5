"""What clients say and hear of the prefix cache."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from medha_actors.messages import Accepted, Event, FinishedEvent, Request
from tests.fakes import accept, saying
from tests.serve.test_generation import frames

BODY = {"prompt": "hi", "max_tokens": 3}


def expecting(tokens: int):
    """An engine's answer that has found so many tokens on arrival."""

    def answer(request: Request) -> Accepted:
        return msgspec.structs.replace(accept(request), cached_tokens=tokens)

    return answer


async def half(request: Request) -> AsyncIterator[Event]:
    """Says `Hello`; half of the prompt was cached, a quarter more for each further choice."""
    async for event in saying(b"Hello")(request):
        if isinstance(event, FinishedEvent):
            number = int(request.id.rpartition("-")[2])
            cached = request.prompt_tokens // 2 + number * request.prompt_tokens // 4
            yield msgspec.structs.replace(event, cached_tokens=cached)
        else:
            yield event


@pytest.mark.parametrize("stream", [False, True])
async def test_usage_tells_the_cached_tokens(start, stream: bool) -> None:
    service = await start(half)
    options = (
        {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    )
    response = await service.post(
        "/v1/completions", {**BODY, "prompt": "12345678", **options}
    )
    answer = frames(response.text)[-2] if stream else response.json()
    assert answer["usage"]["prompt_tokens"] == 8
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}


async def test_each_prompt_counts_once(start) -> None:
    """Of several choices the first: it has computed what the others found."""
    service = await start(half)
    body = {**BODY, "prompt": ["12345678", "1234"], "n": 2}
    usage = (await service.post("/v1/completions", body)).json()["usage"]
    assert usage["prompt_tokens"] == 12
    # of the choices 0, 1, 2, 3 the first and the third
    assert usage["prompt_tokens_details"] == {"cached_tokens": 4 + (2 + 2)}


async def test_an_answer_that_a_stop_string_ends_tells_what_was_found_on_arrival(
    start,
) -> None:
    service = await start(half)
    service.engine.answer = expecting(5)
    body = {**BODY, "prompt": "12345678", "max_tokens": 50, "stop": "llo"}
    answer = (await service.post("/v1/completions", body)).json()
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 5}


async def test_salts(start) -> None:
    """One for each API key, or the client's own; the two kinds never meet."""
    service = await start()

    async def salt(key: str | None = None, **more: object) -> str:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        response = await service.post(
            "/v1/completions", {**BODY, **more}, headers=headers
        )
        assert response.status_code == 200
        return service.engine.requests[-1].cache_salt

    assert await salt() == ""
    one = await salt("one")
    assert one == await salt("one")
    assert "one" not in one
    other = await salt("other")
    mine = await salt("one", cache_salt="mine")
    assert (
        mine == await salt("other", cache_salt="mine") == await salt(cache_salt="mine")
    )
    forged = await salt("other", cache_salt=one)
    assert len({"", one, other, mine, forged}) == 5


async def test_a_request_can_stay_out_of_the_cache(start) -> None:
    service = await start()
    await service.post("/v1/completions", BODY)
    await service.post("/v1/completions", {**BODY, "medha": {"cache": False}})
    assert [request.cache for request in service.engine.requests] == [True, False]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"cache_salt": ""}, "cache_salt"),
        ({"cache_salt": 5}, "cache_salt"),
        ({"cache_salt": "x" * 257}, "cache_salt"),
        ({"prompt_cache_key": ["x"]}, "prompt_cache_key"),
        ({"medha": {"cache": "no"}}, "medha.cache"),
    ],
)
async def test_wrong_values_are_named(
    start, body: dict[str, object], param: str
) -> None:
    service = await start()
    response = await service.post("/v1/completions", {**BODY, **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_a_routing_hint_is_accepted(start) -> None:
    service = await start()
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "prompt_cache_key": "session-7",
    }
    assert (await service.post("/v1/chat/completions", body)).status_code == 200
