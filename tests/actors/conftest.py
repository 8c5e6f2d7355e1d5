"""One local Ray for all actor tests, and warm processes in it."""

from collections.abc import Iterator

import pytest
import ray

from tests.actors.warm import Warm


@pytest.fixture(scope="session")
def cluster():
    ray.init(
        num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def warm(cluster) -> Iterator[Warm]:
    """Engines without a start of processes for each."""
    return Warm()
