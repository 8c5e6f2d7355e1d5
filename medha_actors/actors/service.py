"""Service: one cell of the grid at work. A thread of its own reads one frame per step from the
stage before (or from the controller), computes, and writes one frame to the stage after (or the
result to the controller). With tensor ranks each hears from and writes to the same rank of the
stages beside it; the first rank of the first stage passes the controller's messages on to the
others.

On a device that is asynchronous the thread launches a step and reads the next frame; another one
(finisher.py) waits until the step is done, and sends what it has made.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import torch

from medha_actors.actors.cells import Cell
from medha_actors.actors.exchange import (
    LinkExchange,
    PeerExchange,
    SharedExchange,
    TransportExchange,
    transports_of,
)
from medha_actors.actors.finisher import Finisher
from medha_actors.actors.links import Link
from medha_actors.actors.teams import LinkTeam, TransportTeam, shared_team, wait_for
from medha_actors.errors import LinkClosedError
from medha_actors.messages import StepMessage, StepResult
from medha_actors.model.device import HOST, Device, Lap, Mark
from medha_actors.model.kernels import Board, Mailboxes
from medha_actors.model.stage import Stage, StageOutput
from medha_actors.model.team import ALONE, Team

_log = logging.getLogger("medha.stage")
_encode = msgspec.msgpack.Encoder().encode
_decode_step = msgspec.msgpack.Decoder(StepMessage).decode
CREDIT = b""  # stage 0 tells the controller with an empty message that it is free


@dataclass(slots=True)
class Wires:
    """The links of one cell; `peers`: the same stage and rank in the other groups, `mates`: the
    other ranks of its team."""

    control: Link | None = None
    upstream: Link | None = None
    downstream: Link | None = None
    peers: dict[int, Link] = field(default_factory=dict)
    mates: dict[int, Link] = field(default_factory=dict)
    mailboxes: Mailboxes | None = None  # where all groups of the stage are on this host
    board: Board | None = None  # where all ranks of the team are

    def take(self, cell: Cell, other: Cell | None, link: Link) -> None:
        """A link with another cell, or with the controller (None)."""
        if other is None:
            self.control = link
        elif other.rank != cell.rank:
            self.mates[other.rank] = link
        elif other.group != cell.group:
            self.peers[other.group] = link
        elif other.stage < cell.stage:
            self.upstream = link
        else:
            self.downstream = link

    def neighbours(self, cell: Cell) -> dict[Cell, Link]:
        """The links with other cells."""
        found: dict[Cell, Link] = {}
        if self.upstream is not None:
            found[cell._replace(stage=cell.stage - 1)] = self.upstream
        if self.downstream is not None:
            found[cell._replace(stage=cell.stage + 1)] = self.downstream
        for group, link in self.peers.items():
            found[cell._replace(group=group)] = link
        for rank, link in self.mates.items():
            found[cell._replace(rank=rank)] = link
        return found

    def source(self, cell: Cell) -> Link:
        """Where batches come from: the stage before; in the first one the controller, and from it
        the first rank, which tells the others."""
        source = self.control
        if cell.stage:
            source = self.upstream
        elif cell.rank:
            source = self.mates.get(0)
        if source is None:
            raise LinkClosedError(f"nobody sends batches to {cell}")
        return source

    def team(self, cell: Cell) -> Team:
        """How this cell adds up with the other ranks."""
        if not self.mates:
            return ALONE
        transports = transports_of(self.mates)
        if transports is not None:
            return TransportTeam(cell.rank, self.mates, transports)
        if self.board is None:
            return LinkTeam(cell.rank, self.mates)
        return shared_team(cell.rank, self.mates, self.board)

    def exchange(self, cell: Cell, device: Device = HOST) -> PeerExchange | None:
        """How this cell merges partial attention; None: it is the only group."""
        if not self.peers:
            return None
        transports = transports_of(self.peers)
        if transports is not None:
            return TransportExchange(cell.group, self.peers, transports, device)
        if self.mailboxes is None:
            return LinkExchange(cell.group, self.peers, device)
        return SharedExchange(cell.group, self.peers, self.mailboxes)

    def close(self) -> None:
        """Close every link; the peers notice."""
        own = (self.control, self.upstream, self.downstream)
        for link in (*own, *self.peers.values(), *self.mates.values()):
            if link is not None:
                link.close()


class _Made(NamedTuple):
    """What a step makes, which an asynchronous device may not have done yet."""

    message: StepMessage
    output: StageOutput
    began: Mark
    ended: Mark
    exchanged: Lap


class Service:
    """Computes step after step until a peer is gone; then closes every link, so that the others
    notice."""

    def __init__(
        self, cell: Cell, stage: Stage, wires: Wires, device: Device = HOST
    ) -> None:
        self._cell = cell
        self._stage = stage
        self._wires = wires
        self._device = device
        self._source = wires.source(cell)
        self._exchange = wires.exchange(cell, device)
        self._team = wires.team(cell)
        self._finisher: Finisher[_Made] | None = None
        if device.asynchronous:
            self._finisher = Finisher(str(cell), device, self._finish, wires.close)
        self._thread = threading.Thread(
            target=self._run, name="stage-loop", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close the links and wait for the step under way."""
        self._wires.close()
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                self._await_batch()
                self._step(*self._source.recv())
        except LinkClosedError as error:
            _log.info("%s stops: %s", self._cell, error.message)
        except Exception:
            # Closing the links tells the controller, which has this actor answer or replaces it.
            _log.exception("%s failed", self._cell)
        finally:
            self._wires.close()
            if self._finisher is not None:
                self._finisher.stop()

    def _await_batch(self) -> None:
        """The first rank of a team notices while it is idle that another one is gone."""
        if self._wires.mates and self._cell.rank == 0:
            wait_for(self._source, self._wires.mates.values())

    def _step(self, packed: bytes, hidden: torch.Tensor | None) -> None:
        if self._cell.stage == self._cell.rank == 0:
            for mate in self._wires.mates.values():
                mate.send(packed)
        if self._finisher is not None:
            self._finisher.reserve()
        began = self._device.mark()
        message = _decode_step(packed)
        output = self._stage.launch(message, hidden, self._exchange, self._team)
        exchanged = self._exchange.take() if self._exchange else Lap()
        made = _Made(message, output, began, self._device.mark(), exchanged)
        if self._finisher is not None:
            self._finisher.put(made)
            return
        self._send(made)
        if self._wires.downstream is not None and self._wires.control is not None:
            self._wires.control.send(CREDIT)

    def _finish(self, made: _Made) -> None:
        """In the finisher's thread, where all steps before this one are done: so the controller may
        have one more wait behind it."""
        if self._cell.stage == self._cell.rank == 0 and self._wires.control is not None:
            self._wires.control.send(CREDIT)
        made.ended.wait()
        self._send(made)

    def _send(self, made: _Made) -> None:
        """To the next stage, or the result to the controller; the device is done."""
        output = made.output.finish()
        message = made.message
        worked_s = made.ended.since(made.began)
        stage_seconds = (*message.stage_seconds, worked_s)
        stage_starts = (*message.stage_starts, time.time() - worked_s)
        exchange_seconds = (*message.exchange_seconds, made.exchanged.seconds())
        failures = (*message.failures, *output.failures)
        if self._wires.downstream is not None:
            passed_on = msgspec.structs.replace(
                message,
                stage_seconds=stage_seconds,
                stage_starts=stage_starts,
                exchange_seconds=exchange_seconds,
                failures=failures,
            )
            self._wires.downstream.send(_encode(passed_on), output.hidden)
            return
        if self._cell.rank:
            return  # the first rank of a team reports
        assert self._wires.control is not None, (
            "the last stage has the controller's link"
        )
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
        self._wires.control.send(_encode(result))
        self._stage.look_ahead(output)
