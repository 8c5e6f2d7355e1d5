"""How matrices lie in memory for the kernels in linear.py, and the forms of activations.

The 16 lanes of a vector are 16 output features. A "column" of 16 outputs holds, for each block of
32 inputs, everything the kernel needs in a row, and a matrix is streamed from memory once per 12
rows at most. A group of blocks is

values  64 bits / 8 bytes for each word of 4 inputs by 16 outputs: halves of bytes (word 2i in the
        low ones, word 2i + 1 in the high ones), then a vector of fifth bits (bit j of a byte is
        word j's) or two of fifth and sixth (bits 2j, 2j + 1 are word j's or 4 + j's); or bytes;
        or plain numbers, bfloat16 ones in pairs of inputs
scales  of one block alone: d and, without a zero, m, float16;
        of a block in a group of 8: a byte of scale and one of minimum (unsigned), or with a zero
        a signed scale for each 16 inputs
head    of a group of 8: d and, without a zero, m, float16, filled up to 64 bytes

and its weights are w = d scale (q - zero), or d scale q + m minimum: what the GGUF file says,
without any rounding.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

LANES: Final = 16
BLOCK: Final = 32  # inputs
SCALES_BYTES: Final = 16  # what goes with a row's block: its scale and three sums

Activations = Literal["int8", "int16", "float32", "bfloat16"]
FORMS: Final[tuple[Activations, ...]] = ("int8", "int16", "float32", "bfloat16")
INT8, INT16, FLOAT, BFLOAT = range(4)  # their places in FORMS, as the kernels know them


class Layout(NamedTuple):
    """One way in which a matrix is held."""

    name: str  # the GGUF kind that it was made for
    bits: int  # of a value
    zero: int | None = None  # what stands for 0; None: blocks have minimums
    group: int = 1  # blocks

    @property
    def plain(self) -> bool:
        """Numbers, not blocks."""
        return self.bits > 8

    @property
    def halves(self) -> bool:
        """Whether there are two scales in a block."""
        return self.group > 1 and self.zero is not None

    @property
    def value_bytes(self) -> int:
        """Of the values of a block."""
        return LANES * BLOCK * self.bits // 8

    @property
    def scale_bytes(self) -> int:
        """Of the scales of a block."""
        if self.plain:
            return 0
        return 64 if self.group == 1 and self.zero is None else 32

    @property
    def group_bytes(self) -> int:
        head = 64 if self.group > 1 else 0
        return self.group * (self.value_bytes + self.scale_bytes) + head

    @property
    def weight_bytes(self) -> float:
        """Bytes of memory for each weight."""
        return self.group_bytes / (self.group * BLOCK * LANES)


PLAIN_BFLOAT: Final = Layout("BF16", 16)
PLAIN_FLOAT: Final = Layout("F32", 32)
LAYOUTS: Final = {
    layout.name: layout
    for layout in (
        Layout("Q4_0", 4, 8),
        Layout("Q4_1", 4),
        Layout("Q5_0", 5, 16),
        Layout("Q5_1", 5),
        Layout("Q8_0", 8, 128),
        Layout("Q4_K", 4, None, 8),
        Layout("Q5_K", 5, None, 8),
        Layout("Q6_K", 6, 32, 8),
        Layout("IQ4_XS", 8, 128, 8),
    )
}
