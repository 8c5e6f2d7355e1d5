from collections.abc import Iterator

import pytest
from serve_process import serving, shipped_args

# Telling more of each request than is told by default, so that tests can watch.
WATCHED = {
    "stream": {"progress_s": 0, "first_comment_s": 0},
    "telemetry": {"max_chunk_spans": 10_000},
}


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """The configuration that the repository ships, on a free port: its URL and process."""
    with serving(tmp_path_factory.mktemp("shipped"), **shipped_args(), **WATCHED) as running:
        yield running


@pytest.fixture(scope="session")
def embedded(shipped: tuple[str, int]) -> str:
    return shipped[0]
