"""The exception tree. Every error a user can meet derives from MedhaError.

MedhaError
 ├─ ConfigError            a key of serve_config.yaml is wrong; names its path
 ├─ ModelError             the model is missing, broken or of an unsupported architecture
 ├─ RequestError           the client's fault, HTTP 400; `param` names the field
 │   ├─ UnauthorizedError  no API key, or one that is not known, 401
 │   ├─ NotFoundError      a model or request that does not exist, 404
 │   ├─ TooLargeError      the body is over the limit, 413
 │   └─ NeverFitsError     more tokens than there is room for at all, 400, with the numbers
 ├─ OverloadedError        the queue is full, 429, with retry_after_s
 │   └─ LateError          its first token would come too late, 429, with retry_after_s
 ├─ UnavailableError       the engine is being (re)built, or stops, 503, with retry_after_s
 ├─ RequestTimeoutError    the request's own time limit passed, 408
 └─ EngineError            a stage died or a step failed, 500
     └─ LinkClosedError    the peer of a link is gone
"""


class MedhaError(Exception):
    """Anything this system raises on purpose. `status` is the HTTP status, `kind` the OpenAI error
    type."""

    status = 500
    kind = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code
        self.retry_after_s = retry_after_s


class ConfigError(MedhaError):
    """A key of the configuration is wrong."""


class ModelError(MedhaError):
    """The model cannot be loaded; the message says why in one line."""


class RequestError(MedhaError):
    """The request is wrong and would be wrong again."""

    status = 400
    kind = "invalid_request_error"


class UnauthorizedError(RequestError):
    """The server has API keys, and the request shows none of them."""

    status = 401
    kind = "authentication_error"
    code = "invalid_api_key"


class NotFoundError(RequestError):
    """No such model, or no such route."""

    status = 404
    kind = "not_found_error"


class TooLargeError(RequestError):
    """The body is over the configured size."""

    status = 413


class NeverFitsError(RequestError):
    """Prompt and output are more tokens than the model's context, or the whole KV cache, has.

    Agents shorten their histories when they read these words: OpenAI's, and Anthropic's."""

    code = "context_length_exceeded"

    def __init__(
        self,
        name: str,
        prompt_tokens: int,
        wanted: int,
        most: int,
        *,
        at_least: bool = False,
        why: str = "",
    ) -> None:
        """`most`: tokens that prompt and output may have together, and `why` no more; `wanted`:
        those of the output; `at_least`: the prompt in the field `name` may have more."""
        bound = "at least " if at_least else ""
        reason = f" ({why})" if why else ""
        super().__init__(
            f"This model's maximum context length is {most} tokens{reason}; the prompt is too"
            f" long: {bound}{prompt_tokens} tokens > {max(0, most - wanted)} maximum in {name},"
            f" with {wanted} to generate",
            param=name,
        )


class OverloadedError(MedhaError):
    """The queue is full; try again later."""

    status = 429
    kind = "overloaded_error"
    code = "queue_full"


class LateError(OverloadedError):
    """The first token would not come within its objective; in `retry_after_s` it would."""

    code = "late"


class UnavailableError(MedhaError):
    """The engine is not there just now; it is being (re)built, or it stops."""

    status = 503
    kind = "service_unavailable_error"
    code = "engine_unavailable"


class RequestTimeoutError(MedhaError):
    """The request's own time limit passed before it was finished."""

    status = 408
    kind = "timeout_error"
    code = "request_timeout"


class EngineError(MedhaError):
    """A stage died or a step failed while the request was in flight."""

    code = "engine_error"


class LinkClosedError(EngineError):
    """The process at the other end of a link is gone."""
