"""The head of a GGUF file: metadata, then what each tensor is and where it lies (format
description: ggml/docs/gguf.md)."""

from __future__ import annotations

import math
import struct
from collections.abc import Collection
from typing import Any

import msgspec
import numpy as np

from medha_actors.files.gguf_kinds import KINDS

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING = 8
_ARRAY = 9
_LENGTH = struct.Struct("<Q")


class GgufTensor(msgspec.Struct, frozen=True):
    """Where a tensor lies. `shape` is in torch's order (rows first)."""

    kind: int  # gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int  # from the start of the file
    size: int  # bytes


class Header:
    """What a file says before its data; raises ValueError or struct.error where it is broken."""

    def __init__(self, data: np.ndarray, texts: bool) -> None:
        self.buffer = data.data
        self.texts = texts
        self.at = 0
        # of texts: where each begins, its length
        self.lists: dict[str, tuple[int, int]] = {}
        magic, version, tensor_count, key_count = self._take("<4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"magic {magic!r}, version {version}")
        self.metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self._text()
            self.metadata[key] = self._value(self._take("<I")[0], key)
        self.tensors = self._tensors(tensor_count)

    def places(self, key: str, wanted: Collection[str]) -> list[int]:
        """The indices of some texts in a list of texts."""
        at, count = self.lists.get(key, (0, 0))
        sought = {text.encode() for text in wanted}
        lengths = {len(text) for text in sought}
        buffer = self.buffer
        unpack = _LENGTH.unpack_from
        found = []
        for index in range(count):
            (length,) = unpack(buffer, at)
            at += 8
            if length in lengths and bytes(buffer[at : at + length]) in sought:
                found.append(index)
            at += length
        return found

    def _take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self.buffer, self.at)
        self.at += struct.calcsize(layout)
        return values

    def _text(self) -> str:
        (length,) = self._take("<Q")
        start = self.at
        self.at += length
        self._require_inside()
        return str(self.buffer[start : self.at], "utf-8")

    def _require_inside(self) -> None:
        if self.at > len(self.buffer):
            raise ValueError("it ends in the middle of a text")

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY:
            kind, count = self._take("<IQ")
            if kind in _SCALARS:
                return list(self._take(f"<{count}{_SCALARS[kind]}"))
            if kind == _STRING:
                self.lists[key] = (self.at, count)
                if not self.texts:
                    return self._skip_texts(count)
            return [self._value(kind, "") for _ in range(count)]
        return self._take("<" + _SCALARS[kind])[0]

    def _skip_texts(self, count: int) -> None:
        buffer = self.buffer
        unpack = _LENGTH.unpack_from
        at = self.at
        for _ in range(count):
            (length,) = unpack(buffer, at)
            at += 8 + length
        self.at = at
        self._require_inside()

    def _tensors(self, count: int) -> dict[str, GgufTensor]:
        found = [self._tensor_info() for _ in range(count)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment is {alignment!r}")
        start = -(-self.at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, kind, shape, offset in found:
            size = _size(name, kind, shape)
            if start + offset + size > len(self.buffer):
                raise ValueError(
                    f"tensor {name} ends at byte {start + offset + size:,}, but the file has "
                    f"{len(self.buffer):,}: it was cut off"
                )
            if name in tensors:
                raise ValueError(f"tensor {name} is there twice")
            tensors[name] = GgufTensor(kind, shape, start + offset, size)
        return tensors

    def _tensor_info(self) -> tuple[str, int, tuple[int, ...], int]:
        name = self._text()
        (dimensions,) = self._take("<I")
        shape = self._take(f"<{dimensions}Q")
        kind, offset = self._take("<IQ")
        return name, kind, tuple(reversed(shape)), offset


def _size(name: str, number: int, shape: tuple[int, ...]) -> int:
    """The bytes of a tensor."""
    kind = KINDS.get(number)
    if kind is None:
        raise ValueError(
            f"tensor {name} is of a kind (number {number}) that cannot be read"
        )
    if not shape or shape[-1] % kind.values:
        raise ValueError(
            f"tensor {name} has shape {list(shape)}, which {kind.name} cannot store: its rows are "
            f"made of blocks of {kind.values}"
        )
    return math.prod(shape) // kind.values * kind.size
