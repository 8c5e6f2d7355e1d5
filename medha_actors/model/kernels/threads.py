"""Threads of one process that compute a step together: pieces of work that whoever is free takes.

A step is a row of phases, each of so many pieces. A thread takes pieces of a phase until none are
left, waits until all are done, and goes on to the next. So a thread that comes late, or that
another program keeps from its core, costs no more than the piece that it has taken.
"""

# ruff: noqa: ANN001, ANN201  (compiled functions take integers and arrays)
from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from medha_actors.model.kernels.counters import add, load, reached
from medha_actors.model.kernels.ir import address, compiled

_TAKEN, _DONE = 0, 8  # columns of a phase's row, in cache lines of their own
_WIDTH = 16


def phases_of(count: int) -> NDArray[np.int64]:
    """Counters of so many phases, for one step."""
    return np.zeros((count, _WIDTH), np.int64)


@compiled
def take(phases, phase, pieces):
    """The number of a piece that nobody has taken yet; -1: there is none."""
    counter = address(phases) + (phase * _WIDTH + _TAKEN) * 8
    if load(counter) >= pieces:
        return -1
    piece = add(counter, 1)
    return piece if piece < pieces else -1


@compiled
def done(phases, phase):
    """A piece has been computed."""
    add(address(phases) + (phase * _WIDTH + _DONE) * 8, 1)


@compiled
def all_done(phases, phase, pieces, spins):
    """Wait until all pieces of a phase are computed; False: not within so many looks."""
    return reached(address(phases) + (phase * _WIDTH + _DONE) * 8, pieces, spins)


class Threads:
    """The caller's thread, number 0, and others, which end with the process."""

    def __init__(self, own: int, borrowed: Sequence[int] = ()) -> None:
        """`own`: threads that always compute, the caller's among them; `borrowed`: for each that
        helps when nobody else computes, the core to which it is bound."""
        count = own + len(borrowed)
        self.own = own
        self.count = count
        self._cores = dict(enumerate(borrowed, own))
        self._failure: BaseException | None = None
        self._posts = [SimpleQueue[Callable[[int], bool]]() for _ in range(1, count)]
        for number in range(1, count):
            name = f"medha-compute-{number}"
            threading.Thread(
                target=self._serve, args=(number,), name=name, daemon=True
            ).start()

    def run(self, job: Callable[[int], bool], count: int) -> None:
        """Let so many threads do the job, which is given a thread's number, again and again until
        it says that all is done; between calls, others get the core.

        Raises what the job raises, in whichever thread.
        """
        for post in self._posts[: count - 1]:
            post.put(job)
        while not job(0):
            if self._failure is not None:
                raise self._failure
            os.sched_yield()

    def _serve(self, number: int) -> None:
        if number in self._cores:
            os.sched_setaffinity(0, {self._cores[number]})
        post = self._posts[number - 1]
        while True:
            job = post.get()
            try:
                while not job(number):
                    os.sched_yield()
            except BaseException as failure:
                self._failure = failure
                return


ONE_THREAD = Threads(1)
