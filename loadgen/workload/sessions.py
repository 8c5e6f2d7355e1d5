"""Sessions: chats and agents, whose every turn sends again all that was said before.

A session begins with the system prompt of its kind, which all sessions of that kind share. Then
turns follow each other: a message (a person's, or the output of a tool), the answer, a pause (the
person thinks, or the tool works). Sessions arrive however slow the server is; within a session the
next turn waits for the answer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from loadgen.errors import LoadgenError
from loadgen.records import LONG, SHORT, PlannedRequest, RequestRecord, Turn
from loadgen.workload.lengths import Draw, parse_lengths, scaled


class SessionMix(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of session, in the words of `loadgen.workload.lengths`."""

    system_len: int  # tokens that all sessions of this kind begin with
    first_len: str
    message_len: str  # of every further message
    output_len: str
    turns: str
    pause_ms: str


# Of --sessions. A chat: questions and answers of some hundred tokens, a person who
# reads and thinks. An agent: a long system prompt with its tools, a task, short calls,
# outputs of tools that come soon and now and then are long.
SESSIONS = {
    "chat": SessionMix(
        system_len=200,
        first_len="lognormal:120:1.0:8:4096",
        message_len="lognormal:60:0.9:4:2048",
        output_len="lognormal:180:0.8:8:1024",
        turns="2:12",
        pause_ms="lognormal:10000:0.8:1000:120000",
    ),
    "agent": SessionMix(
        system_len=2000,
        first_len="lognormal:250:0.8:16:4096",
        message_len="lognormal:400:1.2:16:8192",
        output_len="lognormal:80:0.7:8:1024",
        turns="4:24",
        pause_ms="lognormal:1000:1.0:50:60000",
    ),
}


def sessions(
    mixes: Sequence[SessionMix],
    count: int,
    seed: int,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    scale_time: float = 1.0,
    long_threshold: int,
) -> list[PlannedRequest]:
    """The turns of `count` sessions, without arrival times; each session is of one of the mixes.
    Every one draws from randomness of its own, so that more sessions leave the others as they
    are."""
    if count < 1:
        raise LoadgenError("--num-sessions must be at least 1")
    drawn = [_Drawn(number, mix, scale, scale_time) for number, mix in enumerate(mixes)]
    planned: list[PlannedRequest] = []
    for session in range(count):
        rng = random.Random(f"{seed}/session/{session}")
        kind = rng.choice(drawn)
        position = session / count
        planned += kind.session(rng, position, session, len(planned), long_threshold)
    return planned


class _Drawn:
    """A mix, ready to draw sessions."""

    def __init__(
        self,
        number: int,
        mix: SessionMix,
        scale: tuple[float, float],
        scale_time: float,
    ) -> None:
        self._system_block = -1 - number
        self._system = scaled(mix.system_len, scale[0]) if mix.system_len else 0
        self._first = parse_lengths(mix.first_len)
        self._message = parse_lengths(mix.message_len)
        self._output = parse_lengths(mix.output_len)
        self._turns = parse_lengths(mix.turns)
        self._pause_ms = _pauses(mix.pause_ms)
        self._scale = scale
        self._scale_time = scale_time

    def session(
        self,
        rng: random.Random,
        position: float,
        session: int,
        first_index: int,
        long_threshold: int,
    ) -> list[PlannedRequest]:
        """One session's turns; their indexes follow each other."""

        def draw(distribution: Draw, factor: float) -> int:
            return scaled(distribution(rng, position), factor)

        turns: list[PlannedRequest] = []
        count = self._turns(rng, position)
        history = self._system
        for number in range(count):
            index = first_index + number
            message = draw(self._message if number else self._first, self._scale[0])
            answer = draw(self._output, self._scale[1])
            pause_s = self._scale_time * self._pause_ms(rng, position) / 1000
            prompt = history + message
            turns.append(
                PlannedRequest(
                    index=index,
                    prompt_tokens=prompt,
                    output_tokens=answer,
                    kind=LONG if prompt > long_threshold else SHORT,
                    blocks=(self._system_block,) if self._system and not number else (),
                    block_tokens=0 if number else self._system,
                    turn=Turn(
                        session=session,
                        number=number,
                        count=count,
                        message_tokens=message,
                        pause_s=pause_s if number else 0.0,
                    ),
                    after=index - 1 if number else None,
                )
            )
            history = prompt + answer
        return turns


def _pauses(text: str) -> Draw:
    """Lengths, or 0: the next turn comes at once."""
    return (lambda rng, position: 0) if text == "0" else parse_lengths(text)


def whole(requests: Sequence[PlannedRequest]) -> list[PlannedRequest]:
    """Leave out turns without the turn before them; a session then ends where it was cut."""
    counts: dict[int, int] = {}
    kept: list[PlannedRequest] = []
    present: set[int] = set()
    for request in requests:
        if request.after is not None and request.after not in present:
            continue
        present.add(request.index)
        kept.append(request)
        if request.turn is not None:
            counts[request.turn.session] = request.turn.number + 1
    return [_recounted(request, counts) for request in kept]


def _recounted(request: PlannedRequest, counts: dict[int, int]) -> PlannedRequest:
    turn = request.turn
    if turn is None or counts[turn.session] == turn.count:
        return request
    cut = msgspec.structs.replace(turn, count=counts[turn.session])
    return msgspec.structs.replace(request, turn=cut)


def as_answered(request: PlannedRequest, before: RequestRecord) -> PlannedRequest:
    """A turn with its prompt as long as the turn before it has made it."""
    turn = request.turn
    assert turn is not None
    prompt = before.usage_prompt_tokens
    history = (
        before.prompt_tokens if prompt is None else prompt
    ) + before.generated_tokens
    return msgspec.structs.replace(
        request,
        prompt_tokens=history + turn.message_tokens,
        known_tokens=history - 1,
    )
