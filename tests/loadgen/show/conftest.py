import pytest

from tests.loadgen.show.written import written


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """A results directory with figures, for tests that only read it."""
    directory = tmp_path_factory.mktemp("results") / "run"
    written(directory, label="first <run>", isolated=[(10, 0.4)])
    return directory


@pytest.fixture
def no_figures(results, monkeypatch):
    """Drawing takes seconds: the figures are drawn once, by `results`, and where a test is about
    them."""
    monkeypatch.setattr("loadgen.show.figures.available", lambda: False)
