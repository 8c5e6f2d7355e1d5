"""One local Ray for all actor tests."""

import pytest
import ray


@pytest.fixture(scope="session")
def cluster():
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
