"""tests/gpu, each file in a process of its own: after a sticky CUDA error every test behind it
fails."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from pathlib import Path

import pytest

from medha_actors.bench.gpu_findings import Findings

_FOLDER = Path("tests/gpu")
_SPARE_S = 4.0  # no test begins when less is left


def run(out: Findings) -> None:
    """A row for each file, and one for each test that failed."""
    spawn = multiprocessing.get_context("spawn")
    for path in sorted(_FOLDER.glob("test_*.py")):
        if out.left_s() < 2 * _SPARE_S:
            out.check(path.stem, False, "no time left")
            continue
        process = spawn.Process(target=_run_file, args=(path, out))
        process.start()
        process.join()
        if process.exitcode:
            out.check(path.stem, False, f"its process ended with {process.exitcode}")


def _run_file(path: Path, out: Findings) -> None:
    reporter = _Reporter(path.stem, out)
    pytest.main(["-q", "-p", "no:cacheprovider", str(path)], plugins=[reporter])
    reporter.finish()


class _Reporter:
    """Writes down what becomes of the tests, while they run."""

    def __init__(self, name: str, out: Findings) -> None:
        self.name = name
        self.out = out
        self.counts: Counter[str] = Counter()

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if self.out.left_s() < _SPARE_S:
            self.counts["left out"] += 1
            pytest.skip("no time left")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.counts["failed"] += 1
            last = str(report.longrepr).strip().splitlines()[-1:]
            test = report.nodeid.rpartition("::")[2]
            self.out.check(f"{self.name}: {test}", False, " ".join(last)[:150])
        elif report.skipped or report.when == "call":
            self.counts[report.outcome] += 1
            if report.skipped and isinstance(report.longrepr, tuple):
                self.counts[report.longrepr[2][:60]] += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.counts["failed"] += 1
            last = str(report.longrepr).strip().splitlines()[-1:]
            self.out.check(f"{self.name}: collected", False, " ".join(last)[:150])

    def finish(self) -> None:
        said = ", ".join(f"{name} {count}" for name, count in self.counts.items())
        whole = not self.counts["failed"] and not self.counts["left out"]
        self.out.check(self.name, whole, said or "no tests")
