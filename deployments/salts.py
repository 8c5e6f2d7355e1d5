"""Whose cached KV a request may use."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

from deployments.protocol import GenerationBody


def cache_salt(body: GenerationBody, headers: Mapping[str, str]) -> str:
    """Whose cached KV a request may use: the client's salt, or one for each API key. A salt of the
    first kind never equals one of the second."""
    if body.cache_salt is not None:
        return f"salt:{body.cache_salt}"
    key = _api_key(headers)
    digest = blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return f"key:{digest}" if key else ""


def _api_key(headers: Mapping[str, str]) -> str:
    """The same however it is shown: as OpenAI's clients do, or as Anthropic's."""
    authorization = headers.get("authorization", "")
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return secret.strip()
    return headers.get("x-api-key") or authorization
