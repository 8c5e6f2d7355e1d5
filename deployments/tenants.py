"""Whose share of the machine a request has: its API key's tenant, or whom a gateway names."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import msgspec
from starlette.requests import Request

from deployments.gate import key_of
from deployments.job import Job
from medha_actors.errors import RequestError
from medha_actors.tuning import FairnessConfig

HEADER: Final = "x-llm-d-inference-fairness-id"
_MAX_CHARS: Final = 128


def tenant_of(request: Request, config: FairnessConfig) -> str:
    """The header counts only where the configuration trusts it, and then before the key. Raises
    RequestError for one that is no name."""
    if config.gateway_header and HEADER in request.headers:
        name = request.headers[HEADER].strip()
        if (
            not name.isascii()
            or not name.isprintable()
            or not 1 <= len(name) <= _MAX_CHARS
        ):
            raise RequestError(
                f"{HEADER} must have 1 to {_MAX_CHARS} printable characters of ASCII",
                param=HEADER,
                code="invalid_value",
            )
        return name
    key = key_of(request.scope)
    return key.tenant if key is not None else ""


def assign(job: Job, tenant: str) -> None:
    """All requests of an answer are this tenant's."""
    if not tenant:
        return
    choices = []
    for choice in job.choices:
        request = msgspec.structs.replace(choice.request, tenant=tenant)
        choices.append(replace(choice, request=request))
    job.choices = choices
