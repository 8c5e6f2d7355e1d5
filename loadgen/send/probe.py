"""Gets to know a server before it is loaded: is it there, which model, which prompts does it take,
how long alone.

Whatever is wrong is found here, with one clear line, before the first request of the load.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from loadgen.errors import LoadgenError
from loadgen.judge.objectives import Objectives, objective_headers
from loadgen.records import PlannedRequest, RequestRecord, open_record
from loadgen.send.alphabet import WORDS as COMMON
from loadgen.send.alphabet import Count, file_counter, joined, single_token_words
from loadgen.send.events import error_text
from loadgen.send.options import ServerOptions
from loadgen.send.prompts import Alphabet, PromptMaker, ids_alphabet, text_alphabet
from loadgen.send.targets import (
    OpenAITarget,
    RequestStyle,
    ServerAddress,
    parse_address,
)

_FALLBACK_IDS = range(
    1000, 8000
)  # ordinary tokens in every vocabulary of a common size


class Model(msgspec.Struct, frozen=True):
    """A model that the server offers."""

    id: str
    max_model_len: int | None = None
    root: str | None = None


class _Models(msgspec.Struct):
    data: list[Model]


class ServerProbe:
    """A server as options describe it. Use as an asynchronous context manager."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.address: ServerAddress = parse_address(options.base_url)
        self.headers = request_headers(options)
        self._count_locally: Count | None = None
        if (
            options.tokenizer is not None
        ):  # a wrong path is told, even if it would not be needed
            self._count_locally = file_counter(Path(options.tokenizer))
        self._alphabets: dict[tuple[str, bool], Alphabet] = {}
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> ServerProbe:
        timeout = aiohttp.ClientTimeout(total=60, connect=10)
        self._session = aiohttp.ClientSession(headers=self.headers, timeout=timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def model(self) -> Model:
        """The model to load; waits for the server as long as --ready-check-timeout-sec says."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self.options.ready_check_timeout_sec
        while True:
            try:
                models = await self._models()
                break
            except _NotReadyError as error:
                if loop.time() >= until:
                    raise LoadgenError(str(error)) from None
                await asyncio.sleep(min(1.0, max(0.0, until - loop.time())))
        wanted = self.options.model
        for model in models:
            if wanted is None or wanted in (model.id, model.root):
                return model
        names = ", ".join(model.id for model in models) or "none at all"
        raise LoadgenError(
            f"{self.address.url} has no model '{wanted}'; it has {names}"
        )

    async def _models(self) -> list[Model]:
        url = f"{self.address.url}/v1/models"
        try:
            async with self._session.get(url) as response:
                status = response.status
                body = await response.read()
        except aiohttp.ClientConnectorError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise _NotReadyError(
                f"no server answers at {self.address.url} ({reason}); is it running?"
            ) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _NotReadyError(
                f"no HTTP server answers at {self.address.url} ({_name(error)})"
            ) from None
        # Ray Serve answers 404 at first, while it is starting
        starting = status == 404 and self.options.ready_check_timeout_sec > 0
        if starting or status in (502, 503):
            raise _NotReadyError(f"{url}: HTTP {status}: the server is not ready")
        if status in (401, 403):
            raise LoadgenError(
                f"{url}: HTTP {status}: set OPENAI_API_KEY or --header authorization='Bearer KEY'"
            )
        try:
            if status != 200:
                raise ValueError
            return msgspec.json.decode(body, type=_Models).data
        except ValueError:
            raise LoadgenError(
                f"{url}: HTTP {status}, no list of models: is --base-url right?"
            ) from None

    def style(
        self,
        model: Model,
        objectives: Objectives = Objectives(),  # noqa: B008
    ) -> RequestStyle:
        """What goes into every request."""
        options = self.options
        headers_of = None
        if options.send_objectives:
            headers_of = partial(objective_headers, objectives)
        return RequestStyle(
            model=model.id,
            endpoint=options.endpoint,
            headers=self.headers,
            extra_body=options.body(),
            timeout_s=options.request_timeout if options.request_timeout > 0 else None,
            objective_headers=headers_of,
        )

    async def alphabet(self, model: Model, text: bool = False) -> Alphabet:
        """What prompts are made of, tried out once: token ids where they are accepted, else words.
        `text`: words, because answers, which are text, become part of prompts."""
        key = (model.id, text)
        if key not in self._alphabets:
            self._alphabets[key] = await self._alphabet(model, text)
        return self._alphabets[key]

    async def _alphabet(self, model: Model, text: bool) -> Alphabet:
        wanted = self.options.prompt_format
        if text and wanted == "ids":
            raise LoadgenError("--sessions send text: leave out --prompt-format ids")
        if wanted in ("auto", "ids") and not self.options.chat and not text:
            alphabet = ids_alphabet(await self._token_ids(model))
            try:
                return await self._tried(model, alphabet)
            except _RefusedError:
                if wanted == "ids":
                    raise
        elif wanted == "ids":
            raise LoadgenError("--prompt-format ids needs --endpoint /v1/completions")
        if wanted == "approximate":
            return await self._tried(model, text_alphabet(COMMON, exact=False))
        words, overhead = await single_token_words(await self._counter(model))
        return await self._tried(model, text_alphabet(words, overhead))

    async def ask(self, target: OpenAITarget, request: PlannedRequest) -> RequestRecord:
        """One request, alone."""
        record = open_record(request, "trial")
        ended: asyncio.Future[RequestRecord] = (
            asyncio.get_running_loop().create_future()
        )
        target.send(target.prepare(request, record), record, ended.set_result)
        return await ended

    async def _tried(self, model: Model, alphabet: Alphabet) -> Alphabet:
        """Send a small request as the load will; learns what the server adds to a prompt. Raises
        _RefusedError."""
        words = 24
        target = OpenAITarget(
            self.address, self.style(model), PromptMaker(alphabet, seed=-1)
        )
        request = PlannedRequest(
            index=0,
            prompt_tokens=alphabet.overhead + words,
            output_tokens=2,
            kind="trial",
        )
        try:
            record = await self.ask(target, request)
        finally:
            await target.close()
        if record.error is not None:
            where = f"{self.address.url}{self.options.endpoint}"
            raise _RefusedError(f"{where} refused a trial request: {record.error}")
        if record.usage_prompt_tokens is not None and alphabet.exact:
            return msgspec.structs.replace(
                alphabet, overhead=record.usage_prompt_tokens - words
            )
        return alphabet

    async def _token_ids(self, model: Model) -> tuple[int, ...]:
        """Ids of ordinary tokens: those given, those of common words, or a range that is ordinary
        everywhere."""
        given = self.options.token_ids
        if given is not None:
            try:
                low, high = map(int, given.split(":"))
                if not 0 <= low < high:
                    raise ValueError
            except ValueError:
                raise LoadgenError(
                    f"--token-ids {given}: write LOWEST:HIGHEST"
                ) from None
            return tuple(range(low, high + 1))
        try:
            token_ids = await self._tokenize(model, joined(COMMON))
        except LoadgenError:
            return tuple(_FALLBACK_IDS)
        ordinary = tuple(sorted(set(token_ids[1:-1])))  # BOS and EOS stand at the ends
        return ordinary or tuple(_FALLBACK_IDS)

    async def _counter(self, model: Model) -> Count:
        """The best way to count tokens: a local tokenizer, `/tokenize`, or the usage of a 1-token
        request."""
        if self._count_locally is not None:
            return self._count_locally

        async def by_tokenize(text: str) -> int:
            return len(await self._tokenize(model, text))

        try:
            await by_tokenize("hello")
        except LoadgenError:
            return lambda text: self._count_by_usage(model, text)
        return by_tokenize

    async def _tokenize(self, model: Model, text: str) -> list[int]:
        answer = await self._post("/tokenize", {"model": model.id, "prompt": text})
        tokens = answer.get("tokens")
        if not isinstance(tokens, list) or not all(
            isinstance(token, int) for token in tokens
        ):
            raise LoadgenError("/tokenize gives no token ids")
        return tokens

    async def _count_by_usage(self, model: Model, text: str) -> int:
        body: dict[str, Any] = {"model": model.id, "max_tokens": 1}
        if self.options.chat:
            body["messages"] = [{"role": "user", "content": text}]
        else:
            body["prompt"] = text
        answer = await self._post(self.options.endpoint, body)
        tokens = (answer.get("usage") or {}).get("prompt_tokens")
        if not isinstance(tokens, int):
            raise LoadgenError(
                "the server cannot count tokens; give --tokenizer FILE or --prompt-format "
                "approximate"
            )
        return tokens

    async def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            async with self._session.post(
                self.address.url + path, json=body
            ) as response:
                data = await response.read()
                decoded = msgspec.json.decode(data, type=dict[str, Any])
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise LoadgenError(f"{self.address.url}{path}: {_name(error)}") from None
        if response.status != 200:
            reason = error_text(decoded.get("error") or decoded)
            raise LoadgenError(
                f"{self.address.url}{path}: HTTP {response.status}: {reason}"
            )
        return decoded


class _NotReadyError(Exception):
    """Nobody answers, yet."""


class _RefusedError(LoadgenError):
    """The trial request failed."""


def request_headers(options: ServerOptions) -> dict[str, str]:
    """--header NAME=VALUE, and the API key of the environment."""
    headers = {}
    key = os.environ.get("OPENAI_API_KEY")
    if key:
        headers["Authorization"] = f"Bearer {key}"
    for line in options.header:
        name, separator, value = line.partition("=")
        if not separator or not name.strip() or any(mark in line for mark in "\r\n"):
            raise LoadgenError(f"--header {name}: write NAME=VALUE")
        headers[name.strip()] = value.strip()
    return headers


def _name(error: Exception) -> str:
    text = str(error)
    return text if text else type(error).__name__
