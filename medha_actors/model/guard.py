"""A wall around each request's own work in a stage: what goes wrong there ends that request alone.

The work of a whole step is tried at once, and request by request only where that fails.
"""

from __future__ import annotations

import logging
import math
from types import TracebackType
from typing import Final

import torch
from torch import Tensor

from medha_actors.errors import LinkClosedError, MedhaError
from medha_actors.messages import Failure

_log = logging.getLogger("medha.model")

NOT_NUMBERS: Final = (
    "the model's logits for this request are not numbers (NaN or infinite)"
)
TOO_COLD: Final = (
    "the model's logits for this request, over its temperature, are not finite"
)


class RowError(MedhaError):
    """One request's part of a step cannot be computed; the message is for its client."""


class Wall:
    """Around one request's work. (A generator as context manager takes four times as long, and this
    is entered for every row of every step.)"""

    __slots__ = ("_failures", "_request_id")

    def __init__(self, failures: Failures, request_id: str) -> None:
        self._failures = failures
        self._request_id = request_id

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        if isinstance(error, torch.AcceleratorError | LinkClosedError):
            return False
        if isinstance(error, RowError):
            self._failures.add(self._request_id, error.message)
        else:
            _log.error("request %s failed in a stage", self._request_id, exc_info=error)
            message = f"a stage failed at this request: {type(error).__name__}"
            self._failures.add(self._request_id, message)
        return True


class Failures:
    """The requests of one step that failed, each with the first reason."""

    def __init__(self) -> None:
        self._messages: dict[str, str] = {}

    def guard(self, request_id: str) -> Wall:
        """Let an exception inside end this request only. What leaves the device unusable, and the
        death of another rank, go through."""
        return Wall(self, request_id)

    def add(self, request_id: str, message: str) -> None:
        """Note one failure."""
        self._messages.setdefault(request_id, message)

    def all(self) -> tuple[Failure, ...]:
        """For the step's message."""
        return tuple(
            [Failure(name, message) for name, message in self._messages.items()]
        )


def require_numbers(values: Tensor) -> None:
    """Raise RowError unless all are finite. `values`: the largest logit of each row, or what is NaN
    where a logit is."""
    if not all(map(math.isfinite, values.flatten().tolist())):
        raise RowError(NOT_NUMBERS)


def require_known(what: str, smallest: int, largest: int, vocabulary: int) -> None:
    """Raise RowError if token ids are none of the model's."""
    if smallest < 0 or largest >= vocabulary:
        wrong = largest if largest >= vocabulary else smallest
        raise RowError(
            f"{what} has token id {wrong}; this model's vocabulary ends at {vocabulary - 1}"
        )
