"""A wall around each request's own work in a stage: what goes wrong there ends that request alone.

The work of a whole step is tried at once, and request by request only where that fails.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor

from medha_actors.errors import LinkClosedError, MedhaError
from medha_actors.messages import Failure

_log = logging.getLogger("medha.model")

NOT_NUMBERS: Final = "the model's logits for this request are not numbers (NaN or infinite)"
TOO_COLD: Final = "the model's logits for this request, over its temperature, are not finite"


class RowError(MedhaError):
    """One request's part of a step cannot be computed; the message is for its client."""


class Failures:
    """The requests of one step that failed, each with the first reason."""

    def __init__(self) -> None:
        self._messages: dict[str, str] = {}

    @contextmanager
    def guard(self, request_id: str) -> Iterator[None]:
        """Let an exception inside end this request only. What leaves the device unusable, and the
        death of another rank, go through."""
        try:
            yield
        except (torch.AcceleratorError, LinkClosedError):
            raise
        except RowError as error:
            self.add(request_id, error.message)
        except Exception as error:
            _log.exception("request %s failed in a stage", request_id)
            self.add(request_id, f"a stage failed at this request: {type(error).__name__}")

    def add(self, request_id: str, message: str) -> None:
        """Note one failure."""
        self._messages.setdefault(request_id, message)

    def all(self) -> tuple[Failure, ...]:
        """For the step's message."""
        return tuple([Failure(name, message) for name, message in self._messages.items()])


def require_numbers(values: Tensor) -> None:
    """Raise RowError unless all are finite. `values`: the largest logit of each row, or what is NaN
    where a logit is."""
    if not values.isfinite().all():
        raise RowError(NOT_NUMBERS)


def require_known(what: str, smallest: int, largest: int, vocabulary: int) -> None:
    """Raise RowError if token ids are none of the model's."""
    if smallest < 0 or largest >= vocabulary:
        wrong = largest if largest >= vocabulary else smallest
        raise RowError(
            f"{what} has token id {wrong}; this model's vocabulary ends at {vocabulary - 1}"
        )
