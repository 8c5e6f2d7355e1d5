"""The recorder: what a timeline tells, and that it stays bounded."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stories import TRACE, Story, convoy

from deployments.telemetry.perfetto import trace_of
from medha_actors.actors.telemetry.recorder import page_name
from medha_actors.telemetry.timelines import MAX_STALLS, Timeline


def test_a_convoy_is_told_in_full():
    timeline = convoy().recorder.finished["long"]
    assert [(c.start, c.tokens, c.kv_tokens) for c in timeline.chunks] == [
        (0, 300, 0),
        (300, 300, 300),
        (600, 400, 600),
    ]
    first, second, last = timeline.chunks
    assert second.sent_at < first.done_at, "two chunks were in the pipeline at once"
    assert (
        first.predicted_s,
        first.actual_s,
        first.slack_before_s,
        first.relative_slack,
    ) == (
        0.012,
        0.01,
        0.3,
        0.5,
    )
    assert [(work.stage, work.group) for work in last.work] == [
        (0, 0),
        (1, 0),
        (0, 1),
        (1, 1),
    ]
    assert [work.exchange_s for work in last.work] == [0.002, 0.001, 0.002, 0.001]
    (gap,) = timeline.gaps
    assert (gap.kind, gap.by, gap.by_traceparent) == (
        "preempted",
        "short",
        f"00-{TRACE}-{5:016x}-01",
    )
    assert (
        gap.gap_s == pytest.approx(last.sent_at - gap.from_at) == pytest.approx(0.021)
    )
    (stall,) = timeline.stalls
    assert (stall.index, timeline.stalls_total) == (2, 1)
    assert timeline.largest_gap_s == pytest.approx(0.5)
    assert timeline.missed() == ("tpot",)


@pytest.mark.parametrize(
    ("first_token_after", "reason", "missed"),
    [
        (0.5, "length", ()),
        (1.5, "length", ("ttft",)),
        (None, "abort", ()),
        (None, "timeout", ("ttft", "completion")),
    ],
)
def test_objectives(first_token_after, reason, missed):
    story = Story()
    story.arrives("one")
    story.step(("one", 100))
    if first_token_after is not None:
        story.token("one", 0, first_token_after)
    story.ends("one", reason)
    assert story.recorder.finished["one"].missed() == missed


@given(
    st.lists(
        st.sampled_from(["chunk", "chunk", "chunk", "gap", "two"]),
        min_size=1,
        max_size=300,
    )
)
@settings(max_examples=60)
def test_whatever_happens_a_timeline_is_bounded_and_loses_no_token(story_line):
    story = Story(max_chunks=8)
    story.arrives("long", 10_000)
    story.arrives("other", 10_000)
    for part in story_line:
        if part == "gap":
            story.step(("other", 1), preempted=[("long", "other")])
        elif part == "two":
            first = story.send(("long", 7))
            second = story.send(("long", 9))
            story.back(first)
            story.back(second)
        else:
            story.step(("long", 10))
    timeline = story.recorder.live["long"]
    assert len(timeline.chunks) <= 9
    assert len(timeline.gaps) <= 17
    at = 0
    for chunk in timeline.chunks:
        assert chunk.start == at
        at += chunk.tokens
    assert sum(chunk.count for chunk in timeline.chunks) == timeline.chunks_total
    assert sum(gap.count for gap in timeline.gaps) <= story_line.count("gap")


def test_runs_of_a_coalesced_prefill_have_similar_lengths():
    story = Story(max_chunks=16)
    story.arrives("long", 1_000_000)
    for _ in range(2000):
        story.step(("long", 500))
    counts = [chunk.count for chunk in story.recorder.live["long"].chunks]
    assert len(counts) <= 16
    assert max(counts[:-1]) <= 2 * sorted(counts)[len(counts) // 2]
    assert story.recorder.live["long"].chunks[0].actual_s == pytest.approx(
        0.01 * counts[0]
    )


def test_runs_stop_at_a_preemption():
    story = Story(max_chunks=8)
    story.arrives("long", 100_000)
    story.arrives("short")
    for i in range(40):
        if i == 20:
            story.step(("short", 10), preempted=[("long", "short")])
        story.step(("long", 10))
    timeline = story.recorder.live["long"]
    assert any(chunk.index == 20 for chunk in timeline.chunks), (
        "a run begins where the gap ends"
    )


def test_only_the_last_requests_are_kept():
    story = Story(last=3)
    for i in range(10):
        story.arrives(f"r{i}")
        story.step((f"r{i}", 100))
        story.ends(f"r{i}")
    assert list(story.recorder.finished) == ["r7", "r8", "r9"]
    assert not story.recorder.live


def test_stalls_are_bounded():
    story = Story()
    story.arrives("one", tpot_s=0.01)
    story.step(("one", 100))
    for i in range(100):
        story.token("one", i, 1.0)
    timeline = story.recorder.live["one"]
    assert (len(timeline.stalls), timeline.stalls_total) == (MAX_STALLS, 99)


def test_a_lost_pipeline_shows_as_a_gap_and_late_results_are_ignored():
    story = Story()
    story.arrives("one", 1000)
    story.step(("one", 100))
    lost = story.send(("one", 100))
    story.recorder.lost(story.now)
    story.back(lost)
    timeline = story.recorder.live["one"]
    assert [chunk.tokens for chunk in timeline.chunks] == [100]
    assert timeline.gaps[0].kind == "pipeline_lost"


def test_requests_are_found_by_every_name_they_have():
    story = Story()
    story.arrives("chatcmpl-mine-1a2b-0")
    find = story.recorder.find
    for name in (TRACE, "mine", "chatcmpl-mine", "chatcmpl-mine-1a2b-0"):
        assert [t.id for t in find(name)] == ["chatcmpl-mine-1a2b-0"]
    assert find("min") == find("") == find("other") == []


@pytest.mark.parametrize(
    ("request_id", "name"),
    [
        ("chatcmpl-0123456789abcdef01234567-1a2b3c4d-0", "01234567-1a2b3c4d"),
        ("cmpl-f0e1d2c3-aaaa-bbbb-cccc-0123456789ab-1a2b3c4d-1", "f0e1d2c3-1a2b3c4d"),
        ("cmpl-a-1a2b3c4d5e6f7a8b9c0d1e2f-0", "a-1a2b3c4d5e6f7a8b9c"),
        ("resp_0123456789abcdef01234567-1a2b3c4d-0", "01234567-1a2b3c4d"),
        ("msg_a-1a2b3c4d5e6f7a8b9c0d1e2f-0", "a-1a2b3c4d5e6f7a8b9c"),
        ("mine", "mine"),
    ],
)
def test_a_request_is_found_by_its_name_on_the_live_page(request_id, name):
    story = Story()
    story.arrives("chatcmpl-another-99999999-0")
    story.arrives(request_id)
    assert page_name(request_id) == name
    assert [t.id for t in story.recorder.find(name)] == [request_id]


def test_a_timeline_crosses_processes():
    timeline = convoy().recorder.finished["long"]
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(timeline), type=Timeline)
    assert again == timeline


def test_a_perfetto_file_has_tracks_whose_slices_nest():
    recorder = convoy().recorder
    trace = trace_of(list(recorder.finished.values()), list(recorder.steps))
    assert msgspec.json.decode(msgspec.json.encode(trace)) == trace
    names = {event["name"] for event in trace["traceEvents"]}
    assert {
        "request",
        "queue",
        "prefill.chunk[0]",
        "preempted",
        "decode",
        "first token",
        "stall",
        "deadline",
    } <= names
    tracks: dict[tuple[int, int], list[dict]] = {}
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            tracks.setdefault((event["pid"], event["tid"]), []).append(event)
    assert len([key for key in tracks if key[0] == 2]) == 4, "two stages of two groups"
    for events in tracks.values():
        open_until: list[float] = []
        for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
            while open_until and open_until[-1] <= event["ts"] + 0.5:
                open_until.pop()
            if open_until:
                assert event["ts"] + event["dur"] <= open_until[-1] + 0.5, event
            open_until.append(event["ts"] + event["dur"])
