"""What a client asks of the service: by llm-d's headers, a timeout header and our body extension.

The body wins over headers, the newer header name over the older one, and the server's policy over
all.

Ray Serve reads `x-request-timeout-seconds`, too, and ends a request that reaches it with a text of
its own, or in the middle of a stream. `deployments.edge` renames the header before Serve sees it;
where the edge is not installed, the header arrives by its own name, and the answer ends a little
ahead of Serve's limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from deployments.protocol import MedhaOptions
from medha_actors.config import ObjectivesConfig
from medha_actors.errors import RequestError
from medha_actors.messages import Objectives

TTFT_HEADERS: Final = ("x-llm-d-slo-ttft-ms", "x-slo-ttft-ms")
TPOT_HEADERS: Final = ("x-llm-d-slo-tpot-ms", "x-slo-tpot-ms")
TIMEOUT_HEADER: Final = "x-medha-timeout-seconds"
SERVE_TIMEOUT_HEADER: Final = "x-request-timeout-seconds"
# how far our limit lies ahead of Serve's: a share of it, but at most
_AHEAD_SHARE: Final = 0.2
_AHEAD_S: Final = 0.5


def resolve(
    options: MedhaOptions, headers: Mapping[str, str], policy: ObjectivesConfig
) -> Objectives:
    """Objectives within the policy's bounds; raises RequestError for headers that are not
    numbers."""
    ttft_s = (
        options.ttft_s
        if options.ttft_s is not None
        else _seconds(headers, TTFT_HEADERS)
    )
    tpot_s = (
        options.tpot_s
        if options.tpot_s is not None
        else _seconds(headers, TPOT_HEADERS)
    )
    return Objectives(
        ttft_s=None
        if ttft_s is None
        else _clamp(ttft_s, policy.min_ttft_s, policy.max_timeout_s),
        tpot_s=None
        if tpot_s is None
        else _clamp(tpot_s, policy.min_tpot_s, policy.max_timeout_s),
        timeout_s=_timeout(options, headers, policy),
        late=options.late,
    )


def header_timeout_s(
    headers: Mapping[str, str], policy: ObjectivesConfig
) -> float | None:
    """The time limit that headers ask for, within the policy's; None: they ask for none. Raises
    RequestError for one that is not a number."""
    for name in (TIMEOUT_HEADER, SERVE_TIMEOUT_HEADER):
        if name not in headers:
            continue
        asked = _number(headers, name)
        if (
            asked <= 0
        ):  # switches Serve's timeout off; here it means the longest we allow
            return policy.max_timeout_s
        return min(asked, policy.max_timeout_s)
    return None


def answer_within_s(
    headers: Mapping[str, str], policy: ObjectivesConfig
) -> float | None:
    """When the answer has to be complete because of a header, in seconds after arrival: ahead of
    Serve if that enforces the same limit. Raises RequestError."""
    limit_s = header_timeout_s(headers, policy)
    if limit_s is None or SERVE_TIMEOUT_HEADER not in headers:
        return limit_s
    return limit_s - min(_AHEAD_SHARE * limit_s, _AHEAD_S)


def _timeout(
    options: MedhaOptions, headers: Mapping[str, str], policy: ObjectivesConfig
) -> float | None:
    if options.timeout_s is not None:
        return min(options.timeout_s, policy.max_timeout_s)
    asked = header_timeout_s(headers, policy)
    return policy.default_timeout_s if asked is None else asked


def _seconds(headers: Mapping[str, str], names: tuple[str, ...]) -> float | None:
    for name in names:
        if name in headers:
            value = _number(headers, name)
            if value <= 0:
                raise RequestError(
                    f"{name} must be positive", param=name, code="invalid_value"
                )
            return value / 1000.0
    return None


def _number(headers: Mapping[str, str], name: str) -> float:
    try:
        value = float(headers[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RequestError(
            f"{name} must be a number, not {headers[name][:40]!r}",
            param=name,
            code="invalid_value",
        )
    return value


def _clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
