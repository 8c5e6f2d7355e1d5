"""What clients may send: OpenAI's request bodies as Structs, with the bounds that need no
configuration.

`decode` either returns a Struct or raises a RequestError whose `param` is the JSON path of the
offending field. `null` means the default, and `1.0` is an integer. A field this server does not
know is an error, because it might change the result; fields that never change it, those that start
with `x_`, and values that ask for what happens anyway, are dropped.
"""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Mapping
from typing import (
    Annotated,
    Any,
    Final,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
from msgspec import Meta

from deployments.histories import Message, ShortText, normalised
from deployments.structure import ResponseFormat, StructuredOutputs
from deployments.tool_fields import Tool, ToolChoice
from medha_actors.errors import RequestError
from medha_actors.messages import Late

MAX_TOKEN_ID: Final = 2**31 - 1
MAX_ID_CHARS: Final = 256

Count = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
TokenId = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
# logits are divided or multiplied by it, in float32: far from what makes them infinite
Repetition = Annotated[float, Meta(ge=0.01, le=100.0)]
Seconds = Annotated[float, Meta(gt=0.0, le=1e9)]
Prompt = str | list[str | TokenId | list[TokenId]]


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A JSON object."""


class StreamOptions(_Body, frozen=True, kw_only=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    # OpenAI's padding against traffic analysis; not done here
    include_obfuscation: bool | None = None


class MedhaOptions(_Body, frozen=True, kw_only=True):
    """Our extension: what the client asks of the service, in seconds; the server's policy bounds
    it."""

    ttft_s: Seconds | None = None
    tpot_s: Seconds | None = None
    timeout_s: Seconds | None = None
    # what is wanted if the first token cannot come in time; None: the server's default
    late: Late | None = None
    # prefill progress as events `medha.progress` instead of comments
    progress: bool = False
    # False: the prompt is computed whole, and nothing of it is kept for others
    cache: bool = True
    # whether control tokens in what the client wrote are control tokens; None: in /v1/completions
    parse_special: bool | None = None


class SampledBody(_Body, frozen=True, kw_only=True):
    """What all APIs that generate take: OpenAI's fields of that kind, plus vLLM's."""

    model: str | None = None
    min_tokens: Count = 0
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=10_000.0)] = 1.0
    top_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 1.0  # 0: greedy
    top_k: Annotated[int, Meta(ge=-1, le=MAX_TOKEN_ID)] = 0
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Repetition | None = None
    repeat_penalty: Repetition | None = None  # llama.cpp's word for it
    logit_bias: dict[str, Annotated[float, Meta(ge=-100.0, le=100.0)]] = {}
    stop_token_ids: list[TokenId] = []
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    # so many tokens of the prompt's end; -1: as many as fit
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=MAX_TOKEN_ID)] | None = None
    structured_outputs: StructuredOutputs | None = None
    stream: bool = False
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] = 0
    request_id: (
        Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS, pattern=r"^[\x21-\x7e]+$")]
        | None
    ) = None
    # who may find the KV of whose prompts: those with the same salt (default: the same API key)
    cache_salt: Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS)] | None = None
    # a hint for routing; there is one place to route to
    prompt_cache_key: ShortText | None = None
    medha: MedhaOptions = MedhaOptions()


class GenerationBody(SampledBody, frozen=True, kw_only=True):
    """What completions and chat completions share."""

    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    n: Annotated[int, Meta(ge=1, le=65_536)] = 1
    stop: str | list[str] = []
    include_stop_str_in_output: bool = False
    return_token_ids: bool = False
    prompt_logprobs: Count | None = None
    response_format: ResponseFormat | None = None
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> list[str]:
        """The stop strings; an empty one stops nothing."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop
        return [stop for stop in stops if stop]

    @property
    def fixed_seed(self) -> int | None:
        """None: any; -1 says so in vLLM and llama.cpp."""
        return None if self.seed == -1 else self.seed

    @property
    def repetition(self) -> float:
        given = [self.repetition_penalty, self.repeat_penalty]
        return next((value for value in given if value is not None), 1.0)


class CompletionBody(GenerationBody, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: Prompt
    echo: bool = False
    logprobs: Count | None = None
    add_special_tokens: bool = True


class ChatBody(GenerationBody, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[Message]
    logprobs: bool = False
    top_logprobs: Count = 0
    add_generation_prompt: bool | None = None  # None: unless the final message is continued
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, bool | int | float | ShortText] = {}
    reasoning_effort: ShortText | None = None
    tools: list[Tool] = []
    tool_choice: ToolChoice | None = None  # None: auto where there are tools
    parallel_tool_calls: bool = True


class TokenizeBody(_Body, frozen=True, kw_only=True):
    """POST /tokenize, as in vLLM: a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    return_token_strs: bool = False
    chat_template_kwargs: dict[str, bool | int | float | ShortText] = {}
    medha: MedhaOptions = MedhaOptions()  # parse_special is what counts here


class DetokenizeBody(_Body, frozen=True, kw_only=True):
    """POST /detokenize."""

    tokens: list[TokenId]
    model: str | None = None


# Fields that never change what is generated.
_IGNORED: Final = frozenset(
    {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_retention",
        "prompt_cache_options", "cache_control", "cache_prompt", "moderation", "prediction",
        "verbosity", "timings_per_token",
    }
)  # fmt: skip
# Fields we do not implement, with the values that ask for what happens anyway.
_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "best_of": (1,),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "early_stopping": (False,),
    "spaces_between_special_tokens": (True,),
    "include_reasoning": (True,),
    "echo": (False,),  # in chat
    "return_tokens_as_token_ids": (False,),
    "allowed_token_ids": ([],),
    "typical_p": (1,),
    "mirostat": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "dynatemp_range": (0,),
    "tools": ([],),
    "tool_choice": ("none",),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "suffix": ("",),
    "web_search_options": (),
    "logits_processors": ([],),
    "add_special_tokens": (False,),  # in chat: the template writes them
    "documents": ([],),
    "bad_words": ([],),
    "reasoning_effort": ("none",),  # in completions
}


class Beside(NamedTuple):
    """What bodies may have beside the fields of their Struct: what is ignored, and what is refused
    unless it asks for what happens anyway."""

    ignored: frozenset[str]
    neutral: Mapping[str, tuple[Any, ...]]


B = TypeVar("B", bound=msgspec.Struct)
_BESIDE: Final = Beside(_IGNORED, _NEUTRAL)


def decode(body: bytes, kind: type[B], beside: Beside = _BESIDE) -> B:
    """Parse a body; raises RequestError."""
    try:
        tree = msgspec.json.decode(body)
    except RecursionError:
        raise RequestError("the JSON is nested too deeply") from None
    except (msgspec.ValidationError, UnicodeDecodeError, ValueError) as error:
        raise RequestError(f"the body is not valid JSON in UTF-8: {error}") from None
    if not isinstance(tree, dict):
        raise RequestError("the body must be a JSON object")
    tree = _known(tree, kind, beside)
    messages = tree.get("messages")
    if isinstance(messages, list) and kind in (ChatBody, TokenizeBody):
        tree["messages"] = [
            normalised(message, f"messages[{i}]") for i, message in enumerate(messages)
        ]
    return converted(tree, kind)


def converted(tree: Any, kind: type[B], name: str = "") -> B:
    """A JSON value as a Struct; raises RequestError. `name`: its path in the body."""
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        raise _named(str(error), name) from None


def _known(tree: dict[str, Any], kind: type[msgspec.Struct], beside: Beside) -> dict[str, Any]:
    """Drop nulls and what changes nothing; refuse other fields that `kind` does not have."""
    integers = _integer_fields(kind)
    known = {}
    for name, value in tree.items():
        if value is None or (name == "prompt_logprobs" and value is False):
            continue
        if name in integers:
            known[name] = _integer(value)
        elif name in kind.__struct_fields__:
            known[name] = value
        elif name in beside.neutral:
            if value not in beside.neutral[name] and not _same_as_n(name, value, tree):
                raise RequestError(
                    f"{name} is not supported by this server", param=name, code="unsupported"
                )
        elif name not in beside.ignored and not name.startswith("x_"):
            hint = "; use structured_outputs" if name.startswith("guided_") else ""
            raise RequestError(
                f"unknown field {name[:80]!r}{hint}", param=name[:80], code="unknown_field"
            )
    return known


def _integer(value: Any) -> Any:
    """What JavaScript and spreadsheets write for a whole number is one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


@functools.cache
def _integer_fields(kind: type[msgspec.Struct]) -> frozenset[str]:
    """The fields that are one integer, or null."""
    hints: Mapping[str, Any] = get_type_hints(kind)
    return frozenset(name for name, hint in hints.items() if int in _members(hint))


def _members(hint: Any) -> tuple[Any, ...]:
    parts = get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)
    return parts if float not in parts else ()


def _same_as_n(name: str, value: Any, tree: dict[str, Any]) -> bool:
    return name == "best_of" and value == (tree.get("n") or 1)


_PATH: Final = re.compile(r"^(?P<what>.*) - at `(?:key in )?\$\.?(?P<path>.*)`$", re.DOTALL)
_MISSING: Final = re.compile(r"missing required field `(?P<name>[^`]*)`")
_UNKNOWN: Final = re.compile(r"contains unknown field `(?P<name>[^`]*)`")


def _named(text: str, name: str = "") -> RequestError:
    """msgspec's message as an error that names the field, inside of `name`."""
    match = _PATH.match(text)
    what, path = (match["what"], match["path"]) if match else (text, "")
    field = _MISSING.search(what) or _UNKNOWN.search(what)
    parts = (name, path, field["name"] if field else "")
    param = ".".join(part for part in parts if part).replace(".[", "[") or None
    message = f"{param}: {what}" if param else what
    return RequestError(
        message[:500],
        param=param,
        code="missing_field" if _MISSING.search(what) else "invalid_value",
    )
