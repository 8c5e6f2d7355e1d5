"""The clients of a simulated server: what they send, token for token, and when.

Prompts are made of numbers that are equal where the tokens of real prompts would be: a prefix block
is its number over and over, a request's own tokens are the request's number, and a session's turn
begins with the prompt and the answer before it. So the product's `PageStore` finds in the twin what
it would find in the server. Requests of a workload that shares nothing stay out of the cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from loadgen.records import PlannedRequest
from medha_actors.core.simulator import RequestLog, token_of
from medha_actors.messages import (
    TOKEN_BYTES,
    FinishedEvent,
    Objectives,
    Request,
    SamplingParams,
    pack_tokens,
)

# Where numbers begin that stand for blocks and for requests. Simulated answers are below.
_BLOCKS = 2**24
_REQUESTS = 2**30
_NOTHING = Objectives()  # asked for


class Clients:
    """Those of one replica. In a closed loop `concurrency` of them send, each a request or a
    session at a time. `asked`: the objectives of those who ask for any, by index."""

    def __init__(
        self,
        requests: Sequence[PlannedRequest],
        concurrency: int | None = None,
        asked: Mapping[int, Objectives] | None = None,
    ) -> None:
        self._asked = asked or {}
        # whatever waits for nobody's answer; of a record, later turns have instants of their own
        free = [
            request
            for request in requests
            if request.after is None or request.at is not None
        ]
        self._closed = concurrency is not None
        self._started = free[:concurrency]
        self._waiting = deque(free[concurrency:] if self._closed else ())
        self._following = {
            request.after: request for request in requests if request.after is not None
        }
        self._index = {name_of(request): request.index for request in requests}
        self._said: dict[int, bytes] = {}  # prompt and answer, for the turn after
        self._blocks: dict[int, int] = {}  # block id: its number

    def start(self) -> Iterator[Request]:
        """What is sent at instants that are known."""
        for planned in self._started:
            yield self._request(planned, 0.0 if self._closed else planned.at or 0.0)

    def follow(self, log: RequestLog, now: float) -> Request | None:
        """What the client sends whose request has just ended."""
        planned = self._following.get(self._index[log.request.id])
        if planned is not None and planned.at is None and succeeded(log.finished):
            assert planned.turn is not None
            return self._request(planned, now + planned.turn.pause_s)
        return self._request(self._waiting.popleft(), now) if self._waiting else None

    def _request(self, planned: PlannedRequest, at: float) -> Request:
        return Request(
            id=name_of(planned),
            prompt_token_ids=self._prompt(planned),
            sampling=SamplingParams(max_tokens=planned.output_tokens, temperature=0.0),
            objectives=self._asked.get(planned.index, _NOTHING),
            arrived_at=at,
            cache=planned.known_tokens is not None,
        )

    def _prompt(self, planned: PlannedRequest) -> bytes:
        """Its tokens. What the answer to it will be is known before: a fixed function."""
        if planned.after is None:
            prompt = self._beginning(planned)
        else:
            assert planned.turn is not None
            message = _own(planned.index, planned.turn.message_tokens)
            prompt = self._said.pop(planned.after) + message
        if planned.index in self._following:
            name = name_of(planned)
            answer = [token_of(name, number) for number in range(planned.output_tokens)]
            self._said[planned.index] = prompt + pack_tokens(answer)
        return prompt

    def _beginning(self, planned: PlannedRequest) -> bytes:
        """The prompt of a request without a history."""
        if planned.known_tokens is None:
            return bytes(TOKEN_BYTES * planned.prompt_tokens)
        parts = []
        missing = planned.prompt_tokens
        for block in planned.blocks:
            count = min(missing, planned.block_tokens)
            number = self._blocks.setdefault(block, _BLOCKS + len(self._blocks))
            parts.append(pack_tokens((number,)) * count)
            missing -= count
        parts.append(_own(planned.index, missing))
        return b"".join(parts)


def name_of(planned: PlannedRequest) -> str:
    """The id of a simulated request."""
    return f"{planned.kind}-{planned.index}"


def succeeded(finished: FinishedEvent | None) -> bool:
    """Whether an answer came to a good end."""
    return finished is not None and finished.reason in ("stop", "length")


def _own(index: int, count: int) -> bytes:
    """Tokens that no other request has."""
    return pack_tokens((_REQUESTS + index,)) * count
