"""From errors to HTTP answers and error frames, in OpenAI's shape."""

from __future__ import annotations

import math

import msgspec
from starlette.responses import Response
from starlette.types import Send

from deployments import sse
from deployments.replies import ErrorDetail, ErrorReply
from medha_actors.errors import MedhaError
from medha_actors.messages import Rejected

# Statuses that OpenAI's clients would retry by themselves, where trying again cannot help.
_FINAL_STATUSES = frozenset({400, 401, 403, 404, 405, 408, 413, 422})


class RejectedError(MedhaError):
    """The scheduler's refusal, with the status it chose."""

    def __init__(self, rejected: Rejected) -> None:
        super().__init__(
            rejected.message,
            param=rejected.param,
            code=rejected.code,
            retry_after_s=rejected.retry_after_s,
        )
        self.status = rejected.status
        self.kind = rejected.kind


def body(error: MedhaError) -> ErrorReply:
    return ErrorReply(
        error=ErrorDetail(
            message=error.message, type=error.kind, param=error.param, code=error.code or None
        )
    )


def frame(error: MedhaError) -> bytes:
    """The error after the first byte."""
    return sse.data(body(error))


def response(error: MedhaError, headers: dict[str, str] | None = None) -> Response:
    """The error before the first byte."""
    headers = dict(headers or {})
    if error.status in _FINAL_STATUSES:
        headers["x-should-retry"] = "false"
    if error.status in (429, 503):
        wait_s = (
            error.retry_after_s
            if error.retry_after_s and math.isfinite(error.retry_after_s)
            else 1.0
        )
        headers["retry-after"] = str(max(1, math.ceil(wait_s)))
        headers["retry-after-ms"] = str(max(1, math.ceil(wait_s * 1000)))
    return Response(
        msgspec.json.encode(body(error)), error.status, headers, media_type="application/json"
    )


async def send(error: MedhaError, headers: dict[str, str], to: Send) -> None:
    """The same, outside of a route."""
    answer = response(error, headers)
    start = {"type": "http.response.start", "status": answer.status_code}
    await to({**start, "headers": answer.raw_headers})
    await to({"type": "http.response.body", "body": answer.body})
