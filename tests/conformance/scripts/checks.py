"""What every tool's script does around its checks. Only the standard library: it runs in the tool's
own environment."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

URL, MODEL = sys.argv[1:3]
_failed: list[str] = []
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "unit": {"enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
LONG = (
    "river " * 200_000
)  # for a model of any length: agents must hear that it does not fit
QUESTION = "What is the weather in Paris, in celsius?"


@contextlib.contextmanager
def check(what: str) -> Iterator[None]:
    """Say how it went, and go on in any case."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        _failed.append(what)
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"failed: {what}: {reason}", flush=True)
    else:
        print(f"ok: {what}", flush=True)


def end() -> None:
    """Exit as the checks went."""
    sys.exit(int(bool(_failed)))


def error_of(call: Callable[[], Any]) -> Exception:
    """What a call raises that must not be taken."""
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("it was taken")


def command(name: str, *arguments: str, **more: str) -> str:
    """Run a command of this environment; returns what it printed. `more`: variables."""
    quiet = {
        "DO_NOT_TRACK": "1",
        "NO_COLOR": "1",
        "HF_HUB_OFFLINE": "1",
        "OPENAI_API_KEY": "none",
    }
    done = subprocess.run(
        [str(Path(sys.executable).parent / name), *arguments],
        env={**os.environ, **quiet, **more},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout, flush=True)
    if done.returncode != 0:
        lines = done.stdout.strip().splitlines() or ["it said nothing"]
        raise AssertionError(f"{name} ended with {done.returncode}: {lines[-1][:200]}")
    return done.stdout


def fetch(path: str) -> Any:
    """JSON of the server."""
    with urllib.request.urlopen(URL + path, timeout=60) as answer:
        return json.load(answer)
