"""Text to tokens and back for one model. Nothing here blocks the event loop for long.

Short prompts are encoded at once (well under a millisecond), longer ones in a thread, without the
GIL. Long ones have a thread of their own, so that a document does not make a chat wait, and take
turns in it. They are counted piece by piece first: a text over its limit costs no more than the
limit, however long it is.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

from tokenizers import Tokenizer

from deployments.chat_template import ChatTemplate
from deployments.detokenize import Detokenizer, TokenTable
from deployments.protocol import Message
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
        self.vocabulary: int = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.eos_token_ids = tuple(dict.fromkeys(eos_token_ids))
        self.context_tokens = context_tokens
        self.special_tokens = dict(special_tokens or {})
        self.chat_template = chat_template
        self._template = ChatTemplate(chat_template, self.special_tokens) if chat_template else None
        self._longest_token = max(
            len(token.encode()) for token in tokenizer.get_vocab(with_added_tokens=True)
        )
        self._threads = ThreadPoolExecutor(1, "medha-text")
        self._turns = Turns("medha-long-text")

    async def encode(
        self, text: str, add_special_tokens: bool = True, limit: int | None = None
    ) -> list[int]:
        """Token ids of a text; raises TooManyTokensError as soon as it surely has more than
        `limit`. A result may still be longer than `limit`, by a little."""
        owner = Owner()
        if limit is not None:
            await self._check_fits(text, limit, owner)
        return await self._run(partial(self._encode, text, add_special_tokens), len(text), owner)

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
            at_least += await self._turns.run(owner, len(piece), partial(self._count, piece))
            at_least -= _TOKENS_PER_CUT
            if at_least > limit:
                raise TooManyTokensError(at_least)

    async def _run(self, work: Callable[[], T], size: int, owner: Owner) -> T:
        if size <= INLINE_CHARS:
            return work()
        if size > LONG_CHARS:
            return await self._turns.run(owner, size, work)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    # Only the batch calls of `tokenizers` release the GIL; `encode` would stop the event loop from
    # its thread.

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        [encoding] = self.tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoding.ids)

    def _count(self, piece: str) -> int:
        [encoding] = self.tokenizer.encode_batch_fast([piece], add_special_tokens=False)
        return len(encoding)

    def _decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        [text] = self.tokenizer.decode_batch([token_ids], skip_special_tokens=skip_special_tokens)
        return str(text)

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool, extra: Mapping[str, Any]
    ) -> str:
        """A chat as the model wants to read it; raises RequestError."""
        if self._template is None:
            raise RequestError(
                "this model has no chat template; use /v1/completions", param="messages"
            )
        return self._template.render(messages, add_generation_prompt, extra)

    def fewest_tokens(self, text: str) -> int:
        """A lower bound of the text's length in tokens, without looking at it."""
        return self.fewest_tokens_of(len(text))

    def fewest_tokens_of(self, chars: int) -> int:
        """A lower bound for any text of `chars` characters."""
        return chars // self._longest_token

    async def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        decode = partial(self._decode, token_ids, skip_special_tokens)
        return await self._run(decode, len(token_ids), Owner())

    def detokenizer(self) -> Detokenizer:
        return self.table.detokenizer()
