from collections.abc import Iterator

import pytest
from serve_process import serving, shipped_args


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """The configuration that the repository ships, on a free port: its URL and process."""
    with serving(tmp_path_factory.mktemp("shipped"), **shipped_args()) as running:
        yield running


@pytest.fixture(scope="module")
def embedded(shipped: tuple[str, int]) -> str:
    return shipped[0]
