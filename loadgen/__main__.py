"""Entry point of `medha-loadgen` and `python -m loadgen`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from loadgen import cli
from loadgen.commands import COMMANDS
from loadgen.errors import EXIT_INTERRUPTED, EXIT_USAGE, LoadgenError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. Errors of the user's making are one line on standard
    error."""
    given = sys.argv[1:] if argv is None else list(argv)
    parser = cli.parser()
    if (
        not given
    ):  # of a command line without a command, the commands are of more use than a line
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    arguments = parser.parse_args(given)
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
