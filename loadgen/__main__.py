"""Entry point of `medha-loadgen` and `python -m loadgen`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from loadgen import cli
from loadgen.commands import COMMANDS
from loadgen.errors import EXIT_INTERRUPTED, LoadgenError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. Errors of the user's making are one line on standard
    error."""
    arguments = cli.parser().parse_args(argv)
    try:
        return COMMANDS[arguments.command](arguments)
    except LoadgenError as error:
        print(f"medha-loadgen: error: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("medha-loadgen: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
