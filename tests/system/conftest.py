from collections.abc import Iterator

import pytest
from serve_process import serving, shipped_args


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The configuration that the repository ships, on a free port."""
    with serving(tmp_path_factory.mktemp("embedded"), **shipped_args()) as url:
        yield url
