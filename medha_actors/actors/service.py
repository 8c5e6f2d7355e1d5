"""Service: one cell of the grid at work. A thread of its own reads one frame per step from the
stage before (or from the controller), computes, and writes one frame to the stage after (or the
result to the controller).
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field

import msgspec
import torch

from medha_actors.actors.cells import Cell
from medha_actors.actors.exchange import LinkExchange, PeerExchange, SharedExchange
from medha_actors.actors.links import Link
from medha_actors.errors import LinkClosedError
from medha_actors.messages import StepMessage, StepResult
from medha_actors.model.kernels import Mailboxes
from medha_actors.model.stage import Stage

_log = logging.getLogger("medha.stage")
_encode = msgspec.msgpack.Encoder().encode
_decode_step = msgspec.msgpack.Decoder(StepMessage).decode
CREDIT = b""  # stage 0 tells the controller with an empty message that it is free


@dataclass(slots=True)
class Wires:
    """The links of one cell; `peers`: the same stage in the other groups."""

    control: Link | None = None
    upstream: Link | None = None
    downstream: Link | None = None
    peers: dict[int, Link] = field(default_factory=dict)
    mailboxes: Mailboxes | None = None  # where all groups of the stage are on this host

    def take(self, cell: Cell, caller: Cell | None, link: Link) -> None:
        """A peer has dialled."""
        if caller is None:
            self.control = link
        elif caller.group == cell.group:
            self.upstream = link
        else:
            self.peers[caller.group] = link

    def exchange(self, cell: Cell) -> PeerExchange | None:
        """How this cell merges partial attention; None: it is the only group."""
        if not self.peers:
            return None
        if self.mailboxes is None:
            return LinkExchange(cell.group, self.peers)
        return SharedExchange(cell.group, self.peers, self.mailboxes)

    def close(self) -> None:
        """Close every link; the peers notice."""
        for link in (self.control, self.upstream, self.downstream, *self.peers.values()):
            if link is not None:
                link.close()


class Service:
    """Computes step after step until a peer is gone; then closes every link, so that the others
    notice."""

    def __init__(self, cell: Cell, stage: Stage, wires: Wires) -> None:
        source = wires.control if cell.stage == 0 else wires.upstream
        if source is None:
            raise LinkClosedError(f"nobody sends batches to {cell}")
        self._cell = cell
        self._stage = stage
        self._wires = wires
        self._source = source
        self._exchange = wires.exchange(cell)
        self._thread = threading.Thread(target=self._run, name="stage-loop", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the links and wait for the step under way."""
        self._wires.close()
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                self._step(*self._source.recv())
        except LinkClosedError as error:
            _log.info("%s stops: %s", self._cell, error.message)
        except Exception:
            # Closing the links tells the controller, which has this actor answer or replaces it.
            _log.exception("%s failed", self._cell)
        finally:
            self._wires.close()

    def _step(self, packed: bytes, hidden: torch.Tensor | None) -> None:
        started_at = time.time()
        started = time.perf_counter()
        message = _decode_step(packed)
        output = self._stage.step(message, hidden, self._exchange)
        worked_s = time.perf_counter() - started
        exchanged_s = self._exchange.take_seconds() if self._exchange else 0.0
        stage_seconds = (*message.stage_seconds, worked_s)
        stage_starts = (*message.stage_starts, started_at)
        exchange_seconds = (*message.exchange_seconds, exchanged_s)
        failures = (*message.failures, *output.failures)
        control = self._wires.control
        if self._wires.downstream is not None:
            passed_on = msgspec.structs.replace(
                message,
                stage_seconds=stage_seconds,
                stage_starts=stage_starts,
                exchange_seconds=exchange_seconds,
                failures=failures,
            )
            self._wires.downstream.send(_encode(passed_on), output.hidden)
            if control is not None:
                control.send(CREDIT)
            return
        assert control is not None, "the last stage has the controller's link"
        result = StepResult(
            message.batch_id,
            self._cell.group,
            output.tokens,
            stage_seconds,
            output.prompt_logprobs,
            stage_starts,
            exchange_seconds,
            failures,
        )
        control.send(_encode(result))
        self._stage.look_ahead(output)
