"""Steps measured on the device's own clock."""

from types import SimpleNamespace

import pytest
import torch

from medha_actors.actors.measuring import fastest_of
from medha_actors.actors.probes import Part, Probe, closing, message_of
from medha_actors.messages import Move, StepMessage
from tests.device_double import RecordingDevice


class PromptDevice(RecordingDevice):
    """Does at once what is launched."""

    def launch(self, seconds):
        super().launch(seconds)
        self.finish()


class MeasuredStage:
    """Takes the seconds that it is told, try by try."""

    def __init__(self, device, seconds, is_first=True):
        self.clock = device
        self.seconds = iter(seconds)
        self.is_first = is_first
        self.spec = SimpleNamespace(hidden=8)
        self.device = "cpu"
        self.tier = SimpleNamespace(wait=lambda: device.launch(100.0))
        self.given = []

    def step(self, message, hidden, exchange, team):
        self.given.append(hidden)
        with self.clock.step():
            self.clock.launch(next(self.seconds))


MESSAGE = message_of(Probe((Part(1, 5, 0), Part(2, 1, 64))), 64, 100, 0)
TEAM = SimpleNamespace(rank=0, ranks=1)


def test_the_fastest_try_of_each_step_counts_and_tries_are_apart():
    device = PromptDevice()
    stage = MeasuredStage(device, [3.0, 0.1, 2.0, 0.2, 4.0, 0.3])
    found = fastest_of(3, stage, device, TEAM, [MESSAGE, closing(MESSAGE)], torch.float32)
    assert found == pytest.approx([2.0, 0.1])
    assert stage.given == [None] * 6


def test_a_later_stage_is_given_its_rows():
    device = PromptDevice()
    stage = MeasuredStage(device, [1.0], is_first=False)
    team = SimpleNamespace(rank=1, ranks=2)
    fastest_of(1, stage, device, team, [MESSAGE], torch.bfloat16)
    assert stage.given[0].shape == (4, 8)  # of seven, those of the second rank
    assert stage.given[0].dtype == torch.bfloat16


def test_pages_count_until_they_are_moved():
    device = PromptDevice()
    stage = MeasuredStage(device, [1.0])
    moved = StepMessage(-1, (), moves=(Move(0, 0, False),))
    assert fastest_of(1, stage, device, TEAM, [moved], torch.float32) == pytest.approx([101.0])
