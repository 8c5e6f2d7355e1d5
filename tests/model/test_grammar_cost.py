"""What grammars cost a step is measured by a command, and stays what docs/tools.md promises."""

import pytest

from medha_actors.bench import grammars
from medha_actors.config import ModelLoadingConfig

LONGER_PERCENT = 10.0


def test_the_benchmark_measures_what_it_says() -> None:
    random = ModelLoadingConfig(model_source="random")
    [row] = grammars.run(3, "float32", requests=2, model=random)
    assert row["requests"] == 2
    assert min(row["free_step_ms"], row["with_a_schema_ms"], row["next_masks_ms"]) > 0


@pytest.mark.slow
def test_sixteen_requests_with_a_schema_take_a_tenth_longer_at_most() -> None:
    [row] = grammars.run()
    assert row["requests"] == 16
    assert row["longer_percent"] <= LONGER_PERCENT
