"""Text to tokens and back for one model. Nothing here blocks the event loop for long.

Short prompts are encoded at once (well under a millisecond), longer ones in a thread: `tokenizers` releases the GIL.
Very long ones have a thread of their own, so that a document does not make a chat wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from tokenizers import Tokenizer

from deployments.chat_template import ChatTemplate
from deployments.detokenize import Detokenizer, TokenTable
from deployments.protocol import Message
from medha_actors.errors import RequestError

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
        """`special_tokens` are named as in templates (bos_token, ...); `context_tokens` is what the files claim."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.table = TokenTable(tokenizer)
        self.vocabulary: int = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.eos_token_ids = tuple(dict.fromkeys(eos_token_ids))
        self.context_tokens = context_tokens
        self._template = ChatTemplate(chat_template, special_tokens or {}) if chat_template else None
        self._longest_token = max(len(token.encode()) for token in tokenizer.get_vocab(with_added_tokens=True))
        self._threads = ThreadPoolExecutor(1, "medha-text")
        self._long_threads = ThreadPoolExecutor(1, "medha-long-text")

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        encode = partial(self._encode, text, add_special_tokens)
        if len(text) <= INLINE_CHARS:
            return encode()
        threads = self._threads if len(text) <= LONG_CHARS else self._long_threads
        return await asyncio.get_running_loop().run_in_executor(threads, encode)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool, extra: Mapping[str, Any]) -> str:
        """A chat as the model wants to read it; raises RequestError."""
        if self._template is None:
            raise RequestError("this model has no chat template; use /v1/completions", param="messages")
        return self._template.render(messages, add_generation_prompt, extra)

    def fewest_tokens(self, text: str) -> int:
        """A lower bound of the text's length in tokens, without looking at it."""
        return len(text) // self._longest_token

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))

    def detokenizer(self) -> Detokenizer:
        return self.table.detokenizer()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._long_threads.shutdown(wait=False, cancel_futures=True)
