"""Weights that arrive on the device as they are stored, and are made there what they are to be:
converted, dequantised, put in order."""

from __future__ import annotations

import logging
import time
from types import TracebackType

import torch
from torch import Tensor

from medha_actors.model.cuda.upload import Uploader
from medha_actors.model.cut import WHOLE, Cut
from medha_actors.model.weights import StoredWeights

_log = logging.getLogger("medha.model")


class DeviceWeights:
    """See Weights; its tensors lie on the device. To be used in a `with`, whose end tells how long
    it took."""

    def __init__(self, weights: StoredWeights, device: torch.device) -> None:
        self.weights = weights
        self.device = device
        self._uploader = Uploader(device)
        self._start = time.perf_counter()

    def __enter__(self) -> DeviceWeights:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._uploader.close()
        took = time.perf_counter() - self._start
        size = self._uploader.bytes / 1e9
        if error is None and size:
            _log.info("weights: %.2f GB in %.1f s, %.1f GB/s", size, took, size / took)

    def __contains__(self, name: str) -> bool:
        return name in self.weights

    def tensor(self, name: str, dtype: torch.dtype, cut: Cut = WHOLE) -> Tensor:
        stored = self.weights.stored(name, cut)
        if stored is None:  # in pieces, or of a kind that is read by others
            return self.weights.tensor(name, dtype, cut).to(self.device)
        return self.weights.made(name, self._uploader.bring(stored), dtype, cut)

    def blocks(self, name: str, cut: Cut = WHOLE) -> tuple[Tensor, int] | None:
        """None: nothing multiplies blocks here."""
        return None
