"""Steps measured on the device's own clock."""

from types import SimpleNamespace

import pytest
import torch

from medha_actors.actors.measuring import fastest_of
from medha_actors.actors.probes import (
    Limits,
    Part,
    Probe,
    again,
    closing,
    message_of,
    probes,
)
from medha_actors.actors.probing import fitted
from medha_actors.config import ModelLoadingConfig
from medha_actors.messages import Move, StepMessage
from medha_actors.model.device import HOST
from medha_actors.model.team import ALONE
from tests.device_double import RecordingDevice
from tests.model.stage_driver import Driver


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
    found = fastest_of(
        3, stage, device, TEAM, [MESSAGE, closing(MESSAGE)], torch.float32
    )
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
    assert fastest_of(1, stage, device, TEAM, [moved], torch.float32) == pytest.approx(
        [101.0]
    )


@pytest.mark.parametrize("stages", [1, 2])
def test_real_stages_go_through_all_probes(stages):
    limits = Limits(
        batch_tokens=256, requests=8, positions=4096, pages=60, page_tokens=16
    )
    driver = Driver(
        ModelLoadingConfig(model_source="random"),
        stages=stages,
        pages=60,
        attention="sdpa",
    )
    tried = probes(limits)
    steps = []
    for number, probe in enumerate(tried):
        message = message_of(probe, 16, driver.spec.vocabulary, number)
        steps += [message, again(message), closing(message)]
    for stage in driver.pipelines[0]:
        seconds = fastest_of(1, stage, HOST, ALONE, steps, torch.float32)
        assert min(seconds) > 0
        assert not stage.tables
        measured = fitted(tried, seconds[1::3])
        assert len(measured.errors) == len(tried)
