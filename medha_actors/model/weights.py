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
from medha_actors.model.cut import WHOLE, Cut
from medha_actors.model.gguf_weights import GgufWeights
from medha_actors.model.shapes import tensor_shapes
from medha_actors.model_spec import ModelSpec

_PLAIN = ("F64", "F32", "F16", "BF16")  # safetensors' words for values as they are
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


def open_weights(spec: ModelSpec, config: ModelLoadingConfig) -> Weights:
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
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))
        scale: float = shape[1] ** -0.5
        drawn = torch.randn(shape, generator=generator)  # whole: a rank's part is a part of it
        return (drawn[cut.places(shape)] * scale).to(dtype)

    def blocks(self, name: str, cut: Cut = WHOLE) -> tuple[Tensor, int] | None:
        return None


class SafetensorsWeights:
    """A folder of safetensors files, one or sharded with an index; only files that are needed are
    opened."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self.folder = folder
        self.mixtral = spec.architecture == "mixtral"
        self.shapes = tensor_shapes(spec)
        self.opened: dict[str, Any] = {}
        index = folder / "model.safetensors.index.json"
        try:
            if index.is_file():
                self.files: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
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
                raise ModelError(f"{self.folder / file} cannot be read: {error}") from error
        return self.opened[file]

    def tensor(self, name: str, dtype: torch.dtype, cut: Cut = WHOLE) -> Tensor:
        from safetensors import SafetensorError

        shape = self.shapes[name]
        name = self._stored(name)
        if name not in self.files:
            raise ModelError(f"{self.folder} has no tensor {name}")
        file = self._open(self.files[name])
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

    def _check(self, name: str, stored: Any, wanted: tuple[int, ...]) -> None:
        """What the file says of a tensor, before it is read."""
        shape = tuple(stored.get_shape())
        kind = stored.get_dtype()
        if shape != wanted:
            raise ModelError(
                f"{self.folder / self.files[name]}: tensor {name} has shape {list(shape)}; by "
                f"config.json it has {list(wanted)}"
            )
        if kind not in _PLAIN:
            raise ModelError(
                f"{self.folder / self.files[name]}: tensor {name} holds {kind}; quantised "
                "safetensors are not supported"
            )

    def blocks(self, name: str, cut: Cut = WHOLE) -> tuple[Tensor, int] | None:
        return None
