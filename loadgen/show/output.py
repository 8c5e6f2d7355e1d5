"""Where a command's words and files go."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from loadgen.errors import LoadgenError

Say = Callable[[str], None]


def say(text: str) -> None:
    """Tell the user, on standard error: standard output is for results."""
    print(text, file=sys.stderr, flush=True)


def directory_of(given: str | None, name: str) -> Path:
    """--result-dir, or a new name below results/; raises LoadgenError if it holds something. No
    colons: some file systems refuse them."""
    if given is None:
        safe = re.sub(r"[^\w.+-]+", "-", name)
        return Path("results") / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{safe}"
    directory = Path(given)
    _refuse_full(directory)
    return directory


def claim_directory(path: Path) -> None:
    """Make the results directory, before anything is sent; one that holds something is never
    written to."""
    try:
        _refuse_full(path)
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise LoadgenError(f"{path} is not writable")
    except OSError as error:
        raise LoadgenError(f"cannot create {path}: {error.strerror}") from None


def _refuse_full(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise LoadgenError(f"{path} exists already; choose another --result-dir")
