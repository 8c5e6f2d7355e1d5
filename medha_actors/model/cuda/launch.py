"""Launches of Triton kernels for little of the host's time.

Triton looks at every argument of every launch to find out which of its compiled variants fits; that
takes longer than most of our kernels run. Here the caller says what a variant depends on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

_ALIGNED = 16  # bytes: what variants are compiled for


class Launcher:
    """One kernel (a function under triton.jit), whose parameters are tensors first, then numbers
    that it is not specialised on, then constants."""

    def __init__(self, function: Any, **options: int) -> None:
        """`options`: warps and the like (num_warps=4)."""
        self.function = function
        self._options = options
        self._compiled: dict[Any, Any] = {}

    def __call__(
        self,
        grid: tuple[int, int, int],
        tensors: Sequence[Tensor],
        numbers: Sequence[float] = (),
        constants: Sequence[Any] = (),
        options: Mapping[str, int] | None = None,
    ) -> None:
        """Launch on the current stream. The types of all tensors follow from that of the first
        one and the constants; `options` are added to the kernel's own."""
        addresses = 0
        for tensor in tensors:
            addresses |= tensor.data_ptr()
        first = tensors[0]
        chosen = tuple(options.items()) if options else ()
        key = (first.dtype, first.device, *constants, *chosen)
        made = None if addresses % _ALIGNED else self._compiled.get(key)
        if made is not None:
            made[grid](*tensors, *numbers, *constants)
            return
        given = {**self._options, **(options or {})}
        made = self.function[grid](*tensors, *numbers, *constants, **given)
        if (
            made is not None and not addresses % _ALIGNED
        ):  # the interpreter makes nothing
            self._compiled[key] = made
