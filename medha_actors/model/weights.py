"""Opens a model's weights, whatever holds them, as one mapping from Hugging Face names to
tensors."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from medha_actors.config import ModelLoadingConfig
from medha_actors.errors import ModelError
from medha_actors.files.gguf import GgufFile
from medha_actors.files.source import resolve
from medha_actors.files.stored import Stored
from medha_actors.model.cut import WHOLE, Cut
from medha_actors.model.gguf_weights import GgufWeights
from medha_actors.model.shapes import tensor_shapes
from medha_actors.model_spec import ModelSpec

# safetensors' words for values as they are
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_MIXTRAL = (
    (".mlp.", ".block_sparse_moe."),
    (".gate_proj.", ".w1."),
    (".up_proj.", ".w3."),
    (".down_proj.", ".w2."),
)


class Weights(Protocol):
    """Tensors by name; a tensor is read when it is asked for, so a stage reads only its own
    layers, and of a tensor that is cut only that part."""

    def __contains__(self, name: str) -> bool: ...

    def tensor(self, name: str, dtype: torch.dtype, cut: Cut = WHOLE) -> Tensor:
        """The tensor in `dtype`; raises ModelError if it is missing."""
        ...

    def blocks(self, name: str, cut: Cut = WHOLE) -> tuple[Tensor, int] | None:
        """A quantised matrix as stored: uint8 [rows, bytes], GGUF kind; None if it is not
        quantised, or cut inside its blocks."""
        ...


class StoredWeights(Weights, Protocol):
    """Weights in files, that tell where."""

    def stored(self, name: str, cut: Cut = WHOLE) -> Stored | None:
        """The bytes of a tensor; None where they are in pieces, or `made` knows nothing of their
        kind. Raises ModelError."""
        ...

    def made(
        self, name: str, raw: Tensor, dtype: torch.dtype, cut: Cut = WHOLE
    ) -> Tensor:
        """The tensor of these bytes, uint8 [size], on whatever device they are."""
        ...


def open_weights(spec: ModelSpec, config: ModelLoadingConfig) -> StoredWeights:
    """The weights that the configuration names."""
    source = resolve(config)
    if source.kind == "random":
        return RandomWeights(spec, config.random.seed)
    if source.kind == "gguf":
        return GgufWeights(GgufFile(source.files), spec)
    return SafetensorsWeights(source.files, spec)


class RandomWeights:
    """Weights drawn from a generator seeded by the tensor's name: the same whichever stage asks."""

    def __init__(self, spec: ModelSpec, seed: int) -> None:
        self.seed = seed
        self.shapes = tensor_shapes(spec)

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def tensor(self, name: str, dtype: torch.dtype, cut: Cut = WHOLE) -> Tensor:
        shape = self.shapes[name]
        if len(shape) == 1:  # a norm
            return torch.ones(shape, dtype=dtype)
        generator = torch.Generator().manual_seed(
            zlib.crc32(f"{self.seed} {name}".encode())
        )
        scale: float = shape[1] ** -0.5
        drawn = torch.randn(
            shape, generator=generator
        )  # whole: a rank's part is a part of it
        return (drawn[cut.places(shape)] * scale).to(dtype)

    def blocks(self, name: str, cut: Cut = WHOLE) -> tuple[Tensor, int] | None:
        return None

    def stored(self, name: str, cut: Cut = WHOLE) -> Stored | None:
        return None

    def made(
        self, name: str, raw: Tensor, dtype: torch.dtype, cut: Cut = WHOLE
    ) -> Tensor:
        raise AssertionError("nothing is stored")


class SafetensorsWeights:
    """A folder of safetensors files, one or sharded with an index; only files that are needed are
    opened."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self.folder = folder
        self.mixtral = spec.architecture == "mixtral"
        self.shapes = tensor_shapes(spec)
        self.opened: dict[str, Any] = {}
        self.places: dict[Path, dict[str, tuple[str, int, int]]] = {}  # see _places
        self.kinds: dict[
            str, torch.dtype
        ] = {}  # of the tensors whose places were asked for
        index = folder / "model.safetensors.index.json"
        try:
            if index.is_file():
                self.files: dict[str, str] = json.loads(index.read_bytes())[
                    "weight_map"
                ]
            else:
                names = sorted(path.name for path in folder.glob("*.safetensors"))
                self.files = {}
                for file in names:
                    self.files |= dict.fromkeys(self._open(file).keys(), file)
        except (ValueError, KeyError, OSError) as error:
            raise ModelError(f"{index} cannot be read: {error}") from error
        if not self.files:
            raise ModelError(f"{folder} holds no .safetensors files")

    def __contains__(self, name: str) -> bool:
        return self._stored(name) in self.files

    def _stored(self, name: str) -> str:
        """The name in the files: Mixtral's experts have words of their own."""
        if not self.mixtral:
            return name
        for ours, theirs in _MIXTRAL:
            name = name.replace(ours, theirs)
        return name

    def _open(self, file: str) -> Any:
        from safetensors import SafetensorError, safe_open

        if file not in self.opened:
            try:
                self.opened[file] = safe_open(self.folder / file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ModelError(
                    f"{self.folder / file} cannot be read: {error}"
                ) from error
        return self.opened[file]

    def tensor(self, name: str, dtype: torch.dtype, cut: Cut = WHOLE) -> Tensor:
        from safetensors import SafetensorError

        shape = self.shapes[name]
        name, file = self._file_of(name)
        try:
            stored = file.get_slice(name)
            self._check(name, stored, shape)
            if cut == WHOLE:
                tensor: Tensor = file.get_tensor(name)
            else:
                tensor = stored[cut.places(shape)]
            return tensor.to(dtype)
        except SafetensorError as error:
            raise ModelError(f"{self.folder / self.files[name]}: {error}") from error

    def stored(self, name: str, cut: Cut = WHOLE) -> Stored | None:
        shape = self.shapes[name]
        if cut.part is not None and cut.axis == "columns" and len(shape) > 1:
            return None
        name, file = self._file_of(name)
        self._check(name, file.get_slice(name), shape)
        path = self.folder / self.files[name]
        if path not in self.places:
            self.places[path] = _places(path)
        kind, first, stop = self.places[path][name]
        self.kinds[name] = _TYPES[kind]
        row = (stop - first) // shape[0]
        if cut.part is not None:
            stop = first + cut.part.stop * row
            first += cut.part.first * row
        return Stored(path, first, stop - first)

    def made(
        self, name: str, raw: Tensor, dtype: torch.dtype, cut: Cut = WHOLE
    ) -> Tensor:
        values = raw.view(self.kinds[self._stored(name)]).view(
            cut.shape(self.shapes[name])
        )
        return values.to(dtype)

    def _file_of(self, name: str) -> tuple[str, Any]:
        """A tensor's name in the files, and the one that has it."""
        name = self._stored(name)
        if name not in self.files:
            raise ModelError(f"{self.folder} has no tensor {name}")
        return name, self._open(self.files[name])

    def _check(self, name: str, stored: Any, wanted: tuple[int, ...]) -> None:
        """What the file says of a tensor, before it is read."""
        shape = tuple(stored.get_shape())
        kind = stored.get_dtype()
        if shape != wanted:
            raise ModelError(
                f"{self.folder / self.files[name]}: tensor {name} has shape {list(shape)}; by "
                f"config.json it has {list(wanted)}"
            )
        if kind not in _TYPES:
            raise ModelError(
                f"{self.folder / self.files[name]}: tensor {name} holds {kind}; quantised "
                "safetensors are not supported"
            )

    def blocks(self, name: str, cut: Cut = WHOLE) -> tuple[Tensor, int] | None:
        return None


def _places(path: Path) -> dict[str, tuple[str, int, int]]:
    """Of each tensor in a file: the word for its type, its first byte and the one behind it."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    start = 8 + size
    found = {}
    for name, said in header.items():
        if name != "__metadata__":
            first, stop = said["data_offsets"]
            found[name] = (said["dtype"], start + first, start + stop)
    return found
