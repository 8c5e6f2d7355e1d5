"""W3C trace context in and out."""

import pytest

from medha_actors.telemetry.traceparent import begin, parse

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


@pytest.mark.parametrize("flags", ["00", "01", "03", "02"])
def test_a_valid_header_is_understood(flags):
    parent = parse(f"00-{TRACE}-{SPAN}-{flags}")
    assert (parent.trace, f"{parent.span_id:016x}", parent.sampled) == (
        TRACE,
        SPAN,
        flags in ("01", "03"),
    )
    assert parse(str(parent)) == parent


def test_a_later_version_may_have_more():
    assert parse(f"cc-{TRACE}-{SPAN}-01-what-the-future-brings").trace == TRACE


@pytest.mark.parametrize(
    "header",
    [
        None, "", "00", f"00-{TRACE}-{SPAN}", f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01", f"00-{TRACE[1:]}-{SPAN}-01", "x" * 10_000,
    ],
)  # fmt: skip
def test_anything_else_begins_a_new_trace(header):
    assert parse(header) is None
    assert begin(parse(header), 1.0).trace_id != 0


def test_the_caller_decides_for_its_own_traces():
    for flags in (True, False):
        parent = begin(None, 1.0)._replace(sampled=flags)
        child = begin(parent, ratio=0.5)
        assert child.trace_id == parent.trace_id
        assert child.span_id != parent.span_id
        assert child.sampled is flags


@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0])
def test_a_ratio_of_new_traces_is_sampled(ratio):
    share = sum(begin(None, ratio).sampled for _ in range(4000)) / 4000
    assert share == pytest.approx(ratio, abs=0.03)
