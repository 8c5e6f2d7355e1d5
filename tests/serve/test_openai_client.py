"""OpenAI's own client against the server, unmodified."""

from collections.abc import AsyncIterator

import openai
import pytest

from medha_actors.messages import Rejected
from tests.fakes import accept, finished, saying
from tests.serve.conftest import openai_clients

MESSAGES = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]


@pytest.fixture
async def ask(start) -> AsyncIterator:
    async with openai_clients(start, max_retries=1) as begin:
        yield begin


async def test_completions(ask) -> None:
    client, _ = await ask()
    answer = await client.completions.create(
        model="toy", prompt="x", max_tokens=5, logprobs=2, n=2, user="me"
    )
    assert [choice.text for choice in answer.choices] == ["Hello", "Hello"]
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs.token_logprobs == [-0.25] * 5
    assert answer.usage.completion_tokens == 10


async def test_completions_stream(ask) -> None:
    client, _ = await ask()
    stream = await client.completions.create(
        model="toy",
        prompt="x",
        max_tokens=50,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert (
        "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
        == "Hello world"
    )
    assert chunks[-1].usage.completion_tokens == 12


async def test_chat(ask) -> None:
    client, _ = await ask()
    answer = await client.chat.completions.create(
        model="toy",
        messages=MESSAGES,
        temperature=0,
        seed=3,
        logprobs=True,
        top_logprobs=1,
        metadata={"a": "b"},
    )
    assert answer.choices[0].message.content == "Hello world"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].logprobs.content[0].top_logprobs[0].token == "H"
    history = [
        *MESSAGES,
        answer.choices[0].message.model_dump(),
        {"role": "user", "content": "more"},
    ]
    assert (
        await client.chat.completions.create(model="toy", messages=history)
    ).choices[0].finish_reason == "stop"


async def test_chat_stream(ask) -> None:
    client, _ = await ask()
    stream = await client.chat.completions.create(
        model="toy",
        messages=MESSAGES,
        stream=True,
        extra_body={"top_k": 5, "medha": {"ttft_s": 1.0, "progress": True}},
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        == "Hello world"
    )
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_chat_stream_helper(ask) -> None:
    client, _ = await ask()
    async with client.chat.completions.stream(model="toy", messages=MESSAGES) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "Hello world"


async def test_models(ask) -> None:
    client, _ = await ask()
    assert [model.id async for model in client.models.list()] == ["toy"]
    assert (await client.models.retrieve("toy")).id == "toy"


async def test_errors_are_the_classes_users_expect(ask) -> None:
    client, service = await ask()
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(model="toy", prompt="x", temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        await client.completions.create(model="other", prompt="x")
    assert service.engine.requests == []


async def test_overload_is_retried_and_timeouts_are_not(ask) -> None:
    refusals = [
        Rejected(
            status=429, kind="overloaded_error", message="full", retry_after_s=0.001
        )
    ]
    client, service = await ask(
        answer=lambda request: refusals.pop() if refusals else accept(request)
    )
    answer = await client.completions.create(model="toy", prompt="x", max_tokens=5)
    assert answer.choices[0].text == "Hello"
    assert len(service.engine.requests) == 2

    async def late(request):
        yield finished(request, 0, "timeout", "too late")

    service.engine.script = late
    with pytest.raises(openai.APIStatusError) as caught:
        await client.completions.create(model="toy", prompt="x")
    assert caught.value.status_code == 408
    assert len(service.engine.requests) == 3


async def test_error_inside_a_stream(ask) -> None:
    async def script(request):
        async for event in saying(b"ab")(request):
            if event != finished(request, 2):
                yield event
        yield finished(request, 2, "error", "a stage died")

    client, _ = await ask(script)
    stream = await client.completions.create(model="toy", prompt="x", stream=True)
    with pytest.raises(openai.APIError, match="a stage died"):
        _ = [chunk async for chunk in stream]
