"""The part of a model's weights that one rank holds, under the names of the whole.

Queries, keys, values, gate and up are cut by outputs, the output projection and down by inputs:
what a rank computes of these two is a summand. Their biases are added by the first rank alone. The
experts of a mixture are cut each like an MLP; routers are whole everywhere, and choose alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medha_actors.model.cut import WHOLE, Cut
from medha_actors.model.weights import Weights
from medha_actors.model_shares import Range, Share
from medha_actors.model_spec import ModelSpec

_SUMMANDS = ("o_proj", "down_proj")


class RankWeights:
    """See Weights. Norms and routers are whole on every rank."""

    def __init__(
        self, weights: Weights, spec: ModelSpec, share: Share, first: bool
    ) -> None:
        """`spec`: of the whole model; `first`: whether this is the first rank."""
        self.weights = weights
        self.first = first
        queries = Cut("rows", share.heads.times(spec.head_dim))
        keys = Cut("rows", share.kv_heads.times(spec.head_dim))
        tokens = Cut("rows", share.vocabulary)
        self.cuts = {
            "q_proj": queries,
            "k_proj": keys,
            "v_proj": keys,
            "o_proj": queries._replace(axis="columns"),
            **_of_mlp(share.intermediate),
            "embed_tokens": tokens,
            "lm_head": tokens,
        }
        self.shared = _of_mlp(share.shared)

    def __contains__(self, name: str) -> bool:
        return name in self.weights

    def tensor(self, name: str, dtype: torch.dtype, cut: Cut = WHOLE) -> Tensor:
        """The rank's part."""
        assert cut == WHOLE, "a part is not cut again"
        matrix, kind = _parts(name)
        if kind == "bias" and matrix in _SUMMANDS:
            bias = self.weights.tensor(name, dtype)
            return bias if self.first else torch.zeros_like(bias)
        return self.weights.tensor(name, dtype, self._cut(name))

    def blocks(self, name: str, cut: Cut = WHOLE) -> tuple[Tensor, int] | None:
        """The rank's part; None where it cannot be taken out of the blocks."""
        assert cut == WHOLE, "a part is not cut again"
        return self.weights.blocks(name, self._cut(name))

    def _cut(self, name: str) -> Cut:
        matrix, _ = _parts(name)
        cuts = self.shared if ".shared_expert." in name else self.cuts
        return cuts.get(matrix, WHOLE)


def _of_mlp(columns: Range) -> dict[str, Cut]:
    outputs = Cut("rows", columns)
    return {
        "gate_proj": outputs,
        "up_proj": outputs,
        "down_proj": Cut("columns", columns),
    }


def _parts(name: str) -> tuple[str, str]:
    """model.layers.3.mlp.up_proj.weight -> up_proj, weight"""
    *_, matrix, kind = name.split(".")
    return matrix, kind
