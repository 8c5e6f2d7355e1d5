"""Reads a GGUF file, whole or split: metadata and the whereabouts of its tensors.

The gguf package does the same but takes seconds for a vocabulary; this takes about 50 ms.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from medha_actors.errors import ModelError
from medha_actors.files.gguf_header import GgufTensor, Header
from medha_actors.files.stored import Stored

_PART_NAME = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")


class GgufFile:
    """A memory-mapped GGUF file, or all parts of a split one. Only the pages of tensors that are
    used get read, but where each tensor lies is checked at once.

    Lists of texts are the tokenizer's: a hundred thousand of them would take half of the time in
    which a stage is loaded. Without `texts`, None stands for each in `metadata`.
    """

    def __init__(self, path: Path, texts: bool = False) -> None:
        """`path`: of any part of a split file; raises ModelError in one line."""
        self.path = path
        self._parts = _open_all(path, texts)
        first = self._parts[0]
        self.metadata: dict[str, Any] = first.header.metadata
        self.tensors: dict[str, GgufTensor] = {}
        self._owners: dict[str, _Part] = {}
        for part in self._parts:
            for name, tensor in part.header.tensors.items():
                if name in self.tensors:
                    raise ModelError(f"{part.path}: tensor {name} is there twice")
                self.tensors[name] = tensor
                self._owners[name] = part
        whole = self.metadata.get("split.tensors.count")
        if len(self._parts) > 1 and whole is not None and whole != len(self.tensors):
            raise ModelError(
                f"{path}: its parts hold {len(self.tensors)} tensors instead of {whole}"
            )

    def stored(self, name: str) -> np.ndarray:
        """The bytes of a tensor as they lie in the file."""
        tensor = self.tensors[name]
        return self._owners[name].bytes[tensor.offset : tensor.offset + tensor.size]

    def place(self, name: str) -> Stored:
        """The same: where they lie."""
        tensor = self.tensors[name]
        return Stored(self._owners[name].path, tensor.offset, tensor.size)

    def places(self, key: str, wanted: Collection[str]) -> list[int]:
        """The indices of some texts in a list of texts, whether it was read or not."""
        return self._parts[0].header.places(key, wanted)


class _Part:
    """One file: all there is, or a part of a split model."""

    def __init__(self, path: Path, texts: bool) -> None:
        self.path = path
        try:
            self.bytes = np.memmap(path, mode="r", dtype=np.uint8)
            self.header = Header(self.bytes, texts)
        except (
            struct.error,
            OSError,
            ValueError,
            KeyError,
            UnicodeDecodeError,
        ) as error:
            raise ModelError(f"{path} is not a readable GGUF file: {error}") from error


def _open_all(path: Path, texts: bool) -> list[_Part]:
    """The file, or the parts of which it is one, in order: the first holds the metadata."""
    given = _Part(path, texts)
    count = given.header.metadata.get("split.count", 1)
    if count <= 1:
        return [given]
    name = _PART_NAME.fullmatch(path.name)
    if name is None or int(name[2]) != count:
        raise ModelError(
            f"{path} is one of {count} parts of a split model, but is not named like one: "
            f"NAME-00001-of-{count:05d}.gguf"
        )
    paths = [
        path.with_name(f"{name[1]}-{i:05d}-of-{count:05d}.gguf")
        for i in range(1, count + 1)
    ]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        raise ModelError(
            f"{path} is one of {count} parts; missing: {', '.join(missing)}"
        )
    parts = [given if part == path else _Part(part, texts) for part in paths]
    for number, part in enumerate(parts):
        says = part.header.metadata
        if (says.get("split.no"), says.get("split.count")) != (number, count):
            raise ModelError(
                f"{part.path} is not part {number + 1} of {count}, as its name says"
            )
    return parts
