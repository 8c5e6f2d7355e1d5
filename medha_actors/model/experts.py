"""A mixture of experts: a router gives each row to a few of many MLPs, whose weighted sum it
gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from medha_actors.model_spec import Experts


class Router:
    """Which experts a row takes and with what weights; in float32, whatever the experts compute
    in, since a small difference here is another expert."""

    def __init__(self, weight: Tensor, experts: Experts) -> None:
        """weight: float32 [experts, hidden]; a shared expert's gate is its last row."""
        self.weight = weight
        self.experts = experts

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [rows, hidden] -> numbers of experts and float32 weights, each [rows, taken]."""
        count = self.experts.count
        logits = F.linear(x.float(), self.weight)
        # of equals the first, which topk does not promise
        chances, numbers = (
            logits[:, :count].softmax(-1).sort(stable=True, dim=-1, descending=True)
        )
        weights = chances[:, : self.experts.used]
        numbers = numbers[:, : self.experts.used]
        if self.experts.normalised:
            weights = weights / weights.sum(-1, keepdim=True)
        if self.experts.shared:
            weights = torch.cat((weights, logits[:, count:].sigmoid()), 1)
            numbers = torch.cat((numbers, numbers.new_full((len(x), 1), count)), 1)
        return numbers, weights


class ExpertMlp:
    """The experts of a layer, each of which is run once for all rows that take it.

    A row's sum is formed in the order of the experts, whoever is beside it.
    """

    def __init__(
        self, router: Router, experts: Sequence[Callable[[Tensor], Tensor]]
    ) -> None:
        self.router = router
        self.experts = experts

    def __call__(self, x: Tensor) -> Tensor:
        numbers, weights = self.router(x)
        taken = numbers.shape[1]
        numbers = numbers.flatten()
        weights = weights.flatten()
        order = numbers.argsort(stable=True)
        counts = numbers.bincount(minlength=len(self.experts)).tolist()
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert, places in zip(self.experts, order.split(counts), strict=True):
            if len(places):
                rows = places // taken
                part = expert(x[rows]).float() * weights[places, None]
                total.index_add_(0, rows, part)
        return total.to(x.dtype)
