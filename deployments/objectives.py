"""What a client asks of the service: by llm-d's headers, Serve's timeout header and our body
extension.

The body wins over headers, the newer header name over the older one, and the server's policy over
all.
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
TIMEOUT_HEADER: Final = "x-request-timeout-seconds"


def resolve(
    options: MedhaOptions, headers: Mapping[str, str], policy: ObjectivesConfig
) -> Objectives:
    """Objectives within the policy's bounds; raises RequestError for headers that are not
    numbers."""
    ttft_s = options.ttft_s if options.ttft_s is not None else _seconds(headers, TTFT_HEADERS)
    tpot_s = options.tpot_s if options.tpot_s is not None else _seconds(headers, TPOT_HEADERS)
    return Objectives(
        ttft_s=None if ttft_s is None else _clamp(ttft_s, policy.min_ttft_s, policy.max_timeout_s),
        tpot_s=None if tpot_s is None else _clamp(tpot_s, policy.min_tpot_s, policy.max_timeout_s),
        timeout_s=_timeout(options, headers, policy),
    )


def _timeout(
    options: MedhaOptions, headers: Mapping[str, str], policy: ObjectivesConfig
) -> float | None:
    asked = options.timeout_s
    if asked is None and TIMEOUT_HEADER in headers:
        asked = _number(headers, TIMEOUT_HEADER)
        if asked <= 0:  # switches Serve's timeout off; here it means the longest we allow
            asked = policy.max_timeout_s
    if asked is None:
        return policy.default_timeout_s
    return min(asked, policy.max_timeout_s)


def _seconds(headers: Mapping[str, str], names: tuple[str, ...]) -> float | None:
    for name in names:
        if name in headers:
            value = _number(headers, name)
            if value <= 0:
                raise RequestError(f"{name} must be positive", param=name, code="invalid_value")
            return value / 1000.0
    return None


def _number(headers: Mapping[str, str], name: str) -> float:
    try:
        value = float(headers[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RequestError(
            f"{name} must be a number, not {headers[name][:40]!r}", param=name, code="invalid_value"
        )
    return value


def _clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
