"""Answers of completions: plain text, which the prompt may be part of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from deployments import offsets
from deployments.answers import finite
from deployments.detokenize import TokenTable
from deployments.extras import Extras
from deployments.job import Choice, Job
from deployments.outbox import Addition
from deployments.replies import Reply, TextChoice, TextLogprobs, UsageReply
from medha_actors.messages import PromptLogprobsEvent

# token, its log-probability, the likeliest ones, where it starts in the text
Entry = tuple[int, float | None, tuple[tuple[int, float], ...], int]


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
        choices = [self._choice(addition) for addition in additions]
        reply = self._reply([choice for choice in choices if choice is not None])
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
