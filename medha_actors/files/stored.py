"""Where bytes lie in a file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Stored(NamedTuple):
    """One piece of a file: what is wanted of a tensor, and nothing else."""

    path: Path
    offset: int
    size: int  # bytes
