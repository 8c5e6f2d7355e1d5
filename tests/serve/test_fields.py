"""Fields that tools outside send: each has the effect it has elsewhere, or none, or a refusal."""

import json
from itertools import chain

import pytest

from deployments import protocol
from deployments.protocol import ChatBody, CompletionBody
from medha_actors.config import LimitsConfig
from medha_actors.messages import PromptLogprobsEvent, unpack_tokens
from tests.fakes import finished, saying, token

EOS = 256
COMPLETE = "/v1/completions"
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]


def sent(path: str, **fields: object) -> dict:
    """A small body for either route."""
    prompt = {"prompt": "hi"} if path == COMPLETE else {"messages": HELLO}
    return {**prompt, "max_tokens": 12, **fields}


async def sampling(service, path: str = COMPLETE, **fields: object):
    response = await service.post(path, sent(path, **fields))
    assert response.status_code == 200, response.text
    return service.engine.requests[-1].sampling


@pytest.mark.parametrize("path", [COMPLETE, CHAT])
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 100}, {"temperature": 100.0}),
        ({"top_p": 0}, {"temperature": 0.0, "top_p": 1.0}),
        ({"repeat_penalty": 1.3}, {"repetition_penalty": 1.3}),
        (
            {"repeat_penalty": 1.3, "repetition_penalty": 1.3},
            {"repetition_penalty": 1.3},
        ),
        (
            {"logit_bias": {"5": -100, "6": 2.5}},
            {"logit_bias": ((5, -100.0), (6, 2.5))},
        ),
        ({"max_tokens": 7.0, "top_k": 3.0}, {"max_tokens": 7, "top_k": 3}),
        ({"seed": 11.0}, {"seed": 11}),
        ({"prompt_logprobs": 3}, {"prompt_logprobs": 3, "logprobs": None}),
        ({"prompt_logprobs": False}, {"prompt_logprobs": None}),
    ],
)
async def test_what_the_engine_gets(
    start, path: str, fields: dict, expected: dict
) -> None:
    service = await start()
    found = await sampling(service, path, **fields)
    assert {name: getattr(found, name) for name in expected} == expected


async def test_seed_minus_one_is_any(start) -> None:
    service = await start()
    seeds = {(await sampling(service, seed=-1)).seed for _ in range(3)}
    assert len(seeds) == 3
    assert (await sampling(service, seed=-2)).seed == (
        await sampling(service, seed=-2)
    ).seed


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_cache_options": {"ttl": "1h"}},
        {"cache_control": {"type": "ephemeral"}},
        {"moderation": {"mode": "off"}},
        {"x_trace": [1, 2]},
        {"cache_prompt": True},
        {"best_of": 1},
        {"typical_p": 1.0, "mirostat": 0},
        {"reasoning_effort": "none"},
        {"stop": ["", "zzz"]},
        {"stop": ""},
        {"stop": [f"stop{i}" for i in range(100)]},
    ],
)
@pytest.mark.parametrize("path", [COMPLETE, CHAT])
async def test_what_changes_nothing_is_ignored(start, path: str, fields: dict) -> None:
    service = await start()
    seeded = await sampling(service, path, seed=1)
    assert await sampling(service, path, seed=1, **fields) == seeded


@pytest.mark.parametrize("path", [COMPLETE, CHAT])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"repeat_penalty": 1.3, "repetition_penalty": 1.2}, "repeat_penalty"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"mirostat": 2}, "mirostat"),
        ({"xtrace": 1}, "xtrace"),
    ],
)
async def test_what_would_change_something_is_refused_by_name(
    start, path: str, fields: dict, param: str
) -> None:
    service = await start()
    response = await service.post(path, sent(path, **fields))
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert service.engine.requests == []


def test_only_whole_floats_are_integers() -> None:
    body = {"prompt": "x", "n": 2.0, "temperature": 1, "logprobs": 3.0}
    decoded = protocol.decode(json.dumps(body).encode(), CompletionBody)
    assert (decoded.n, decoded.temperature, decoded.logprobs) == (2, 1.0, 3)
    chat = protocol.decode(
        json.dumps({"messages": HELLO, "top_logprobs": 0.0}).encode(), ChatBody
    )
    assert chat.top_logprobs == 0


async def test_special_tokens_have_text_if_asked_for(start) -> None:
    service = await start(saying([104, EOS, 105]))
    for path, where in ((COMPLETE, "text"), (CHAT, "message")):
        for skip, text in ((True, "hi"), (False, "h<eos>i")):
            body = sent(path, skip_special_tokens=skip, ignore_eos=True)
            choice = (await service.post(path, body)).json()["choices"][0]
            assert (
                choice[where] if where == "text" else choice[where]["content"]
            ) == text


def answers_in(text: str) -> list[dict]:
    """What comes as one body, or in pieces as a stream."""
    pieces = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
    return [json.loads(piece) for piece in pieces or [text]]


@pytest.mark.parametrize("stream", [False, True])
async def test_token_ids_are_returned(start, stream: bool) -> None:
    service = await start(saying("é!".encode(), EOS))
    body = sent(COMPLETE, return_token_ids=True, stream=stream, n=2)
    text = (await service.post(COMPLETE, body)).text
    choices = list(
        chain.from_iterable(answer["choices"] for answer in answers_in(text))
    )
    for index in (0, 1):
        mine = [choice for choice in choices if choice["index"] == index]
        ids = chain.from_iterable(choice["token_ids"] for choice in mine)
        assert list(ids) == [*"é!".encode(), EOS]
        prompts = [
            choice["prompt_token_ids"]
            for choice in mine
            if "prompt_token_ids" in choice
        ]
        assert prompts == [[104, 105]]


@pytest.mark.parametrize("stream", [False, True])
async def test_token_ids_of_a_chat(start, stream: bool) -> None:
    service = await start(saying(b"ok", EOS))
    text = (
        await service.post(CHAT, sent(CHAT, return_token_ids=True, stream=stream))
    ).text
    answers = answers_in(text)
    ids = chain.from_iterable(answer["choices"][0]["token_ids"] for answer in answers)
    assert list(ids) == [*b"ok", EOS]
    prompts = [
        answer["prompt_token_ids"] for answer in answers if "prompt_token_ids" in answer
    ]
    assert prompts == [list(b"user: hi\nassistant: ")]


async def test_nobody_gets_ids_unasked(start) -> None:
    service = await start()
    for path in (COMPLETE, CHAT):
        text = (await service.post(path, sent(path))).text
        assert "token_ids" not in text
        assert "prompt_logprobs" not in text


async def test_prompt_logprobs(start) -> None:
    async def script(request):
        top = ((98, -0.5), (99, float("-inf")))
        yield PromptLogprobsEvent(request.id, 1, ((-3.0, top),))
        yield PromptLogprobsEvent(request.id, 0, ((-0.5, top),))
        yield token(request, 0, 65)
        yield finished(request, 1)

    service = await start(script)
    body = {"prompt": "abc", "prompt_logprobs": 2, "max_tokens": 1}
    [choice] = (await service.post(COMPLETE, body)).json()["choices"]
    likely = {"logprob": -0.5, "rank": 1, "decoded_token": "b"}
    never = {"logprob": -9999.0, "rank": 2, "decoded_token": "c"}
    expected = [None, {"98": likely, "99": never}, {"98": likely, "99": never}]
    assert choice["prompt_logprobs"] == expected
    assert choice["logprobs"] is None
    answer = (await service.post(CHAT, sent(CHAT, prompt_logprobs=2))).json()
    assert answer["prompt_logprobs"][0] is None
    assert answer["prompt_logprobs"][1]["98"] == likely


@pytest.mark.parametrize(
    ("fields", "prompt", "echoed"),
    [
        ({"truncate_prompt_tokens": 3}, "abcdef", "def"),
        ({"truncate_prompt_tokens": 3}, [97, 98, 99, 100], "bcd"),
        ({"truncate_prompt_tokens": 30}, "abc", "abc"),
        (
            {"truncate_prompt_tokens": -1},
            "x" * 5000 + "end",
            "x" * (4096 - 12 - 3) + "end",
        ),
    ],
)
async def test_a_prompt_is_cut_at_its_beginning(start, fields, prompt, echoed) -> None:
    service = await start()
    body = sent(COMPLETE, prompt=prompt, echo=True, **fields)
    answer = (await service.post(COMPLETE, body)).json()
    assert answer["choices"][0]["text"] == echoed + "Hello world"
    assert answer["usage"]["prompt_tokens"] == len(echoed)


async def test_a_chat_is_cut_too_and_what_is_cut_is_bounded(start) -> None:
    service = await start()
    await sampling(service, CHAT, truncate_prompt_tokens=5)
    assert (
        bytes(unpack_tokens(service.engine.requests[-1].prompt_token_ids)) == b"ant: "
    )
    body = sent(COMPLETE, prompt="x" * 200_000, truncate_prompt_tokens=5)
    error = (await service.post(COMPLETE, body)).json()["error"]
    assert (error["code"], error["param"]) == ("too_many_tokens", "prompt")


async def test_many_prompts_are_bounded_by_their_tokens_and_come_a_few_at_a_time(
    start,
) -> None:
    service = await start(limits=LimitsConfig(max_prompts_tokens=5000))
    most = 0
    running: set[str] = set()

    async def script(request):
        nonlocal most
        running.add(request.id)
        most = max(most, len(running))
        prompt = unpack_tokens(request.prompt_token_ids)
        async for event in saying(prompt[:2])(request):
            running.discard(request.id)
            yield event

    service.engine.script = script
    prompts = [f"{i:04}" for i in range(1000)]
    response = await service.post(COMPLETE, {"prompt": prompts, "max_tokens": 2})
    answer = response.json()
    assert [choice["text"] for choice in answer["choices"]] == [
        text[:2] for text in prompts
    ]
    assert answer["usage"]["prompt_tokens"] == 4000
    assert 0 < most <= 64
    refused = await service.post(
        COMPLETE, {"prompt": [*prompts, *prompts], "max_tokens": 2}
    )
    assert refused.json()["error"]["code"] == "too_many_tokens"
    assert len(service.engine.requests) == 1000
    assert service.engine.cancelled == []


async def test_a_client_that_leaves_takes_the_waiting_prompts_with_it(start) -> None:
    async def script(request):
        yield token(request, 0, 65)
        if request.id.endswith("-70"):
            raise AssertionError("never submitted")

    service = await start(script)
    body = {"prompt": ["x"] * 80, "max_tokens": 2, "stream": True}
    async with service.http.stream("POST", COMPLETE, json=body) as response:
        await anext(response.aiter_lines())
    await service.engine.until_all_cancelled()
    assert len(service.engine.requests) == 64
