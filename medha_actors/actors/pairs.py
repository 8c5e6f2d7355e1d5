"""Pairs: transports between hosts, a communicator of two ranks for each link (NCCL; gloo between
CPUs).

Made directly from a store, beside torch's default group, so that one can be aborted and made anew
without the others. All calls are batches of sends and receives: NCCL runs those of a batch side by
side, and makes one communicator for them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import (
    ProcessGroup,
    ProcessGroupGloo,
    Store,
    TCPStore,
)

from medha_actors.actors.lookout import Lookout
from medha_actors.actors.transports import Transport
from medha_actors.errors import LinkClosedError

_TIMEOUT = timedelta(minutes=1)  # to find each other
_AHEAD = 2  # sends under way
_POLL_S = 0.0005
_LEAVE_S = 30.0  # for threads to leave a communicator that has broken


def open_store(host: str, port: int | None) -> TCPStore:
    """Where two ranks find each other. None: make it, at a port of its own."""
    return TCPStore(
        host, port or 0, 2, port is None, timeout=_TIMEOUT, wait_for_workers=False
    )


def open_group(store: Store, rank: int, device: torch.device) -> ProcessGroup:
    """The communicator of rank 0 and 1; returns before the other rank is there, or not."""
    group = ProcessGroup(store, rank, 2)
    backend: Any
    if device.type == "cuda":
        # Who aborts, and when, is decided here.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        os.environ.setdefault("TORCH_NCCL_ENABLE_MONITORING", "0")
        options = torch.distributed.ProcessGroupNCCL.Options()
        backend = torch.distributed.ProcessGroupNCCL(store, rank, 2, options)
        kind = ProcessGroup.BackendType.NCCL
    else:
        backend = ProcessGroupGloo(store, rank, 2, _TIMEOUT)
        kind = ProcessGroup.BackendType.GLOO
    group._register_backend(device, kind, backend)
    group._set_default_backend(kind)
    return group


class PairTransport(Transport):
    """One of the two ranks."""

    room = sys.maxsize

    def __init__(
        self,
        group: ProcessGroup,
        store: Store,
        rank: int,
        device: torch.device,
        lookout: Lookout,
    ) -> None:
        self.device = device
        self._group: ProcessGroup | None = group
        self._store: Store | None = store
        self._other = 1 - rank
        self._lookout = lookout
        self._batches = group._get_backend(device).supports_coalescing
        self.kind = "nccl" if device.type == "cuda" else "gloo"
        self._sending = _queue(device)
        self._receiving = _queue(device)
        self._under_way: deque[tuple[Tensor, list[Any]]] = deque()
        self._put: deque[Tensor] = deque()
        self._batch = threading.Lock()  # while one is put together
        self._busy = (
            threading.Lock(),
            threading.Lock(),
        )  # sends, receives: until they return

    def send(self, tensor: Tensor) -> None:
        with self._busy[0], _broken_is_closed():
            given = tensor.contiguous()
            with _beside(self._sending, given):
                self._under_way.append((given, self._run(given, None)))
                while len(self._under_way) > _AHEAD:
                    _, works = self._under_way.popleft()
                    _wait(works)

    def receive(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        with self._busy[1], _broken_is_closed():
            if self._receiving is None:
                tensor = torch.empty(tuple(shape), dtype=dtype, device=self.device)
                _wait(self._run(None, tensor))
                return tensor
            with torch.cuda.stream(self._receiving):
                tensor = torch.empty(tuple(shape), dtype=dtype, device=self.device)
                _wait(self._run(None, tensor))
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._receiving)
            tensor.record_stream(current)
            return tensor

    def put(self, tensor: Tensor) -> None:
        self._put.append(tensor.contiguous())

    def take(self, into: Tensor) -> None:
        given = self._put.popleft()
        with self._busy[0], self._busy[1], _broken_is_closed():
            _wait(self._run(given, into))

    def settled(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        if self._sending is None or self._receiving is None:
            return True
        current = torch.cuda.current_stream(self.device)
        for queue in (self._sending, self._receiving, current):
            while not queue.query():
                if time.monotonic() > deadline:
                    return False
                time.sleep(_POLL_S)
        return True

    def release(self) -> bool:
        group = self._group
        if group is not None:
            group.abort()
        return True

    def free(self) -> None:
        """Once nobody is inside: gloo does not bear to be ended under a thread that waits. It lets
        that go when the other end is gone."""
        for lock in self._busy:
            if not lock.acquire(timeout=_LEAVE_S):
                raise RuntimeError("a thread still waits for the communicator")
        self._group = None
        self._under_way.clear()
        self._store = None
        for lock in self._busy:
            lock.release()

    def _run(self, given: Tensor | None, into: Tensor | None) -> list[Any]:
        """Start a batch: send, receive, or both."""
        self._lookout.require_whole()
        group = self._group
        if group is None:
            raise LinkClosedError("the peer of a link is gone")
        works: list[Any] = []
        with self._batch:
            if self._batches:
                group._start_coalescing(self.device)
            if given is not None:
                works.append(group.send([given.view(-1)], self._other, 0))
            if into is not None:
                works.append(group.recv([into.view(-1)], self._other, 0))
            if self._batches:
                works = [group._end_coalescing(self.device)]
        return works


def _wait(works: list[Any]) -> None:
    """NCCL: torch's queue waits; gloo: this thread does."""
    for work in works:
        if work is not None:
            work.wait()


def _queue(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None


@contextmanager
def _beside(queue: torch.cuda.Stream | None, tensor: Tensor) -> Iterator[None]:
    """On a queue of its own, behind what made the tensor."""
    if queue is None:
        yield
        return
    queue.wait_stream(torch.cuda.current_stream(tensor.device))
    tensor.record_stream(queue)
    with torch.cuda.stream(queue):
        yield


@contextmanager
def _broken_is_closed() -> Iterator[None]:
    """What communicators raise when the other rank is gone, or they were aborted."""
    try:
        yield
    except RuntimeError as error:
        raise LinkClosedError(f"the peer of a link is gone: {error}") from None
