"""Requests that want too much, and what they leave behind: memory of each process, and how long a
bystander's short chat took meanwhile.

    python -m tests.chaos.hostile URL PID [REQUESTS [SEED]]
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import psutil

AT_ONCE: Final = 8
SAMPLE_S: Final = 0.2
SETTLED_S: Final = 10.0
ANSWER_S: Final = 120.0
MB: Final = 2**20


class Result(msgspec.Struct):
    """Resident megabytes by process name: before, at most, and 10 s after the end."""

    requests: int
    before_mb: dict[str, int] = {}
    peak_mb: dict[str, int] = {}
    settled_mb: dict[str, int] = {}
    answers: dict[str, int] = {}  # by kind of request and status
    bystander_chats: int = 0
    bystander_worst_s: float = 0.0
    wrong: list[str] = []


class Link:
    """One raw connection to the server."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host = parts.hostname or "127.0.0.1"
        self.port = parts.port or 80

    async def ask(
        self,
        path: str,
        body: bytes,
        headers: bytes = b"",
        part: float = 1.0,
        answer_bytes: int = 65_536,
        pause_s: float = 0.0,
    ) -> str:
        """Send `part` of a request, read so much of the answer, and say its status; "aborted"
        where the client goes away first, "cut" where the server does."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        try:
            writer.write(head.encode() + b"Connection: close\r\n" + headers + b"\r\n")
            with suppress(ConnectionError):  # the answer may come before all is sent
                writer.write(body[: int(len(body) * part)])
                async with asyncio.timeout(ANSWER_S):
                    await writer.drain()
                if part < 1.0:
                    return "aborted"
            await asyncio.sleep(pause_s)
            answer = b""
            with suppress(
                ConnectionError
            ):  # not wait_for: before 3.12 it may swallow a cancel
                async with asyncio.timeout(ANSWER_S):
                    answer = await reader.read(answer_bytes)
            return answer[9:12].decode("latin-1") or "cut"
        finally:
            writer.transport.abort()


Hostile = Callable[[Link, random.Random], Awaitable[str]]
COMPLETE = "/v1/completions"
CHAT = "/v1/chat/completions"


def encoded(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


async def huge_text(link: Link, dice: random.Random) -> str:
    unit = dice.choice(["word ", "x", " ", "1", "漢", "😀", "a,"])
    text = unit * (dice.randrange(1, 55) * MB // len(unit.encode()))
    path = dice.choice([COMPLETE, "/tokenize"])
    return await link.ask(path, encoded({"prompt": text, "max_tokens": 1}))


async def huge_chat(link: Link, dice: random.Random) -> str:
    text = "many words " * (dice.randrange(1, 55) * MB // 11)
    return await link.ask(
        CHAT, encoded({"messages": [{"role": "user", "content": text}]})
    )


async def huge_body(link: Link, dice: random.Random) -> str:
    return await link.ask(COMPLETE, b"x" * (dice.randrange(60, 80) * MB))


async def oversized_list(link: Link, dice: random.Random) -> str:
    count = dice.randrange(10_000, 9_000_000)
    body: Any = dice.choice(
        [
            b'{"prompt": [' + b"1," * count + b"1]}",
            b'{"tokens": [' + b"7," * count + b"7]}",
            b'{"prompt": [' + b'"x",' * (count // 2) + b'"x"]}',
            b'{"messages": [' + b"{}," * count + b"{}]}",
            b'{"prompt": "x", "stop": [' + b'"x",' * (count // 2) + b'"x"]}',
            b"{" + b'"k": 1,' * (count // 2) + b'"k": 1}',
        ]
    )
    path = (
        "/detokenize"
        if body.startswith(b'{"tokens"')
        else dice.choice([COMPLETE, CHAT])
    )
    return await link.ask(path, body)


async def deep_json(link: Link, dice: random.Random) -> str:
    return await link.ask(
        COMPLETE, dice.choice([b"[", b'{"a":']) * dice.randrange(1000, MB)
    )


async def small(link: Link, dice: random.Random) -> str:
    tokens = dice.randrange(1, 4)
    return await link.ask(COMPLETE, encoded({"prompt": "hi", "max_tokens": tokens}))


async def aborted_body(link: Link, dice: random.Random) -> str:
    body = encoded({"prompt": "word " * dice.randrange(1000, 4 * MB)})
    return await link.ask(COMPLETE, body, part=dice.random())


async def aborted_stream(link: Link, dice: random.Random) -> str:
    body = encoded(
        {"prompt": "Count:", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    )
    return await link.ask(COMPLETE, body, answer_bytes=dice.randrange(1, 2000))


async def slow_reader(link: Link, dice: random.Random) -> str:
    body = encoded({"prompt": "Count:", "max_tokens": 100, "n": 4, "stream": True})
    return await link.ask(COMPLETE, body, pause_s=dice.uniform(0.5, 3.0))


async def bad_headers(link: Link, dice: random.Random) -> str:
    header = dice.choice(
        [
            b"x-request-id: a\xe9\r\n",
            b"x-session-id: \xe9\r\n",
            b"x-request-timeout-seconds: 0.01\r\n",
            b"x-request-timeout-seconds: \xe9\r\n",
            b"x-request-id: " + b"a" * 20_000 + b"\r\n",
            b"".join(b"x-h%d: 1\r\n" % number for number in range(2000)),
            b"Content-Length: 7\r\n",
            b"Transfer-Encoding: chunked\r\n",
        ]
    )
    return await link.ask(COMPLETE, encoded({"prompt": "hi", "max_tokens": 1}), header)


# What may be asked, and how often.
KINDS: Final[dict[Hostile, int]] = {
    small: 40,
    bad_headers: 15,
    aborted_body: 12,
    aborted_stream: 10,
    deep_json: 6,
    oversized_list: 5,
    huge_text: 5,
    slow_reader: 4,
    huge_chat: 2,
    huge_body: 1,
}


def resident_mb(pid: int) -> dict[str, int]:
    """Megabytes of each process below `pid`; those of one name are added up."""
    sizes: Counter[str] = Counter()
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            command = process.cmdline()
            name = (
                command[0]
                if command and command[0].startswith("ray::")
                else process.name()
            )
            sizes[name] += process.memory_info().rss // MB
    return dict(sizes)


async def sample(pid: int, result: Result) -> None:
    """Keep the largest sizes, until cancelled."""
    while True:
        for name, size in (await asyncio.to_thread(resident_mb, pid)).items():
            result.peak_mb[name] = max(size, result.peak_mb.get(name, 0))
        await asyncio.sleep(SAMPLE_S)


async def bystand(link: Link, result: Result) -> None:
    """One short chat after the other, until cancelled."""
    body = encoded(
        {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    )
    while True:
        began = time.monotonic()
        status = await link.ask(CHAT, body)
        result.bystander_worst_s = max(
            result.bystander_worst_s, time.monotonic() - began
        )
        result.bystander_chats += 1
        if status != "200":
            result.wrong.append(f"a bystander's chat was answered {status}")


async def attack(link: Link, requests: int, seed: int, result: Result) -> None:
    """All hostile requests, a few at once."""
    dice = random.Random(seed)
    chosen = dice.choices(list(KINDS), list(KINDS.values()), k=requests)
    waiting = iter(list(enumerate(chosen)))
    answers: Counter[str] = Counter()

    async def work() -> None:
        for number, kind in waiting:
            try:
                status = await kind(link, random.Random(seed * 1_000_003 + number))
            except (TimeoutError, OSError) as error:
                status = type(error).__name__
            answers[f"{kind.__name__} {status}"] += 1
            if status == "500" or status == "TimeoutError":
                result.wrong.append(f"request {number}, {kind.__name__}: {status}")

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    result.answers = dict(sorted(answers.items()))


async def campaign(url: str, pid: int, requests: int, seed: int) -> Result:
    link = Link(url)
    result = Result(requests)
    await small(link, random.Random(seed))
    result.before_mb = resident_mb(pid)
    watchers = [
        asyncio.ensure_future(sample(pid, result)),
        asyncio.ensure_future(bystand(link, result)),
    ]
    await attack(link, requests, seed, result)
    for watcher in watchers:
        watcher.cancel()
    await asyncio.gather(*watchers, return_exceptions=True)
    await asyncio.sleep(SETTLED_S)
    result.settled_mb = resident_mb(pid)
    return result


def run(url: str, pid_of_server: int, requests: int, seed: int = 0) -> Result:
    """The campaign against a running server; `wrong` lists answers of 500 and chats of the
    bystander that were not served."""
    return asyncio.run(campaign(url, pid_of_server, requests, seed))


def main() -> None:
    url, pid, *rest = sys.argv[1:]
    numbers = [int(value) for value in rest]
    result = run(url, int(pid), *(numbers or [1000]))
    print(msgspec.json.format(msgspec.json.encode(result)).decode())


if __name__ == "__main__":
    main()
