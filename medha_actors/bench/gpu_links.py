"""What a hop between two actors costs: a tensor of some rows from one process to another on the
same GPU, through each transport that there is, and through the socket. Needs no Ray.

Then swaps (what groups do in each layer, and two tensor ranks twice), queued without a pause as a
step queues them, in microseconds each.
"""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from medha_actors.actors.cells import Cell
from medha_actors.actors.exchange import LinkExchange, PeerExchange, TransportExchange
from medha_actors.actors.links import Endpoint, Link, Listener, dial
from medha_actors.actors.lookout import Lookout
from medha_actors.actors.teams import LinkTeam, TransportTeam
from medha_actors.actors.tensor_links import agree, edge_between, ways_for
from medha_actors.bench.table import table
from medha_actors.model.team import Team

ROWS = (1, 64, 2048)
HIDDEN = 4096
HEADS = 32
HEAD_DIM = 128
_SWAPS = 32  # queued in a row: a step of 32 layers
_REPEATS = 20
_SLOW_SWAPS = 2  # over the socket
_SLOW_REPEATS = 3
_UNITS = {"hop": "ms", "merge": "us", "sum": "us"}
_ENDS = {
    "hop": (Cell(0, 0), Cell(1, 0)),
    "merge": (Cell(0, 0), Cell(0, 1)),
    "sum": (Cell(0, 0, 0), Cell(0, 0, 1)),
}
_SOCKET = "socket"


def run(
    out: Path | None = None, device: str = "cuda", counts: Sequence[int] = ROWS
) -> list[dict[str, Any]]:
    """Print the table, write it to the folder `out`; returns the rows. `counts`: the rows of the
    tensors. Why a transport was refused is logged."""
    logging.basicConfig(level=logging.INFO)
    place = torch.device(device)
    kinds = [way.kind for way in ways_for(True, place)]
    rows = []
    listener = Listener("here", "127.0.0.1")
    context = multiprocessing.get_context("spawn")
    process = context.Process(
        target=_other, args=(listener.endpoint, device, counts), daemon=True
    )
    process.start()
    try:
        _, talk = listener.accept("bench", timeout_s=60)
        for kind in (*kinds, _SOCKET):
            rows.append(_measured(listener, talk, kind, place, counts))
            _keep(rows, out, place)
        talk.send(b"end")
        talk.close()
    finally:
        process.join(10)
        process.kill()
        listener.close()
    print(table(rows))
    return rows


def _keep(rows: list[dict[str, Any]], out: Path | None, device: torch.device) -> None:
    """At once, for what comes next may crash."""
    if out is not None:
        name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
        written = {"device": name, "torch": torch.__version__, "rows": rows}
        (out / "gpu_links.json").write_text(json.dumps(written, indent=1))


def _measured(
    listener: Listener,
    talk: Link,
    kind: str,
    device: torch.device,
    counts: Sequence[int],
) -> dict[str, Any]:
    """One row: milliseconds of a hop, microseconds of a merge and of a sum."""
    row: dict[str, Any] = {"transport": kind}
    for what, cells in _ENDS.items():
        talk.send(f"{what}:{kind}".encode())
        _, link = listener.accept("bench", timeout_s=60)
        lookout = _linked(link, *cells, kind, device)
        for count in counts:
            name = f"{what} {count} {_UNITS[what]}"
            if kind != _SOCKET and link.transport is None:
                row[name] = "refused"
            elif what == "hop":
                row[name] = _hops(link, count, device)
            else:
                row[name], asked = _swaps(link, what, 0, count, device)
                row.setdefault(f"{what} host us", asked)  # of the smallest
        link.close()
        lookout.join(10)
    return row


def _hops(link: Link, count: int, device: torch.device) -> float:
    """Milliseconds from when a tensor is there to when it is on the other end, which says so; less
    half of what such words take without a tensor."""
    x = torch.randn(count, HIDDEN, device=device).to(torch.bfloat16)
    hops: list[float] = []
    words: list[float] = []
    for _ in range(_REPEATS):
        hops.append(_answered(link, x, device))
        words.append(_answered(link, None, device))
    return 1e3 * (median(hops) - median(words) / 2)


def _answered(link: Link, x: torch.Tensor | None, device: torch.device) -> float:
    """Seconds until the other end says that it has it."""
    _finish(device)
    started = time.perf_counter()
    link.send(b"", x)
    link.recv()
    return time.perf_counter() - started


def _answer_hops(link: Link, device: torch.device) -> None:
    for _ in range(2 * _REPEATS):
        _, x = link.recv()
        if x is not None:
            x.to(device)
            _finish(device)
        link.send(b"")


def _swaps(
    link: Link, what: str, own: int, count: int, device: torch.device
) -> tuple[float, float]:
    """Microseconds of one of many in a row, and what the host took to ask for it."""
    out = torch.randn(count, HEADS, HEAD_DIM, device=device).to(torch.bfloat16)
    lse = torch.randn(count, HEADS, device=device)
    x = out.view(count, HIDDEN)
    exchange = _exchange(own, link)
    team = _team(own, link)
    quick = link.transport is not None
    swaps = _SWAPS if quick else _SLOW_SWAPS
    taken = []
    asked = []
    for _ in range(_REPEATS if quick else _SLOW_REPEATS):
        _finish(device)
        link.send(b"")
        link.recv()
        started = time.perf_counter()
        for _ in range(swaps):
            if what == "merge":
                exchange.merge((0, 1), out, lse)
            else:
                team.total(x)
        asked.append((time.perf_counter() - started) / swaps)
        _finish(device)
        taken.append((time.perf_counter() - started) / swaps)
    link.send(
        b""
    )  # the other end may be in its last swap, and needs the link until then
    link.recv()
    return 1e6 * median(taken), 1e6 * median(asked)


def _exchange(own: int, link: Link) -> PeerExchange:
    if link.transport is None:
        return LinkExchange(own, {1 - own: link})
    return TransportExchange(own, {1 - own: link}, {1 - own: link.transport})


def _team(own: int, link: Link) -> Team:
    if link.transport is None:
        return LinkTeam(own, {1 - own: link})
    return TransportTeam(own, {1 - own: link}, {1 - own: link.transport})


def _linked(
    link: Link, cell: Cell, other: Cell, kind: str, device: torch.device
) -> Lookout:
    """Give one end the transport of this kind, if there is one."""
    lookout = Lookout([link])
    if kind != _SOCKET:
        ways = [way for way in ways_for(True, device) if way.kind == kind]
        link.transport = agree(
            f"{cell} and {other}", edge_between(cell, other, link), ways, lookout
        )
    link.lookout = lookout
    return lookout


def _other(endpoint: Endpoint, device_name: str, counts: Sequence[int]) -> None:
    """The process at the other end."""
    device = torch.device(device_name)
    talk = dial(endpoint, "here", "bench", None)
    for number in itertools.count():
        asked = talk.recv()[0].decode()
        if asked == "end":
            return
        what, kind = asked.split(":")
        here, there = _ENDS[what]
        link = dial(
            endpoint, "here", "bench", Cell(0, number)
        )  # each name is let in once
        lookout = _linked(link, there, here, kind, device)
        if kind == _SOCKET or link.transport is not None:
            for count in counts:
                if what == "hop":
                    _answer_hops(link, device)
                else:
                    _swaps(link, what, 1, count, device)
        lookout.join(30)  # until the other end hangs up
        link.close()


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    run(Path(sys.argv[1]) if sys.argv[1:] else None)
