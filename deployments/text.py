"""Text to tokens and back for one model. Nothing here blocks the event loop for long.

Short prompts are encoded at once (well under a millisecond), longer ones in a thread, without the
GIL. Long ones have a thread of their own, so that a document does not make a chat wait, and take
turns in it. They are counted piece by piece first: a text over its limit costs no more than the
limit, however long it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from tokenizers import Tokenizer

from deployments.chat_template import ChatTemplate
from deployments.control_tokens import ControlTokens, Guard, Prompt
from deployments.detokenize import Detokenizer, TokenTable
from deployments.histories import Message
from deployments.turns import Owner, Turns
from medha_actors.errors import RequestError

# One text never gains from threads inside `tokenizers`; they would only take cores from the model.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

T = TypeVar("T")
INLINE_CHARS: Final = 1_000
LONG_CHARS: Final = 16_384  # longer texts are counted in pieces of so many characters
# A cut through a text changes the number of its tokens by about one (measured with words, digits,
# spaces, runs of one letter, Chinese and emoji); so many are allowed for.
_TOKENS_PER_CUT: Final = 16


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How messages become a prompt."""

    add_generation_prompt: bool = True
    continue_final: bool = False  # the prompt ends in the middle of the last message
    parse_special: bool = False  # control tokens in messages are control tokens
    extra: Mapping[str, Any] = field(default_factory=dict)  # for the template
    tools: Sequence[Mapping[str, Any]] | None = None  # that the model may call


class TooManyTokensError(Exception):
    """A text has more tokens than it may have: at least `at_least`."""

    def __init__(self, at_least: int) -> None:
        super().__init__(f"at least {at_least} tokens")
        self.at_least = at_least


class Text:
    """A tokenizer, a chat template and what else the model's files say about text."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        chat_template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
        eos_token_ids: Sequence[int] = (),
        context_tokens: int | None = None,
    ) -> None:
        """`special_tokens` are named as in templates (bos_token, ...); `context_tokens` is what the
        files claim."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.table = TokenTable(tokenizer)
        self.vocabulary: int = (
            max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        )
        self.eos_token_ids = tuple(dict.fromkeys(eos_token_ids))
        self.context_tokens = context_tokens
        self.special_tokens = dict(special_tokens or {})
        self.chat_template = chat_template
        self._template = (
            ChatTemplate(chat_template, self.special_tokens) if chat_template else None
        )
        self._longest_token = max(
            len(token.encode()) for token in tokenizer.get_vocab(with_added_tokens=True)
        )
        self._threads = ThreadPoolExecutor(1, "medha-text")
        self._turns = Turns("medha-long-text")
        self.control = ControlTokens(tokenizer, self._control_ids())

    def _control_ids(self) -> set[int]:
        """Those that the vocabulary calls special, those that end an answer, and those that the
        template writes around what a user says."""
        around = ""
        if self._template is not None:
            with contextlib.suppress(RequestError):
                around = self._template.render(
                    [Message(role="user", content="x")], False, {}
                )
        added = self.tokenizer.get_added_tokens_decoder()
        return {
            i
            for i, token in added.items()
            if token.special or i in self.eos_token_ids or token.content in around
        }

    async def encode(
        self,
        text: str | Prompt,
        add_special_tokens: bool = True,
        limit: int | None = None,
    ) -> list[int]:
        """Token ids of a text; raises TooManyTokensError as soon as it surely has more than
        `limit`. A result may still be longer than `limit`, by a little."""
        prompt = Prompt(text) if isinstance(text, str) else text
        owner = Owner()
        if limit is not None:
            await self._check_fits(prompt.text, limit, owner)
        encode = partial(self._encode, prompt, add_special_tokens)
        return await self._run(encode, len(prompt.text), owner)

    async def _check_fits(self, text: str, limit: int, owner: Owner) -> None:
        """Count a long text in pieces that take turns with those of other texts."""
        fewest = self.fewest_tokens(text)
        if fewest > limit:
            raise TooManyTokensError(fewest)
        if len(text) <= LONG_CHARS:
            return
        at_least = 0
        for start in range(0, len(text), LONG_CHARS):
            piece = text[start : start + LONG_CHARS]
            at_least += await self._turns.run(
                owner, len(piece), partial(self._count, piece)
            )
            at_least -= _TOKENS_PER_CUT
            if at_least > limit:
                raise TooManyTokensError(at_least)

    async def _run(self, work: Callable[[], T], size: int, owner: Owner) -> T:
        if size <= INLINE_CHARS:
            return work()
        if size > LONG_CHARS:
            return await self._turns.run(owner, size, work)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    # Only the batch calls of `tokenizers` release the GIL; `encode` would stop the
    # event loop from its thread.

    def _encode(self, prompt: Prompt, add_special_tokens: bool) -> list[int]:
        tokenizer = self.tokenizer
        text = prompt.text
        if prompt.masked is not None:
            tokenizer = self.control.blind
            text = prompt.masked
        [encoding] = tokenizer.encode_batch_fast(
            [text], add_special_tokens=add_special_tokens
        )
        return list(encoding.ids)

    def _count(self, piece: str) -> int:
        [encoding] = self.tokenizer.encode_batch_fast([piece], add_special_tokens=False)
        return len(encoding)

    def _decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        [text] = self.tokenizer.decode_batch(
            [token_ids], skip_special_tokens=skip_special_tokens
        )
        return str(text)

    async def chat(
        self,
        messages: Sequence[Message],
        options: ChatOptions = ChatOptions(),
    ) -> Prompt:
        """A chat as the model wants to read it; raises RequestError."""
        size = sum([message.chars for message in messages])
        return await self._run(partial(self._chat, messages, options), size, Owner())

    def _chat(self, messages: Sequence[Message], options: ChatOptions) -> Prompt:
        guard = Guard(self.control)
        try:
            rendered = self.template.render(
                messages,
                options.add_generation_prompt,
                options.extra,
                continue_final=options.continue_final,
                hide=_as_is if options.parse_special else guard.hide,
                tools=options.tools,
            )
        except RequestError as error:  # it may quote what the client wrote
            error.message = guard.shown(error.message)
            raise
        return guard.prompt(rendered)

    @property
    def template(self) -> ChatTemplate:
        """The model's chat template; raises RequestError if it has none."""
        if self._template is None:
            raise RequestError(
                "this model has no chat template; use /v1/completions", param="messages"
            )
        return self._template

    def fewest_tokens(self, text: str) -> int:
        """A lower bound of the text's length in tokens, without looking at it."""
        return self.fewest_tokens_of(len(text))

    def fewest_tokens_of(self, chars: int) -> int:
        """A lower bound for any text of `chars` characters."""
        return chars // self._longest_token

    async def decode(
        self, token_ids: Sequence[int], skip_special_tokens: bool = False
    ) -> str:
        """The text of token ids."""
        decode = partial(self._decode, token_ids, skip_special_tokens)
        return await self._run(decode, len(token_ids), Owner())

    def detokenizer(self, skip_special_tokens: bool = True) -> Detokenizer:
        return self.table.detokenizer(skip_special_tokens)


def _as_is(value: Any) -> Any:
    return value
