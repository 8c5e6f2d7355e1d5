"""The paths of our routes, as one who knows nothing of the application sees them: at the end of a
path, since an application may have a prefix."""

from __future__ import annotations

from typing import Final

ANTHROPIC_ROUTES: Final = ("/v1/messages", "/v1/messages/count_tokens")
OWN_ROUTES: Final = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/responses/input_tokens",
    *ANTHROPIC_ROUTES,
    "/v1/models",
    "/tokenize",
    "/detokenize",
    "/tokenizer_info",
    "/health",
    "/ping",
    "/version",
    "/load",
    "/metrics",
    "/openapi.json",
    "/medha",
)
