"""`serve run` with the embedded model: what a user of the OpenAI client sees."""

import asyncio
import json
import os
import signal

import aiohttp
import openai
import pytest

from tests.processes import stage_pids

MODEL = "smollm2-135m-instruct"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
async def client(embedded):
    async with openai.AsyncOpenAI(
        base_url=f"{embedded}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


async def test_chat_whole_and_streamed_agree(client):
    whole = await client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=20
    )
    stream = await client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=20, stream=True
    )
    text = "".join(
        [
            chunk.choices[0].delta.content or ""
            async for chunk in stream
            if chunk.choices
        ]
    )
    assert "Paris" in text
    assert whole.choices[0].message.content == text
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.model_extra["medha"]["ttft_deadline_ms"] > 0


async def test_completion_with_logprobs_and_seed(client):
    def ask(seed):
        return client.completions.create(
            model=MODEL, prompt="Once upon a", max_tokens=8, seed=seed, logprobs=3
        )

    alone = await ask(1)
    together = await asyncio.gather(ask(1), ask(2), ask(1), ask(3))
    texts = [answer.choices[0].text for answer in together]
    assert texts[0] == texts[2] == alone.choices[0].text
    assert len(set(texts)) == 3
    assert len(alone.choices[0].logprobs.token_logprobs) == 8
    several = await client.completions.create(
        model=MODEL, prompt="Once upon a", max_tokens=8, n=3
    )
    assert [choice.index for choice in several.choices] == [0, 1, 2]


async def test_a_warm_turn_is_found_by_its_own_api_key_only(client, embedded):
    history = [{"role": "user", "content": "Tell me about the river Seine. " * 30}]

    async def ask(client, **more):
        answer = await client.chat.completions.create(
            model=MODEL, messages=history, temperature=0, max_tokens=8, extra_body=more
        )
        return answer.choices[0].message.content, answer.usage

    cold, first = await ask(client)
    warm, again = await ask(client)
    assert first.prompt_tokens_details.cached_tokens == 0
    assert 64 * 2 <= again.prompt_tokens_details.cached_tokens < again.prompt_tokens
    assert warm == cold
    async with openai.AsyncOpenAI(
        base_url=f"{embedded}/v1", api_key="other", max_retries=0
    ) as other:
        text, usage = await ask(other)
        assert usage.prompt_tokens_details.cached_tokens == 0
        assert text == cold
    _, salted = await ask(client, cache_salt="mine")
    assert salted.prompt_tokens_details.cached_tokens == 0
    _, private = await ask(client, medha={"cache": False})
    assert private.prompt_tokens_details.cached_tokens == 0


async def test_a_disconnected_client_frees_its_work(client, embedded):
    stream = await client.completions.create(
        model=MODEL,
        prompt="Tell me",
        max_tokens=4000,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    async for _ in stream:
        break
    await stream.close()
    # The pipeline is free again: this would take minutes behind the rest of 4,000
    # tokens at 32 running requests.
    answers = [
        client.completions.create(model=MODEL, prompt="Hi", max_tokens=2)
        for _ in range(4)
    ]
    assert all(answer.choices[0].text for answer in await asyncio.gather(*answers))


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b'{"model": "smollm2-135m-instruct", "prompt": ""}', 400, "prompt"),
        (
            b'{"model": "smollm2-135m-instruct", "prompt": "x", "temperature": NaN}',
            400,
            None,
        ),
        (
            b'{"model": "smollm2-135m-instruct", "prompt": "x", "temperature": -1}',
            400,
            "temperature",
        ),
        (
            b'{"model": "smollm2-135m-instruct", "prompt": "x", "max_tokens": "many"}',
            400,
            "max_tokens",
        ),
        (
            b'{"model": "smollm2-135m-instruct", "prompt": "x", "max_tokens": 100000}',
            400,
            "max_tokens",
        ),
        (
            b'{"model": "smollm2-135m-instruct", "prompt": "hi", "max_tokens": 1, "top_k": 5,'
            b' "repetition_penalty": 1e-39}',
            400,
            "repetition_penalty",
        ),
        (b'{"model": "gpt-5", "prompt": "x"}', 404, "model"),
        (b'{"model": "smollm2-135m-instruct", "prompt": "\xff"}', 400, None),
        (b'{"model": "smollm2-135m-instruct", "prompt": [99999999]}', 400, "prompt"),
        (b"not json", 400, None),
    ],
)
async def test_bad_input_is_a_clear_error(embedded, body, status, param):
    headers = {"content-type": "application/json"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{embedded}/v1/completions", data=body, headers=headers
        ) as answer,
    ):
        assert answer.status == status
        error = json.loads(await answer.text())["error"]
        assert error["message"]
        assert "Traceback" not in error["message"]
        if param is not None:
            assert error["param"] == param


async def test_a_killed_stage_is_replaced_and_streams_go_on(client, shipped):
    def ask():
        return client.completions.create(
            model=MODEL,
            prompt="Count: 1 2 3",
            max_tokens=100,
            temperature=0,
            extra_body={"ignore_eos": True},
        )

    expected = (await ask()).choices[0].text
    running = asyncio.create_task(ask())
    # by now the other one is under way
    await client.completions.create(model=MODEL, prompt="Hi", max_tokens=3)
    os.kill(stage_pids(shipped[1])[0], signal.SIGKILL)
    assert (await running).choices[0].text == expected
    assert (await ask()).choices[0].text == expected
