"""Kernels run in Triton's interpreter where there is no CUDA device."""

from __future__ import annotations

import importlib.util
import threading

import pytest
import torch

collect_ignore_glob = []
if importlib.util.find_spec("triton") is None:
    collect_ignore_glob.append("test_*.py")


def pytest_report_header():
    if importlib.util.find_spec("triton") is None:
        return "tests/model/cuda is left out: triton is not installed"
    return None


@pytest.fixture(scope="session")
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _one_kernel_at_a_time(monkeypatch):
    """The interpreter knows one grid at a time, and tests have ranks that are threads."""
    if torch.cuda.is_available():
        return
    from triton.runtime import interpreter

    lock = threading.Lock()
    call = interpreter.GridExecutor.__call__

    def alone(self, *args, **kwargs):
        with lock:
            return call(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", alone)
