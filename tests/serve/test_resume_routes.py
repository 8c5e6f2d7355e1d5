"""Streams that are cut after any number of tokens and resumed: nothing is lost, nothing doubled."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from medha_actors.config import StreamConfig
from medha_actors.messages import Event, PromptLogprobsEvent, Request
from tests.fakes import Script, finished, saying, token
from tests.serve.hearing import IDS, Heard, listen

EOS = 256
STREAM = {"stream": True, "max_tokens": 50, "stream_options": {"include_usage": True}}
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def halting(script: Script, tokens: int) -> Script:
    """Plays the script, but a request that is not resumed stops after so many tokens and waits."""

    async def play(request: Request) -> AsyncIterator[Event]:
        count = 0
        async for event in script(request):
            if request.resumed is None and count == tokens and not is_prompt(event):
                await asyncio.Event().wait()
            yield event
            count += not is_prompt(event)

    return play


def is_prompt(event: Event) -> bool:
    return isinstance(event, PromptLogprobsEvent)


async def scored(request: Request) -> AsyncIterator[Event]:
    yield PromptLogprobsEvent(request.id, 0, ((-2.0, ()),))
    yield PromptLogprobsEvent(request.id, 1, ((-3.0, ((98, -1.0),)),))
    for index, token_id in enumerate([0xC3, 0xA9, 0x41]):
        yield token(request, index, token_id, logprobs=True)
    yield finished(request, 3)


CASES: dict[str, tuple[Script, dict[str, Any]]] = {
    "plain": (saying(b"Hello", EOS), {"prompt": "hi"}),
    "length": (saying(b"Hello!!!"), {"prompt": "hi", "max_tokens": 5}),
    "chat": (saying(b"Hello", EOS), CHAT),
    "chat with scores": (
        saying(b"Hel", EOS),
        {**CHAT, "logprobs": True, "top_logprobs": 1},
    ),
    "stop": (saying(b"xHelloy", EOS), {"prompt": "hi", "stop": ["lly", "lloy"]}),
    "stop in the middle": (saying(b"abXYcd", EOS), {"prompt": "hi", "stop": "XY"}),
    "stop is shown": (
        saying(b"abXYcd", EOS),
        {"prompt": "hi", "stop": "XY", "include_stop_str_in_output": True},
    ),
    "nearly a stop": (saying(b"abXX", EOS), {"prompt": "hi", "stop": "XXX"}),
    "a late stop": (
        saying(b"aXbXc", EOS),
        {"prompt": "hi", "stop": "X", "min_tokens": 3},
    ),
    "stop token": (
        saying(b"abc", ord("!")),
        {"prompt": "hi", "stop_token_ids": [ord("!")]},
    ),
    "characters": (saying("a€😀".encode(), EOS), {"prompt": "hi"}),
    "half a character": (saying("a😀".encode()[:-1], EOS), {"prompt": "hi"}),
    "echo": (saying(b"abc", EOS), {"prompt": "hi", "echo": True}),
    "echo with scores": (scored, {"prompt": "abc", "echo": True, "logprobs": 1}),
}


@pytest.mark.parametrize("case", CASES)
async def test_cut_anywhere(start, case: str) -> None:
    script, fields = CASES[case]
    service = await start(script)
    body = {**STREAM, **fields}
    whole = await listen(service, body)
    tokens = whole.end[2]["completion_tokens"]
    if not isinstance(whole.choices[-1]["stop_reason"], str):
        # also between the last token and the end, which a stop string brings with it
        tokens += 1
    for generated in range(tokens):
        for shown in {0, max(0, generated - 1), generated}:
            await check_a_cut(service, script, body, whole, generated, shown)


async def check_a_cut(
    service, script, body, whole: Heard, generated: int, shown: int
) -> None:
    """The engine has generated so many tokens when the connection is cut; the client has seen some
    of them."""
    name = f"cut-{generated}-{shown}"
    kind = "cmpl" if "prompt" in body else "chatcmpl"
    service.engine.script = halting(script, generated)
    asked = {**body, "request_id": name}
    cut = await listen(service, asked, until=f"{kind}-{name}:{generated}")
    assert cut.ids == [f"{kind}-{name}:{i + 1}" for i in range(generated)]
    resumed = await listen(service, asked, {"x-medha-resume": f"{kind}-{name}:{shown}"})
    joined = Heard(
        cut.ids, cut.choices[:shown] + resumed.choices, resumed.frames, resumed.done
    )
    assert joined.text == whole.text
    assert joined.scores == whole.scores
    assert joined.end == whole.end
    assert joined.done
    assert resumed.ids[-1] == f"{kind}-{name}:end"
    assert {
        (frame["id"], frame["created"]) for frame in cut.frames + resumed.frames
    } == {(f"{kind}-{name}", resumed.frames[0]["created"])}
    first, second = service.engine.requests[-2:]
    assert second.sampling == first.sampling
    assert second.arrived_at == first.arrived_at
    assert second.id != first.id


@pytest.mark.parametrize("case", CASES)
async def test_finished_meanwhile(start, case: str) -> None:
    """Nothing is computed again: the rest comes from the record."""
    script, fields = CASES[case]
    service = await start(script)
    body = {**STREAM, **fields, "request_id": "a"}
    whole = await listen(service, body)
    asked = len(service.engine.requests)
    for seen in range(len(whole.ids) + 1):
        place = whole.ids[seen - 1] if seen else whole.ids[0].rpartition(":")[0] + ":0"
        rest = await listen(service, body, {"last-event-id": place})
        joined = Heard(
            whole.ids, whole.choices[:seen] + rest.choices, rest.frames, rest.done
        )
        assert (joined.text, joined.scores, joined.done) == (
            whole.text,
            whole.scores,
            True,
        )
        assert rest.ids == whole.ids[seen:]
        assert joined.end == whole.end
    assert len(service.engine.requests) == asked


@pytest.mark.parametrize(
    ("case", "tokens", "rest"),
    [("plain", 6, ""), ("half a character", 5, "\ufffd"), ("nearly a stop", 5, "XX")],
)
async def test_only_the_end_is_missing(
    start, case: str, tokens: int, rest: str
) -> None:
    """What was held back to the end is told then, and once."""
    script, fields = CASES[case]
    service = await start(script)
    body = {**STREAM, **fields, "request_id": "a"}
    whole = await listen(service, body)
    end = await listen(service, body, {"x-medha-resume": f"cmpl-a:{tokens}"})
    assert (end.ids, end.text, end.end) == (["cmpl-a:end"], rest, whole.end)
    nothing = await listen(service, body, {"x-medha-resume": "cmpl-a:end"})
    assert (nothing.ids, nothing.frames[-1]["usage"]) == ([], whole.end[2])


async def test_the_stream_says_where_it_is_before_the_first_token(start) -> None:
    service = await start(halting(saying(b"abc"), 2))
    body = {**STREAM, "prompt": "hi", "request_id": "a"}
    heard = await listen(service, body, until="cmpl-a:0")
    assert heard.ids == []
    resumed = await listen(service, body, {"x-medha-resume": "cmpl-a:0"})
    assert resumed.text == "abc"


async def test_ids_are_only_for_those_who_ask(start) -> None:
    service = await start()
    body = {**STREAM, "prompt": "hi"}
    for asked, headers in [
        (body, {}),
        (body, {"x-medha-event-ids": "0"}),
        ({**body, "n": 2}, IDS),
    ]:
        text = (await service.post("/v1/completions", asked, headers=headers)).text
        assert "id: " not in text


async def test_the_older_stream_of_an_answer_ends(start) -> None:
    script = saying(b"Hello", EOS)
    service = await start(halting(script, 2))
    body = {**STREAM, "prompt": "hi", "request_id": "a"}
    older = asyncio.ensure_future(listen(service, body))
    await service.engine.until(lambda: len(service.engine.requests) == 1)
    resumed = await listen(service, body, {"x-medha-resume": "cmpl-a:0"})
    assert resumed.text == "Hello"
    assert (await older).choices[-1]["finish_reason"] == "abort"


async def test_an_answer_in_one_piece_can_be_asked_for_again(start) -> None:
    service = await start(halting(saying(b"Hello", EOS), 2))
    body = {"prompt": "hi", "request_id": "a", "max_tokens": 50}
    call = asyncio.ensure_future(service.post("/v1/completions", body))
    await service.engine.until(lambda: len(service.engine.requests) == 1)
    call.cancel()
    again = await service.post(
        "/v1/completions", body, headers={"x-medha-resume": "cmpl-a:0"}
    )
    assert again.json()["choices"][0]["text"] == "Hello"
    late = await service.post(
        "/v1/completions", body, headers={"x-medha-resume": "cmpl-a:1"}
    )
    assert (late.status_code, late.json()["error"]["code"]) == (400, "resume_mismatch")


async def test_a_failure_is_told_again(start) -> None:
    async def script(request: Request):
        yield token(request, 0, ord("a"))
        yield finished(request, 1, "timeout", "too late")

    service = await start(script)
    body = {**STREAM, "prompt": "hi", "request_id": "a"}
    await listen(service, body)
    again = await listen(service, body, {"x-medha-resume": "cmpl-a:1"})
    assert again.choices == []
    assert again.frames[-1]["error"]["message"] == "too late"
    assert again.done


@pytest.mark.parametrize(
    ("value", "changes", "status", "code"),
    [
        ("cmpl-a", {}, 400, "invalid_value"),
        ("cmpl-a:", {}, 400, "invalid_value"),
        (":3", {}, 400, "invalid_value"),
        ("cmpl-a:-1", {}, 400, "invalid_value"),
        ("cmpl-a:x", {}, 400, "invalid_value"),
        ("cmpl-a:99999999999", {}, 400, "invalid_value"),
        ("cmpl-a:3", {"n": 2}, 400, "unsupported"),
        ("cmpl-other:3", {}, 404, "resume_not_found"),
        ("cmpl-a:3", {"prompt": "ho"}, 400, "resume_mismatch"),
        ("cmpl-a:3", {"temperature": 0.5}, 400, "resume_mismatch"),
        ("cmpl-a:3", {"seed": 5}, 400, "resume_mismatch"),
        ("cmpl-a:3", {"prompt": "hi", "max_tokens": 9}, 400, "resume_mismatch"),
        ("cmpl-a:6", {}, 400, "resume_beyond"),
        ("cmpl-a:end", {}, 400, "resume_beyond"),
    ],
)
@pytest.mark.parametrize("header", ["x-medha-resume", "last-event-id"])
async def test_what_cannot_be_resumed_is_a_clear_error(
    start, header: str, value: str, changes: dict[str, Any], status: int, code: str
) -> None:
    service = await start(halting(saying(b"Hello world"), 5))
    body = {**STREAM, "prompt": "hi", "request_id": "a"}
    await listen(service, body, until="cmpl-a:5")
    await service.engine.until_all_cancelled()
    wrong = await service.post(
        "/v1/completions", {**body, **changes}, headers={header: value}
    )
    error = wrong.json()["error"]
    assert (wrong.status_code, error["code"], error["param"]) == (status, code, header)
    assert header in error["message"]
    assert len(service.engine.requests) == 1
    assert (await listen(service, body, {header: "cmpl-a:5"})).text == " world"


async def test_the_wrong_route(start) -> None:
    service = await start(halting(saying(b"Hello"), 1))
    body = {**STREAM, **CHAT, "request_id": "a"}
    await listen(service, body, until="chatcmpl-a:1")
    prompt = service.engine.requests[0].prompt_token_ids
    same = {**STREAM, "prompt": list(prompt[::4]), "request_id": "a"}
    wrong = await service.post(
        "/v1/completions", same, headers={"x-medha-resume": "chatcmpl-a:1"}
    )
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (
        400,
        "resume_mismatch",
    )


async def test_an_empty_last_event_id_asks_anew(start) -> None:
    service = await start()
    heard = await listen(service, {**STREAM, "prompt": "hi"}, {"last-event-id": ""})
    assert heard.text == "Hello world"


async def test_too_late(start) -> None:
    service = await start(halting(saying(b"Hello"), 1))
    body = {**STREAM, "prompt": "hi", "request_id": "a"}
    await listen(service, body, until="cmpl-a:1")
    await service.engine.until_all_cancelled()
    service.engine.now = 60.0
    late = await service.post(
        "/v1/completions", body, headers={"x-medha-resume": "cmpl-a:1"}
    )
    assert (late.status_code, late.json()["error"]["code"]) == (404, "resume_not_found")


async def test_a_slow_reader_loses_nothing_of_a_long_past(start) -> None:
    service = await start(
        saying(b"x" * 3000), stream=StreamConfig(max_buffered_events=8)
    )
    body = {**STREAM, "prompt": "hi", "request_id": "a", "max_tokens": 3000}
    assert len((await listen(service, body)).text) == 3000
    rest = await listen(service, body, {"x-medha-resume": "cmpl-a:1000"})
    assert len(rest.text) == 2000
    assert rest.end[2]["completion_tokens"] == 3000
