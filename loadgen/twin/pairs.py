"""Policies over several seeds: means with their standard errors, and differences from one of them,
paired seed by seed, since what differs between seeds is mostly the arrivals."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from loadgen.show.tables import Table
from loadgen.twin.cells import Finding

Setting = tuple[str, float, str, float]  # scenario, load, asking, noise


class Figure(NamedTuple):
    """A column: how it is read off a finding, and whether less is better."""

    title: str
    value: Callable[[Finding], float]
    percent: bool = False
    less: bool = True


class Spread(NamedTuple):
    """A mean and its standard error (not a number for one value)."""

    mean: float
    error: float

    @property
    def clear(self) -> bool:
        """Further from nothing than twice its error."""
        return abs(self.mean) > 2 * self.error


FIGURES = (
    Figure("good", lambda found: found.good, percent=True, less=False),
    Figure("short P50", lambda found: found.short_p50),
    Figure("short P99", lambda found: found.short_p99),
    Figure("long P50", lambda found: found.long_p50),
    Figure("long P99", lambda found: found.long_p99),
    Figure("long in time", lambda found: found.long_in_time, percent=True, less=False),
    Figure("kept", lambda found: found.kept, percent=True, less=False),
)


def setting_of(found: Finding) -> Setting:
    """All but policy and seed."""
    return found.scenario, found.load, found.asking, found.noise


def spread(values: Sequence[float]) -> Spread:
    """Of independent values."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Spread(fmean(values), error)


def settings_of(findings: Iterable[Finding]) -> list[Setting]:
    """Each once, in their order."""
    return list(dict.fromkeys(setting_of(found) for found in findings))


def by_policy(
    findings: Iterable[Finding], setting: Setting
) -> dict[str, dict[int, Finding]]:
    """The findings of one setting: policy, then seed."""
    found: dict[str, dict[int, Finding]] = {}
    for one in findings:
        if setting_of(one) == setting:
            found.setdefault(one.policy, {})[one.seed] = one
    return found


def pairs(
    policies: dict[str, dict[int, Finding]], policy: str, base: str, figure: Figure
) -> Spread | None:
    """The difference from `base` over the seeds that both have; None: there is none."""
    mine = policies.get(policy, {})
    theirs = policies.get(base, {})
    both = sorted(mine.keys() & theirs.keys())
    if policy == base or not both:
        return None
    return spread(
        [figure.value(mine[seed]) - figure.value(theirs[seed]) for seed in both]
    )


def table_of(findings: Sequence[Finding], setting: Setting, base: str) -> Table:
    """A line a policy: mean ± standard error; what is clearly better than `base` (paired) has a +,
    what is clearly worse a -."""
    policies = by_policy(findings, setting)
    rows = []
    for policy, seeds in policies.items():
        row = [policy, str(len(seeds))]
        for figure in FIGURES:
            own = spread([figure.value(found) for found in seeds.values()])
            row.append(
                shown(own, figure) + mark(pairs(policies, policy, base, figure), figure)
            )
        rows.append(row)
    return ["policy", "seeds", *(figure.title for figure in FIGURES)], rows


def shown(value: Spread, figure: Figure) -> str:
    """A mean with its error, as far as there is one."""
    if figure.percent:
        text = f"{100 * value.mean:.1f}"
        error = f"{100 * value.error:.1f}"
        unit = "%"
    else:
        text = _short(value.mean)
        error = _short(value.error)
        unit = ""
    return f"{text}{unit}" if math.isnan(value.error) else f"{text} ± {error}{unit}"


def mark(difference: Spread | None, figure: Figure) -> str:
    """+ for clearly better, - for clearly worse."""
    if difference is None or not difference.clear:
        return ""
    return " +" if (difference.mean < 0) == figure.less else " -"


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.3g}"


def markdown(table: Table) -> str:
    """A table of a page of docs."""
    header, rows = table
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(findings: Sequence[Finding], base: str) -> str:
    """All settings, a table each."""
    parts = []
    for setting in settings_of(findings):
        scenario, load, asking, noise = setting
        title = (
            f"{scenario}, load {load:g}, objectives {asking}, noise {100 * noise:g}%"
        )
        parts.append(f"### {title}\n\n{markdown(table_of(findings, setting, base))}\n")
    return "\n".join(parts)


def as_csv(findings: Sequence[Finding], base: str) -> str:
    """A line for each setting, policy and figure."""
    sheet = io.StringIO()
    writer = csv.writer(sheet, lineterminator="\n")
    header = [
        "scenario",
        "load",
        "asking",
        "noise",
        "policy",
        "seeds",
        "figure",
        "mean",
        "error",
    ]
    writer.writerow([*header, f"minus_{base}", "error_of_difference"])
    for setting in settings_of(findings):
        policies = by_policy(findings, setting)
        for policy, seeds in policies.items():
            for figure in FIGURES:
                own = spread([figure.value(found) for found in seeds.values()])
                difference = pairs(policies, policy, base, figure)
                numbers = [*own, *(difference or (math.nan, math.nan))]
                writer.writerow(
                    [*setting, policy, len(seeds), figure.title]
                    + [
                        "" if math.isnan(number) else f"{number:.6g}"
                        for number in numbers
                    ]
                )
    return sheet.getvalue()
