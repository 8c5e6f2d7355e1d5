"""Links: how messages and tensors travel between actors without the object store.

A link is one end of a stream socket: Unix between processes of a node, TCP between nodes. A frame
is

    tensor head bytes (u32) | message bytes (u32) | payload bytes (u64) | tensor head | message |
    raw tensor

so a hidden state and the message that explains it are one write. Sending and receiving block: each
stage has a thread for it. A peer that is gone shows as LinkClosedError within milliseconds, because
the kernel closes a dead process's sockets.

A link may have a transport for tensors (actors/tensor_links.py): its frames then only have their
heads. Without one, those on a GPU are staged through host memory.

Only frames with a tensor need torch: the controller, whose frames have none, starts without it.

Every listener asks the dialler for a proof that it belongs to the grid (greetings.py), so that a
stranger on the network cannot feed a stage. Between nodes a link listens on the node's own address
only, and a peer whose node has vanished without a word is noticed within seconds.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import tempfile
import time
from typing import TYPE_CHECKING

import msgspec

from medha_actors.actors.cells import Cell
from medha_actors.actors.greetings import HEADER, Newcomer, hello, verified
from medha_actors.errors import LinkClosedError

if TYPE_CHECKING:
    import torch

    from medha_actors.actors.lookout import Lookout
    from medha_actors.actors.transports import Transport

_log = logging.getLogger("medha.links")
_BUFFER_BYTES = 4 * 1024 * 1024
_MAX_MESSAGE_BYTES = 1 << 26
_NEWCOMERS = 64  # that may be about to speak at once
_DIAL_S = 20.0
# A node that vanishes answers nothing: after so long without an answer, its links break.
_SILENT_S = 10
_KEEP_ALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENT_S // 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _SILENT_S // 2),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _SILENT_S),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)
_EVERYWHERE = ("", "0.0.0.0", "::")


class Endpoint(msgspec.Struct, frozen=True):
    """Where an actor listens. The Unix path is usable on the same node only."""

    node_id: str
    path: str
    host: str
    port: int


class Link:
    """One end of a duplex connection; `send` and `recv` are each for one thread at a time.

    `transport`: what carries tensors, None: the socket; `lookout`: over all links of this actor, of
    which none may be broken.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(True)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            for level, option, value in _KEEP_ALIVE:
                connection.setsockopt(level, option, value)
        self._socket = connection
        self._header = bytearray(HEADER.size)
        self.transport: Transport | None = None
        self.lookout: Lookout | None = None

    @property
    def is_local(self) -> bool:
        """Whether the other end is on this node."""
        return self._socket.family == socket.AF_UNIX

    @property
    def host(self) -> str:
        """This end's address, as the other one sees it."""
        return _host_of(self._socket.getsockname())

    @property
    def other_host(self) -> str:
        """The other end's address."""
        return _host_of(self._socket.getpeername())

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: bytes, tensor: torch.Tensor | None = None) -> None:
        """Write one frame; raises LinkClosedError when the peer is gone."""
        if self.lookout is not None:
            self.lookout.require_whole()
        head = b""
        payload = memoryview(b"")
        transport = None
        if tensor is not None:
            from medha_actors.actors import payloads

            if self.transport is not None and self.transport.carries(tensor):
                transport = self.transport
                head = payloads.announced(tensor)
            else:
                head, payload = payloads.packed(tensor)
        parts: list[bytes | memoryview] = [
            HEADER.pack(len(head), len(message), payload.nbytes),
            head,
            message,
        ]
        if payload.nbytes:
            parts.append(payload)
        try:
            self._write(parts)
        except OSError as error:
            raise LinkClosedError(f"the peer of a link is gone: {error}") from None
        if transport is not None:
            assert tensor is not None
            transport.send(tensor)

    def recv(self) -> tuple[bytes, torch.Tensor | None]:
        """Read one frame: the message, and the tensor if there is one (on the CPU, or where the
        transport has it)."""
        self._read(memoryview(self._header))
        head_bytes, message_bytes, payload_bytes = HEADER.unpack(self._header)
        if max(head_bytes, message_bytes) > _MAX_MESSAGE_BYTES:
            raise LinkClosedError("a link carried something that is not a frame")
        text = bytearray(head_bytes + message_bytes)
        self._read(memoryview(text))
        message = bytes(text[head_bytes:])
        if not head_bytes:
            return message, None
        from medha_actors.actors import payloads

        head = payloads.head_of(bytes(text[:head_bytes]))
        if head.announced:
            if self.transport is None:
                raise LinkClosedError("a link announced a tensor that nothing carries")
            return message, self.transport.receive(head.shape, head.torch_dtype)
        return message, payloads.received(head, payload_bytes, self._read)

    def limit(self, timeout_s: float | None) -> None:
        """Bound every later read and write; None: wait for ever."""
        self._socket.settimeout(timeout_s)

    def close(self) -> None:
        """Close both directions; a blocked `recv` on either end wakes up with LinkClosedError."""
        with contextlib.suppress(OSError):  # the peer was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _write(self, parts: list[bytes | memoryview]) -> None:
        views = [memoryview(part).cast("B") for part in parts]
        while views:
            try:
                sent = self._socket.sendmsg(views)
            except BlockingIOError:
                self._await(select.POLLOUT)
                continue
            while views and sent >= views[0].nbytes:
                sent -= views.pop(0).nbytes
            if views:  # the socket buffer was full
                views[0] = views[0][sent:]

    def _read(self, view: memoryview) -> None:
        while view.nbytes:
            try:
                got = self._socket.recv_into(view)
            except BlockingIOError:
                self._await(select.POLLIN)
                continue
            except OSError as error:
                raise LinkClosedError(f"a link broke: {error}") from None
            if not got:
                raise LinkClosedError("the peer of a link closed it")
            view = view[got:]

    def _await(self, event: int) -> None:
        """Wait for a descriptor that does not block: uvloop, which Ray runs async actors on, makes
        those that it watches so. A frame that has come in part is then "try again", not the death
        of the peer."""
        waiting = select.poll()
        waiting.register(self._socket, event)
        waiting.poll()


def _host_of(address: object) -> str:
    """Of a socket's address; those of Unix sockets have none."""
    return str(address[0]) if isinstance(address, tuple) else "127.0.0.1"


class Listener:
    """Where an actor waits for its peers: one Unix socket and one TCP socket."""

    def __init__(self, node_id: str, host: str) -> None:
        """`host`: the node's own address; raises ValueError for one that stands for all."""
        if host in _EVERYWHERE:
            raise ValueError(
                f"links listen on the node's own address only, not on {host!r}"
            )
        self._folder = tempfile.mkdtemp(prefix="medha-")
        self._unix = socket.socket(socket.AF_UNIX)
        self._unix.bind(os.path.join(self._folder, "link"))
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._tcp = socket.create_server((host, 0), family=family)
        for listening in (self._unix, self._tcp):
            listening.listen(_NEWCOMERS)
        self.endpoint = Endpoint(
            node_id,
            os.path.join(self._folder, "link"),
            host,
            self._tcp.getsockname()[1],
        )
        self._newcomers: list[Newcomer] = []
        self._known: set[Cell | None] = set()  # who has been let in

    def accept(self, secret: str, timeout_s: float) -> tuple[Cell | None, Link]:
        """Wait for one peer that belongs to the grid; returns who it is and the link. Strangers are
        sent away, and do not keep others waiting. Raises LinkClosedError in time."""
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            # who is silent for too long is sent away in between
            waited_s = min(left_s, 0.5) if self._newcomers else left_s
            watched: list[socket.socket | Newcomer] = [
                self._unix,
                self._tcp,
                *self._newcomers,
            ]
            ready = select.select(watched, (), (), waited_s)[0]
            for listening in (self._unix, self._tcp):
                if listening in ready:
                    self._welcome(listening)
            for newcomer in list(self._newcomers):
                said: str | bytes | None = None
                if newcomer in ready:
                    said = newcomer.listen()
                elif time.monotonic() > newcomer.until:
                    said = "it said nothing"
                if isinstance(said, bytes):
                    greeting = verified(said, secret, self.endpoint.path)
                    if greeting is not None and greeting.caller not in self._known:
                        self._known.add(greeting.caller)
                        self._newcomers.remove(newcomer)
                        return greeting.caller, Link(newcomer.connection)
                    said = "it does not belong to this grid"
                if said is not None:
                    self._send_away(newcomer, said)
        raise LinkClosedError(f"no peer dialled within {timeout_s:g} s")

    def close(self) -> None:
        for newcomer in self._newcomers:
            newcomer.connection.close()
        self._newcomers.clear()
        self._unix.close()
        self._tcp.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.endpoint.path)
            os.rmdir(self._folder)

    def _welcome(self, listening: socket.socket) -> None:
        connection, address = listening.accept()
        name = f"{address[0]}:{address[1]}" if listening is self._tcp else "this host"
        if len(self._newcomers) == _NEWCOMERS:
            self._send_away(self._newcomers[0], "too many dial at once")
        self._newcomers.append(Newcomer(connection, name))

    def _send_away(self, newcomer: Newcomer, reason: str) -> None:
        _log.warning(
            "a stranger from %s dialled and was sent away: %s", newcomer.name, reason
        )
        self._newcomers.remove(newcomer)
        newcomer.connection.close()


def dial(endpoint: Endpoint, node_id: str, secret: str, caller: Cell | None) -> Link:
    """Connect to a listener and introduce oneself."""
    if endpoint.node_id == node_id:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(endpoint.path)
    else:
        connection = socket.create_connection((endpoint.host, endpoint.port), _DIAL_S)
    link = Link(connection)
    link.send(hello(secret, endpoint.path, caller))
    return link
