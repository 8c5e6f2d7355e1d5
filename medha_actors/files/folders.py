"""Where files are kept that are made or fetched once."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/medha or ~/.cache/medha."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medha"
