"""What the scheduler hands out. It stays in the controller's process: its messages are what goes to
the stages."""

from __future__ import annotations

import msgspec

from medha_actors.messages import StepMessage


class Batch(msgspec.Struct, frozen=True):
    """What the scheduler hands out: one StepMessage per KV group (None: the group has nothing to
    do)."""

    id: int
    groups: tuple[StepMessage | None, ...]
    budget_s: float
    predicted_s: float
    prefill_tokens: int = 0
    decode_tokens: int = 0
    loaded_tokens: int = 0  # from the second tier
