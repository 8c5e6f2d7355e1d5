"""Greetings: who dials an actor's listener, and how it proves that it belongs to the grid.

Whoever dials says first who it is, with a proof: a keyed hash of that and of the listener's own
name, under a secret that is made anew each time the grid is linked and travels in Ray's calls only
(which a cluster with token authentication takes from nobody else). The secret itself never crosses
a link, and a proof is good for one listener and one caller, once.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
import struct
import time

import msgspec

from medha_actors.actors.cells import Cell

HEADER = struct.Struct("<IIQ")  # of every frame: see links
_MAX_GREETING_BYTES = 1 << 12
_SPEAK_S = 2.0  # a stranger gets so long


class Hello(msgspec.Struct, frozen=True):
    """The first frame on a link: who dials. None: the controller."""

    caller: Cell | None
    proof: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode_hello = msgspec.msgpack.Decoder(Hello).decode


def hello(secret: str, listener: str, caller: Cell | None) -> bytes:
    """The message with which `caller` introduces itself to a listener."""
    return _encode(Hello(caller, _proof(secret, listener, caller)))


def _proof(secret: str, listener: str, caller: Cell | None) -> bytes:
    return hmac.digest(secret.encode(), _encode((listener, caller)), hashlib.sha256)


class Newcomer:
    """A connection that has not said who it is. It is read without blocking, and no byte more than
    the greeting."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        """`name`: where it comes from, for the log."""
        connection.setblocking(False)
        self.connection = connection
        self.name = name
        self.until = time.monotonic() + _SPEAK_S
        self._read = bytearray()
        self._length = HEADER.size

    def fileno(self) -> int:
        return self.connection.fileno()

    def listen(self) -> str | bytes | None:
        """Read what is there. None: there is more to come; bytes: the whole greeting; str: what is
        wrong with this one."""
        try:
            while len(self._read) < self._length:
                got = self.connection.recv(self._length - len(self._read))
                if not got:
                    return "it hung up"
                self._read += got
                if len(self._read) == HEADER.size:
                    head, message, payload = HEADER.unpack(self._read)
                    if head or payload or not 0 < message <= _MAX_GREETING_BYTES:
                        return "it did not say who it is"
                    self._length = HEADER.size + message
        except BlockingIOError:
            return None
        except OSError as error:
            return str(error)
        return bytes(self._read[HEADER.size :])


def verified(greeting: bytes, secret: str, listener: str) -> Hello | None:
    """Who greets, if it knows the secret; None for a stranger."""
    try:
        said = _decode_hello(greeting)
    except msgspec.DecodeError:
        return None
    wanted = _proof(secret, listener, said.caller)
    return said if hmac.compare_digest(said.proof, wanted) else None
