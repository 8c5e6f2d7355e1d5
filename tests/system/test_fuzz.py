"""Thousands of random requests, extremes included, against a real server, and nobody is harmed."""

import pytest

from tests.chaos import fuzz

REQUESTS = 2_000


@pytest.mark.timeout(240)
def test_no_request_harms_another(toy):
    assert fuzz.run(toy[0], REQUESTS, seed=13) == []
