"""`medha-client` on a connection that dies, against the real server: its output is whole."""

import asyncio
import subprocess
import sys

import pytest

from tests.cutting import cutting

ASKED = (
    "Tell me about rivers.", "--max-tokens", "60", "--seed", "7", "--temperature", "0.8",
)  # fmt: skip


async def ask(url: str, *options: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "clients", *ASKED, "--base-url", url, *options,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@pytest.mark.timeout(240)
async def test_a_connection_dies_in_the_middle_of_an_answer(embedded: str) -> None:
    code, expected, _ = await ask(embedded)
    assert code == 0
    assert len(expected.split()) > 20
    # so that the first connection is the answer's
    model = ("--model", "smollm2-135m-instruct")
    async with cutting(embedded, [3000, 4000, 2000], reset=True) as proxy:
        code, out, err = await ask(proxy.url, *model)
        connections = proxy.connections
    assert (code, out) == (0, expected)
    assert connections == 4
    assert err.count("[the connection was cut; resumed after ") == 3
    assert ", cut and resumed: 3" in err
