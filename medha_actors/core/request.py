"""What the scheduler knows of one request: counts of tokens, not phases; and the instants worth
reporting.

    0 <= computed <= dispatched <= known = prompt + generated

`dispatched` tokens were handed to the pipeline, `computed` ones came back: the distance between the
two is what stream pipeline parallelism lives on (paper, 3.3). A prefill covers [0, goal): the
prompt, or after the KV cache was dropped everything known by then. Past the goal the request
decodes, one token at a time.

A request that begins with tokens whose KV is cached starts with `dispatched = computed = hit`. Its
work, and all that is derived from it, counts from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from medha_actors.core.page_keys import PageKeys
from medha_actors.messages import (
    TOKEN_BYTES,
    Event,
    FinishedEvent,
    FinishReason,
    PromptLogprobs,
    PromptLogprobsEvent,
    Request,
    Resumed,
    pack_tokens,
)

NO_DANGER = range(0)


@dataclass(slots=True, eq=False)
class Piece:
    """The part of a request's KV cache that one group holds: positions from `start` to the next
    piece's start."""

    group: int
    start: int
    pages: list[int] = field(default_factory=list)
    promised: int = 0  # pages reserved for this piece and not yet taken
    sent: int = 0  # pages the stages have been told of
    opened: bool = False  # the stages of the group know the request


@dataclass(slots=True)
class Milestones:
    """Instants in epoch seconds (None: not reached) and the disturbances on the way."""

    arrived_at: float
    deadline_at: float  # when the first token is due
    scheduled_at: float | None = None
    prefilled_at: float | None = None
    first_token_at: float | None = None
    preemptions: int = 0
    recomputed_tokens: int = 0
    # of the prompt, that were found in the cache when it first started
    cached_tokens: int = 0


@dataclass(slots=True, eq=False)
class RequestState:
    """One live request. `serial` numbers arrivals and breaks ties; `tenant`: whose share of the
    machine it has (core/shares.py)."""

    request: Request
    serial: int
    milestones: Milestones
    tpot_s: float
    timeout_at: float
    prompt: int
    goal: int
    tenant: str = ""
    generated: bytearray = field(default_factory=bytearray)
    dispatched: int = 0
    computed: int = 0
    pieces: list[Piece] = field(default_factory=list)
    # goes up when the KV cache is dropped: results of older spans no longer count
    epoch: int = 0
    total_work_s: float = 0.0  # predicted isolated prefill of [hit, goal)
    remaining_s: float = 0.0  # the part of it that is not dispatched
    # of that, what the first stage has to do: how long others wait for it
    load_s: float = 0.0
    # seconds that pass for each of its work under the load that it found (core/pace.py)
    drag: float = 1.0
    # of its time until the deadline, what batches on their way take: no order can spend it
    grace_s: float = 0.0
    # prompt positions below this one have had their log-probabilities reported
    logprobs_until: int = 1
    # which kind of forecast there was at which instant, in how many seconds the first
    # token was expected, before what is learned of such forecasts (core.pace)
    expected: tuple[int, float, float] | None = None
    keys: PageKeys | None = None  # of its pages; None: it neither finds nor leaves any
    hit: int = 0  # tokens it started behind; while it waits, those it would find now
    stored: int = 0  # what lies before this is loaded from the second tier, as far as one can tell
    published: int = 0  # pages that others can find, as far as they can be found at all
    # tokens that were computed when its KV cache was dropped last; 0: never
    dropped: int = 0
    # positions that were in flight when the pipeline died (core.suspects)
    danger: range = NO_DANGER

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def output(self) -> int:
        """Number of generated tokens."""
        return len(self.generated) // TOKEN_BYTES

    @property
    def known(self) -> int:
        return self.prompt + len(self.generated) // TOKEN_BYTES

    @property
    def due_at(self) -> float:
        """When the next token is due: the deadline for the first, one TPOT objective later for each
        further one."""
        return self.milestones.deadline_at + self.tpot_s * self.output

    @property
    def prefilling(self) -> bool:
        """Some of the prefill is not dispatched yet."""
        return self.dispatched < self.goal

    @property
    def hit_limit(self) -> int:
        """Tokens that may come from the cache: not the last one known, whose row draws the next
        token; not those whose rows have log-probabilities to report; and of what was in flight when
        the pipeline died, none, nor the token before it, so that a suspect does not start there."""
        if (
            self.request.sampling.prompt_logprobs is None
            or self.logprobs_until >= self.prompt
        ):
            limit = self.known - 1
        else:
            limit = self.logprobs_until - 1
        return max(0, min(limit, self.danger.start - 1)) if self.danger else limit

    @property
    def at_danger(self) -> bool:
        """The next span must run alone."""
        return self.dispatched in self.danger

    @property
    def edge(self) -> int:
        """Where the next span of a prefill must end: all of a span is dangerous, or nothing."""
        for edge in (self.danger.start, self.danger.stop):
            if self.dispatched < edge:
                return min(edge, self.goal)
        return self.goal

    def endanger(self, start: int, stop: int) -> None:
        """Positions [start, stop) were in flight when the pipeline died."""
        if self.danger:
            start = min(start, self.danger.start)
            stop = max(stop, self.danger.stop)
        self.danger = range(start, stop)

    @property
    def left_s(self) -> float:
        """Seconds that the rest of the prefill takes under the load that it found."""
        return self.drag * self.remaining_s

    @property
    def latest_start_at(self) -> float:
        """When the rest of the prefill has to go on at the latest, to be in time."""
        return self.due_at - self.grace_s - self.left_s

    def slack(self, now: float) -> float:
        """Seconds the rest of the prefill could be put off without missing the deadline; negative:
        it is late."""
        return self.latest_start_at - now

    def relative_slack(self, now: float) -> float:
        """rho of LARS (paper, 4.1): slack over total work; smaller is more urgent."""
        return self.slack(now) / max(self.drag * self.total_work_s, 1e-9)

    def tokens(self, start: int, stop: int) -> bytes:
        """Packed ids of the known tokens at positions [start, stop)."""
        first = start * TOKEN_BYTES
        end = stop * TOKEN_BYTES
        prompt_end = self.prompt * TOKEN_BYTES
        if start >= self.prompt:
            return bytes(self.generated[first - prompt_end : end - prompt_end])
        prompt = self.request.prompt_token_ids
        if stop <= self.prompt:
            return prompt[first:end]
        return prompt[first:prompt_end] + bytes(self.generated[: end - prompt_end])

    def append(self, token_id: int) -> None:
        """One more known token."""
        self.generated += pack_tokens((token_id,))

    def ending(self, token_id: int, max_tokens: int) -> FinishReason | None:
        """Why generation ends with the token just appended, if it does; `max_tokens`: the model's
        length."""
        sampling = self.request.sampling
        if token_id in sampling.stop_token_ids and (
            # With a grammar an early stop token comes only where nothing else may.
            self.output >= sampling.min_tokens or sampling.grammar is not None
        ):
            return "stop"
        if self.output >= sampling.max_tokens or self.known >= max_tokens:
            return "length"
        return None

    def scored(self, scores: PromptLogprobs) -> list[Event]:
        """Scores of positions from `start` + 1 on: those in the prompt that are new are told."""
        first = scores.start + 1
        low = max(first, self.logprobs_until)
        high = min(first + len(scores.entries), self.prompt)
        self.logprobs_until = max(self.logprobs_until, high)
        if low >= high:
            return []
        return [
            PromptLogprobsEvent(
                self.id, low - 1, scores.entries[low - first : high - first]
            )
        ]

    def drop_cache(self) -> None:
        """Forget everything computed: the request becomes a prefill of all tokens known now. None
        is lost."""
        self.milestones.recomputed_tokens += self.computed
        self.dropped = self.computed
        self.epoch += 1
        self.pieces = []
        self.dispatched = self.computed = self.published = self.hit = self.stored = 0
        self.goal = self.known

    @property
    def work(self) -> tuple[int, int, int]:
        """What is left to dispatch of its prefill, for PrefillTable.seconds."""
        return max(self.hit, self.dispatched), self.goal, self.stored

    def begin(self, start: int) -> None:
        """The first span is on its way: what lies before `start` was found in the cache."""
        self.hit = start
        if not self.epoch:
            self.milestones.cached_tokens = min(self.hit, self.prompt)
        self.milestones.recomputed_tokens -= min(self.hit, self.dropped)

    def loaded(self, start: int, stop: int) -> None:
        """Positions [start, stop) have come from the second tier."""
        if self.dropped:
            self.milestones.recomputed_tokens -= max(0, min(stop, self.dropped) - start)
        else:
            self.milestones.cached_tokens += max(0, min(stop, self.prompt) - start)

    def resume(self, known: Resumed) -> None:
        """The request began in another engine: everything known of it becomes its prefill."""
        self.generated += known.token_ids
        self.goal = self.known
        self.logprobs_until = known.prompt_logprobs_until
        self.milestones.first_token_at = known.first_token_at
        if known.token_ids:
            self.milestones.recomputed_tokens = self.dropped = self.known - 1

    def rewind(self) -> None:
        """Nothing is in flight any more and the stages have forgotten the request, but its KV is
        still there."""
        self.epoch += 1
        self.dispatched = self.computed
        for piece in self.pieces:
            piece.opened = False
            piece.sent = 0

    def finished(
        self, reason: FinishReason, message: str | None, now: float
    ) -> FinishedEvent:
        """The last event; results still in flight no longer count."""
        self.epoch += 1
        milestones = self.milestones
        return FinishedEvent(
            request_id=self.id,
            reason=reason,
            message=message,
            prompt_tokens=self.prompt,
            generated_tokens=self.output,
            arrived_at=milestones.arrived_at,
            scheduled_at=milestones.scheduled_at,
            prefilled_at=milestones.prefilled_at,
            first_token_at=milestones.first_token_at,
            finished_at=now,
            deadline_at=milestones.deadline_at,
            preemptions=milestones.preemptions,
            recomputed_tokens=milestones.recomputed_tokens,
            cached_tokens=milestones.cached_tokens,
        )
