"""Errors that end the program with one clear line and a non-zero exit status, and what each status
means."""

from __future__ import annotations

EXIT_ALL_FAILED = 1  # the run took place, but not one request was answered
# wrong options, a server that is not there, an unreadable trace, a directory that exists
EXIT_USAGE = 2
# --fail-unhealthy: results were written, but the load generator's own checks failed
EXIT_UNHEALTHY = 3
EXIT_INTERRUPTED = 130  # Ctrl-C; results were written
EXIT_CODES = """exit codes:
  0    results were written, also where requests failed, and where the load generator's own health
       check did: both are told, and stand in the results
  1    not one request was answered; of capacity: the objectives held at no rate
  2    wrong options, or no server that takes them; nothing was measured
  3    --fail-unhealthy was given to run, and the load generator's own health check failed
  130  interrupted (Ctrl-C, SIGTERM): what there was until then is written"""


class LoadgenError(Exception):
    """Something the user can put right; the message is the whole story, in one line."""

    def __init__(self, message: str, status: int = EXIT_USAGE) -> None:
        super().__init__(message)
        self.status = status
