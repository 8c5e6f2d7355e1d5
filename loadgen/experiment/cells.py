"""What is measured: every variant of the server under every load, in an order in which drift hits
all alike."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

CONVOY: dict[str, dict[str, Any]] = {
    "lars": {"policy": "lars"},
    # chunks may be large while nobody decodes
    "fcfs": {"policy": "fcfs", "batch_budget_s": 0.2},
    "fcfs_chunked": {"policy": "fcfs_chunked"},
    "edf": {"policy": "edf"},
    "lrs": {"policy": "lrs"},
    "lars-no-sharing": {"policy": "lars", "space_sharing": False},
    "spf": {"policy": "spf"},
    "dspf": {"policy": "dspf"},
    "aspf": {"policy": "aspf"},
    "dboost": {"policy": "dboost"},
    "guardc": {"policy": "guardc"},
}
# Budgets above 50 ms would be cut to what the TPOT objective of 150 ms allows while
# somebody decodes.
CHUNKS: dict[str, dict[str, Any]] = {
    "fixed-32": {"policy": "lars", "fixed_chunk_tokens": 32},
    "fixed-128": {"policy": "lars", "fixed_chunk_tokens": 128},
    "fixed-512": {"policy": "lars", "fixed_chunk_tokens": 512},
    "fixed-2048": {"policy": "lars", "fixed_chunk_tokens": 2048},
    "budget-12.5ms": {"policy": "lars", "batch_budget_s": 0.0125},
    "budget-25ms": {"policy": "lars", "batch_budget_s": 0.025},
    "budget-50ms": {"policy": "lars", "batch_budget_s": 0.05},
}
# Everybody wants the first token within a second.
_SHED: dict[str, Any] = {"late": "shed", "patience_s": 1.0, "patience_works": 0.0}
OVERLOAD: dict[str, dict[str, Any]] = {
    "lars-accept": {"policy": "lars"},
    "lars-shed": {"policy": "lars", "admission": _SHED},
    "spf-shed": {"policy": "spf", "admission": _SHED},
    "dspf-shed": {"policy": "dspf", "admission": _SHED},
    "dboost-shed": {"policy": "dboost", "admission": _SHED},
}
_ALIKE: dict[str, Any] = {
    "fairness": {"enabled": False}
}  # all requests are one tenant's
FAIRNESS: dict[str, dict[str, Any]] = {
    "lars-fair": {"policy": "lars"},
    "lars-alike": {"policy": "lars", **_ALIKE},
    "spf-fair": {"policy": "spf"},
    "spf-alike": {"policy": "spf", **_ALIKE},
    "dboost-fair": {"policy": "dboost"},
    "dboost-alike": {"policy": "dboost", **_ALIKE},
}
KINDS = {"convoy": CONVOY, "chunks": CHUNKS, "overload": OVERLOAD, "fairness": FAIRNESS}


class Cell(msgspec.Struct, frozen=True):
    """One run: a variant of the server, the share of long requests, the load as a share of the
    capacity."""

    variant: str
    long_fraction: float
    load: float
    repeat: int

    @property
    def name(self) -> str:
        """Of the results directory."""
        long = f"{100 * self.long_fraction:g}"
        load = f"{100 * self.load:g}"
        return f"{self.variant}-long{long}-load{load}-r{self.repeat}"


def rounds(
    variants: Sequence[str],
    long_fractions: Sequence[float],
    loads: Sequence[float],
    repeats: int,
) -> Iterator[tuple[str, list[Cell]]]:
    """(variant, its cells in a repeat): one server each; every repeat begins with another
    variant."""
    for repeat in range(repeats):
        shift = repeat % len(variants)
        for variant in (*variants[shift:], *variants[:shift]):
            mixes = itertools.product(long_fractions, loads)
            yield variant, [Cell(variant, share, load, repeat) for share, load in mixes]
