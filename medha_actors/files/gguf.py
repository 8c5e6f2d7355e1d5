"""Reads a GGUF file: metadata and the whereabouts of its tensors (format description:
ggml/docs/gguf.md).

The gguf package does the same but takes seconds for a vocabulary; this takes about 50 ms.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from medha_actors.errors import ModelError

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


class GgufTensor(msgspec.Struct, frozen=True):
    """Where a tensor lies. `shape` is in torch's order (rows first)."""

    kind: int  # gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int  # from the start of the file


class GgufFile:
    """A memory-mapped GGUF file. Only the pages of tensors that are used get read.

    Lists of texts are the tokenizer's: a hundred thousand of them would take half of the time in
    which a stage is loaded. Without `texts`, None stands for each in `metadata`.
    """

    def __init__(self, path: Path, texts: bool = False) -> None:
        self.path = path
        try:
            self.bytes = np.memmap(path, mode="r", dtype=np.uint8)
            self.metadata, self.tensors = _Header(self.bytes, texts).parse()
        except (struct.error, OSError, ValueError, KeyError, UnicodeDecodeError) as error:
            raise ModelError(f"{path} is not a readable GGUF file: {error}") from error


class _Header:
    def __init__(self, data: np.ndarray, texts: bool) -> None:
        self.buffer = memoryview(data)
        self.texts = texts
        self.at = 0

    def parse(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        magic, version, tensor_count, key_count = self.take("<4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"magic {magic!r}, version {version}")
        metadata = {}
        for _ in range(key_count):
            key = self.string()
            metadata[key] = self.value(self.take("<I")[0])
        found = [self.tensor_info() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        start = -(-self.at // alignment) * alignment
        return metadata, {
            name: GgufTensor(kind, shape, start + offset) for name, kind, shape, offset in found
        }

    def take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self.buffer, self.at)
        self.at += struct.calcsize(layout)
        return values

    def string(self) -> str:
        (length,) = self.take("<Q")
        start = self.at
        self.at += length
        if self.at > len(self.buffer):
            raise ValueError("it ends in the middle of a text")
        return str(self.buffer[start : self.at], "utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            kind, count = self.take("<IQ")
            if kind in _SCALARS:
                return list(self.take(f"<{count}{_SCALARS[kind]}"))
            if kind == _STRING and not self.texts:
                return self.skip_strings(count)
            return [self.value(kind) for _ in range(count)]
        return self.take("<" + _SCALARS[kind])[0]

    def skip_strings(self, count: int) -> None:
        unpack = struct.Struct("<Q").unpack_from
        at = self.at
        for _ in range(count):
            (length,) = unpack(self.buffer, at)
            at += 8 + length
        self.at = at

    def tensor_info(self) -> tuple[str, int, tuple[int, ...], int]:
        name = self.string()
        (dimensions,) = self.take("<I")
        shape = self.take(f"<{dimensions}Q")
        kind, offset = self.take("<IQ")
        return name, kind, tuple(reversed(shape)), offset
