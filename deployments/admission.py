"""From a checked body to the Requests the engine gets: one for each choice of each prompt."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec

from deployments import limits, objectives, resuming
from deployments.control_tokens import Prompt
from deployments.histories import Message
from deployments.job import Choice, Job
from deployments.protocol import ChatBody, CompletionBody, GenerationBody, TokenizeBody
from deployments.resuming import Past, Place
from deployments.salts import cache_salt
from deployments.shaping import Shaping
from deployments.silence import wants_comments
from deployments.text import ChatOptions, Text, TooManyTokensError
from deployments.tools import ToolUse
from deployments.way import Way
from medha_actors.config import MedhaConfig
from medha_actors.errors import NeverFitsError, NotFoundError, RequestError
from medha_actors.messages import (
    Objectives,
    Request,
    Resumed,
    SamplingParams,
    pack_tokens,
)
from medha_actors.record import Record

_PROMPTS_AT_ONCE: Final = 16  # tokenised without a pause


class Admission:
    """Checks, tokenises and fans out."""

    def __init__(
        self,
        config: MedhaConfig,
        text: Text,
        context_tokens: int,
        model_vocabulary: int | None = None,
    ) -> None:
        """`model_vocabulary`: token ids that the model has a row for; None: the tokenizer's."""
        self._config = config
        self._text = text
        self.vocabulary = min(text.vocabulary, model_vocabulary or text.vocabulary)
        self._eos = tuple([i for i in text.eos_token_ids if i < self.vocabulary])
        self.context_tokens = context_tokens
        self.model_id = config.model_loading_config.model_id
        rows = model_vocabulary or text.vocabulary
        self.way = Way()
        self._shaping = Shaping(config, text, rows, self._eos)

    async def completion(
        self, body: CompletionBody, headers: Mapping[str, str], arrived_at: float
    ) -> Job:
        """Raises RequestError."""
        asked = self._check(body, headers)
        prompts = limits.split_prompts(body, self._config.limits, self.vocabulary)
        job = self._job("cmpl-", body, headers, arrived_at)
        job.grammar = await self._shaping.grammar(body)
        most = max(self._config.limits.max_prompts_tokens, self.context_tokens)
        keep = limits.kept_tokens(body, self.context_tokens)
        for i, prompt in enumerate(prompts):
            if i % _PROMPTS_AT_ONCE == _PROMPTS_AT_ONCE - 1:
                await asyncio.sleep(0)  # others have requests to send
            name = "prompt" if len(prompts) == 1 else f"prompt[{i}]"
            asked_for: Prompt | list[int]
            if isinstance(prompt, list):
                asked_for = prompt
            else:
                asked_for = Prompt(
                    prompt, prompt if body.medha.parse_special is False else None
                )
            ids = await self.tokens(name, asked_for, body.add_special_tokens, keep)
            text = None
            if body.echo:
                whole = isinstance(prompt, str) and keep is None
                text = str(prompt) if whole else await self._text.decode(ids)
            self._add(job, name, ids, text, asked, headers)
            limits.check_total(job.prompt_tokens, most)
        return self._numbered(job)

    async def chat(
        self,
        body: ChatBody,
        headers: Mapping[str, str],
        arrived_at: float,
        kind: str = "chatcmpl-",
        less: bool = False,
    ) -> Job:
        """`kind`: what the answer's id begins with; `less`: see Job. Raises RequestError."""
        asked = self._check(body, headers)
        keep = limits.kept_tokens(body, self.context_tokens)
        job = self._job(kind, body, headers, arrived_at)
        job.less = less
        job.tools = self._shaping.tools(body)
        job.grammar = await self._shaping.grammar(body, job.tools)
        ids = await self._chat_prompt(body, job.tools, keep)
        job.thinking = self._shaping.thinking(ids, job.grammar)
        self._add(job, "messages", ids, None, asked, headers)
        return self._numbered(job)

    async def chat_length(self, body: ChatBody) -> int:
        """How many tokens a chat's prompt has; raises RequestError."""
        self.check_model(body.model)
        return len(await self._chat_prompt(body, self._shaping.tools(body), None))

    async def _chat_prompt(
        self, body: ChatBody, tools: ToolUse | None, keep: int | None
    ) -> list[int]:
        messages, told = self._shaping.told(body.messages, tools)
        return await self.chat_tokens(messages, self._options(body, told), keep)

    def resume(self, job: Job, place: Place, record: Record) -> None:
        """Make of a job that asks anew one that goes on with a known answer: its id, seed,
        objectives and instants are those of then. Raises RequestError if it is another request or
        another place."""
        [choice] = job.choices
        known = record.request
        self._check_same(job, place, choice.request, known)
        if place.tokens is not None and place.tokens > record.tokens:
            raise RequestError(
                f"{place.header}: the answer has {record.tokens} tokens, not {place.tokens}",
                param=place.header,
                code="resume_beyond",
            )
        if place.tokens != 0 and not job.body.stream:
            raise RequestError(
                f"{place.header}: an answer in one piece can only be resumed from its beginning",
                param=place.header,
                code="resume_mismatch",
            )
        resumed = Resumed(
            token_ids=record.token_ids,
            first_token_at=record.first_token_at,
            prompt_logprobs_until=record.prompt_logprobs_until,
        )
        # An id of its own: the request that wrote the answer before may still be on its way out.
        name = f"{place.answer_id}-{secrets.token_hex(4)}-0"
        request = msgspec.structs.replace(known, id=name, resumed=resumed)
        job.id = place.answer_id
        job.arrived_at = known.arrived_at
        job.choices = [replace(choice, request=request)]
        job.past = Past(record, place)

    def _check_same(
        self, job: Job, place: Place, asked: Request, known: Request
    ) -> None:
        sampling = asked.sampling
        if job.body.fixed_seed is None:
            sampling = msgspec.structs.replace(sampling, seed=known.sampling.seed)
        same_route = job.id.partition("-")[0] == place.answer_id.partition("-")[0]
        same_prompt = asked.prompt_token_ids == known.prompt_token_ids
        if not (same_route and same_prompt and sampling == known.sampling):
            raise RequestError(
                f"{place.header}: {place.answer_id[:80]!r} is the answer to another request; send"
                " the same body again",
                param=place.header,
                code="resume_mismatch",
            )

    async def tokens(
        self,
        name: str,
        prompt: Prompt | list[int],
        add_special_tokens: bool,
        keep: int | None,
    ) -> list[int]:
        """Token ids of one prompt, or the last `keep` of them; one that cannot fit the context
        costs no more than one that fills it."""
        if isinstance(prompt, list):
            ids = prompt if keep is None else prompt[-keep:]
            if len(ids) > self.context_tokens:
                raise NeverFitsError(name, len(ids), 1, self.context_tokens)
            return ids
        most = self._most_tokens(keep)
        try:
            ids = await self._text.encode(prompt, add_special_tokens, limit=most)
        except TooManyTokensError as error:
            raise self._too_long(name, error.at_least, keep) from None
        if keep is not None:
            ids = ids[-keep:]
        if self.vocabulary < self._text.vocabulary:
            limits.check_ids(name, ids, self.vocabulary)
        return ids

    def _most_tokens(self, keep: int | None) -> int:
        """How long a text may be: what is to be truncated may be longer than the context."""
        if keep is None:
            return self.context_tokens
        return max(self.context_tokens, self._config.limits.max_tokenize_tokens)

    def _too_long(self, name: str, at_least: int, keep: int | None) -> RequestError:
        """A text has so many tokens or more."""
        if keep is not None:
            return limits.over_tokens(name, at_least, self._most_tokens(keep))
        return NeverFitsError(name, at_least, 1, self.context_tokens, at_least=True)

    async def chat_tokens(
        self, messages: list[Message], options: ChatOptions, keep: int | None = None
    ) -> list[int]:
        """Token ids of a chat; what is surely too long is not even rendered."""
        limits.check_messages(messages, self._config.limits)
        fewest = self._text.fewest_tokens_of(
            sum([len(message.text) for message in messages])
        )
        if fewest > self._most_tokens(keep):
            raise self._too_long("messages", fewest, keep)
        rendered = await self._text.chat(messages, options)
        return await self.tokens("messages", rendered, False, keep)

    async def tokenized(self, body: TokenizeBody) -> list[int]:
        """Token ids that the same messages have in a chat."""
        return await self.chat_tokens(body.messages or [], self._options(body))

    def _options(
        self, body: ChatBody | TokenizeBody, tools: list[dict[str, Any]] | None = None
    ) -> ChatOptions:
        limits.check_ending(body.add_generation_prompt, body.continue_final_message)
        extra: dict[str, Any] = dict(body.chat_template_kwargs)
        if isinstance(body, ChatBody) and body.reasoning_effort is not None:
            extra = {**self._text.template.effort(body.reasoning_effort), **extra}
        return ChatOptions(
            add_generation_prompt=body.add_generation_prompt is not False,
            continue_final=body.continue_final_message,
            parse_special=bool(body.medha.parse_special),
            extra=extra,
            tools=tools,
        )

    def check_model(self, model: str | None) -> None:
        if model is not None and model != self.model_id:
            raise NotFoundError(
                f"the model {model[:100]!r} does not exist; this server has {self.model_id!r}",
                param="model",
                code="model_not_found",
            )

    def _check(self, body: GenerationBody, headers: Mapping[str, str]) -> Objectives:
        self.check_model(body.model)
        limits.check_generation(body, self._config.limits, self.vocabulary)
        return objectives.resolve(body.medha, headers, self._config.objectives)

    def _job(
        self,
        kind: str,
        body: GenerationBody,
        headers: Mapping[str, str],
        arrived_at: float,
    ) -> Job:
        given = body.request_id or headers.get("x-request-id", "")[:256]
        name = f"{kind}{given or secrets.token_hex(12)}"
        return Job(
            name,
            self.model_id,
            arrived_at,
            body,
            event_ids=resuming.wants_ids(headers),
            way=self.way,
            comments=wants_comments(headers),
        )

    def _numbered(self, job: Job) -> Job:
        """An answer with one choice can be resumed by its id."""
        if len(job.choices) == 1:
            [choice] = job.choices
            request = msgspec.structs.replace(choice.request, answer_id=job.id)
            job.choices = [replace(choice, request=request)]
        return job

    def _add(
        self, job: Job, name: str, ids: list[int], text: str | None, asked: Objectives,
        headers: Mapping[str, str],
    ) -> None:  # fmt: skip
        """Append the n choices of one prompt."""
        body = job.body
        context = self.context_tokens
        max_tokens = limits.resolve_max_tokens(body, name, len(ids), context, job.less)
        seed = secrets.randbits(62) if body.fixed_seed is None else body.fixed_seed
        packed = pack_tokens(ids)
        job.prompt_tokens = job.prompt_tokens + len(ids)
        # a client may send the same request id twice
        unique = f"{job.id}-{secrets.token_hex(4)}"
        for _ in range(body.n):
            index = len(job.choices)
            request = Request(
                id=f"{unique}-{index}",
                prompt_token_ids=packed,
                sampling=self._sampling(job, max_tokens, (seed + index) % 2**63),
                objectives=asked,
                priority=body.priority,
                arrived_at=job.arrived_at,
                way_s=self.way.seconds,
                traceparent=headers.get("traceparent"),
                cache_salt=cache_salt(body, headers),
                cache=body.medha.cache,
            )
            job.choices.append(Choice(index, request, ids, text))

    def _sampling(self, job: Job, max_tokens: int, seed: int) -> SamplingParams:
        body = job.body
        logprobs: int | None = None
        if isinstance(body, CompletionBody):
            logprobs = body.logprobs
        elif isinstance(body, ChatBody) and body.logprobs:
            logprobs = body.top_logprobs
        eos = () if body.ignore_eos else self._eos
        prompt_logprobs = body.prompt_logprobs
        if isinstance(body, CompletionBody) and body.echo and logprobs is not None:
            prompt_logprobs = max(logprobs, prompt_logprobs or 0)
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=body.min_tokens,
            temperature=body.temperature if body.top_p else 0.0,
            top_p=body.top_p or 1.0,
            top_k=max(0, body.top_k),
            min_p=body.min_p,
            repetition_penalty=body.repetition,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            seed=seed,
            stop_token_ids=tuple(dict.fromkeys([*eos, *body.stop_token_ids])),
            logit_bias=tuple(limits.bias_pairs(body.logit_bias)),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            grammar=job.grammar,
        )
