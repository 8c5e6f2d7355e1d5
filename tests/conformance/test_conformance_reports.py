"""How a run is judged and written down."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.conformance import outcomes, recording
from tests.conformance.__main__ import PAGE, parse
from tests.conformance.outcomes import Outcome
from tests.conformance.tools import ABSENT, ALL, NAMES, chosen

SAID = "ok: chat\nTraceback\nfailed: stream: nothing came\nok: tools\n"


def test_what_a_script_said() -> None:
    passed, failed = outcomes.checks_of(SAID)
    assert passed == ("chat", "tools")
    assert failed == ("stream: nothing came",)


@pytest.mark.parametrize(
    ("outcome", "good", "result"),
    [
        (Outcome("a", "x", passed=("one", "two")), True, "2 of 2"),
        (
            Outcome("a", "x", passed=("one",), failed=("two: no",)),
            False,
            "1 of 2; two: no",
        ),
        (
            Outcome("a", "x", why="its script ended with 1"),
            False,
            "0 of 0; its script ended with 1",
        ),
        (
            Outcome("a", "x", why="no npm", installed=False),
            True,
            "not installed: no npm",
        ),
        (Outcome("a", "x"), False, "0 of 0"),
    ],
)
def test_what_is_good(outcome: Outcome, good: bool, result: str) -> None:
    assert (outcome.is_good, outcome.result) == (good, result)


def test_rows_of_other_tools_stay(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- results -->\n<!-- end of results -->\nafter\n")
    outcomes.write(page, [Outcome("a", "x", passed=("one",)), Outcome("b", "y")])
    outcomes.write(page, [Outcome("b", "y | z", "1.0", "real", passed=("one",))])
    before, *table, after = page.read_text().splitlines()
    assert (before, after) == ("before", "after")
    assert table[3:5] == [
        "| a | - | x | - | 1 of 1 |",
        "| b | 1.0 | y / z | real | 1 of 1 |",
    ]
    assert len(table) == 6


def test_a_real_row_is_not_replaced_by_a_scripted_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- results -->\n<!-- end of results -->\n")
    for server, version in (("scripted", "1"), ("real", "2"), ("scripted", "3")):
        outcomes.write(page, [Outcome("a", "x", version, server, passed=("one",))])
    assert page.read_text().splitlines()[3] == "| a | 2 | x | real | 1 of 1 |"


def test_every_tool_is_on_the_page() -> None:
    page = PAGE.read_text()
    for name in (*NAMES, *ABSENT):
        assert f"| {name} |" in page


def test_tools_are_chosen_by_name() -> None:
    assert chosen([]) == list(ALL)
    assert [tool.name for tool in chosen(["litellm", "anthropic"])] == [
        "anthropic",
        "litellm",
    ]
    with pytest.raises(SystemExit):
        parse(["telnet"])
    with pytest.raises(SystemExit):
        parse(["--record"])


def test_one_request_of_each_shape_is_recorded(tmp_path: Path, monkeypatch) -> None:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def answer(request: Request) -> JSONResponse:
        body = await request.json()
        return JSONResponse(body, status_code=400 if "bad" in body else 200)

    recorder = recording.Recorder(
        Starlette(routes=[Route("/x", answer, methods=["POST"])])
    )
    client = TestClient(recorder)
    client.post(
        "/x", json={"a": 1}, headers={"x-request-id": "r", "authorization": "secret"}
    )
    client.post("/x?q=1", json={"a": 1})
    client.post("/x", json={"a": 2})
    client.post("/x", json={"bad": [1, 2]})
    first, second, third = recorder.take()
    assert (first.path, first.body, first.status) == ("/x", {"a": 1}, 200)
    assert first.headers["x-request-id"] == "r"
    assert "authorization" not in first.headers
    assert (second.path, third.status) == ("/x?q=1", 400)
    assert recorder.take() == []
    monkeypatch.setattr(recording, "FOLDER", tmp_path)
    recording.save("tool", [first, third])
    assert recording.load(tmp_path / "tool.json") == [first, third]
