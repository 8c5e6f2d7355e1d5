"""From Additions to OpenAI's bodies: choices of a whole answer, or of one chunk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import UNSET

from deployments import offsets
from deployments.detokenize import TokenTable
from deployments.extras import Extras
from deployments.job import Choice, Job
from deployments.outbox import Addition
from deployments.replies import (
    ChatChoice,
    ChatDelta,
    ChatLogprob,
    ChatLogprobs,
    ChatMessage,
    PromptTokensDetails,
    Reply,
    TextChoice,
    TextLogprobs,
    TimingReply,
    TopLogprob,
    UsageReply,
)
from deployments.thoughts import ThoughtReader, Told
from medha_actors.messages import (
    Accepted,
    FinishedEvent,
    PromptLogprobsEvent,
    TokenEvent,
)

# token, its log-probability, the likeliest ones, where it starts in the text
Entry = tuple[int, float | None, tuple[tuple[int, float], ...], int]


class Answer(Protocol):
    """How one endpoint writes its choices."""

    def chunk(self, addition: Addition) -> Reply | None:
        """What to stream for an addition; None: nothing yet."""
        ...

    def whole(self, additions: Iterable[Addition], usage: UsageReply) -> Reply:
        """The body of a complete answer."""
        ...

    def closing(self, usage: UsageReply) -> Reply:
        """The last chunk, which only tells the usage."""
        ...


class ChatAnswer:
    """/v1/chat/completions."""

    def __init__(self, job: Job, table: TokenTable) -> None:
        self._job = job
        self._table = table
        self._extras = Extras(job, table)
        self._started: set[int] = set()
        self._thought_readers: dict[int, ThoughtReader] = {}
        if job.thinking is not None:
            self._thought_readers = {
                choice.index: job.thinking.reader() for choice in job.choices
            }

    def chunk(self, addition: Addition) -> Reply:
        message = self._message(addition)
        if addition.index not in self._started:
            # The role comes with the first token: a frame of its own would look like a
            # token to those who measure.
            self._started.add(addition.index)
            message.role = "assistant"
        delta = ChatDelta(
            index=addition.index,
            delta=message,
            logprobs=self._logprobs(addition),
            finish_reason=addition.finish_reason,
            stop_reason=addition.stop_reason,
            token_ids=self._extras.token_ids(addition),
        )
        reply = self._reply([delta])
        reply.prompt_token_ids = self._extras.prompt_token_ids(0)
        return reply

    def whole(self, additions: Iterable[Addition], usage: UsageReply) -> Reply:
        additions = list(additions)
        choices = [
            ChatChoice(
                index=addition.index,
                message=self._whole_message(addition),
                logprobs=self._logprobs(addition),
                finish_reason=addition.finish_reason,
                stop_reason=addition.stop_reason,
                token_ids=self._extras.token_ids(addition),
            )
            for addition in additions
        ]
        job = self._job
        return Reply(
            id=job.id,
            object="chat.completion",
            created=job.created,
            model=job.model,
            choices=choices,
            usage=usage,
            prompt_token_ids=self._extras.prompt_token_ids(0),
            prompt_logprobs=self._extras.prompt_logprobs(additions[0]),
        )

    def closing(self, usage: UsageReply) -> Reply:
        reply = self._reply([])
        reply.usage = usage
        return reply

    def _message(self, addition: Addition) -> ChatMessage:
        """A delta: new text, new thoughts or both."""
        told = self._told(addition)
        if not told.thoughts:
            return ChatMessage(content=told.content)
        return ChatMessage(
            content=told.content or UNSET, reasoning_content=told.thoughts
        )

    def _whole_message(self, addition: Addition) -> ChatMessage:
        told = self._told(addition)
        thoughts = told.thoughts or UNSET
        return ChatMessage(
            role="assistant", content=told.content, reasoning_content=thoughts
        )

    def _told(self, addition: Addition) -> Told:
        """What an addition thinks, and what it says."""
        reader = self._thought_readers.get(addition.index)
        if reader is None:
            return Told("", addition.text)
        told = reader.push(addition.text)
        if addition.finish_reason is None:
            return told
        rest = reader.finish()
        return Told(told.thoughts + rest.thoughts, told.content + rest.content)

    def _reply(self, choices: list[ChatDelta]) -> Reply:
        job = self._job
        return Reply(
            id=job.id,
            object="chat.completion.chunk",
            created=job.created,
            model=job.model,
            choices=choices,
        )

    def _logprobs(self, addition: Addition) -> ChatLogprobs | None:
        if self._job.choices[addition.index].request.sampling.logprobs is None:
            return None
        return ChatLogprobs(content=[self._entry(token) for token in addition.tokens])

    def _entry(self, event: TokenEvent) -> ChatLogprob:
        chosen = self._top(event.token_id, event.logprob or 0.0)
        top = [self._top(token_id, logprob) for token_id, logprob in event.top_logprobs]
        return ChatLogprob(
            token=chosen.token,
            logprob=chosen.logprob,
            bytes=chosen.bytes,
            top_logprobs=top,
        )

    def _top(self, token_id: int, logprob: float) -> TopLogprob:
        raw = self._table.bytes_of(token_id)
        return TopLogprob(
            token=raw.decode("utf-8", "replace"),
            logprob=finite(logprob),
            bytes=list(raw),
        )


@dataclass(slots=True)
class _Written:
    """What a text choice has said so far."""

    started: bool = False
    echoed: int = 0  # characters of the prompt
    prompt_logprobs: list[PromptLogprobsEvent] = field(default_factory=list)


class TextAnswer:
    """/v1/completions, with `echo`: the prompt, and its log-probabilities, come before the first
    token."""

    def __init__(self, job: Job, table: TokenTable) -> None:
        self._job = job
        self._table = table
        self._extras = Extras(job, table)
        self._written = [_Written() for _ in job.choices]

    def chunk(self, addition: Addition) -> Reply | None:
        choice = self._choice(addition)
        return None if choice is None else self._reply([choice])

    def whole(self, additions: Iterable[Addition], usage: UsageReply) -> Reply:
        reply = self._reply(
            [
                choice
                for addition in additions
                if (choice := self._choice(addition)) is not None
            ]
        )
        reply.usage = usage
        return reply

    def closing(self, usage: UsageReply) -> Reply:
        reply = self._reply([])
        reply.usage = usage
        return reply

    def _reply(self, choices: list[TextChoice]) -> Reply:
        job = self._job
        return Reply(
            id=job.id,
            object="text_completion",
            created=job.created,
            model=job.model,
            choices=choices,
        )

    def _choice(self, addition: Addition) -> TextChoice | None:
        choice = self._job.choices[addition.index]
        written = self._written[addition.index]
        written.prompt_logprobs += addition.prompt_logprobs
        if addition.generated == 0 and addition.finish_reason is None:
            return None
        entries: list[Entry] = []
        text = addition.text
        if not written.started:
            written.started = True
            if choice.prompt_text is not None:
                text = choice.prompt_text + text
                written.echoed = len(choice.prompt_text)
                entries += self._prompt_entries(choice, choice.prompt_text, written)
        for token, start in zip(addition.tokens, addition.starts, strict=True):
            place = written.echoed + start
            entries.append((token.token_id, token.logprob, token.top_logprobs, place))
        logprobs = None
        if choice.request.sampling.logprobs is not None:
            logprobs = self._logprobs(entries)
        return TextChoice(
            index=addition.index,
            text=text,
            logprobs=logprobs,
            finish_reason=addition.finish_reason,
            stop_reason=addition.stop_reason,
            token_ids=self._extras.token_ids(addition),
            prompt_token_ids=self._extras.prompt_token_ids(addition.index),
            prompt_logprobs=self._extras.prompt_logprobs(addition),
        )

    def _prompt_entries(
        self, choice: Choice, text: str, written: _Written
    ) -> Iterable[Entry]:
        if choice.request.sampling.prompt_logprobs is None:
            return []
        places = offsets.starts(choice.prompt, text, self._table)
        entries: list[Entry] = [(choice.prompt[0], None, (), places[0])]
        for part in sorted(written.prompt_logprobs, key=lambda part: part.start):
            first = part.start + 1
            known = zip(
                choice.prompt[first:], part.entries, places[first:], strict=False
            )
            entries += [(i, logprob, top, place) for i, (logprob, top), place in known]
        written.prompt_logprobs.clear()
        return entries

    def _logprobs(self, entries: Iterable[Entry]) -> TextLogprobs:
        result = TextLogprobs()
        for token_id, logprob, top, place in entries:
            token = self._name(token_id)
            result.tokens.append(token)
            result.text_offset.append(place)
            if logprob is None:  # the prompt's first token has no log-probability
                result.token_logprobs.append(None)
                result.top_logprobs.append(None)
                continue
            result.token_logprobs.append(finite(logprob))
            result.top_logprobs.append(self._likeliest([*top, (token_id, logprob)]))
        return result

    def _likeliest(self, top: Iterable[tuple[int, float]]) -> dict[str, float]:
        """By name. Of several tokens of one name the likeliest: a client that asks whether a token
        was the likeliest one compares with the largest value."""
        named: dict[str, float] = {}
        for token_id, logprob in top:
            name = self._name(token_id)
            value = finite(logprob)
            named[name] = max(value, named.get(name, value))
        return named

    def _name(self, token_id: int) -> str:
        """A token as text; one that is not whole characters as OpenAI writes it, `bytes:\\xe2`."""
        raw = self._table.bytes_of(token_id)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def finite(logprob: float) -> float:
    """JSON has no infinity; vLLM writes -9999 for it, too."""
    return logprob if logprob > -9999.0 else -9999.0


def usage_of(
    job: Job, generated: int, cached: int, timing: TimingReply | None = None
) -> UsageReply:
    """`cached`: prompt tokens that the prefix cache saved."""
    usage = UsageReply(
        prompt_tokens=job.prompt_tokens,
        completion_tokens=generated,
        total_tokens=job.prompt_tokens + generated,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
    )
    if timing is not None:
        usage.medha = timing
    return usage


def timing_of(
    accepted: Sequence[Accepted],
    arrived_at: float,
    first_tokens_at: Sequence[float] = (),
    endings: Sequence[FinishedEvent] = (),
) -> TimingReply:
    """What was promised and what happened; of several choices, the latest."""
    timing = TimingReply(
        ttft_deadline_ms=round(
            1000 * max(one.deadline_at - arrived_at for one in accepted), 3
        ),
        predicted_ttft_ms=round(
            1000 * max(one.predicted_ttft_s for one in accepted), 3
        ),
    )
    if first_tokens_at:
        timing.ttft_ms = round(1000 * (max(first_tokens_at) - arrived_at), 3)
        timing.ttft_met = timing.ttft_ms <= timing.ttft_deadline_ms
    starts = [end.scheduled_at for end in endings if end.scheduled_at is not None]
    if starts:
        timing.queue_ms = round(1000 * max(0.0, max(starts) - arrived_at), 3)
    if endings:
        timing.preemptions = sum(end.preemptions for end in endings)
    return timing
