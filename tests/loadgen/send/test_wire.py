"""The HTTP client against raw bytes and against a scripted server that behaves badly."""

import asyncio
import contextlib
import threading

import pytest
from aiohttp import web

from loadgen.records import PlannedRequest, RequestRecord, open_record
from loadgen.send.prompts import PromptMaker, ids_alphabet
from loadgen.send.targets import OpenAITarget, RequestStyle, parse_address
from loadgen.send.wire import Connection, HttpExchange
from tests.loadgen.scripted import DONE, ScriptedServer, event

SSE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


class Pipe:
    """A transport that takes everything and goes nowhere."""

    def __init__(self):
        self.written = []

    def writelines(self, pieces):
        self.written += pieces

    def abort(self):
        self.written.append("aborted")


def connected():
    ended = []
    released = []
    connection = Connection(released.append, lambda exchange: False)
    connection.connection_made(Pipe())
    record = RequestRecord(
        index=0, kind="short", prompt_tokens=5, output_tokens=2, sent_at=0.0
    )
    connection.begin(HttpExchange(b"head", b"body", record, ended.append))
    return connection, record, ended, released


ANSWER = (
    SSE
    + chunk(event("a"))
    + chunk(b": hm\n\n")
    + chunk(event("b", "length") + DONE)
    + b"0\r\n\r\n"
)


def test_an_answer_split_at_every_position():
    for cut in range(1, len(ANSWER)):
        connection, record, ended, released = connected()
        connection.data_received(ANSWER[:cut])
        connection.data_received(ANSWER[cut:])
        assert (record.error, record.status, len(record.token_times)) == (
            None,
            200,
            2,
        ), cut
        assert ended == [record]
        assert released == [connection]
        assert connection.open


def test_byte_by_byte():
    connection, record, ended, _ = connected()
    for position in range(len(ANSWER)):
        connection.data_received(ANSWER[position : position + 1])
    assert record.completed
    assert record.token_times[0] < record.token_times[1] <= record.ended_at
    assert record.answered_at < record.token_times[0]
    assert ended == [record]


@pytest.mark.parametrize(
    ("told", "announced_s", "deadline_s"),
    [
        (b"x-medha-predicted-ttft-ms: 110.5\r\n", 0.1105, None),
        (b"X-Medha-TTFT-Deadline-Ms: 250\r\n", None, 0.25),
        (b"x-medha-predicted-ttft-ms: soon\r\n", None, None),
    ],
)
def test_what_the_server_announces_is_kept(told, announced_s, deadline_s):
    connection, record, _, _ = connected()
    connection.data_received(ANSWER.replace(b"OK\r\n", b"OK\r\n" + told))
    assert record.completed
    assert record.announced_ttft_s == announced_s
    assert record.deadline_s == deadline_s


def test_one_connection_answers_again():
    connection, first, _, _ = connected()
    connection.data_received(ANSWER)
    second = RequestRecord(
        index=1, kind="short", prompt_tokens=5, output_tokens=2, sent_at=0.0
    )
    connection.begin(HttpExchange(b"", b"", second, lambda record: None))
    connection.data_received(ANSWER)
    assert first.completed
    assert second.completed


def test_an_answer_that_ends_with_its_connection():
    connection, record, _, _ = connected()
    connection.data_received(
        b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        + event("a", "stop")
        + DONE
    )
    assert record.ended_at is None
    connection.connection_lost(None)
    assert record.completed


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "without an answer"),
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP"),
        (SSE + chunk(event("a")), "lost in mid-stream"),
        (SSE + chunk(event("a"))[:-9], "lost in mid-stream"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 900\r\n\r\n<h1>", "HTTP 500: <h1>"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi",
            "not an event stream",
        ),
        (
            b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
            "HTTP 302",
        ),
    ],
)
def test_connections_that_end_badly(data, error):
    connection, record, ended, _ = connected()
    if data:
        connection.data_received(data)
    connection.connection_lost(
        ConnectionResetError("reset by peer") if not data else None
    )
    assert error in record.error
    assert ended == [record]


def test_a_stream_cut_after_done_is_complete():
    connection, record, _, _ = connected()
    connection.data_received(SSE + chunk(event("a", "stop") + DONE))
    connection.connection_lost(ConnectionResetError())
    assert record.completed


@contextlib.asynccontextmanager
async def target_of(server, **style):
    prompts = PromptMaker(ids_alphabet(tuple(range(100, 200))), 0)
    target = OpenAITarget(
        parse_address(server.url), RequestStyle(model="scripted", **style), prompts
    )
    try:
        yield target
    finally:
        await target.close()


async def ask(target, index=0, prompt=20, output=3):
    request = PlannedRequest(index=index, prompt_tokens=prompt, output_tokens=output)
    record = open_record(request, "test")
    ended = asyncio.get_running_loop().create_future()
    target.send(target.prepare(request, record), record, ended.set_result)
    return await ended


async def test_a_whole_request():
    with ScriptedServer() as server:
        async with target_of(
            server, extra_body={"ignore_eos": True}, headers={"X-Test": "1"}
        ) as target:
            record = await ask(target)
        (call,) = server.calls
    assert record.completed
    assert (
        record.usage_prompt_tokens,
        record.usage_completion_tokens,
        len(record.token_times),
    ) == (20, 3, 3)
    assert record.sent_at <= record.answered_at <= record.token_times[0]
    assert len(call.body["prompt"]) == 20
    assert call.body["ignore_eos"] is True
    assert call.body["stream_options"] == {"include_usage": True}
    assert call.request.headers["X-Test"] == "1"
    assert call.request.headers["x-request-id"] == record.id


async def test_chat_and_objective_headers():
    with ScriptedServer() as server:
        style = {
            "endpoint": "/v1/chat/completions",
            "objective_headers": lambda record: {"x-llm-d-slo-ttft-ms": "500"},
        }
        async with target_of(server, **style) as target:
            assert (await ask(target)).completed
        (call,) = server.calls
    assert call.body["messages"][0]["role"] == "user"
    assert call.body["max_completion_tokens"] == 3
    assert call.request.headers["x-llm-d-slo-ttft-ms"] == "500"


async def test_every_split_of_an_answer_over_a_real_socket():
    async def in_two(call):
        whole = call.whole()
        cut = 1 + call.number % (len(whole) - 1)
        await call.stream(whole[:cut], whole[cut:])

    with ScriptedServer(in_two) as server:
        async with target_of(server) as target:
            records = [await ask(target, index) for index in range(300)]
    assert [record.error for record in records if record.error] == []
    assert {len(record.token_times) for record in records} == {3}


async def test_connections_are_kept_and_a_dead_one_is_replaced():
    async def drop_after(call):
        await call.stream(call.whole())
        if call.number == 1:
            call.hang_up()

    with ScriptedServer(drop_after) as server:
        async with target_of(server) as target:
            records = [await ask(target, index) for index in range(4)]
        ports = [
            call.request.transport.get_extra_info("peername")
            for call in server.calls
            if call.request.transport
        ]
    assert all(record.completed for record in records)
    assert len({str(port) for port in ports}) <= 2


async def test_a_silent_server_times_out():
    async def silent(call):
        await asyncio.Event().wait()

    with ScriptedServer(silent) as server:
        async with target_of(server, timeout_s=0.1) as target:
            record = await ask(target)
    assert record.error == "timed out after 0.1 s"
    assert 0.1 <= record.ended_at - record.sent_at < 2


async def test_a_server_that_falls_silent_in_mid_stream():
    async def never_ends(call):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(call.request)
        await response.write(b": keep-alive\n\n" + event("a"))
        await asyncio.Event().wait()

    with ScriptedServer(never_ends) as server:
        async with target_of(server, timeout_s=0.2) as target:
            record = await ask(target)
    assert record.error == "timed out after 0.2 s"
    assert len(record.token_times) == 1
    assert not record.completed


async def test_dropped_connections_and_refusals():
    async def answer(call):
        if call.number == 0:
            call.hang_up()
        elif call.number == 1:
            await call.error(429, "the queue is full")
        else:
            await call.stream(
                event("a"), b'data: {"error": {"message": "stage died"}}\n\n', DONE
            )

    with ScriptedServer(answer) as server:
        async with target_of(server) as target:
            errors = [(await ask(target, index)).error for index in range(3)]
    assert "without an answer" in errors[0]
    assert errors[1:] == ["HTTP 429: the queue is full", "stage died"]


async def test_nobody_there_and_cancelling():
    arrived = threading.Event()

    async def silent(call):
        arrived.set()
        await asyncio.Event().wait()

    with ScriptedServer(silent) as server:
        async with target_of(server) as target:
            task = asyncio.ensure_future(ask(target))
            async with asyncio.timeout(10):
                await asyncio.to_thread(arrived.wait)
            target.cancel()
            record = await task
            assert record.cancelled
            assert not record.completed
    async with target_of(server) as target:  # it is gone now
        assert "cannot connect to 127.0.0.1" in (await ask(target)).error


@pytest.mark.parametrize(
    ("text", "url", "authority", "path"),
    [
        ("http://h:8000", "http://h:8000", "h:8000", ""),
        ("h:8000/v1/", "http://h:8000", "h:8000", ""),
        ("https://h/api/v1", "https://h/api", "h:443", "/api"),
        ("http://[::1]:8000", "http://[::1]:8000", "[::1]:8000", ""),
    ],
)
def test_addresses(text, url, authority, path):
    address = parse_address(text)
    assert (address.url, address.authority, address.path) == (url, authority, path)
