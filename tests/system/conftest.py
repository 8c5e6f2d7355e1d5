from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from serve_process import serving, shipped_args

from tests.chaos import fuzz

# Telling more of each request than is told by default, so that tests can watch.
WATCHED: Final = {
    "stream": {"progress_s": 0, "first_comment_s": 0},
    "telemetry": {"max_chunk_spans": 10_000},
}
# The fuzzer's small model, with room for answers that outlive a drain.
TOY: Final = fuzz.MODEL | {
    "model_loading_config": fuzz.MODEL["model_loading_config"]
    | {"max_model_len_tokens": 8_000},
    "drain_timeout_s": 3.0,
}


class Standing:
    """A server of many tests: started when it is asked for, and again when a test has ended it."""

    def __init__(self, folder: Path, args: dict[str, Any]) -> None:
        self._folder = folder
        self._args = args
        self._life = ExitStack()
        self._server: tuple[str, int] | None = None

    def server(self) -> tuple[str, int]:
        """Its URL and process."""
        if self._server is None or not psutil.pid_exists(self._server[1]):
            self.end()
            self._server = self._life.enter_context(serving(self._folder, **self._args))
        return self._server

    def end(self) -> None:
        self._life.close()


@pytest.fixture(scope="session")
def standing_shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    standing = Standing(tmp_path_factory.mktemp("shipped"), shipped_args() | WATCHED)
    yield standing
    standing.end()


@pytest.fixture(scope="session")
def standing_toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    standing = Standing(tmp_path_factory.mktemp("toy"), TOY)
    yield standing
    standing.end()


@pytest.fixture
def shipped(standing_shipped: Standing) -> tuple[str, int]:
    """The configuration that the repository ships, on a free port: its URL and process."""
    return standing_shipped.server()


@pytest.fixture
def toy(standing_toy: Standing) -> tuple[str, int]:
    """The fuzzer's model, which draws a token in 2 ms: its URL and process."""
    return standing_toy.server()


@pytest.fixture
def embedded(shipped: tuple[str, int]) -> str:
    return shipped[0]
