"""One tool against one server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deployments.text_sources import load_text
from tests.conformance.environments import Environment, NotInstalledError
from tests.conformance.outcomes import Outcome, checks_of
from tests.conformance.scripted import MODEL
from tests.conformance.tools import Tool


@dataclass(frozen=True, slots=True)
class Served:
    """What the tools are run against."""

    url: str
    model: str
    kind: Literal["real", "scripted"]


def served_at(url: str, kind: Literal["real", "scripted"]) -> Served:
    """Ask the server for its model."""
    with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as answer:
        model = json.load(answer)["data"][0]["id"]
    return Served(url, model, kind)


def run(tool: Tool, folder: Path, server: Served, anew: bool = False) -> Outcome:
    """Install the tool if need be, and run its script; what that says goes to a file beside its
    environment."""
    environment = Environment(tool, folder)
    try:
        environment.install(anew)
    except NotInstalledError as error:
        return Outcome(tool.name, tool.does, why=str(error), installed=False)
    command = environment.command(server.url, server.model)
    log = folder / f"{tool.name}.log"
    told = {
        "MEDHA_TOKENIZER": str(tokenizer_folder(folder)),
        "MEDHA_SERVER": server.kind,
    }
    status = _run(command, log, tool.limit_s, told)
    passed, failed = checks_of(log.read_text(errors="replace"))
    return Outcome(
        tool=tool.name,
        does=tool.does,
        version=environment.version(),
        server=server.kind,
        passed=passed,
        failed=failed,
        why=None if status == int(bool(failed)) else f"its script ended with {status}",
    )


def _run(
    command: list[str], log: Path, limit_s: float, told: dict[str, str]
) -> int | str:
    """The exit status; `log` gets all output, `told` is put into the environment. Nothing of it is
    left running."""
    given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (
        log.open("w") as output,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place,
    ):
        process = subprocess.Popen(
            command,
            cwd=place,
            env={**given, **told, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return f"nothing within {limit_s:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def tokenizer_folder(folder: Path) -> Path:
    """The embedded model's tokenizer as a Hugging Face folder, for tools that want one."""
    place = folder / "tokenizer"
    if not (place / "tokenizer_config.json").is_file():
        place.mkdir(parents=True, exist_ok=True)
        text = load_text(MODEL)
        text.tokenizer.save(str(place / "tokenizer.json"))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": text.chat_template,
            **text.special_tokens,
        }
        (place / "tokenizer_config.json").write_text(json.dumps(settings))
    return place
