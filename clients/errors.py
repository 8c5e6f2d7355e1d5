"""What can go wrong with a request, as seen by a client.

ClientError
 ├─ ServerDownError     nobody answers at the address
 ├─ StreamCutError      the connection ended, or went silent, before the answer did
 ├─ ProtocolError       the answer is not what an OpenAI-compatible server says
 └─ ApiError            the server's own error: status, type, param, code
     ├─ OverloadedError     429 or 503: try again after `retry_after_s`
     └─ TimedOutError       408: the request's own time limit passed
"""

from __future__ import annotations


class ClientError(Exception):
    """Anything this library raises on purpose; the message is one line for people."""


class ServerDownError(ClientError):
    """No connection."""


class StreamCutError(ClientError):
    """The answer is incomplete."""


class ProtocolError(ClientError):
    """Not an OpenAI-compatible answer."""


class ApiError(ClientError):
    """The server's error object."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None,
        kind: str = "",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """`status` is None for an error that came inside a stream."""
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s


class OverloadedError(ApiError):
    """The server has no room now."""


class TimedOutError(ApiError):
    """The request took longer than it was allowed to."""
