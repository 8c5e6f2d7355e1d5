"""Measuring a server's speed with a few requests."""

import pytest

from loadgen.errors import LoadgenError
from loadgen.send.speed import measure_server
from tests.loadgen.made import failed, made


def server(prompt_tokens_per_s, token_s, events=16):
    """A server as regular as a clock, and the prompt lengths that it was asked for."""
    asked = []

    async def ask(request):
        asked.append(request.prompt_tokens)
        ttft = request.prompt_tokens / prompt_tokens_per_s
        count = min(request.output_tokens, events)
        return made(tokens=[ttft + token_s * index for index in range(count)])

    return ask, asked


async def test_a_fast_server_is_asked_for_longer_prompts():
    ask, asked = server(20_000, 0.01)
    found = await measure_server(ask, 8192, 0)
    assert asked == [32, 256, 1024]
    assert (found.context, found.overhead) == (8192, 0)
    assert found.prompt_tokens_per_s == pytest.approx(20_000)
    assert found.token_s == pytest.approx(0.01)


async def test_a_slow_server_is_asked_for_little():
    ask, asked = server(100, 0.2)
    found = await measure_server(ask, 8192, 0)
    assert asked == [32]
    assert found.prompt_tokens_per_s == pytest.approx(100)


async def test_prompts_stay_within_the_context():
    ask, asked = server(1e6, 0.01)
    found = await measure_server(ask, 600, 40)
    assert asked == [56, 256]
    assert (found.context, found.overhead) == (600, 40)
    ask, asked = server(1e6, 0.01)
    await measure_server(ask, 40, 0)
    assert asked == [20]


async def test_a_server_that_does_not_tell_its_context_has_a_usual_one():
    ask, _ = server(1e6, 0.01)
    assert (await measure_server(ask, None, 0)).context == 2048


async def test_an_answer_of_one_token_tells_less():
    ask, _ = server(1000, 0.01, events=1)
    assert (await measure_server(ask, 8192, 0)).token_s == pytest.approx(0.032)


async def test_an_answer_without_text_came_when_it_ended():
    async def ask(request):
        return made(tokens=(), ended_at=0.5, usage_completion_tokens=1)

    assert (await measure_server(ask, 8192, 0)).prompt_tokens_per_s == pytest.approx(64)


async def test_a_failure_says_how_to_go_without():
    async def ask(request):
        return failed()

    with pytest.raises(
        LoadgenError, match=r"HTTP 503: full; give --input-len, --output-len and"
    ):
        await measure_server(ask, 8192, 0)
