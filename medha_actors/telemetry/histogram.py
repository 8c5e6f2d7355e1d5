"""Counters and histograms that can be packed, sent and added up: plain numbers, no registry, no
locks."""

from __future__ import annotations

from bisect import bisect_left

import msgspec

Labels = tuple[tuple[str, str], ...]
# Time to first token reaches prefills of three quarters of an hour, as vLLM's buckets do.
LONG_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
TOKEN_S = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
)
END_TO_END_S = (
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    20.0,
    40.0,
    80.0,
    160.0,
    640.0,
    2560.0,
    7680.0,
)
TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
SHARE = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)
ERROR = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0)
SLACK = (
    -4.0,
    -2.0,
    -1.0,
    -0.5,
    -0.25,
    0.0,
    0.1,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1.0,
    2.0,
    4.0,
    16.0,
)


class Histogram(msgspec.Struct, array_like=True):
    """`counts[i]` observations were at most `bounds[i]` (and more than the bound before); the last
    one has no bound."""

    bounds: tuple[float, ...]
    counts: list[int]
    total: float = 0.0

    @classmethod
    def of(cls, bounds: tuple[float, ...]) -> Histogram:
        return cls(bounds, [0] * (len(bounds) + 1))

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Family(msgspec.Struct):
    """All series of one name. `kind` is Prometheus' type; scalars or histograms by their labels."""

    name: str
    kind: str
    help: str
    values: dict[Labels, float] = {}
    histograms: dict[Labels, Histogram] = {}


def exposition(families: list[Family], common: Labels = ()) -> str:
    """Prometheus' text format 0.0.4; `common` labels go on every series."""
    lines = []
    for family in families:
        lines.append(f"# HELP {family.name} {family.help}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for labels, value in family.values.items():
            lines.append(f"{family.name}{_braces(common + labels)} {_number(value)}")
        for labels, histogram in family.histograms.items():
            lines += _histogram_lines(family.name, common + labels, histogram)
    return "\n".join(lines) + "\n"


def _histogram_lines(name: str, labels: Labels, histogram: Histogram) -> list[str]:
    lines = []
    count = 0
    for bound, here in zip(
        (*histogram.bounds, float("inf")), histogram.counts, strict=True
    ):
        count += here
        lines.append(
            f"{name}_bucket{_braces((*labels, ('le', _number(bound))))} {count}"
        )
    return [
        *lines,
        f"{name}_sum{_braces(labels)} {_number(histogram.total)}",
        f"{name}_count{_braces(labels)} {count}",
    ]


def _braces(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return (
        repr(int(value))
        if float(value).is_integer() and abs(value) < 2**53
        else repr(float(value))
    )
