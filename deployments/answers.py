"""From Additions to OpenAI's bodies: choices of a whole answer, or of one chunk. Those of chats; of
completions: text_answer; of chats with tools: tool_answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from msgspec import UNSET

from deployments.detokenize import TokenTable
from deployments.extras import Extras
from deployments.job import Job
from deployments.outbox import Addition
from deployments.replies import (
    ChatChoice,
    ChatDelta,
    ChatLogprob,
    ChatLogprobs,
    ChatMessage,
    PromptTokensDetails,
    Reply,
    TimingReply,
    TopLogprob,
    UsageReply,
)
from deployments.thoughts import ThoughtReader, Told
from medha_actors.messages import Accepted, FinishedEvent, TokenEvent


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
