"""Links whose two ends are in this process, and what may be sent over them."""

from __future__ import annotations

import random
import socket
import threading

import torch

from medha_actors.actors.cells import Cell
from medha_actors.actors.links import Link
from tests.actors.linked_peer import linked

STAGES = (Cell(0, 0), Cell(1, 0))
GROUPS = (Cell(0, 0), Cell(0, 1))
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.int64)


def pair() -> tuple[Link, Link]:
    left, right = socket.socketpair()
    return Link(left), Link(right)


def together(*calls):
    """What calls, each (function, *arguments), return that wait for each other."""
    results = [None] * len(calls)

    def run(number, function, *arguments):
        results[number] = function(*arguments)

    threads = []
    for number, call in enumerate(calls):
        threads.append(threading.Thread(target=run, args=(number, *call)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    return results


def two_ends(cells, ways):
    """Both ends of a link, and their transports and lookouts."""
    links = pair()
    first, second = cells
    found = together(
        (linked, links[0], first, second, ways[0]),
        (linked, links[1], second, first, ways[1]),
    )
    return links, found


def end(links, lookouts):
    for link in links:
        link.close()
    for lookout in lookouts:
        assert lookout.join(10)


def tensors(count: int, most: int):
    """Random ones, of all types, some larger than a whole ring."""
    draw = random.Random(count)
    generator = torch.Generator().manual_seed(count)
    for _ in range(count):
        shape = (draw.randint(1, most), draw.randint(1, 9))
        yield torch.randint(-100, 100, shape, generator=generator).to(
            draw.choice(DTYPES)
        )
