"""One cell at work on a device that is asynchronous: what leaves it, and when."""

from __future__ import annotations

import socket
import threading

import msgspec
import pytest
import torch

from medha_actors.actors.cells import Cell
from medha_actors.actors.links import Link
from medha_actors.actors.service import CREDIT, Service, Wires
from medha_actors.errors import LinkClosedError
from medha_actors.messages import SampledToken, StepMessage, StepResult
from medha_actors.model.device import HOST, Watch
from medha_actors.model.stage import StageOutput
from tests.device_double import RecordingDevice

_encode = msgspec.msgpack.Encoder().encode
_decode_step = msgspec.msgpack.Decoder(StepMessage).decode
_decode = msgspec.msgpack.Decoder(StepResult).decode


def pair() -> tuple[Link, Link]:
    left, right = socket.socketpair()
    for end in (left, right):
        end.settimeout(30)
    return Link(left), Link(right)


class LaunchingStage:
    """Each batch is so many seconds of the device as its number says."""

    def __init__(self, device: RecordingDevice, last: bool) -> None:
        self.device = device
        self.last = last
        self.launched: list[int] = []
        self.looked: list[tuple] = []
        self.failing: Exception | None = None
        self.synchronises = False

    def launch(self, message, hidden, exchange, team) -> StageOutput:
        with self.device.step():
            if self.failing is not None:
                raise self.failing
            self.launched.append(message.batch_id)
            self.device.launch(message.batch_id)
            if self.synchronises:
                self.device.synchronise()
        if not self.last:
            return StageOutput(torch.full((1, 4), float(message.batch_id)))
        return StageOutput(None, (SampledToken("r", message.batch_id, 7),))

    def look_ahead(self, output) -> None:
        self.looked.append(output.tokens)


class Place:
    """A cell between its neighbours; the links' other ends are here."""

    def __init__(self, stage: int, stages: int) -> None:
        self.device = RecordingDevice()
        self.stage = LaunchingStage(self.device, last=stage == stages - 1)
        wires = Wires()
        self.control, wires.control = pair()
        self.upstream = None
        self.downstream = None
        if stage:
            self.upstream, wires.upstream = pair()
        if stage < stages - 1:
            self.downstream, wires.downstream = pair()
        self.wires = wires
        self.service = Service(Cell(stage, 0), self.stage, wires, self.device)

    def send(self, number: int) -> None:
        link = self.upstream or self.control
        link.send(
            _encode(StepMessage(number, ())),
            torch.ones(1, 4) if self.upstream else None,
        )

    def is_silent(self, link: Link) -> bool:
        """Whether nothing has come when all that can happen has: the finisher waits."""
        self.device.until_somebody_waits()
        link.limit(0.05)
        try:
            link.recv()
        except LinkClosedError:
            return True
        finally:
            link.limit(30)
        return False

    def is_closed(self) -> bool:
        """Whether the control link ends, after whatever it has carried."""
        try:
            while True:
                self.control.recv()
        except LinkClosedError as error:
            return "timed out" not in error.message

    def stop(self) -> None:
        for link in (self.control, self.upstream, self.downstream):
            if link is not None:
                link.close()
        self.device.finish()
        self.service.stop()


@pytest.fixture
def place(request):
    made = Place(*request.param)
    yield made
    made.stop()


lone = pytest.mark.parametrize("place", [(0, 1)], indirect=True)


@lone
def test_a_result_leaves_when_the_device_has_done_the_step(place):
    place.send(3)
    assert place.control.recv()[0] == CREDIT, (
        "nothing is behind it, so another one may be"
    )
    assert place.is_silent(place.control)
    place.device.advance(2.9)
    assert place.is_silent(place.control)
    place.device.finish()
    result = _decode(place.control.recv()[0])
    assert (result.batch_id, result.stage_seconds) == (3, pytest.approx((3.0,)))
    assert [token.index for token in result.tokens] == [3]


@lone
def test_the_next_step_is_launched_while_one_computes_and_no_third(place):
    place.send(3)
    assert place.control.recv()[0] == CREDIT
    place.send(5)
    place.device.until_launched(8)
    assert place.is_silent(place.control), "two are launched: no credit for a third"
    place.device.advance(3)
    assert _decode(place.control.recv()[0]).batch_id == 3
    assert place.control.recv()[0] == CREDIT
    place.device.finish()
    result = _decode(place.control.recv()[0])
    assert (result.batch_id, result.stage_seconds) == (5, pytest.approx((5.0,)))


@pytest.mark.parametrize("place", [(1, 3)], indirect=True)
def test_a_stage_that_is_flooded_launches_two_steps_at_once(place):
    for number in (1, 2, 3, 4):
        place.send(number)
    place.device.until_launched(3)
    assert place.is_silent(place.downstream)
    assert place.stage.launched == [1, 2]
    for number in (1, 2, 3, 4):
        place.device.until_launched(sum(range(1, min(number + 2, 5))))
        place.device.advance(number)
        packed, hidden = place.downstream.recv()
        message = _decode_step(packed)
        assert (message.batch_id, message.stage_seconds) == (number, (number,))
        assert hidden.tolist() == [[number] * 4]
    assert place.stage.launched == [1, 2, 3, 4]


@pytest.mark.parametrize("place", [(0, 2)], indirect=True)
def test_the_first_of_several_stages_gives_its_credits_the_same_way(place):
    place.send(1)
    assert place.control.recv()[0] == CREDIT
    place.send(2)
    place.device.until_launched(3)
    assert place.is_silent(place.control)
    place.device.finish()
    assert [_decode_step(place.downstream.recv()[0]).batch_id for _ in range(2)] == [
        1,
        2,
    ]
    assert place.control.recv()[0] == CREDIT


@lone
@pytest.mark.parametrize("where", ["launch", "device", "wait inside a step"])
def test_an_error_in_either_thread_closes_the_links(place, where):
    if where == "launch":
        place.stage.failing = ZeroDivisionError("launch")
    elif where == "wait inside a step":
        mark = place.device.mark()
        place.device.launch(1)
        place.stage.launch = lambda *_: (
            place.device.step().__enter__() or place.device.mark().wait()
        )
        assert mark.at == 0
    place.send(3)
    if where == "device":
        assert place.control.recv()[0] == CREDIT
        place.send(5)  # is launched behind it, and never done
        place.device.until_launched(8)
        place.device.until_somebody_waits()
        place.device.fail("an illegal memory access")
    assert place.is_closed()
    place.service.stop()
    names = [thread.name for thread in threading.enumerate()]
    assert "stage-loop" not in names
    assert "stage-finisher" not in names


@lone
def test_stopping_waits_for_what_was_launched(place):
    place.send(3)
    assert place.control.recv()[0] == CREDIT
    place.device.until_somebody_waits()
    stopping = threading.Thread(target=place.service.stop)
    stopping.start()
    assert stopping.is_alive()
    place.device.finish()
    stopping.join(timeout=30)
    assert not stopping.is_alive()


def test_a_cpu_needs_no_second_thread_and_its_result_is_its_credit():
    wires = Wires()
    control, wires.control = pair()
    stage = LaunchingStage(RecordingDevice(), last=True)
    service = Service(Cell(0, 0), stage, wires)
    assert "stage-finisher" not in [thread.name for thread in threading.enumerate()]
    control.send(_encode(StepMessage(3, ())))
    assert _decode(control.recv()[0]).batch_id == 3
    control.close()
    service.stop()
    assert stage.looked


def test_a_watch_adds_up_the_devices_seconds():
    device = RecordingDevice()
    watch = Watch(device)
    for seconds in (1.0, 2.0):
        device.launch(10)
        with watch.running():
            device.launch(seconds)
    lap = watch.take()
    device.launch(5)
    with watch.running():
        device.launch(4)
    device.finish()
    assert lap.seconds() == pytest.approx(3.0)
    assert watch.take().seconds() == pytest.approx(4.0)
    assert watch.take().seconds() == 0


def test_the_host_counts_real_seconds_and_can_compute():
    began = HOST.mark()
    ended = HOST.mark()
    ended.wait()
    assert 0 <= ended.since(began) < 1
    assert HOST.obstacle() == ""
    assert HOST.free_bytes() > 0
