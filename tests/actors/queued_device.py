"""A device on the CPU that does what it is told in its own time, in queues, as a GPU does; its
memory can be opened by other processes."""

from __future__ import annotations

import ctypes
import queue
import secrets
import threading
import time

import numpy as np
import torch

from medha_actors.actors.lanes import Driver
from medha_actors.actors.shared_memory import forget, shared_memory

_WORD = 1 << 32
_LOOK_S = 0.00005


def reached(address: int, number: int) -> bool:
    found = ctypes.c_uint32.from_address(address).value
    return (found - number) % _WORD < _WORD // 2


class Queue:
    """Work in its order, in a thread of its own."""

    def __init__(self) -> None:
        self.asked = 0
        self.done = 0
        self._work: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def add(self, work) -> None:
        self.asked += 1
        self._work.put(work)

    def await_number(self, number: int) -> None:
        while self.done < number:
            time.sleep(_LOOK_S)

    def _run(self) -> None:
        while True:
            self._work.get()()
            self.done += 1


class AtOnce:
    """The queue that torch fills on a CPU: never behind."""

    asked = 0
    done = 0

    def add(self, work) -> None:
        work()

    def await_number(self, number: int) -> None:
        pass


class QueuedDevice(Driver):
    """`broken`: copies are lost."""

    def __init__(self, broken: bool = False, opens: bool = True) -> None:
        self.device = torch.device("cpu")
        self.memory = {}  # by address: what is allocated, opened or registered
        self._broken = broken
        self._opens = opens
        self._current = AtOnce()

    def queue(self):
        return Queue()

    def current(self):
        return self._current

    def follow(self, queue, other):
        number = other.asked
        queue.add(lambda: other.await_number(number))

    def idle(self, queue):
        return queue.done == queue.asked

    def empty(self, shape, dtype, queue):
        return torch.empty(tuple(shape), dtype=dtype)

    def keep(self, tensor, queue):
        queue.add(lambda: tensor)

    def copy(self, to, source, nbytes, queue):
        if not self._broken:
            queue.add(lambda: ctypes.memmove(to, source, nbytes))

    def write(self, address, number, queue):
        cell = ctypes.c_uint32.from_address(address)
        queue.add(lambda: setattr(cell, "value", number))

    def wait(self, address, number, queue):
        def wait():
            while not reached(address, number):
                time.sleep(_LOOK_S)

        queue.add(wait)

    def allocate(self, nbytes):
        return self._map(f"medha-test-{secrets.token_hex(8)}", nbytes)

    def release(self, address):
        name, _, _ = self.memory.pop(address)
        forget(name)

    def handle(self, address):
        name, nbytes, _ = self.memory[address]
        return f"{name} {nbytes}".encode().ljust(64)

    def open(self, handle):
        if not self._opens:
            raise RuntimeError("another host's device")
        name, nbytes = handle.decode().split()
        return self._map(name, int(nbytes))

    def close(self, address):
        del self.memory[address]

    def register(self, address, nbytes):
        self.memory[address] = ("", nbytes, None)
        return address

    def unregister(self, address):
        del self.memory[address]

    def _map(self, name, nbytes):
        array = np.frombuffer(shared_memory(name, nbytes), np.uint8)
        self.memory[array.ctypes.data] = (name, nbytes, array)
        return array.ctypes.data
