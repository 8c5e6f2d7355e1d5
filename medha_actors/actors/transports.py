"""Transports: what carries the tensors of a link, where they need not go through its socket."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from medha_actors.actors.lookout import Waiting


class Transport(Waiting):
    """One end. `kind`: its name; `device`: of the tensors that it carries.

    Both ends call what belongs together in the same order; each end at most one of `send`, `put`
    and one of `receive`, `take` at a time. All raise LinkClosedError when the other end is gone; on
    a GPU they only queue work and return, and what was taken from an end that died meanwhile is
    worthless: ask the Lookout once the queue is done, before telling anybody.
    """

    kind: str
    device: torch.device
    room: int  # bytes that both ends may `put`, at most twice, before either takes

    def carries(self, tensor: Tensor) -> bool:
        """Whether it is for this tensor."""
        return tensor.device == self.device and tensor.numel() > 0

    @abstractmethod
    def send(self, tensor: Tensor) -> None:
        """One way, of any size."""

    @abstractmethod
    def receive(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """What the other end sends."""

    @abstractmethod
    def put(self, tensor: Tensor) -> None:
        """The first half of a swap: bytes that do not change until `take`."""

    @abstractmethod
    def take(self, into: Tensor) -> None:
        """The second half: fill a contiguous tensor with what the other end has put."""

    @abstractmethod
    def settled(self, timeout_s: float) -> bool:
        """Wait until all that was queued is done; False: not in that time."""


def swapped(
    own: int, transports: Mapping[int, Transport], *given: Tensor
) -> list[tuple[Tensor, ...]]:
    """What all that call this together have given, in the order of their numbers: one tensor or
    two, each of the same shape for all, with the same rows. `own`: this one's number; `transports`:
    to each of the others."""
    sent = tuple(tensor.contiguous() for tensor in given)
    found = {number: tuple(map(torch.empty_like, sent)) for number in transports}
    nbytes = sum(tensor.nbytes for tensor in sent)
    room = min(one.room for one in transports.values())
    if nbytes <= room:
        _swap(transports, sent, found)
    else:
        rows = len(sent[0])
        most = max(1, room * rows // nbytes)
        for start in range(0, rows, most):
            part = slice(start, start + most)
            takers = {
                number: tuple(one[part] for one in found[number])
                for number in transports
            }
            _swap(transports, tuple(tensor[part] for tensor in sent), takers)
    found[own] = sent
    return [found[number] for number in sorted(found)]


def _swap(
    transports: Mapping[int, Transport],
    sent: tuple[Tensor, ...],
    found: Mapping[int, tuple[Tensor, ...]],
) -> None:
    for number in sorted(transports):
        for tensor in sent:
            transports[number].put(tensor)
    for number in sorted(transports):
        for tensor in found[number]:
            transports[number].take(tensor)


def dealt(
    own: int, transports: Mapping[int, Transport], parts: Sequence[Tensor]
) -> list[Tensor]:
    """Part i of `parts` goes to number i: returns what all numbers have for this one, in their
    order. What goes to one number has one shape; no part is empty or larger than the room."""
    found = {own: parts[own]}
    for number in sorted(transports):
        transports[number].put(parts[number].contiguous())
    for number in sorted(transports):
        found[number] = torch.empty_like(
            parts[own], memory_format=torch.contiguous_format
        )
        transports[number].take(found[number])
    return [found[number] for number in sorted(found)]


def handed_round(
    own: int, transports: Mapping[int, Transport], given: Tensor, like: Sequence[Tensor]
) -> list[Tensor]:
    """What every number gives to all others, in the order of the numbers: `like` has the shapes."""
    found = {own: given}
    for number in sorted(transports):
        transports[number].put(given)
    for number in sorted(transports):
        found[number] = torch.empty_like(
            like[number], memory_format=torch.contiguous_format
        )
        transports[number].take(found[number])
    return [found[number] for number in sorted(found)]
