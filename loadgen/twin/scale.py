"""The stages as they really are while others use the machine too: slower than during calibration,
decodes and all."""

from __future__ import annotations

from medha_actors.core.predictor import ExecutionModel, Load, Profile


class SlowedModel(ExecutionModel):
    """Stands for reality in a simulation: the profile times one factor for decodes alone, one for
    other batches."""

    def __init__(self, profile: Profile, prefill: float = 1.0, decode: float = 1.0) -> None:
        super().__init__(profile)
        self.prefill, self.decode = prefill, decode

    def stage_seconds(self, load: Load) -> tuple[float, ...]:
        factor = self.prefill if load.prefill_rows else self.decode
        return tuple([factor * seconds for seconds in super().stage_seconds(load)])
