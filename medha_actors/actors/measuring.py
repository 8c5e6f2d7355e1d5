"""Measuring: what steps take on this actor's device, alone (for calibration)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medha_actors.messages import StepMessage
from medha_actors.model.device import Device
from medha_actors.model.stage import Stage
from medha_actors.model.team import Team
from medha_actors.model_shares import rows_of


def fastest_of(
    repeats: int,
    stage: Stage,
    device: Device,
    team: Team,
    messages: Sequence[StepMessage],
    dtype: torch.dtype,
) -> list[float]:
    """The device's seconds of each step, of the fastest of so many tries; `dtype`: of the hidden
    states that a stage after the first is given.

    All steps are tried before any is tried again, so that a moment's disturbance does not spoil all
    tries of one.
    """
    fastest = [float("inf")] * len(messages)
    for _ in range(repeats):
        for number, message in enumerate(messages):
            hidden = None if stage.is_first else _handed(stage, message, team, dtype)
            began = device.mark()
            stage.step(message, hidden, None, team)
            if message.moves and stage.tier is not None:
                stage.tier.wait()
            ended = device.mark()
            ended.wait()
            fastest[number] = min(fastest[number], ended.since(began))
    return fastest


def _handed(
    stage: Stage, message: StepMessage, team: Team, dtype: torch.dtype
) -> torch.Tensor:
    """What the stage before would hand over, on the device already."""
    rows = sum([span.stop - span.start for span in message.spans])
    made = torch.randn(rows, stage.spec.hidden, device=stage.device).to(dtype)
    return made[rows_of(rows, team.rank, team.ranks)]
