"""Links between processes' ends, over both kinds of socket."""

import os
import socket
import threading
import time

import pytest
import torch

from medha_actors.actors.cells import Cell, Shape
from medha_actors.actors.exchange import LinkExchange, SharedExchange, open_mailboxes
from medha_actors.actors.greetings import HEADER, hello
from medha_actors.actors.links import Endpoint, Link, Listener, dial
from medha_actors.actors.shared_memory import forget
from medha_actors.errors import LinkClosedError
from medha_actors.model.merge import merge_packed, pack
from tests.actors.link_ends import pair


@pytest.fixture
def listener():
    listener = Listener("node", "127.0.0.1")
    yield listener
    listener.close()


def in_thread(function, *args):
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*args)))
    thread.start()
    return thread, results


@pytest.mark.parametrize("same_node", [True, False])
def test_a_dialled_link_carries_messages_and_tensors(
    listener: Listener, same_node: bool
):
    ours = dial(
        listener.endpoint, "node" if same_node else "another", "secret", Cell(0, 1)
    )
    caller, theirs = listener.accept("secret", timeout_s=5)
    assert caller == Cell(0, 1)
    for tensor in (
        torch.randn(3, 5),
        torch.randn(700, 576).bfloat16(),
        torch.randn(2, 9, 65),
        torch.zeros(0, 4),
    ):
        sender, _ = in_thread(ours.send, b"meta", tensor)
        message, received = theirs.recv()
        sender.join()
        assert message == b"meta"
        assert received.dtype == tensor.dtype
        assert torch.equal(received, tensor)
    theirs.send(b"")
    assert ours.recv() == (b"", None)
    ours.close(), theirs.close()


def test_a_message_larger_than_every_buffer_arrives_whole():
    ours, theirs = pair()
    message = bytes(range(256)) * 50_000
    tensor = torch.randn(4_000, 1_000)
    sender, _ = in_thread(ours.send, message, tensor)
    received = theirs.recv()
    sender.join()
    assert received[0] == message
    assert torch.equal(received[1], tensor)
    ours.close(), theirs.close()


def test_a_descriptor_that_does_not_block_is_waited_for():
    """A frame that has come in part is no death; uvloop makes the descriptors it watches so."""
    ours, theirs = pair()
    os.set_blocking(theirs.fileno(), False)
    reader, received = in_thread(theirs.recv)
    os.set_blocking(ours.fileno(), False)
    message = bytes(range(256)) * 50_000
    tensor = torch.randn(4_000, 1_000)
    ours.send(message, tensor)
    reader.join(timeout=30)
    assert received[0][0] == message
    assert torch.equal(received[0][1], tensor)
    ours.close(), theirs.close()


def test_a_closed_peer_is_noticed_at_once():
    ours, theirs = pair()
    reader, _ = in_thread(expect_closed, ours)
    theirs.close()
    reader.join(timeout=5)
    assert not reader.is_alive()
    with pytest.raises(LinkClosedError):
        ours.send(b"x", torch.zeros(1_000_000))
    ours.close()


def strangers(endpoint: Endpoint) -> list[socket.socket]:
    """Who dials and does not belong here: over TCP, each saying something else."""
    said = (
        b"GET / HTTP/1.1\r\n\r\n" + b"x" * 64,
        b"",  # and nothing after it
        HEADER.pack(0, 2**31, 0),
        HEADER.pack(0, 5, 2**40) + b"hello",
        HEADER.pack(0, 5, 0) + b"hello",
        HEADER.pack(0, 50, 0) + b"half of it",
    )
    connections = []
    for words in said:
        connection = socket.create_connection((endpoint.host, endpoint.port))
        connection.sendall(words)
        connections.append(connection)
    return connections


def test_strangers_are_sent_away_and_keep_nobody_waiting(listener: Listener, caplog):
    crowd = strangers(listener.endpoint)
    wrong = dial(listener.endpoint, "another", "wrong", Cell(0, 1))
    friend = dial(listener.endpoint, "another", "secret", None)
    began = time.monotonic()
    caller, link = listener.accept("secret", timeout_s=5)
    assert caller is None
    assert time.monotonic() - began < 1
    with pytest.raises(LinkClosedError):
        wrong.recv()
    assert "a stranger from 127.0.0.1:" in caplog.text
    assert "it does not belong to this grid" in caplog.text
    assert "it did not say who it is" in caplog.text
    link.send(b"welcome")
    assert friend.recv() == (b"welcome", None)
    for end in (wrong, friend, link, *crowd):
        end.close()


def test_who_says_nothing_is_sent_away_in_time(listener: Listener, caplog):
    silent = socket.create_connection((listener.endpoint.host, listener.endpoint.port))
    with pytest.raises(LinkClosedError, match="no peer"):
        listener.accept("secret", timeout_s=2.8)
    assert "it said nothing" in caplog.text
    assert silent.recv(1) == b""
    silent.close()


def test_a_crowd_of_silent_ones_does_not_keep_a_friend_out(listener: Listener):
    address = (listener.endpoint.host, listener.endpoint.port)
    crowd = [socket.create_connection(address) for _ in range(60)]
    friend = dial(listener.endpoint, "another", "secret", Cell(1, 0))
    caller, link = listener.accept("secret", timeout_s=1.5)
    assert caller == Cell(1, 0)
    for end in (friend, link, *crowd):
        end.close()


def test_a_greeting_is_good_for_one_listener_and_once(listener: Listener):
    """What somebody has read on the wire opens no other door, and not the same one again."""
    elsewhere = Listener("node", "127.0.0.1")
    greeting = hello("secret", listener.endpoint.path, Cell(0, 1))
    frame = HEADER.pack(0, len(greeting), 0) + greeting
    assert b"secret" not in frame
    connections = []
    for place in (elsewhere, listener, listener):
        connection = socket.create_connection(
            (place.endpoint.host, place.endpoint.port)
        )
        connection.sendall(frame)
        connections.append(connection)
    caller, link = listener.accept("secret", timeout_s=1)
    assert caller == Cell(0, 1)
    for place in (elsewhere, listener):
        with pytest.raises(LinkClosedError, match="no peer"):
            place.accept("secret", timeout_s=0.3)
    for end in (link, *connections):
        end.close()
    elsewhere.close()


def test_what_follows_a_greeting_is_not_lost(listener: Listener):
    friend = dial(listener.endpoint, "another", "secret", Cell(0, 0))
    friend.send(b"the first message", torch.ones(3))
    _, link = listener.accept("secret", timeout_s=1)
    message, tensor = link.recv()
    assert message == b"the first message"
    assert tensor.tolist() == [1, 1, 1]
    friend.close(), link.close()


def test_links_listen_on_the_nodes_own_address_only(listener: Listener):
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", listener.endpoint.port), timeout=1)
    for everywhere in ("", "0.0.0.0", "::"):
        with pytest.raises(ValueError, match="own address only"):
            Listener("node", everywhere)


def test_a_node_that_vanishes_is_noticed_within_seconds(listener: Listener):
    """Its kernel says nothing any more; ours gives up on unanswered bytes, and asks when idle."""
    ours = dial(listener.endpoint, "another", "secret", None)
    _, theirs = listener.accept("secret", timeout_s=1)
    for link in (ours, theirs):
        connection = socket.socket(fileno=os.dup(link.fileno()))
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle_s = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        every_s = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
        count = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
        assert idle_s + every_s * count <= 10
        assert (
            connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 10_000
        )
        connection.close()
    ours.close(), theirs.close()


def test_nobody_dialling_is_an_error(listener: Listener):
    with pytest.raises(LinkClosedError, match="no peer"):
        listener.accept("secret", timeout_s=0.01)


def test_endpoint_differs_by_actor():
    first = Listener("n", "127.0.0.1")
    second = Listener("n", "127.0.0.1")
    assert isinstance(first.endpoint, Endpoint)
    assert first.endpoint != second.endpoint
    first.close(), second.close()


def peers_of(groups: int) -> list[dict[int, Link]]:
    """For each group its links to the others."""
    peers: list[dict[int, Link]] = [{} for _ in range(groups)]
    for a in range(groups):
        for b in range(a + 1, groups):
            peers[a][b], peers[b][a] = pair()
    return peers


def close_all(peers: list[dict[int, Link]]) -> None:
    for links in peers:
        for link in links.values():
            link.close()


def partials_of(
    groups: int, rows: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(rows)
    outs = [torch.randn(rows, 9, 64, generator=generator) for _ in range(groups)]
    lses = [torch.randn(rows, 9, generator=generator) * 10 for _ in range(groups)]
    lses[0][0] = -torch.inf  # an empty piece
    return outs, lses


def merged_by(exchanges, order, outs, lses):
    """What each group has after a merge."""
    copies = [out.clone() for out in outs]
    running = [
        in_thread(exchange.merge, order, copies[k], lses[k].clone())
        for k, exchange in enumerate(exchanges)
    ]
    for thread, results in running:
        thread.join(timeout=60)
        assert results == [None]
    return copies


@pytest.mark.parametrize("groups", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_links_merge_in_float32_in_the_order_asked_for(groups: int, dtype: torch.dtype):
    """Every group has the same bits, however large the partials are beside a socket's buffer."""
    peers = peers_of(groups)
    exchanges = [LinkExchange(k, peers[k]) for k in range(groups)]
    outs, lses = partials_of(groups, 2_000)
    outs = [out.to(dtype) for out in outs]
    for order in (tuple(range(groups)), tuple(reversed(range(groups)))):
        whole = merge_packed([pack(outs[k], lses[k]) for k in order]).to(dtype)
        for merged in merged_by(exchanges, order, outs, lses):
            assert torch.equal(merged, whole)
    close_all(peers)


def expect_closed(link: Link) -> None:
    with pytest.raises(LinkClosedError):
        link.recv()


@pytest.mark.parametrize(("groups", "rows"), [(2, 1), (2, 1000), (3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_shared_memory_merges_as_links_do(groups: int, rows: int, dtype: torch.dtype):
    peers = peers_of(groups)
    boxes = [
        open_mailboxes("medha-test-exchange", groups, 9, 64) for _ in range(groups)
    ]
    forget("medha-test-exchange")
    shared = [SharedExchange(k, peers[k], boxes[k]) for k in range(groups)]
    plain = [LinkExchange(k, peers[k]) for k in range(groups)]
    outs, lses = partials_of(groups, rows)
    outs = [out.to(dtype) for out in outs]
    error = 1e-5 if dtype == torch.float32 else 2**-7
    for swap in range(5):
        order = tuple(range(groups)) if swap % 2 else tuple(reversed(range(groups)))
        over_links = merged_by(plain, order, outs, lses)
        in_memory = merged_by(shared, order, outs, lses)
        for mine, theirs in zip(in_memory, over_links, strict=True):
            torch.testing.assert_close(mine, theirs, atol=error, rtol=error)
    close_all(peers)


def test_shared_memory_notices_a_dead_peer():
    ours, theirs = pair()
    boxes = open_mailboxes("medha-test-dead", 2, 1, 16)
    forget("medha-test-dead")
    theirs.close()
    with pytest.raises(LinkClosedError):
        SharedExchange(0, {1: ours}, boxes).merge(
            (0, 1), torch.zeros(1, 1, 16), torch.zeros(1, 1)
        )
    ours.close()


@pytest.mark.parametrize(
    "shape",
    [
        *[Shape(1, 1), Shape(3, 1), Shape(1, 3), Shape(2, 2), Shape(3, 4)],
        *[Shape(1, 1, 2), Shape(2, 1, 3), Shape(1, 2, 2), Shape(3, 2, 3)],
    ],
)
def test_everybody_is_dialled_by_as_many_as_it_expects(shape: Shape):
    dialled = dict.fromkeys(shape.cells(), 0)
    for cell in shape.cells():
        for other in shape.dials(cell):
            dialled[other] += 1
            assert cell not in shape.dials(other), "each pair has one link"
    for cell, count in dialled.items():
        outer = cell.stage in (0, shape.stages - 1)
        assert shape.callers(cell) == count + (outer and cell.rank == 0)
