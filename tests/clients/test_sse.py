"""The parser of server-sent events, however the bytes are cut."""

import itertools
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.sse import Frame, FrameTooLargeError, SseParser

STREAM = (
    b"\xef\xbb\xbf: accepted\n\ndata: one\n\ndata:two\ndata:  lines\n\n"
    b"event: medha.progress\ndata: {}\n\n"
    b":\n: hidden\ndata: after comments\nid: 7\nretry: 5\nnonsense\n\nevent: empty\n\n"
    b"data\n\n\n\n\ndata: \xe2\x82\xac\n\n"
)
FRAMES = [
    Frame(b"", comment="accepted"),
    Frame(b"one"),
    Frame(b"two\n lines"),
    Frame(b"{}", "medha.progress"),
    Frame(b"", comment=""),
    Frame(b"", comment="hidden"),
    Frame(b"after comments"),
    Frame(b""),
    Frame("€".encode()),
]


def parse(*pieces: bytes) -> list[Frame]:
    parser = SseParser()
    return list(itertools.chain.from_iterable(map(parser.feed, pieces)))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_split_at_every_byte(end: bytes) -> None:
    stream = STREAM.replace(b"\n", end)
    assert parse(stream) == FRAMES
    assert parse(*(bytes([byte]) for byte in stream)) == FRAMES
    for cut in range(len(stream)):
        assert parse(stream[:cut], b"", stream[cut:]) == FRAMES


@settings(max_examples=200)
@given(
    st.lists(
        st.sampled_from(
            [b"data: x", b"\r", b"\n", b"\r\n", b":c", b"event: e", b"data"]
        ),
        max_size=20,
    ),
    st.data(),
)
def test_splits_never_matter(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    cuts = sorted(
        data.draw(st.sets(st.integers(0, len(stream)), max_size=6)) | {0, len(stream)}
    )
    pieces = [stream[a:b] for a, b in pairwise(cuts)]
    assert parse(*pieces) == parse(stream)


def test_an_event_cut_off_by_the_end_is_dropped() -> None:
    assert parse(b"data: one\n\ndata: tw") == [Frame(b"one")]


def test_endless_events_are_refused() -> None:
    parser = SseParser(max_event_bytes=100)
    assert parser.feed(b"data: " + b"x" * 94) == []
    with pytest.raises(FrameTooLargeError):
        parser.feed(b"x")


def test_the_last_event_id() -> None:
    parser = SseParser()
    seen = []
    for chunk in (
        b"data: x\n\n",
        b"id: a:0\n\n",
        b"id: a:1\ndata: y\n\n",
        b"id: n\0\ndata: z\n\n",
    ):
        frames = parser.feed(chunk)
        seen.append((parser.last_event_id, len(frames)))
    assert seen == [("", 1), ("a:0", 0), ("a:1", 1), ("a:1", 1)]
    parser.feed(b"id\ndata: end\n\n")
    assert parser.last_event_id == ""
