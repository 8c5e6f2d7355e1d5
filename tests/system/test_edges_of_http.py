"""Odd requests and time limits against a real server, behind HAProxy (as shipped) and behind
Serve's proxy."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from serve_process import serving

TOY = {
    "model_loading_config": {
        "model_source": "random",
        "dtype": "float32",
        "model_id": "toy",
        "max_model_len_tokens": 50_000,
    },
    "parallel": {"spp": 1},
    "actors": {"spares": 0},
    "predictor": {"calibrate": False},
    "kv_cache": {"budget_bytes": 64 * 2**20},
}
SHORT = {"prompt": "hi", "max_tokens": 2}
ENDLESS = {"prompt": "hi", "max_tokens": 8_000, "ignore_eos": True}
NOT_UTF8 = b"a\xe9b"
QUICK_END = {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1"}


@pytest.fixture(scope="module")
def proxied(tmp_path_factory) -> Iterator[str]:
    """Behind the proxy that Serve has in Python."""
    environment = {**QUICK_END, "RAY_SERVE_ENABLE_HA_PROXY": "0"}
    with serving(
        tmp_path_factory.mktemp("proxied"), environment=environment, **TOY
    ) as (url, _):
        yield url


@pytest.fixture(params=["embedded", "proxied"])
def server(request) -> str:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def bare_server(tmp_path_factory) -> Iterator[str]:
    """Started without the edge: Serve reads the same headers as we do."""
    environment = {**QUICK_END, "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": ""}
    with serving(tmp_path_factory.mktemp("bare"), environment=environment, **TOY) as (
        url,
        _,
    ):
        yield url


class Answer(NamedTuple):
    status: int
    head: bytes
    body: bytes

    @property
    def error(self) -> dict:
        return json.loads(self.body)["error"]


def send(url: str, request: bytes) -> Answer:
    """The whole answer to these bytes, with chunks put together."""
    parts = urlsplit(url)
    with closing(
        socket.create_connection((parts.hostname, parts.port), timeout=30)
    ) as link:
        link.sendall(request)
        with link.makefile("rb") as answer:
            head, _, body = answer.read().partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        body = unchunked(body)
    return Answer(int(head[9:12]), head, body)


def unchunked(data: bytes) -> bytes:
    whole = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        whole += data[:length]
        data = data[length + 2 :]
        if length == 0:
            break
    return whole


def post(body: dict | bytes, *headers: bytes, path: str = "/v1/completions") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head += f"Content-Length: {len(data)}\r\n"
    return (
        head.encode()
        + b"".join(header + b"\r\n" for header in headers)
        + b"\r\n"
        + data
    )


TIMEOUTS = [b"x-request-timeout-seconds: 0.3", b"x-medha-timeout-seconds: 0.3"]


@pytest.mark.parametrize("header", TIMEOUTS)
def test_a_time_limit(server: str, header: bytes):
    check_time_limit(server, header)


@pytest.mark.slow
@pytest.mark.parametrize("header", TIMEOUTS)
def test_a_time_limit_that_serve_enforces_too(bare_server: str, header: bytes):
    check_time_limit(bare_server, header)


def check_time_limit(url: str, header: bytes) -> None:
    for _ in range(4):
        answer = send(url, post(ENDLESS, header))
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        answer = send(url, post({**ENDLESS, "stream": True}, header))
        assert answer.status == 200
        frames = [
            part[6:]
            for part in answer.body.split(b"\n\n")
            if part.startswith(b"data: ")
        ]
        assert json.loads(frames[-2])["error"]["code"] == "request_timeout"
        assert frames[-1] == b"[DONE]"


@pytest.mark.parametrize(
    "header",
    [
        b"x-request-id: " + NOT_UTF8,
        b"x-session-id: " + NOT_UTF8,
        b"serve-multiplexed-model-id: " + NOT_UTF8,
        b"traceparent: " + NOT_UTF8,
        b"x-request-disconnect-disabled: " + NOT_UTF8,
        b"x-request-timeout-seconds: " + NOT_UTF8,
        b"user-agent: " + NOT_UTF8,
        b"x-request-id: first\r\nx-request-id: second",
        b"Expect: 100-continue",
    ],
)
def test_odd_headers_do_no_harm(server: str, header: bytes):
    answer = send(server, post(SHORT, header))
    if answer.status == 100:  # the interim answer comes first
        assert b"HTTP/1.1 200 " in answer.body
        return
    assert answer.status == 200
    assert json.loads(answer.body)["choices"][0]["finish_reason"] == "length"


def test_a_request_id_is_echoed(server: str):
    answer = send(server, post(SHORT, b"x-request-id: mine"))
    assert b"x-request-id: mine" in answer.head.lower()
    assert json.loads(answer.body)["id"] == "cmpl-mine"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (post(b""), 400),
        (post(b"{}", path="/no/such/route"), 404),
        (post(SHORT).replace(b"POST", b"PATCH", 1), 405),
        (post(SHORT, b"Content-Encoding: gzip"), 200),
        (post(b"\x1f\x8b", b"Content-Encoding: gzip"), 400),
        (post(b"[" * 100_000), 400),
        (post({"prompt": [1] * 3_000_000}), 400),
    ],
)
def test_errors_are_error_objects(server: str, request_bytes: bytes, status: int):
    answer = send(server, request_bytes)
    assert answer.status == status
    if status != 200:
        assert answer.error["message"]


def test_a_half_closed_client_gets_an_error_object(embedded: str):
    parts = urlsplit(embedded)
    with closing(
        socket.create_connection((parts.hostname, parts.port), timeout=30)
    ) as link:
        link.sendall(post(ENDLESS))
        link.shutdown(socket.SHUT_WR)
        with link.makefile("rb") as answer:
            head, _, body = answer.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head.lower()
    assert json.loads(body)["error"]["code"] == "bad_request"
