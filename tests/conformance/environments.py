"""An environment of its own for each tool, kept in a folder: a virtual one, or a prefix of npm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

from tests.conformance.tools import Tool

SCRIPTS: Final = Path(__file__).parent / "scripts"
_VERSION: Final = (
    "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
)
_INSTALL_S: Final = 1800.0


class NotInstalledError(Exception):
    """The tool cannot be had here, and why."""


class Environment:
    """Where one tool lives."""

    def __init__(self, tool: Tool, folder: Path) -> None:
        self._tool = tool
        self._root = folder / tool.name
        self._stamp = self._root / "installed.txt"

    def install(self, anew: bool = False) -> None:
        """Unless it is there; raises NotInstalledError. `anew`: from the newest packages."""
        wanted = f"{' '.join(self._tool.packages)} {sys.version_info[:2]}"
        if anew:
            shutil.rmtree(self._root, ignore_errors=True)
        if self._stamp.is_file() and self._stamp.read_text() == wanted:
            self._borrow()
            return
        self._root.mkdir(parents=True, exist_ok=True)
        if self._tool.kind == "node":
            self._install_node()
        else:
            self._install_python()
        self._stamp.write_text(wanted)

    def _install_node(self) -> None:
        if shutil.which("npm") is None:
            raise NotInstalledError("there is no npm here")
        (self._root / "package.json").write_text('{"private": true}')
        packages = self._tool.packages
        _run(
            [
                "npm",
                "install",
                "--no-audit",
                "--no-fund",
                "--prefix",
                str(self._root),
                *packages,
            ]
        )

    def _install_python(self) -> None:
        _run([sys.executable, "-m", "venv", str(self._root)])
        self._borrow()
        alone = () if self._tool.dependencies else ("--no-deps",)
        _run(
            [
                str(self._python),
                "-m",
                "pip",
                "install",
                "--quiet",
                *alone,
                *self._tool.packages,
            ]
        )

    def _borrow(self) -> None:
        """From the environment that runs this, which may be another one each time."""
        if self._tool.borrows:
            [place] = self._root.glob("lib/python*/site-packages")
            (place / "borrowed.pth").write_text(sysconfig.get_path("purelib"))

    @property
    def _python(self) -> Path:
        return self._root / "bin" / "python"

    @property
    def _distribution(self) -> str:
        return self._tool.packages[0].partition("[")[0]

    def version(self) -> str:
        """Of the tool's first package, as it is installed."""
        if self._tool.kind == "node":
            package = self._root / "node_modules" / self._distribution / "package.json"
            return str(json.loads(package.read_text())["version"])
        command = [str(self._python), "-c", _VERSION, self._distribution]
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.strip()

    def command(self, url: str, model: str) -> list[str]:
        """What runs the tool's script."""
        script = SCRIPTS / self._tool.script
        if self._tool.kind == "python":
            return [str(self._python), str(script), url, model]
        for module in SCRIPTS.glob(
            "*.mjs"
        ):  # node looks for packages where the script lies
            shutil.copy(module, self._root)
        return ["node", str(self._root / script.name), url, model]


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command,
            env={
                **os.environ,
                "PIP_NO_INPUT": "1",
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_INSTALL_S,
        )
    except subprocess.TimeoutExpired:
        raise NotInstalledError(f"installing took over {_INSTALL_S:g} s") from None
    if done.returncode != 0:
        raise NotInstalledError(_reason(done.stderr or done.stdout))


def _reason(said: str) -> str:
    """The line of an installer that says what is wrong."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = (
        [line for line in lines if "error" in line.lower()]
        or lines
        or ["it said nothing"]
    )
    return errors[-1][:160]
