"""`medha-client trace`: a timeline as text that fits on a screen."""

from typing import Any

import msgspec
import pytest
from stories import Story, convoy

from clients.trace import LINES, lines
from medha_actors.telemetry.timelines import Timeline


def told(timeline: Timeline) -> list[str]:
    facts: dict[str, Any] = msgspec.to_builtins(timeline)
    more = {
        "missed": list(timeline.missed()),
        "ttft_s": timeline.ttft_s,
        "tpot_s": timeline.tpot_s,
    }
    return lines({**facts, **more, "trace_id": None})


def test_what_happened_is_told_in_order():
    text = told(convoy().recorder.finished["long"])
    assert text[0] == "long: 1000 tokens, 3 generated, length"
    assert [line.split(":")[-1].strip() for line in text[1:3]] == ["met", "missed"]
    parts = [
        line.split(" s ", 1)[1].replace("█", "").split("  ")[-1].strip().split(":")[0]
        for line in text[3:]
    ]
    assert parts[2:] == [
        "chunk 0",
        "chunk 1",
        "preempted by short",
        "chunk 2",
        "decode",
    ]


@pytest.mark.parametrize(("times", "rows"), [(3, 3), (40, 1)])
def test_two_requests_that_take_turns_are_told_in_few_lines(times, rows):
    story = Story(max_chunks=96)
    story.arrives("long", 10_000)
    story.arrives("other", 10_000)
    story.step(("long", 100))
    for _ in range(times):
        story.step(("other", 100), preempted=[("long", "other")])
        story.step(("long", 100))
    story.token("long", 0, 0.0)
    story.ends("long")
    text = told(story.recorder.finished["long"])
    gaps = [line for line in text if "preempted by other" in line]
    assert len(gaps) == rows
    assert len(text) < 3 * LINES
    if rows == 1:
        assert f"({times} times, waited {times * 0.02 * 1000:.1f} ms)" in gaps[0]
