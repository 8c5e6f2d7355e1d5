"""The fuzzer: random requests with all extremes that the schema allows, and bystanders beside them.

Whatever is sent, no answer is the server's fault, the pipeline lives, and nobody else's tokens
change.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import aiohttp

from tests.chaos.calls import Bodies, Call

# A model of random weights, so small that many requests can be sent; all else is the real thing.
MODEL: Final[dict[str, Any]] = {
    "model_loading_config": {
        "model_id": "random",
        "model_source": "random",
        "max_model_len_tokens": 2048,
    },
    "parallel": {"spp": 2, "kvp": 1},
    "kv_cache": {"budget_bytes": 2**22},
    "predictor": {"calibrate": False},
}
_ANSWER_S: Final = 120.0
_REBUILDS: Final = re.compile(
    r"^medha_pipeline_rebuilds_total(?:\{.*\})? (\S+)$", re.MULTILINE
)
_MOST_FAULTS: Final = 20  # after so many the rest is not worth sending
_BYSTANDERS: Final[list[dict[str, Any]]] = [
    {"prompt": "Once upon a time", "temperature": 0},
    {"prompt": "One, two, three", "seed": 11, "top_p": 0.9, "repetition_penalty": 1.2},
    {"prompt": [5, 6, 7] * 40, "seed": 12, "frequency_penalty": 0.5},
]


def run(url: str, requests: int, seed: int = 0, concurrency: int = 16) -> list[str]:
    """Send so many random requests to a server; returns what was wrong, one line each.

    The same seed sends the same requests."""
    return asyncio.run(_Campaign(url, concurrency).run(requests, seed))


class _Campaign:
    def __init__(self, url: str, concurrency: int) -> None:
        self._url = url
        self._concurrency = concurrency
        self._faults: list[str] = []
        self._statuses: Counter[tuple[str, bool, int]] = Counter()
        self._rounds = 0

    async def run(self, requests: int, seed: int) -> list[str]:
        timeout = aiohttp.ClientTimeout(total=_ANSWER_S)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            timeout=timeout, connector=connector
        ) as session:
            self._session = session
            model = await self._model()
            bodies = Bodies(model, await self._vocabulary(), seed)
            before = await self._rebuilds()
            alone = [
                await self._stream(body | {"model": model})
                for body in map(_full, _BYSTANDERS)
            ]
            done = asyncio.Event()
            beside = [
                asyncio.ensure_future(
                    self._stand_by(_full(body) | {"model": model}, text, done)
                )
                for body, text in zip(_BYSTANDERS, alone, strict=True)
            ]
            calls = (bodies.next() for _ in range(requests))
            await asyncio.gather(
                *[self._sender(calls) for _ in range(self._concurrency)]
            )
            done.set()
            await asyncio.gather(*beside)
            rebuilds = await self._rebuilds() - before
        if rebuilds:
            self._faults.append(f"the pipeline was rebuilt {rebuilds:g} times")
        self._report()
        return self._faults

    def _report(self) -> None:
        for (path, valid, status), count in sorted(self._statuses.items()):
            print(f"{path} {'valid' if valid else 'spoilt'}: {count} answers {status}")
        print(f"bystanders: {self._rounds} streams compared")

    async def _sender(self, calls: Iterator[Call]) -> None:
        """Take the next one when the last one is answered."""
        for call in calls:
            if len(self._faults) >= _MOST_FAULTS:
                return
            await self._send(call)

    async def _send(self, call: Call) -> None:
        body = json.dumps(call.body)
        kind = {"content-type": "application/json"}
        try:
            async with self._session.post(
                self._url + call.path, data=body, headers=kind
            ) as answer:
                status = answer.status
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            self._faults.append(f"{call.path} {body}: {type(error).__name__}: {error}")
            return
        self._statuses[call.path, call.valid, status] += 1
        if (wrong := _wrong(status, text)) is not None:
            self._faults.append(f"{call.path} {body}: {wrong}")

    async def _stand_by(
        self, body: dict[str, Any], alone: str, done: asyncio.Event
    ) -> None:
        """The same stream again and again; at least once."""
        while True:
            text = await self._stream(body)
            self._rounds += 1
            if text != alone:
                self._faults.append(f"a bystander got {text!r} instead of {alone!r}")
            if done.is_set() or len(self._faults) >= _MOST_FAULTS:
                return

    async def _stream(self, body: dict[str, Any]) -> str:
        """The text of a streamed completion with its end."""
        pieces: list[str] = []
        async with self._session.post(
            f"{self._url}/v1/completions", json=body
        ) as answer:
            for frame in _frames(await answer.text()):
                for choice in frame.get("choices", []):
                    pieces.append(choice["text"] + (choice["finish_reason"] or ""))
                if "error" in frame:
                    pieces.append(str(frame["error"]))
        return "".join(pieces)

    async def _model(self) -> str:
        async with self._session.get(f"{self._url}/v1/models") as answer:
            return str((await answer.json())["data"][0]["id"])

    async def _vocabulary(self) -> int:
        """As the server names it when it refuses an id."""
        async with self._session.post(
            f"{self._url}/v1/completions", json={"prompt": [2**31 - 1]}
        ) as answer:
            message = (await answer.json())["error"]["message"]
        return int(re.search(r"vocabulary ends at (\d+)", message)[1]) + 1

    async def _rebuilds(self) -> float:
        async with self._session.get(f"{self._url}/metrics") as answer:
            text = await answer.text()
        return float(_REBUILDS.search(text)[1])


def _full(body: dict[str, Any]) -> dict[str, Any]:
    return {"max_tokens": 48, "ignore_eos": True, "stream": True} | body


def _wrong(status: int, text: str) -> str | None:
    """What is wrong with an answer; a refusal, a full queue and a time limit are none of it."""
    if status == 504 and "timeout_error" in text:
        return None
    if status >= 500:
        return f"{status} {text[:300]}"
    if status >= 400:
        return (
            None
            if '"error"' in text
            else f"{status} without an error object: {text[:300]}"
        )
    for frame in _frames(text):
        error = frame.get("error") or frame.get("response", {}).get("error")
        if error is not None and not _is_time_limit(error):
            return f"an error in the stream: {error}"
    return None


def _is_time_limit(error: dict[str, Any]) -> bool:
    """In the words of any API; that of responses has no code for it."""
    known = ("request_timeout", "timeout_error")
    named = error.get("code") in known or error.get("type") in known
    return named or error["message"].startswith("not finished within")


def _frames(text: str) -> Iterator[dict[str, Any]]:
    for line in text.split("\n"):  # text may hold other ends of lines
        if line.startswith("data: {"):
            yield json.loads(line[6:])
