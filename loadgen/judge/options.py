"""How a run is judged."""

from __future__ import annotations

from typing import Annotated

import msgspec

from loadgen.errors import LoadgenError
from loadgen.flags import flag
from loadgen.judge.objectives import Objectives, parse_objectives


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """The judgement in numbers."""

    objectives: Objectives = Objectives()
    percentiles: tuple[float, ...] = (50, 90, 95, 99)
    attainment: float = 0.99  # share of the requests for which objectives have to hold


_PLAIN = Terms()


class JudgementOptions(msgspec.Struct, kw_only=True, frozen=True):
    """What is asked of the answers and of the load generator itself."""

    goodput: Annotated[
        tuple[str, ...],
        flag(
            "objectives, in ms: ttft:500 tpot:50 e2el:9000; ttft:1.5x,500",
            metavar="METRIC:MS",
        ),
    ] = ()
    goodput_long: Annotated[
        tuple[str, ...], flag("other objectives for long requests", metavar="METRIC:MS")
    ] = ()
    attainment: Annotated[
        float, flag("share of requests that must meet them", gt=0, le=1)
    ] = _PLAIN.attainment
    metric_percentiles: Annotated[str, flag(metavar="P,P")] = ",".join(
        f"{percent:g}" for percent in _PLAIN.percentiles
    )
    isolated_ttft: Annotated[
        str | None, flag("the idle server's TTFT", metavar="measure|PATH")
    ] = None
    late_threshold_ms: Annotated[
        float, flag("the load generator's own P99 lateness allowed", gt=0)
    ] = 50.0

    def terms(self) -> Terms:
        """Raises LoadgenError for objectives or percentiles that cannot be read."""
        return Terms(
            objectives=parse_objectives(self.goodput, self.goodput_long),
            percentiles=self.percentiles(),
            attainment=self.attainment,
        )

    def percentiles(self) -> tuple[float, ...]:
        """--metric-percentiles as numbers."""
        try:
            percentiles = tuple(
                float(part) for part in self.metric_percentiles.split(",")
            )
            if any(not 0 <= percent <= 100 for percent in percentiles):
                raise ValueError
        except ValueError:
            raise LoadgenError(
                f"--metric-percentiles {self.metric_percentiles}: write 50,90,99"
            ) from None
        return percentiles
