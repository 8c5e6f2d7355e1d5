"""What counts as a token, and that it does not matter where the bytes are cut."""

import json

import pytest

from loadgen.records import RequestRecord
from loadgen.send.events import TokenStream, body_error
from tests.loadgen.scripted import DONE, event, usage


def record():
    return RequestRecord(index=0, kind="short", prompt_tokens=5, output_tokens=3)


def read(*pieces):
    """A record and its stream after pieces that arrive at 1.0, 2.0, ..."""
    found = record()
    stream = TokenStream(found)
    for instant, piece in enumerate(pieces, start=1):
        stream.feed(piece, float(instant))
    stream.finish()
    return found


WHOLE = (
    b": keep-alive\n\n"
    + event("a")
    + event("\u00e9 \u2028")
    + b'event: message\r\ndata: {"choices": [{"text": "b"}]}\r\n\r\n'
    + event("c", "length")
    + usage(5, 4)
    + DONE
)


def test_split_at_every_position():
    for cut in range(len(WHOLE) + 1):
        found = read(WHOLE[:cut], WHOLE[cut:])
        assert found.error is None, cut
        assert len(found.token_times) == 4, cut
        assert (
            found.finish_reason,
            found.usage_prompt_tokens,
            found.usage_completion_tokens,
        ) == (
            "length",
            5,
            4,
        )


def test_byte_by_byte_each_token_has_the_time_of_the_byte_that_completed_it():
    found = read(*(WHOLE[i : i + 1] for i in range(len(WHOLE))))
    assert found.error is None
    ends = [WHOLE.index(b"}\n\n", WHOLE.index(b'"a"')) + 3]
    assert found.token_times[0] == ends[0]
    assert list(found.token_times) == sorted(set(found.token_times))


def test_tokens_that_come_together_have_one_time():
    assert list(
        read(event("a") + event("b"), event("c", "stop") + DONE).token_times
    ) == [
        1.0,
        1.0,
        2.0,
    ]


def chat(delta, finish=None):
    return (
        b"data: "
        + json.dumps(
            {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        ).encode()
        + b"\n\n"
    )


def test_the_first_token_is_the_first_event_with_content():
    found = read(
        chat({"role": "assistant", "content": ""}),
        b": waiting\n\n",
        chat({"content": "hi"}),
        chat({}, "stop"),
        DONE,
    )
    assert list(found.token_times) == [3.0]
    assert found.finish_reason == "stop"


@pytest.mark.parametrize(
    "delta",
    [{"reasoning_content": "hm"}, {"reasoning": "hm"}, {"tool_calls": [{"index": 0}]}],
)
def test_reasoning_and_tool_calls_are_content(delta):
    assert list(read(chat(delta), chat({}, "stop"), DONE).token_times) == [1.0]


def test_a_bare_finish_reason_is_no_token_but_a_token_id_is():
    assert list(read(event("a"), event("", "stop"), DONE).token_times) == [1.0]
    with_id = b'data: {"choices": [{"text": "", "token_ids": [7]}]}\n\n'
    assert list(read(with_id, event("", "stop"), DONE).token_times) == [1.0]


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ((event("a"),), "the stream ended early"),
        ((), "the stream ended early"),
        (
            (
                event("a"),
                b'data: {"error": {"message": "engine died", "code": 500}}\n\n',
                DONE,
            ),
            "engine died",
        ),
        ((b'data: {"error": "out\\nof memory"}\n\n', DONE), "out of memory"),
        ((event("a", "abort"), DONE), "finished with 'abort'"),
        ((event("a", "timeout"), DONE), "finished with 'timeout'"),
        ((DONE,), "an empty answer"),
        ((b"data: <html>\n\n", DONE), "not JSON"),
        ((b'data: {"choices": "x"}\n\n', DONE), "not JSON as expected"),
    ],
)
def test_what_is_no_answer(pieces, error):
    assert error in read(*pieces).error


def test_a_finish_reason_without_done_is_enough():
    assert read(event("a", "length")).error is None


def test_an_event_of_many_megabytes_is_refused():
    found = record()
    stream = TokenStream(found)
    stream.feed(b"data: " + b"x" * (20 * 2**20), 1.0)
    assert "more than" in found.error


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error": {"message": "no such model"}}', "HTTP 404: no such model"),
        (b'{"message": "gone"}', "HTTP 404: gone"),
        (b"<html>not here</html>", "HTTP 404: <html>not here</html>"),
        (b"", "HTTP 404"),
        (b"{}", "HTTP 404"),
    ],
)
def test_error_bodies(body, text):
    assert body_error(404, body) == text
