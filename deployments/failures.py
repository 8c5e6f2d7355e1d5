"""From errors to HTTP answers and error frames: in OpenAI's shape, or in Anthropic's for the routes
of its API."""

from __future__ import annotations

import math
from typing import Final

import msgspec
from starlette.responses import Response
from starlette.types import Send

from deployments import sse
from deployments.paths import ANTHROPIC_ROUTES
from deployments.replies import AnthropicDetail, AnthropicError, ErrorDetail, ErrorReply
from medha_actors.errors import MedhaError
from medha_actors.messages import Rejected

# Statuses that OpenAI's clients would retry by themselves, where trying again cannot help.
_FINAL_STATUSES = frozenset({400, 401, 403, 404, 405, 408, 413, 422})
# What makes its SDK's tool runner go on with whole histories.
_NO_THREADS: Final = {
    "error_code": "thread_unsupported_request",
    "unsupported": ["thread"],
}
# Our statuses: Anthropic's, and its words for them.
_ANTHROPIC: Final = {
    400: (400, "invalid_request_error"),
    401: (401, "authentication_error"),
    403: (403, "permission_error"),
    404: (404, "not_found_error"),
    405: (405, "invalid_request_error"),
    408: (504, "timeout_error"),
    413: (413, "request_too_large"),
    422: (422, "invalid_request_error"),
    429: (429, "rate_limit_error"),
    503: (529, "overloaded_error"),
}


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
            message=error.message,
            type=error.kind,
            param=error.param,
            code=error.code or None,
        )
    )


def anthropic_body(error: MedhaError) -> AnthropicError:
    _, kind = _ANTHROPIC.get(error.status, (error.status, "api_error"))
    detail = AnthropicDetail(type=kind, message=error.message)
    if error.param == "thread":
        detail.details = _NO_THREADS
    return AnthropicError(error=detail)


def reply_at(path: str) -> type[ErrorReply] | type[AnthropicError]:
    """What says an error at this path. By path, since what is refused before any route is known
    (a key, an answer of the proxy) must be said in the client's words too."""
    return AnthropicError if path.endswith(ANTHROPIC_ROUTES) else ErrorReply


def last_frame(error: MedhaError) -> bytes:
    """The error after the first byte, as the end of a stream."""
    return sse.data(body(error)) + sse.DONE


def response(
    error: MedhaError, headers: dict[str, str] | None = None, path: str = ""
) -> Response:
    """The error before the first byte, as it is said at this path."""
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
    status = error.status
    content: ErrorReply | AnthropicError = body(error)
    if reply_at(path) is AnthropicError:
        status, _ = _ANTHROPIC.get(status, (status, ""))
        content = anthropic_body(error)
    return Response(
        msgspec.json.encode(content), status, headers, media_type="application/json"
    )


async def send(
    error: MedhaError, headers: dict[str, str], to: Send, path: str = ""
) -> None:
    """The same, outside of a route."""
    answer = response(error, headers, path)
    start = {"type": "http.response.start", "status": answer.status_code}
    await to({**start, "headers": answer.raw_headers})
    await to({"type": "http.response.body", "body": answer.body})
