import pytest


@pytest.fixture
def plain(monkeypatch):
    """No figures (they take seconds, and have tests of their own) and no key from the
    environment."""
    monkeypatch.setattr("loadgen.show.figures.available", lambda: False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
