"""Transports between two processes on one GPU: exactness, deaths, times."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from statistics import median

import pytest
import torch

from medha_actors.actors.cells import Cell
from medha_actors.actors.exchange import TransportExchange
from medha_actors.actors.teams import TransportTeam
from medha_actors.errors import LinkClosedError
from medha_actors.model.device import device_of
from medha_actors.model.merge import merge
from medha_actors.model.team import add_up
from tests.actors.linked_peer import Spares, peer, swap_once

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"
)

GPU = torch.device("cuda", 0)
STAGES = (Cell(0, 0), Cell(1, 0))
GROUPS = (Cell(0, 0), Cell(0, 1))
KINDS = ("ipc", "pinned", "shared")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.int64)


@pytest.fixture(scope="module")
def spares():
    spares = Spares(GPU, ahead=4)
    yield spares
    spares.close()


def tensors(count: int):
    """Random ones, some larger than the memory between the two."""
    draw = random.Random(count)
    generator = torch.Generator(GPU).manual_seed(count)
    for number in range(count):
        most = 2_000_000 if number % 20 == 0 else 30_000
        shape = (draw.randint(1, most), draw.randint(1, 9))
        whole = torch.randint(-100, 100, shape, generator=generator, device=GPU)
        yield whole.to(draw.choice(DTYPES))


@pytest.mark.parametrize(
    ("kind", "count"), [("ipc", 1000), ("pinned", 200), ("shared", 40)]
)
def test_random_tensors_come_back_as_they_were(spares: Spares, kind: str, count: int):
    with peer(spares, kind, "echo", *GROUPS, GPU) as (link, _, _):
        for number, tensor in enumerate(tensors(count)):
            link.send(str(number).encode(), tensor)
            message, found = link.recv()
            assert message == str(number).encode()
            assert found.device == tensor.device
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor)


@pytest.mark.parametrize("kind", KINDS)
def test_swaps_larger_than_the_memory_between_them(spares: Spares, kind: str):
    with peer(spares, kind, "swap", *GROUPS, GPU) as (link, _, _):
        for rows in (1, 100, 20_000):
            tensor = torch.randn(rows, 4096, device=GPU)
            link.send(b"", tensor)
            (mine,), (theirs,) = swap_once(link.transport, 0, tensor)
            assert torch.equal(mine, tensor)
            assert torch.equal(theirs, tensor)


@pytest.mark.parametrize("kind", ["ipc", "pinned"])
def test_the_host_does_not_wait(spares: Spares, kind: str):
    """Neither for what makes the tensor nor for the other end."""
    with peer(spares, kind, "swap", *GROUPS, GPU) as (link, _, _):
        warm = torch.randn(64, 4096, device=GPU)
        link.send(b"", warm)
        swap_once(link.transport, 0, warm)
        torch.cuda.synchronize()
        link.send(b"", warm)
        torch.cuda.synchronize()
        torch.cuda._sleep(400_000_000)  # some 0.2 s
        began = time.perf_counter()
        found = swap_once(link.transport, 0, warm)
        queued_s = time.perf_counter() - began
        torch.cuda.synchronize()
        waited_s = time.perf_counter() - began
        assert torch.equal(found[1][0], warm)
        print(
            f"{kind}: queued in {1e6 * queued_s:.0f} us, done after {1e3 * waited_s:.0f} ms"
        )
        assert queued_s < waited_s / 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_process_lets_the_gpu_go(spares: Spares, kind: str):
    """The GPU waits for a tensor that will never come."""
    with peer(spares, kind, "silent", *GROUPS, GPU) as (link, lookout, process):
        threading.Timer(0.3, os.kill, (process.pid, signal.SIGKILL)).start()
        try:
            link.transport.put(torch.ones(4, 4, device=GPU))
            link.transport.take(torch.empty(4, 4, device=GPU))
        except LinkClosedError:
            assert kind == "shared"
        began = time.monotonic()
        torch.cuda.synchronize()
        assert lookout.join(10)
        print(
            f"{kind}: let go {1e3 * (time.monotonic() - began):.0f} ms after the wait began"
        )
        with pytest.raises(LinkClosedError):
            link.send(b"of a dead cell's")
        assert torch.ones(1000, 1000, device=GPU).sum().item() == 1_000_000


@pytest.mark.parametrize(
    ("kind", "seed"), [("ipc", 0), ("ipc", 1), ("ipc", 2), ("pinned", 0)]
)
def test_a_process_killed_while_it_sends(spares: Spares, kind: str, seed: int):
    """In the middle of its copies: the GPU goes on for this process, and for the next one."""
    with peer(spares, kind, "flood", *reversed(STAGES), GPU) as (
        link,
        lookout,
        process,
    ):
        delay_s = random.Random(seed).uniform(0.05, 0.3)
        threading.Timer(delay_s, os.kill, (process.pid, signal.SIGKILL)).start()
        with pytest.raises(LinkClosedError):
            take_for_ever(link)
        torch.cuda.synchronize()
        assert lookout.join(10)
    assert torch.ones(1000, 1000, device=GPU).sum().item() == 1_000_000


def take_for_ever(link) -> None:
    while True:
        found = link.transport.receive((2048, 4096), torch.float32)
        torch.cuda.synchronize()
        del found


@pytest.mark.parametrize("kind", ["ipc", "pinned"])
def test_a_process_killed_while_it_takes(spares: Spares, kind: str):
    with peer(spares, kind, "echo", *STAGES, GPU) as (link, lookout, process):
        threading.Timer(0.2, os.kill, (process.pid, signal.SIGKILL)).start()
        with pytest.raises(LinkClosedError):
            send_for_ever(link)
        torch.cuda.synchronize()
        assert lookout.join(10)
    assert torch.ones(1000, 1000, device=GPU).sum().item() == 1_000_000


def send_for_ever(link) -> None:
    while True:
        link.transport.send(torch.ones(2048, 4096, device=GPU))


@pytest.mark.parametrize(("kind", "most_ms"), [("ipc", 0.3), ("pinned", 3.0)])
def test_a_hop_of_2048_rows(spares: Spares, kind: str, most_ms: float):
    """There and back, half of it, with the words that say so."""
    with peer(spares, kind, "echo", *GROUPS, GPU) as (link, _, _):
        x = torch.randn(2048, 4096, device=GPU).bfloat16()
        taken = []
        for _ in range(40):
            torch.cuda.synchronize()
            began = time.perf_counter()
            link.send(b"", x)
            _, back = link.recv()
            torch.cuda.synchronize()
            taken.append(1e3 * (time.perf_counter() - began) / 2)
        assert torch.equal(back, x)
        print(f"{kind}: a hop of 2048 x 4096 bf16 takes {median(taken):.3f} ms")
        assert median(taken) < most_ms


@pytest.mark.parametrize("rows", [64, 2048])
def test_groups_merge(spares: Spares, rows: int):
    """Both give the same partial with the same weight: the merge is that partial."""
    with peer(spares, "ipc", "merge", *GROUPS, GPU) as (link, _, _):
        out = torch.randn(rows, 32, 128, device=GPU).bfloat16()
        lse = torch.randn(rows, 32, device=GPU)
        exchange = TransportExchange(
            0, {1: link}, {1: link.transport}, device_of("cuda")
        )
        link.send(b"", out)
        link.send(b"", lse)
        expected = merge([out, out], [lse, lse])[0].bfloat16()
        for _ in range(10):
            merged = out.clone()
            exchange.merge((0, 1), merged, lse)
            assert torch.equal(merged, expected)
        seconds = exchange.take().seconds() / 10
        print(f"swap of {rows} rows: {1e6 * seconds:.0f} us on the GPU")


@pytest.mark.parametrize("rows", [1, 64, 2048])
def test_two_ranks_add_up(spares: Spares, rows: int):
    with peer(spares, "ipc", "sum", *GROUPS, GPU) as (link, _, _):
        x = torch.randn(rows, 4096, device=GPU).bfloat16()
        team = TransportTeam(0, {1: link}, {1: link.transport})
        link.send(b"", x)
        expected = add_up([x, 2 * x]).bfloat16()
        for _ in range(10):
            assert torch.equal(team.total(x), expected)
