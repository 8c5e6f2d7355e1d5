"""The dense parts of a transformer layer: linear maps, RMSNorm and the gated MLP."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from medha_actors.model.experts import ExpertMlp, Router
from medha_actors.model.gguf_weights import dequantise
from medha_actors.model.weights import Weights
from medha_actors.model_spec import ModelSpec

_TABLE = "model.embed_tokens.weight"
_BATCH_HINT = 64  # rows that oneDNN lays the weight out for
_FEW = 16  # rows of the embedding that are looked up one by one
_KEPT_BYTES = 16 * 2**20  # of such rows, in float32


class Linear:
    """y = x W^T + b for x [rows, in]; W is given as [out, in] and kept in the layout that is
    fastest here."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self.prepacked = weight.device.type == "cpu" and _prepacks(weight.dtype)
        if self.prepacked:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, _BATCH_HINT)
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        if self.prepacked:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(
                x, self.weight, self.bias, "none", [], ""
            )
            return y
        return F.linear(x, self.weight, self.bias)


def _prepacks(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies this type on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


class RmsNorm:
    """x / rms(x) * weight over the last dimension, accumulated in float32."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight
        self.eps = eps
        self.shape = tuple(weight.shape)

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.shape, self.weight, self.eps)


class Mlp:
    """down(silu(gate(x)) * up(x)), gate and up as one matrix."""

    def __init__(self, gate_up: Linear, down: Linear) -> None:
        self.gate_up = gate_up
        self.down = down

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate).mul_(up))


class Embedding:
    """Rows of the embedding table; a quantised table stays as it is stored, and only rows looked up
    are dequantised."""

    def __init__(
        self,
        table: Tensor,
        kind: int | None,
        dtype: torch.dtype,
        first: int | None = None,
    ) -> None:
        """`first`: the token of the table's first row, where others hold the rest of it."""
        self.table = table
        self.kind = kind  # GGUF kind of a quantised table
        self.dtype = dtype
        self.first = first
        kept = max(1, _KEPT_BYTES // (4 * table.shape[1]))
        self._row = lru_cache(kept)(self._dequantised)

    def __call__(self, token_ids: Tensor) -> Tensor:
        """int32 [rows] -> [rows, hidden], zeros for tokens that others hold."""
        if self.first is None:
            return self._rows(token_ids)
        places = token_ids - self.first
        foreign = (places < 0) | (places >= len(self.table))
        return self._rows(places.masked_fill_(foreign, 0)).masked_fill_(
            foreign[:, None], 0
        )

    def _rows(self, places: Tensor) -> Tensor:
        if self.kind is None:
            return self.table.index_select(0, places)
        if len(places) > _FEW or self.table.device.type != "cpu":
            return dequantise(self.table.index_select(0, places), self.kind, self.dtype)
        return torch.cat([self._row(place) for place in places.tolist()])

    def _dequantised(self, place: int) -> Tensor:
        """One row: texts are made of the same tokens again and again, and the dozen small
        operations take a decode longer than a layer does."""
        assert self.kind is not None
        return dequantise(self.table[place : place + 1], self.kind, self.dtype)


class Loader:
    """Builds layers from weights: reads, fuses, converts and moves tensors."""

    def __init__(
        self,
        weights: Weights,
        spec: ModelSpec,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.weights = weights
        self.spec = spec
        self.device = device
        self.dtype = dtype
        self.table: Tensor | None = None

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the device, in the compute type."""
        return self.weights.tensor(name, self.dtype).to(self.device)

    def embedding(self, first: int | None = None) -> Embedding:
        """The embedding table, or the rows of it that the weights have, from token `first` on."""
        stored = self.weights.blocks(_TABLE)
        if stored is not None:
            return Embedding(stored[0].to(self.device), stored[1], self.dtype, first)
        return Embedding(self._dense_table(), None, self.dtype, first)

    def _dense_table(self) -> Tensor:
        """[vocabulary, hidden], read once: it may be the head too."""
        if self.table is None:
            self.table = self.tensor(_TABLE)
        return self.table

    def linear(self, *names: str, bias: bool = False) -> Linear:
        """One linear map; several names are stacked along the output."""
        parts = [self.tensor(f"{name}.weight") for name in names]
        weight = torch.cat(parts) if len(parts) > 1 else parts[0]
        stacked = (
            torch.cat([self.tensor(f"{name}.bias") for name in names]) if bias else None
        )
        return Linear(weight, stacked)

    def norm(self, name: str) -> RmsNorm:
        return RmsNorm(self.tensor(f"{name}.weight"), self.spec.eps)

    def mlp(self, layer: int) -> Mlp | ExpertMlp:
        """The feed-forward block of a layer."""
        prefix = f"model.layers.{layer}.mlp"
        experts = self.spec.experts
        if experts is None:
            return self._mlp(prefix)
        names = [f"{prefix}.experts.{number}" for number in range(experts.count)]
        if experts.shared:
            names.append(f"{prefix}.shared_expert")
        router = Router(self.router(layer).to(self.device), experts)
        return ExpertMlp(router, [self._mlp(name) for name in names])

    def _mlp(self, name: str) -> Mlp:
        bias = self.spec.mlp_bias
        return Mlp(
            self.linear(f"{name}.gate_proj", f"{name}.up_proj", bias=bias),
            self.linear(f"{name}.down_proj", bias=bias),
        )

    def router(self, layer: int) -> Tensor:
        """float32: a row for each expert, and one for the shared expert's gate."""
        prefix = f"model.layers.{layer}.mlp"
        names = [f"{prefix}.gate.weight"]
        if self.spec.experts is not None and self.spec.experts.shared:
            names.append(f"{prefix}.shared_expert_gate.weight")
        return torch.cat([self.weights.tensor(name, torch.float32) for name in names])

    def head(self) -> Linear:
        """The LM head, which may be the embedding table."""
        return (
            Linear(self._dense_table())
            if self.spec.tied_head
            else self.linear("lm_head")
        )
