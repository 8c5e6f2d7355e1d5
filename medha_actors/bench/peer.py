"""Another server on this machine, asked for the same as our engine: prompts as token ids through
OpenAI's completions, streamed."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp

from medha_actors.actors.local import Generation
from medha_actors.errors import EngineError
from medha_actors.messages import SamplingParams

_PREFIX = b"data: "
_END = b"[DONE]"


class Peer:
    """See `open_peer`."""

    def __init__(self, http: aiohttp.ClientSession, model: str) -> None:
        self._http = http
        self._model = model

    async def generate(
        self, prompt: Sequence[int], sampling: SamplingParams
    ) -> Generation:
        """One request, to its end; raises EngineError when it is refused. Of the tokens only the
        times are known: each frame with text counts as one."""
        body = {
            "model": self._model,
            "prompt": list(prompt),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "ignore_eos": True,
            "stream": True,
        }
        result = Generation([], [])
        began = time.perf_counter()
        async with self._http.post("/v1/completions", json=body) as response:
            if response.status != 200:
                raise EngineError(f"the peer says: {await response.text()}")
            async for line in response.content:
                if not line.startswith(_PREFIX) or line.strip().endswith(_END):
                    continue
                if json.loads(line[len(_PREFIX) :])["choices"]:
                    result.tokens.append(-1)
                    result.token_times_s.append(time.perf_counter() - began)
        return result


@asynccontextmanager
async def open_peer(url: str) -> AsyncIterator[Peer]:
    """The server at `url`, with the first model that it lists."""
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(url, timeout=timeout) as http:
        async with http.get("/v1/models") as response:
            listed = await response.json()
        yield Peer(http, listed["data"][0]["id"])
