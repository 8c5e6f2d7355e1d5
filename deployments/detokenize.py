"""From token ids to text, one token at a time, without ever showing half a character.

Tokens of the Llama family stand for bytes: byte-level vocabularies directly, SentencePiece ones
through tokens such as `<0xE2>`. So a table from token to bytes and an incremental UTF-8 decoder
give what decoding all at once would give.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from typing import Protocol

from tokenizers import Tokenizer

from medha_actors.files.spelling import token_bytes
from medha_actors.files.vocabulary import spelling_of


class Detokenizer(Protocol):
    """The state of one sequence."""

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; may be empty."""
        ...

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed."""
        ...

    def start_of(self, token_id: int) -> int:
        """Where this token would start if it came next: the characters of the whole text before
        the one that its first byte belongs to."""
        ...


class TokenTable:
    """Bytes of every token, filled as tokens are met."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._spelling = spelling_of(json.loads(tokenizer.to_str())["decoder"])
        self.special = frozenset(
            i
            for i, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        )
        self._bytes: dict[int, bytes] = {}

    @property
    def exact(self) -> bool:
        """Whether tokens stand for bytes; if not, a WindowDetokenizer is needed."""
        return self._spelling != "plain"

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of one token, special ones included; empty for an id without a token."""
        known = self._bytes.get(token_id)
        if known is None:
            token = self.tokenizer.id_to_token(token_id) or ""
            known = self._bytes[token_id] = token_bytes(token, self._spelling)
        return known

    def text_of(self, token_id: int) -> str:
        """One token alone, as log-probabilities show it."""
        return self.bytes_of(token_id).decode("utf-8", "replace")

    def special_ids(self, names: Iterable[str]) -> dict[int, str]:
        """Those of the names that are a special token's whole text, by its id."""
        ids = {self.tokenizer.token_to_id(name): name for name in names}
        return {i: name for i, name in ids.items() if i in self.special}

    def detokenizer(self, skip_special_tokens: bool = True) -> Detokenizer:
        if self.exact:
            return ByteDetokenizer(self, skip_special_tokens)
        return WindowDetokenizer(self.tokenizer, skip_special_tokens)


class ByteDetokenizer:
    """For vocabularies whose tokens stand for bytes. Special tokens have no text, unless asked
    for."""

    def __init__(self, table: TokenTable, skip_special_tokens: bool = True) -> None:
        self._table = table
        self._skipped = table.special if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._chars = 0  # of the text so far

    def push(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        text = self._decoder.decode(self._table.bytes_of(token_id))
        self._chars += len(text)
        return text

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)

    def start_of(self, token_id: int) -> int:
        begun = self._decoder.getstate()[0]  # bytes of a character that is not complete
        first = self._table.bytes_of(token_id)[:1]
        if (
            not begun
            or not first
            or token_id in self._table.special
            or _goes_on(begun + first)
        ):
            return self._chars
        return self._chars + 1  # what had begun becomes one U+FFFD


def _goes_on(raw: bytes) -> bool:
    """Whether this can be the beginning of UTF-8."""
    try:
        codecs.getincrementaldecoder("utf-8")("strict").decode(raw)
    except UnicodeDecodeError:
        return False
    return True


class WindowDetokenizer:
    """For any other tokenizer: decode a sliding window with its own decoder and emit the
    difference."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._window: list[int] = []
        self._shown = 0  # tokens of the window whose text is out
        self._chars = 0  # of the text so far

    def push(self, token_id: int) -> str:
        self._window.append(token_id)
        before = self._decode(self._shown)
        text = self._decode(len(self._window))
        if len(text) <= len(before) or text.endswith("\ufffd"):
            return ""
        self._window = self._window[self._shown :]
        self._shown = len(self._window)
        self._chars += len(text) - len(before)
        return text[len(before) :]

    def flush(self) -> str:
        return self._decode(len(self._window))[len(self._decode(self._shown)) :]

    def start_of(self, token_id: int) -> int:
        return self._chars

    def _decode(self, count: int) -> str:
        window = self._window[:count]
        return str(
            self._tokenizer.decode(
                window, skip_special_tokens=self._skip_special_tokens
            )
        )


class StopStrings:
    """Cuts a growing text at the first stop string, wherever tokens begin and end.

    Only text that could still become a stop string is held back. Among stop strings the one that is
    complete first wins (the longest of those that end together), so the result does not depend on
    how the text is split. A stop string counts by where it ends, not by where it begins.
    """

    def __init__(self, stops: list[str], include: bool = False) -> None:
        self._stops = stops
        self._include = include
        self._prefixes: set[str] = set()
        for stop in stops:
            self._prefixes |= {stop[:length] for length in range(1, len(stop))}
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str, counts: bool = True) -> str:
        """The text that is now safe to show. After a match (`matched` is set) nothing follows.
        `counts` False: what is complete with this text is no stop string yet."""
        if not self._stops:
            return text
        if not text or self.matched is not None:
            return ""
        before = len(self._held)
        text = self._held + text
        found = []
        if counts:
            for stop in self._stops:
                start = text.find(stop, max(0, before - len(stop) + 1))
                if start >= 0:
                    found.append((start + len(stop), start, stop))
        if found:
            end, start, self.matched = min(found)
            self._held = ""
            return text[: end if self._include else start]
        keep = next(
            (
                n
                for n in range(min(len(text), self._longest - 1), 0, -1)
                if text[-n:] in self._prefixes
            ),
            0,
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back and can no longer become a stop string."""
        held = self._held
        self._held = ""
        return held
