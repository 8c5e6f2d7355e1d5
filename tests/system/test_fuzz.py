"""Thousands of random requests, extremes included, against a real server, and nobody is harmed."""

import pytest
from serve_process import serving

from tests.chaos import fuzz

REQUESTS = 2_000


@pytest.mark.timeout(240)
def test_no_request_harms_another(tmp_path):
    args = {
        "model_loading_config": {
            "model_id": "random",
            "model_source": "random",
            "max_model_len_tokens": 2048,
        },
        "parallel": {"spp": 2, "kvp": 1},
        "kv_cache": {"budget_bytes": 2**22},
        "predictor": {"calibrate": False},
    }
    with serving(tmp_path, **args) as (url, _):
        assert fuzz.run(url, REQUESTS, seed=13) == []
