"""A prompt that does not fit: agents shorten their histories when they read that it is too long,
and each looks for words of its own."""

import pytest

from medha_actors.core.admission import rejected
from medha_actors.errors import NeverFitsError

CONTEXT = 4096
# What litellm, inspect (as vLLM) and langchain look for; the numbers are read by Claude Code.
WORDS = ("this model's maximum context length is", "prompt is too long: ")


def long_body(path: str, text: str) -> dict:
    said = [{"role": "user", "content": text}]
    return {
        "/v1/completions": {"prompt": text},
        "/v1/chat/completions": {"messages": said},
        "/v1/responses": {"input": text},
        "/v1/messages": {"messages": said, "max_tokens": 8},
        "/v1/messages/count_tokens": {"messages": said},
    }[path]


FIELDS = {
    "/v1/completions": "prompt",
    "/v1/chat/completions": "messages",
    "/v1/responses": "input",
}
ALL = [*FIELDS, "/v1/messages"]


def check(response, path: str, numbers: str) -> None:
    """It is said as clients of this route read it."""
    answer = response.json()
    error = answer["error"]
    assert response.status_code == 400
    assert all(words in error["message"].lower() for words in WORDS)
    assert numbers in error["message"]
    assert error["type"] == "invalid_request_error"
    if path.startswith("/v1/messages"):
        assert answer["type"] == "error"
    else:
        assert (error["code"], error["param"]) == (
            "context_length_exceeded",
            FIELDS[path],
        )


@pytest.mark.parametrize("path", [*ALL, "/v1/messages/count_tokens"])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_no_context_holds(start, path: str, stream: bool) -> None:
    service = await start()
    body = {**long_body(path, "x" * 200_000), "stream": stream}
    check(
        await service.post(path, body),
        path,
        f"{CONTEXT} tokens; the prompt is too long: at",
    )
    assert service.engine.requests == []


async def test_what_fits_but_for_its_output(start) -> None:
    service = await start()
    body = {"prompt": "x" * 4090, "max_tokens": 16}
    response = await service.post("/v1/completions", body)
    check(response, "/v1/completions", "4090 tokens > 4080 maximum in prompt, with 16")


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/completions", "max_tokens"),
        ("/v1/chat/completions", "max_completion_tokens"),
        ("/v1/responses", "max_output_tokens"),
    ],
)
async def test_an_output_that_leaves_no_room_is_no_long_prompt(
    start, path, field
) -> None:
    service = await start()
    response = await service.post(path, {**long_body(path, "hi"), field: CONTEXT})
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", field)
    assert f"{field} is {CONTEXT}" in error["message"]
    assert "too long" not in error["message"]


@pytest.mark.parametrize("path", ALL)
async def test_what_the_cache_never_holds(start, path: str) -> None:
    """The scheduler knows how large the cache is, and says it in the same words."""
    never = NeverFitsError("prompt", 700, 8, 512, why="of KV cache")
    service = await start(answer=lambda request: rejected(never))
    response = await service.post(path, long_body(path, "x" * 700))
    error = response.json()["error"]
    assert response.status_code == 400
    assert all(words in error["message"].lower() for words in WORDS)
    assert (
        "512 tokens (of KV cache); the prompt is too long: 700 tokens > 504"
        in error["message"]
    )
