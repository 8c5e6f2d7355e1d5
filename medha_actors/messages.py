"""Every message that crosses a process, as frozen msgspec Structs.

Positions count tokens from the start of a request's sequence (prompt, then generated tokens). A
Span is the half-open range [start, stop) of positions that one step computes. Token ids travel as
little-endian int32 bytes: a prompt of a million tokens is 4 MB, cut into chunks by slicing, and
decoded without a Python list.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Literal

import msgspec

TOKEN_BYTES = 4
# What is done with a request whose first token cannot come in time: it is refused, put
# behind those who can be in time, or taken all the same.
Late = Literal["shed", "queue", "accept"]
# tokens of one request that a grammar forces, beside the one that was drawn: others wait for them
MOST_FORCED = 16
FinishReason = Literal["stop", "length", "abort", "error", "timeout"]


def pack_tokens(token_ids: Iterable[int]) -> bytes:
    """Token ids as little-endian int32 bytes."""
    return array("i", token_ids).tobytes()


def unpack_tokens(packed: bytes) -> list[int]:
    """The inverse of pack_tokens."""
    tokens = array("i")
    tokens.frombytes(packed)
    return tokens.tolist()


class Grammar(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an answer must look like."""

    text: str  # in llguidance's variant of Lark
    # tokens that come where the grammar may end, and only there
    end_ids: tuple[int, ...]


class SamplingParams(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True
):
    """How tokens are chosen; all values are already validated and resolved (EOS ids are in
    `stop_token_ids`)."""

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    # always set by the ingress; the draw for token i depends on (seed, i) alone
    seed: int = 0
    # generation ends with finish "stop" after one of them (from min_tokens on; with a
    # grammar also before, where it lets nothing else follow)
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    # None: no log-probabilities; k: the chosen token's and the k most likely ones'
    logprobs: int | None = None
    # the same for the prompt's own tokens (OpenAI's `echo` with `logprobs`)
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None

    @property
    def penalised(self) -> bool:
        """True if earlier tokens change the logits."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )

    @property
    def looks_back(self) -> bool:
        """True if earlier tokens change what may be drawn."""
        return self.penalised or self.grammar is not None


class Objectives(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the client asks of the service; None: derived from length (TTFT) or the server's default
    (TPOT)."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    timeout_s: float | None = None
    # what is wanted if it cannot be in time; None: the server's default
    late: Late | None = None


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an ingress replica must know of the engine that serves."""

    max_model_len_tokens: int
    # a digest: requests go on in another engine only if it has the same model
    model: str


class Resumed(msgspec.Struct, frozen=True, kw_only=True):
    """What is known already of a request that goes on in another engine than the one it began in.

    Its tokens are computed again (a prefill of everything known), and none is drawn twice.
    """

    token_ids: bytes  # int32: the tokens generated so far
    first_token_at: float | None = None  # epoch seconds
    prompt_logprobs_until: int = 1  # prompt positions below this one have been reported


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence to generate. `arrived_at` is in seconds since the epoch, taken at the HTTP
    edge."""

    id: str
    prompt_token_ids: bytes
    sampling: SamplingParams
    objectives: Objectives = Objectives()
    # smaller is served earlier, before any policy, of those of the same tenant
    priority: int = 0
    # whose share of the machine it has; "": all who are not told apart
    tenant: str = ""
    arrived_at: float = 0.0
    # what a first token takes to the client, as its replica has learned
    way_s: float = 0.0
    traceparent: str | None = None
    # of the answer that is this sequence alone; None: of several
    answer_id: str | None = None
    resumed: Resumed | None = None
    # the KV of requests with another salt is never used for this one
    cache_salt: str = ""
    cache: bool = True  # False: uses nobody's KV, and leaves nothing for others to use

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt_token_ids) // TOKEN_BYTES


class Accepted(msgspec.Struct, frozen=True, tag="accepted", kw_only=True):
    """The request is in the queue. `deadline_at` is the instant (epoch seconds) its first token is
    due."""

    deadline_at: float
    ttft_objective_s: float
    tpot_objective_s: float
    predicted_ttft_s: float
    cached_tokens: int = 0  # of the prompt, found in the prefix cache on arrival


class Rejected(msgspec.Struct, frozen=True, tag="rejected", kw_only=True):
    """The request is refused before any work; maps to one HTTP error."""

    status: int
    kind: str
    message: str
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None


class Introduction(msgspec.Struct, frozen=True, array_like=True):
    """What a stage must know of a request before its first span (or again after its KV was
    dropped)."""

    request_id: str
    sampling: SamplingParams | None  # None on all but the last stage's writer groups
    # int32, positions [0, n) that this group will see no span of; for those that look back
    token_ids: bytes = b""


class Span(msgspec.Struct, frozen=True, array_like=True):
    """Positions [start, stop) of one request in one step, as one KV group sees them.

    A group holds one contiguous piece of the request's KV, positions [piece_start, ...). The group
    with `writes` stores the span's own keys and values (causal among themselves); the other groups
    of `groups` only attend to their piece.
    """

    request_id: str
    start: int
    stop: int
    token_ids: bytes  # int32, one for each position of the span
    piece_start: int  # first position of this group's piece
    piece_tokens: int  # tokens cached in this group's piece before this span
    # pages appended to the request's page table in this group
    new_pages: tuple[int, ...]
    writes: bool = True
    sample: bool = False  # draw a token from the last row (only where `writes`)
    index: int = 0  # which output token that is, 0 for the first
    # all groups that hold a piece, in sequence order; empty: this one alone
    groups: tuple[int, ...] = ()
    # the known token after `stop`, for prompt log-probabilities
    next_token_id: int = -1


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """A stage could not do one request's work; `message` is for its client. The others' is done."""

    request_id: str
    message: str


class Move(msgspec.Struct, frozen=True, array_like=True):
    """A page's contents to a slot of the second tier, or (`load`) back from there."""

    page: int
    slot: int
    load: bool


class StepMessage(msgspec.Struct, frozen=True, array_like=True):
    """One batch as one KV group sees it: to stage 0, then from stage to stage beside the hidden
    states.

    Spans with several groups come first, those of the same groups together, in the same order in
    every group.
    """

    batch_id: int
    spans: tuple[Span, ...]
    opened: tuple[Introduction, ...] = ()
    # requests whose replicated state can be dropped; their pages may be in this batch already
    closed: tuple[str, ...] = ()
    stage_seconds: tuple[float, ...] = ()  # compute time of the stages passed so far
    # when each of them began, epoch seconds of its host
    stage_starts: tuple[float, ...] = ()
    # the part of it spent exchanging partial attention with other groups
    exchange_seconds: tuple[float, ...] = ()
    failures: tuple[Failure, ...] = ()  # of the stages passed so far
    moves: tuple[Move, ...] = ()  # carried out in this order, before everything else
    # no other batch is in the grid while this one is: it may have all processors
    alone: bool = False


class SampledToken(msgspec.Struct, frozen=True, array_like=True):
    """One drawn token, with log-probabilities if they were asked for.

    `forced`: what would be drawn next, since a grammar leaves nothing else, in this order. Whoever
    takes none of it draws it.
    """

    request_id: str
    index: int
    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    forced: tuple[int, ...] = ()


class PromptLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities of the known tokens at positions start+1, start+2, ... (the first position
    has none)."""

    request_id: str
    start: int
    entries: tuple[tuple[float, tuple[tuple[int, float], ...]], ...]


class StepResult(msgspec.Struct, frozen=True, array_like=True):
    """What a batch produced in one KV group; the last stage sends it to the controller."""

    batch_id: int
    group: int
    tokens: tuple[SampledToken, ...]
    # seconds of work (waits for input left out) of each stage
    stage_seconds: tuple[float, ...]
    prompt_logprobs: tuple[PromptLogprobs, ...] = ()
    stage_starts: tuple[float, ...] = ()  # as in StepMessage
    exchange_seconds: tuple[float, ...] = ()
    failures: tuple[Failure, ...] = ()


class TokenEvent(msgspec.Struct, frozen=True, tag="token", array_like=True):
    """Token `index` of a request exists. `at` is in epoch seconds."""

    request_id: str
    index: int
    token_id: int
    at: float
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class PromptLogprobsEvent(
    msgspec.Struct, frozen=True, tag="prompt_logprobs", array_like=True
):
    """A piece of the prompt's log-probabilities (see PromptLogprobs)."""

    request_id: str
    start: int
    entries: tuple[tuple[float, tuple[tuple[int, float], ...]], ...]


class ProgressEvent(msgspec.Struct, frozen=True, tag="progress", array_like=True):
    """A long prefill moved on."""

    request_id: str
    prefilled_tokens: int
    total_tokens: int
    seconds_left: float


class FinishedEvent(
    msgspec.Struct, frozen=True, tag="finished", array_like=True, kw_only=True
):
    """The last event of a request. Instants are in epoch seconds; None: never reached."""

    request_id: str
    reason: FinishReason
    message: str | None = None  # for "error" and "timeout"
    # for "error": the request may succeed when sent again then
    retry_after_s: float | None = None
    prompt_tokens: int = 0
    generated_tokens: int = 0
    arrived_at: float = 0.0
    scheduled_at: float | None = None
    prefilled_at: float | None = None
    first_token_at: float | None = None
    finished_at: float = 0.0
    deadline_at: float = 0.0
    preemptions: int = 0  # times another request took the turn of this one's prefill
    recomputed_tokens: int = 0  # tokens whose KV was dropped and computed again
    cached_tokens: int = 0  # of the prompt, that came from the prefix cache


class DrainingEvent(msgspec.Struct, frozen=True, tag="draining", array_like=True):
    """Belongs to no request: the controller takes no new ones any more."""


Event = TokenEvent | PromptLogprobsEvent | ProgressEvent | FinishedEvent
