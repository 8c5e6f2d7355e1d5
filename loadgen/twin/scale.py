"""A profile of the same stages on a slower or faster machine."""

from __future__ import annotations

import msgspec

from medha_actors.core.predictor import Profile, StageProfile


def scaled_profile(profile: Profile, factor: float) -> Profile:
    """Every cost times `factor`."""
    return Profile(tuple(_scaled(stage, factor) for stage in profile.stages))


def _scaled(stage: StageProfile, factor: float) -> StageProfile:
    costs = {name: getattr(stage, name) for name in stage.__struct_fields__ if name.endswith("_s")}
    return msgspec.structs.replace(
        stage,
        rows=tuple((rows, seconds * factor) for rows, seconds in stage.rows),
        **{name: seconds * factor for name, seconds in costs.items()},
    )
