"""A server to try tools on without Ray: the real routes and the embedded model's tokenizer over an
engine that says a sentence, or what a grammar asks for in as few words as it can."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final

import numpy as np
import uvicorn
from llguidance import LLMatcher
from starlette.types import ASGIApp

from deployments.observatory import Observatory
from deployments.server import Server
from deployments.text import Text
from deployments.text_sources import load_text
from medha_actors.config import LimitsConfig, MedhaConfig, ModelLoadingConfig
from medha_actors.errors import UnavailableError
from medha_actors.files.vocabulary import load_vocabulary
from medha_actors.messages import (
    Event,
    PromptLogprobsEvent,
    Request,
    TokenEvent,
    unpack_tokens,
)
from medha_actors.model.matchers import Matchers
from tests.fakes import FakeEngine, finished

MODEL: Final = ModelLoadingConfig(model_id="smollm2-135m-instruct")
SENTENCE: Final = " Rivers begin in the hills and end in the sea."
# What brings JSON to its end soonest, the best first: an empty string, a closed object.
ENDINGS: Final = (b'"', b"}", b"]", b":", b",", b"1", b"[", b"{")
_LIKELY: Final = -0.25
_UNLIKELY: Final = -3.5
Top = tuple[tuple[int, float], ...]


class Absent:
    """Reports of a controller that is not there."""

    def __getattr__(self, name: str) -> Any:
        async def ask(*arguments: Any) -> Any:
            raise UnavailableError("there is no controller", retry_after_s=1.0)

        return ask


class Sayings:
    """What the engine says to whom."""

    def __init__(self, text: Text, most: int = 2**31) -> None:
        """`most`: tokens of an answer, whatever its request wants."""
        self._most = most
        vocabulary = load_vocabulary(MODEL)
        self._matchers = Matchers(lambda: vocabulary, len(vocabulary.tokens))
        self._words = vocabulary.tokens
        self._sentence = text.tokenizer.encode(SENTENCE, add_special_tokens=False).ids
        self._end = text.eos_token_ids[0]
        ids = {word: number for number, word in enumerate(self._words)}
        self._endings = [ids[word] for word in ENDINGS]

    async def say(self, request: Request) -> AsyncIterator[Event]:
        """A script for a FakeEngine."""
        if request.sampling.prompt_logprobs is not None:
            yield self._prompt(request, request.sampling.prompt_logprobs)
        tokens = self._tokens(request)
        for index, token_id in enumerate(tokens):
            most = request.sampling.logprobs
            top = () if most is None else self._top(token_id, most)
            chosen = None if most is None else _LIKELY
            yield TokenEvent(
                request.id, index, token_id, request.arrived_at + 1.0, chosen, top
            )
            await asyncio.sleep(0)  # others are answered in between
        stops = bool(tokens) and tokens[-1] in request.sampling.stop_token_ids
        yield finished(request, len(tokens), "stop" if stops else "length")

    def _tokens(self, request: Request) -> list[int]:
        sampling = request.sampling
        most = min(sampling.max_tokens, self._most)
        if sampling.grammar is not None:
            return self._follow(self._matchers.matcher(sampling.grammar), most)
        ends = self._end in sampling.stop_token_ids and sampling.min_tokens <= len(
            self._sentence
        )
        if ends:
            return [*self._sentence, self._end][:most]
        rounds = most // len(self._sentence) + 1
        return (self._sentence * rounds)[:most]

    def _follow(self, matcher: LLMatcher, most: int) -> list[int]:
        tokens: list[int] = []
        while len(tokens) < most:
            if matcher.is_accepting():
                return [*tokens, self._end]
            tokens.append(self._next(matcher))
            matcher.consume_token(tokens[-1])
        return tokens

    def _next(self, matcher: LLMatcher) -> int:
        """What ends the answer soon, else the longest word that may come."""
        packed = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(packed, bitorder="little")
        for token_id in self._endings:
            if allowed[token_id]:
                return token_id
        return max(
            np.flatnonzero(allowed).tolist(), key=lambda i: len(self._words[i].strip())
        )

    def _prompt(self, request: Request, most: int) -> PromptLogprobsEvent:
        tokens = unpack_tokens(request.prompt_token_ids)
        entries = [(_LIKELY, self._top(token_id, most)) for token_id in tokens[1:]]
        return PromptLogprobsEvent(request.id, 0, tuple(entries))

    def _top(self, token_id: int, most: int) -> Top:
        others: Sequence[int] = [
            number for number in range(most + 1) if number != token_id
        ]
        entries = [(token_id, _LIKELY), *[(number, _UNLIKELY) for number in others]]
        return tuple(entries[:most])


def scripted_server(most: int = 2**31) -> Server:
    """All routes of the shipped configuration; an answer has at most so many tokens."""
    patient = LimitsConfig(
        grammar_timeout_s=60.0
    )  # how busy the machine is, is no test's affair
    config = MedhaConfig(model_loading_config=MODEL, limits=patient)
    text = load_text(MODEL)
    engine = FakeEngine(Sayings(text, most).say)
    observatory = Observatory(config, Absent(), "r1")
    return Server(config, engine, text, observatory=observatory)


class _Announced(uvicorn.Server):
    """Tells when it listens."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(uvicorn.Config(app, port=0, log_level="warning", ws="none"))
        self.listens = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()


@contextlib.contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """The application's URL on a free port, while a thread of its own serves it."""
    server = _Announced(app)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert server.listens.wait(timeout=30)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
