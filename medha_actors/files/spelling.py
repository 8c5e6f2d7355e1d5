"""How vocabularies write the bytes that their tokens stand for."""

from __future__ import annotations

import re
from typing import Final, Literal

# byte_level: GPT-2's printable stand-ins; byte_fallback: SentencePiece's `<0xE2>` and
# `▁`; plain: as they are
Spelling = Literal["byte_level", "byte_fallback", "plain"]


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes, which byte-level vocabularies are written
    in."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }


_ALPHABET: Final = byte_alphabet()
_CODES: Final = {ord(char): byte for char, byte in _ALPHABET.items()}
_BYTE_TOKEN: Final = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")


def token_bytes(token: str, spelling: Spelling) -> bytes:
    """The bytes of one token."""
    if spelling == "byte_level":
        # A token with any other character (a control token) is meant as it is written.
        if _ALPHABET.keys() >= set(token):
            return token.translate(_CODES).encode("latin-1")
        return token.encode()
    if spelling == "byte_fallback":
        match = _BYTE_TOKEN.match(token)
        return (
            bytes([int(match[1], 16)])
            if match
            else token.replace("\u2581", " ").encode()
        )
    return token.encode()
