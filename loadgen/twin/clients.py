"""The clients of a simulated server: what they send, token for token, and when.

Prompts are made of numbers that are equal where the tokens of real prompts would be: a prefix block
is its number over and over, a request's own tokens are the request's number, and a session's turn
begins with the prompt and the answer before it. So the product's `PageStore` finds in the twin what
it would find in the server. Requests of a workload that shares nothing stay out of the cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

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


class Clients:
    """Those of one replica. In a closed loop `concurrency` of them send, each a request or a
    session at a time."""

    def __init__(self, requests: Sequence[PlannedRequest], concurrency: int | None = None) -> None:
        first = [request for request in requests if request.after is None]
        self._started = first if concurrency is None else first[:concurrency]
        self._waiting = deque(() if concurrency is None else first[concurrency:])
        self._next: dict[str, PlannedRequest] = {}  # by id of the request before
        by_index = {request.index: request for request in requests}
        for request in requests:
            if request.after is not None:
                self._next[name_of(by_index[request.after])] = request
        self._closed = concurrency is not None
        self._blocks: dict[int, int] = {}  # block id: its number

    def start(self) -> Iterator[Request]:
        """Whatever waits for nobody's answer."""
        for planned in self._started:
            at = 0.0 if self._closed else planned.at or 0.0
            yield self._request(planned, at, self._beginning(planned))

    def follow(self, log: RequestLog, now: float) -> Request | None:
        """What the client sends whose request has just ended."""
        planned = self._next.get(log.request.id)
        if planned is not None and planned.turn is not None and succeeded(log.finished):
            prompt = self._continued(log, planned.turn.message_tokens, planned.index)
            return self._request(planned, now + planned.turn.pause_s, prompt)
        if not self._waiting:
            return None
        planned = self._waiting.popleft()
        return self._request(planned, now, self._beginning(planned))

    def _request(self, planned: PlannedRequest, at: float, prompt: bytes) -> Request:
        return Request(
            id=name_of(planned),
            prompt_token_ids=prompt,
            sampling=SamplingParams(max_tokens=planned.output_tokens, temperature=0.0),
            objectives=Objectives(),
            arrived_at=at,
            cache=planned.known_tokens is not None,
        )

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

    def _continued(self, log: RequestLog, message_tokens: int, index: int) -> bytes:
        answer = pack_tokens([token_of(log.request.id, at) for at in range(len(log.token_times))])
        return log.request.prompt_token_ids + answer + _own(index, message_tokens)


def name_of(planned: PlannedRequest) -> str:
    """The id of a simulated request."""
    return f"{planned.kind}-{planned.index}"


def succeeded(finished: FinishedEvent | None) -> bool:
    """Whether an answer came to a good end."""
    return finished is not None and finished.reason in ("stop", "length")


def _own(index: int, count: int) -> bytes:
    """Tokens that no other request has."""
    return pack_tokens((_REQUESTS + index,)) * count
