"""Where a prompt's tokens start in its text, for `text_offset` under `echo`.

Tokens stand for bytes of the text, but not always: one that the tokenizer has added (the beginning
of a sequence) has no text, a space before the first word may be in the token alone, and a
normalizer may have changed the text. So each token is looked for where the last one ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from deployments.detokenize import TokenTable

_AHEAD_BYTES: Final = 64  # so far a token is looked for where it should be and is not


def starts(token_ids: Sequence[int], text: str, table: TokenTable) -> list[int]:
    """For each token, the characters of the text before the one that it starts in."""
    data = text.encode("utf-8", "replace")
    result = []
    place = 0  # in bytes
    walked = chars = 0  # characters that begin in data[:walked]
    for token_id in token_ids:
        raw = table.bytes_of(token_id)
        start, length = _find(data, raw, place, hidden=token_id in table.special)
        through = min(start + 1, len(data))
        chars += sum(byte & 0xC0 != 0x80 for byte in data[walked:through])
        walked = max(walked, through)
        result.append(chars if start >= len(data) else chars - 1)
        place = start + length
    return result


def _find(data: bytes, raw: bytes, place: int, hidden: bool) -> tuple[int, int]:
    """Where a token starts and how long it is there, in bytes."""
    if data.startswith(raw, place):
        return place, len(raw)
    if raw.startswith(b" ") and data.startswith(raw[1:], place):
        return place, len(raw) - 1
    if hidden:
        return place, 0
    found = data.find(raw, place, place + _AHEAD_BYTES + len(raw))
    if found >= 0:
        return found, len(raw)
    return place, min(len(raw), len(data) - place)
