"""Bounds that come from the configuration and the model, checked before any work."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from deployments.histories import Message
from deployments.protocol import ChatBody, CompletionBody, GenerationBody
from medha_actors.config import LimitsConfig
from medha_actors.errors import NeverFitsError, RequestError


def check_generation(
    body: GenerationBody, limits: LimitsConfig, vocabulary: int
) -> None:
    """Raises RequestError naming the field."""
    _at_most("n", body.n, limits.max_n)
    _check_stops(body, limits, vocabulary)
    _check_bias(body, limits, vocabulary)
    _check_output(body)
    if body.truncate_prompt_tokens == 0:
        raise _invalid("truncate_prompt_tokens", "must be -1 or at least 1")
    if (
        None not in (given := [body.repetition_penalty, body.repeat_penalty])
        and given[0] != given[1]
    ):
        raise _invalid(
            "repeat_penalty", "is repetition_penalty by another name, and differs"
        )
    _check_logprobs(body, limits)


def _check_stops(body: GenerationBody, limits: LimitsConfig, vocabulary: int) -> None:
    _at_most("stop", len(body.stops), limits.max_stop_strings, "entries")
    for i, stop in enumerate(body.stops):
        name = "stop" if isinstance(body.stop, str) else f"stop[{i}]"
        _at_most(name, len(stop), limits.max_stop_chars, "characters")
    _at_most(
        "stop_token_ids", len(body.stop_token_ids), limits.max_stop_token_ids, "entries"
    )
    check_ids("stop_token_ids", body.stop_token_ids, vocabulary)
    if body.min_tokens and len(set(body.stop_token_ids)) >= vocabulary:
        raise _invalid(
            "stop_token_ids", "has every token, so that min_tokens leaves none to draw"
        )


def _check_bias(body: GenerationBody, limits: LimitsConfig, vocabulary: int) -> None:
    _at_most("logit_bias", len(body.logit_bias), limits.max_logit_bias, "entries")
    for key in body.logit_bias:
        if not (
            key.isascii() and key.isdigit() and len(key) < 11 and int(key) < vocabulary
        ):
            raise _invalid(
                "logit_bias", f"{key[:40]!r} is not a token id of this model"
            )


def _check_output(body: GenerationBody) -> None:
    """That its bounds leave something to generate."""
    limit = output_limit(body)
    if limit is None:
        return
    name, tokens = limit
    if tokens < 1 and not (isinstance(body, CompletionBody) and body.echo):
        raise _invalid(name, "must be at least 1")
    if body.min_tokens > tokens:
        raise _invalid(
            "min_tokens", f"is {body.min_tokens}, more than {name}, {tokens}"
        )


def _check_logprobs(body: GenerationBody, limits: LimitsConfig) -> None:
    _at_most("prompt_logprobs", body.prompt_logprobs or 0, limits.max_logprobs)
    if body.prompt_logprobs is not None and body.stream:
        raise _invalid(
            "prompt_logprobs", "come with a whole answer only, not with stream: true"
        )
    if isinstance(body, CompletionBody):
        _at_most("logprobs", body.logprobs or 0, limits.max_logprobs)
        echoed = body.logprobs if body.echo else None
        if (
            None not in (echoed, body.prompt_logprobs)
            and echoed != body.prompt_logprobs
        ):
            raise _invalid(
                "prompt_logprobs", "must be as many as logprobs, where echo has those"
            )
    elif isinstance(body, ChatBody):
        _at_most("top_logprobs", body.top_logprobs, limits.max_logprobs)
        if body.top_logprobs and not body.logprobs:
            raise _invalid("top_logprobs", "needs logprobs: true")


def output_limit(body: GenerationBody) -> tuple[str, int] | None:
    """Which field limits the output, and its value."""
    if body.max_completion_tokens is not None:
        return "max_completion_tokens", body.max_completion_tokens
    return None if body.max_tokens is None else ("max_tokens", body.max_tokens)


def check_messages(messages: list[Message], limits: LimitsConfig) -> None:
    """Not too many turns."""
    if not messages:
        raise _invalid("messages", "must not be empty")
    _at_most("messages", len(messages), limits.max_messages, "entries")


def check_ending(add_generation_prompt: bool | None, continue_final: bool) -> None:
    """How a chat's prompt ends: with the head of an answer, or in the middle of one."""
    if continue_final and add_generation_prompt:
        raise _invalid("continue_final_message", "needs add_generation_prompt: false")


def split_prompts(
    body: CompletionBody, limits: LimitsConfig, vocabulary: int
) -> list[str | list[int]]:
    """The four forms of `prompt` as a list of texts and token lists."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise _invalid("prompt", "must not be empty")
    kinds = {type(part) for part in prompt}
    if len(kinds) > 1:
        raise _invalid(
            "prompt",
            "must be a string, strings, token ids or lists of token ids, not a mixture",
        )
    if kinds == {int}:
        ids = cast("list[int]", prompt)
        check_ids("prompt", ids, vocabulary)
        return [ids]
    parts = cast("list[str | list[int]]", prompt)
    _at_most("prompt", len(parts), limits.max_prompts, "prompts")
    _at_most("n", body.n, max(1, limits.max_prompts // len(parts)))
    for i, part in enumerate(parts):
        if isinstance(part, list):
            check_ids(f"prompt[{i}]", part, vocabulary)
    return parts


def check_ids(name: str, ids: list[int], vocabulary: int) -> None:
    if ids and max(ids) >= vocabulary:
        raise _invalid(
            name,
            f"has token id {max(ids)}; this model's vocabulary ends at {vocabulary - 1}",
        )


def resolve_max_tokens(
    body: GenerationBody,
    name: str,
    prompt_tokens: int,
    context_tokens: int,
    less: bool = False,
) -> int:
    """How many tokens to generate at most; raises RequestError where prompt or output do not fit
    the context. `less`: of an output that does not, as many as fit will do."""
    if prompt_tokens == 0:
        raise _invalid(name, "is empty")
    room = context_tokens - prompt_tokens
    limit = output_limit(body)
    wanted = limit[1] if limit else 1
    if less:
        wanted = min(wanted, max(1, room))
    if room < max(1, wanted):
        if limit is not None and limit[1] >= context_tokens:
            raise _leaves_no_room(limit, context_tokens)
        raise NeverFitsError(name, prompt_tokens, max(1, wanted), context_tokens)
    if limit is not None:
        # 0 is only allowed with echo: one token is generated and not shown
        return max(1, wanted)
    if body.min_tokens > room:
        raise _invalid(
            "min_tokens",
            f"is {body.min_tokens}, but the context has room for {room} more tokens",
        )
    return room if isinstance(body, ChatBody) else min(max(16, body.min_tokens), room)


def kept_tokens(body: GenerationBody, context_tokens: int) -> int | None:
    """How many of a prompt's last tokens are read; None: it is not to be truncated."""
    if body.truncate_prompt_tokens != -1:
        return body.truncate_prompt_tokens
    limit = output_limit(body)
    wanted = max(1, limit[1]) if limit else max(16, body.min_tokens)
    return max(1, context_tokens - wanted)


def check_total(tokens: int, most: int) -> None:
    """Raises RequestError for prompts that are too many tokens together."""
    if tokens > most:
        raise RequestError(
            f"prompt: the prompts of one request may have {most} tokens together",
            param="prompt",
            code="too_many_tokens",
        )


def _leaves_no_room(limit: tuple[str, int], context_tokens: int) -> RequestError:
    """No prompt is short enough for such an output: an agent need not shorten its history."""
    name, tokens = limit
    return RequestError(
        f"This model's maximum context length is {context_tokens} tokens; {name} is {tokens},"
        " which leaves no room for a prompt",
        param=name,
        code="context_length_exceeded",
    )


def over_tokens(name: str, tokens: int, most: int) -> RequestError:
    """For the routes that generate nothing: more tokens than they work on."""
    return RequestError(
        f"{name} has {tokens} tokens or more; this route works on at most {most}",
        param=name,
        code="too_many_tokens",
    )


def bias_pairs(bias: dict[str, float]) -> Iterable[tuple[int, float]]:
    return ((int(token), value) for token, value in bias.items())


def _at_most(name: str, value: int, limit: int, unit: str = "") -> None:
    if value > limit:
        raise _invalid(
            name,
            f"has {value} {unit}, at most {limit} are allowed"
            if unit
            else f"must be at most {limit}",
        )


def _invalid(name: str, what: str) -> RequestError:
    return RequestError(f"{name}: {what}", param=name, code="invalid_value")
