"""For schemathesis: answers of a real model stay short, so that thousands of cases take minutes,
and none of them asks for a time in which nothing can be done (which is a 504 in messages)."""

from __future__ import annotations

from typing import Any

import schemathesis

MOST = 4
TIMEOUT_S = 60.0
# The first one is set where there is none.
FIELDS = {
    "/v1/completions": ("max_tokens", "max_completion_tokens"),
    "/v1/chat/completions": ("max_tokens", "max_completion_tokens"),
    "/v1/messages": ("max_tokens",),
    "/v1/responses": ("max_output_tokens",),
}


def is_over(value: Any, most: float) -> bool:
    return isinstance(value, int | float) and value > most


@schemathesis.hook
def before_call(
    context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict
) -> None:
    fields = FIELDS.get(case.operation.path)
    if fields is None or not isinstance(case.body, dict):
        return
    if all(case.body.get(field) is None for field in fields):
        case.body[fields[0]] = MOST
    for field in fields:
        if is_over(case.body.get(field), MOST):
            case.body[field] = MOST
    if is_over(case.body.get("min_tokens"), MOST):
        case.body["min_tokens"] = MOST
    medha = case.body.get("medha")
    if isinstance(medha, dict) and is_over(medha.get("timeout_s"), 0.0):
        case.body["medha"] = {**medha, "timeout_s": TIMEOUT_S}
