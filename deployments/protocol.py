"""What clients may send: OpenAI's request bodies as Structs, with the bounds that need no
configuration.

`decode` either returns a Struct or raises a RequestError whose `param` is the JSON path of the
offending field (deployments.decoding).
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from deployments.decoding import B, Beside, converted, known, parsed
from deployments.histories import Message, ShortText, message
from deployments.structure import ResponseFormat, StructuredOutputs
from deployments.tool_fields import Tool, ToolChoice
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
        Annotated[
            str, Meta(min_length=1, max_length=MAX_ID_CHARS, pattern=r"^[\x21-\x7e]+$")
        ]
        | None
    ) = None
    # who may find the KV of whose prompts: those with the same salt (default: the same API key)
    cache_salt: Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS)] | None = (
        None
    )
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
    # None: unless the final message is continued
    add_generation_prompt: bool | None = None
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
    "length_penalty": (1,),
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


_MESSAGES: Final = (ChatBody, TokenizeBody)  # the kinds that have turns of a chat
BESIDE: Final = Beside(_IGNORED, _NEUTRAL)


def decode(body: bytes, kind: type[B], beside: Beside = BESIDE) -> B:
    """Parse a body; raises RequestError."""
    tree = known(parsed(body), kind, beside)
    turns = tree.get("messages")
    if isinstance(turns, list) and kind in _MESSAGES:
        tree["messages"] = [
            message(turn, f"messages[{i}]") for i, turn in enumerate(turns)
        ]
    return converted(tree, kind)
