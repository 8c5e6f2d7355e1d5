"""What is generated, over real HTTP: texts, endings, log-probabilities, usage."""

import json
import math
from itertools import chain
from typing import Any

import pytest

from medha_actors.messages import PromptLogprobsEvent, unpack_tokens
from tests.fakes import finished, saying, token

EOS = 256
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def frames(text: str) -> list[Any]:
    """The data of every event, `[DONE]` included."""
    lines = [
        line.removeprefix("data: ")
        for line in text.splitlines()
        if line.startswith("data: ")
    ]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def test_completion(start) -> None:
    service = await start()
    answer = (
        await service.post(
            "/v1/completions", {"prompt": "hi", "model": "toy", "max_tokens": 50}
        )
    ).json()
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (
        "Hello world",
        "stop",
        None,
    )
    assert answer["object"] == "text_completion"
    usage = answer["usage"]
    assert (
        usage["prompt_tokens"],
        usage["completion_tokens"],
        usage["total_tokens"],
    ) == (
        2,
        12,
        14,
    )
    expected = {
        "ttft_deadline_ms": 2500,
        "predicted_ttft_ms": 1250,
        "ttft_ms": 1000,
        "queue_ms": 500,
        "preemptions": 3,
    }
    assert usage["medha"] == {**expected, "ttft_met": True}
    assert service.engine.cancelled == []


async def test_stream(start) -> None:
    service = await start()
    body = {
        "prompt": "hi",
        "max_tokens": 50,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    response = await service.post(
        "/v1/completions", body, headers={"x-request-id": "abc"}
    )
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-request-id"] == "abc"
    assert response.headers["x-medha-ttft-deadline-ms"] == "2500.0"
    assert response.headers["x-medha-predicted-ttft-ms"] == "1250.0"
    assert response.text.startswith("data: ")
    *tokens, usage, done = frames(response.text)
    assert done == "[DONE]"
    assert [frame["choices"][0]["text"] for frame in tokens] == [
        *"Hello world",
        "",
    ]  # one event per token, EOS too
    assert [frame["choices"][0]["finish_reason"] for frame in tokens] == [None] * 11 + [
        "stop"
    ]
    assert {frame["id"] for frame in tokens} == {"cmpl-abc"}
    assert all(frame["usage"] is None for frame in tokens)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 12
    assert usage["usage"]["medha"]["ttft_met"] is True


async def test_chat_stream(start) -> None:
    service = await start()
    options = {"include_usage": True, "continuous_usage_stats": True}
    response = await service.post(
        "/v1/chat/completions", {**CHAT, "stream": True, "stream_options": options}
    )
    *tokens, _usage, _done = frames(response.text)
    deltas = [frame["choices"][0]["delta"] for frame in tokens]
    assert deltas[0] == {"role": "assistant", "content": "H"}
    assert "".join(delta["content"] for delta in deltas) == "Hello world"
    assert [frame["usage"]["completion_tokens"] for frame in tokens] == list(
        range(1, 13)
    )
    assert tokens[0]["object"] == "chat.completion.chunk"


async def test_request_as_the_engine_sees_it(start) -> None:
    service = await start()
    body = {
        "prompt": [[1, 2, 3], [4]],
        "n": 2,
        "seed": 7,
        "max_tokens": 3,
        "temperature": 0.5,
        "top_k": -1,
        "priority": -2,
        "stop_token_ids": [9],
        "logit_bias": {"5": -1},
        "request_id": "mine",
        "medha": {"ttft_s": 0.7},
    }
    headers = {
        "x-llm-d-slo-tpot-ms": "50",
        "x-request-timeout-seconds": "9",
        "traceparent": "00-a-b-01",
    }
    response = await service.post("/v1/completions", body, headers=headers)
    requests = service.engine.requests
    assert [unpack_tokens(request.prompt_token_ids) for request in requests] == [
        [1, 2, 3]
    ] * 2 + [[4]] * 2
    assert [request.sampling.seed for request in requests] == [7, 8, 9, 10]
    assert len({request.id for request in requests}) == 4
    assert [request.id[-2:] for request in requests] == ["-0", "-1", "-2", "-3"]
    first = requests[0]
    assert first.id.startswith("cmpl-mine-")
    assert (
        first.objectives.ttft_s,
        first.objectives.tpot_s,
        first.objectives.timeout_s,
    ) == (
        0.7,
        0.05,
        9,
    )
    assert (first.priority, first.traceparent, first.sampling.top_k) == (
        -2,
        "00-a-b-01",
        0,
    )
    assert first.sampling.stop_token_ids == (EOS, 9)
    assert first.sampling.logit_bias == ((5, -1.0),)
    assert first.arrived_at > 1e9
    answer = response.json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 4
    assert answer["usage"]["completion_tokens"] == 12


async def test_random_seeds_and_ignored_eos(start) -> None:
    service = await start()
    for _ in range(2):
        await service.post(
            "/v1/completions", {"prompt": "x", "max_tokens": 1, "ignore_eos": True}
        )
    first, second = service.engine.requests
    assert first.sampling.seed != second.sampling.seed
    assert first.sampling.stop_token_ids == ()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("include", "text"), [(False, "Hello w"), (True, "Hello worl")]
)
async def test_stop_string_ends_the_request(
    start, stream: bool, include: bool, text: str
) -> None:
    service = await start()
    body = {
        "prompt": "x",
        "max_tokens": 50,
        "stop": ["orl", "zzz"],
        "include_stop_str_in_output": include,
    }
    response = await service.post("/v1/completions", {**body, "stream": stream})
    answers = frames(response.text)[:-1] if stream else [response.json()]
    assert "".join(answer["choices"][0]["text"] for answer in answers) == text
    assert answers[-1]["choices"][0]["finish_reason"] == "stop"
    assert answers[-1]["choices"][0]["stop_reason"] == "orl"
    assert stream or answers[-1]["usage"]["medha"]["ttft_ms"] == 1000
    await service.engine.until_all_cancelled()


async def test_stop_token_has_no_text_unless_asked(start) -> None:
    service = await start(saying(b"abc", ord("!")))
    body = {"prompt": "x", "max_tokens": 50, "stop_token_ids": [ord("!")]}
    choice = (await service.post("/v1/completions", body)).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (
        "abc",
        "stop",
        ord("!"),
    )
    choice = (
        await service.post(
            "/v1/completions", {**body, "include_stop_str_in_output": True}
        )
    ).json()["choices"][0]
    assert choice["text"] == "abc!"
    choice = (
        await service.post("/v1/completions", {"prompt": "x", "max_tokens": 4})
    ).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("abc!", "length")


async def test_stop_strings_wait_for_min_tokens(start) -> None:
    service = await start(saying(b"aXbXc"))
    body = {"prompt": "x", "max_tokens": 50, "stop": "X", "min_tokens": 3}
    assert (await service.post("/v1/completions", body)).json()["choices"][0][
        "text"
    ] == "aXb"


async def test_half_characters_are_never_sent(start) -> None:
    service = await start(saying("a€😀".encode()[:-1]))
    body = {"prompt": "x", "max_tokens": 50, "stream": True}
    texts = [
        frame["choices"][0]["text"]
        for frame in frames((await service.post("/v1/completions", body)).text)[:-1]
    ]
    assert texts == ["a", "", "", "€", "", "", "\ufffd"]


async def test_chat_logprobs(start) -> None:
    service = await start()
    body = {**CHAT, "logprobs": True, "top_logprobs": 2, "max_tokens": 2}
    content = (await service.post("/v1/chat/completions", body)).json()["choices"][0][
        "logprobs"
    ]["content"]
    top = [
        {"token": "H", "logprob": -0.25, "bytes": [72]},
        {"token": "A", "logprob": -1.5, "bytes": [65]},
    ]
    assert content[0] == {
        "token": "H",
        "logprob": -0.25,
        "bytes": [72],
        "top_logprobs": top,
    }
    assert len(content) == 2
    assert service.engine.requests[0].sampling.logprobs == 2


async def test_echo_with_logprobs(start) -> None:
    async def script(request):
        yield PromptLogprobsEvent(request.id, 1, ((-3.0, ((98, -math.inf),)),))
        yield PromptLogprobsEvent(request.id, 0, ((-2.0, ()),))
        yield token(request, 0, 0xC3, logprobs=True)
        yield token(request, 1, 0xA9, logprobs=True)
        yield finished(request, 2)

    service = await start(script)
    body = {"prompt": "abc", "echo": True, "logprobs": 1, "max_tokens": 2}
    choice = (await service.post("/v1/completions", body)).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert choice["text"] == "abcé"
    assert logprobs["tokens"] == ["a", "b", "c", "bytes:\\xc3", "bytes:\\xa9"]
    assert logprobs["text_offset"][:4] == [0, 1, 2, 3]
    assert service.engine.requests[0].sampling.prompt_logprobs == 1
    assert logprobs["token_logprobs"] == [
        None,
        -2.0,
        -3.0,
        -0.25,
        -0.25,
    ]  # positions count, not the order of arrival
    assert logprobs["top_logprobs"][:3] == [
        None,
        {"b": -2.0},
        {"b": -9999.0, "c": -3.0},
    ]
    streamed = frames(
        (await service.post("/v1/completions", {**body, "stream": True})).text
    )
    parts = [frame["choices"][0] for frame in streamed[:-1]]
    assert "".join(part["text"] for part in parts) == "abcé"
    for name in ("tokens", "token_logprobs", "text_offset"):
        told = chain.from_iterable(part["logprobs"][name] for part in parts)
        assert list(told) == logprobs[name]


async def test_echo_alone(start) -> None:
    service = await start()
    for stream in (False, True):
        body = {"prompt": [104, 105], "echo": True, "max_tokens": 0, "stream": stream}
        response = await service.post("/v1/completions", body)
        answers = frames(response.text)[:-1] if stream else [response.json()]
        assert "".join(answer["choices"][0]["text"] for answer in answers) == "hi"
        assert answers[-1]["choices"][0]["finish_reason"] == "length"
    assert answers[-1]["choices"][0]["index"] == 0
