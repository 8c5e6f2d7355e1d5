"""Text to tokens and back for one model. Nothing here blocks the event loop for long.

Short prompts are encoded at once (well under a millisecond), longer ones in a thread, without the
GIL. Very long ones have a thread of their own, so that a document does not make a chat wait.
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
from medha_actors.errors import RequestError

# One text never gains from threads inside `tokenizers`; they would only take cores from the model.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

T = TypeVar("T")
INLINE_CHARS: Final = 1_000
LONG_CHARS: Final = 100_000


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
        self._template = (
            ChatTemplate(chat_template, special_tokens or {}) if chat_template else None
        )
        self._longest_token = max(
            len(token.encode()) for token in tokenizer.get_vocab(with_added_tokens=True)
        )
        self._threads = ThreadPoolExecutor(1, "medha-text")
        self._long_threads = ThreadPoolExecutor(1, "medha-long-text")

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        return await self._run(partial(self._encode, text, add_special_tokens), len(text))

    async def _run(self, work: Callable[[], T], size: int) -> T:
        if size <= INLINE_CHARS:
            return work()
        threads = self._threads if size <= LONG_CHARS else self._long_threads
        return await asyncio.get_running_loop().run_in_executor(threads, work)

    # Only the batch calls of `tokenizers` release the GIL; `encode` would stop the event loop from
    # its thread.

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        [encoding] = self.tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoding.ids)

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
        return len(text) // self._longest_token

    async def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        decode = partial(self._decode, token_ids, skip_special_tokens)
        return await self._run(decode, len(token_ids))

    def detokenizer(self) -> Detokenizer:
        return self.table.detokenizer()
