"""Thousands of random requests, extremes included, against a real server, and nobody is harmed."""

import pytest
from serve_process import serving

from tests.chaos import fuzz

REQUESTS = 2_000


@pytest.mark.timeout(240)
def test_no_request_harms_another(tmp_path):
    with serving(tmp_path, **fuzz.MODEL) as (url, _):
        assert fuzz.run(url, REQUESTS, seed=13) == []
