"""Cut: which part of a tensor is read, in rows (outputs) or in columns (inputs)."""

from __future__ import annotations

from typing import Literal, NamedTuple

from medha_actors.model_shares import Range


class Cut(NamedTuple):
    """The rows or columns of `part`; None: everything."""

    axis: Literal["rows", "columns"]
    part: Range | None

    def places(self, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """The index of the part in a tensor of this shape; a vector has rows."""
        if self.part is None:
            return (slice(None),) * len(shape)
        kept = slice(*self.part)
        return (kept,) if len(shape) == 1 else self._of_matrix(kept)

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Of the part, where the tensor has this shape."""
        if self.part is None:
            return whole
        if self.axis == "rows" or len(whole) == 1:
            return (self.part.size, *whole[1:])
        return (*whole[:-1], self.part.size)

    def _of_matrix(self, kept: slice) -> tuple[slice, slice]:
        return (kept, slice(None)) if self.axis == "rows" else (slice(None), kept)

    def inside_blocks(self, values: int) -> bool:
        """Whether it goes through blocks of so many values of a row."""
        if self.part is None or self.axis == "rows":
            return False
        return self.part.first % values != 0 or self.part.stop % values != 0


WHOLE = Cut("rows", None)
