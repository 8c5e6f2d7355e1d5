"""Record: what the engine remembers of an answer, so that a cut stream can be resumed."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from medha_actors.messages import (
    TOKEN_BYTES,
    Accepted,
    FinishedEvent,
    PromptLogprobsEvent,
    Request,
    TokenEvent,
    unpack_tokens,
)

_decode_scored = msgspec.msgpack.Decoder(TokenEvent | PromptLogprobsEvent).decode


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine remembers of an answer: enough to say it again and to go on with it."""

    request: Request  # as it came first, never with `resumed`
    accepted: Accepted
    token_ids: bytes  # int32: the tokens generated so far
    first_token_at: float | None = None  # epoch seconds
    prompt_logprobs_until: int = 1  # prompt positions below this one have been reported
    # Where log-probabilities were asked for, all token and prompt events in their
    # order, each packed by itself: the controller has no time to decode them.
    scored: tuple[msgspec.Raw, ...] = ()
    # None: it is running, or its client went away
    finished: FinishedEvent | None = None

    @property
    def tokens(self) -> int:
        """Number of generated tokens."""
        return len(self.token_ids) // TOKEN_BYTES

    def events(self) -> Iterator[TokenEvent | PromptLogprobsEvent | FinishedEvent]:
        """Everything the engine has told of the answer, as it told it."""
        if self.scored:
            yield from map(_decode_scored, self.scored)
        else:
            at = self.first_token_at or self.request.arrived_at
            for index, token_id in enumerate(unpack_tokens(self.token_ids)):
                yield TokenEvent(self.request.id, index, token_id, at)
        if self.finished is not None:
            yield self.finished
