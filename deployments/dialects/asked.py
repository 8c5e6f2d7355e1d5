"""What bodies of other APIs have in common once they are read: a chat, and how its fields are
called in the body that the client wrote."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from deployments import histories
from deployments.histories import Message
from deployments.protocol import SampledBody
from medha_actors.errors import MedhaError, RequestError


def sampled(body: SampledBody) -> dict[str, Any]:
    """The fields that a chat takes as they are."""
    if body.medha.progress:
        raise unsupported(
            "medha.progress", "this API has no events for progress; comments tell it"
        )
    return {name: getattr(body, name) for name in SampledBody.__struct_fields__}


def message(made: dict[str, Any], name: str) -> Message:
    """A turn of a chat. `name`: of what it was made of."""
    return histories.message(made, name)


@contextlib.contextmanager
def named(names: Mapping[str, str]) -> Iterator[None]:
    """Errors about a chat's fields as errors about those of the body. `names`: of the body's
    fields, by the chat's."""
    try:
        yield
    except MedhaError as error:
        old = error.param or ""
        known = [
            name
            for name in names
            if old == name or old.startswith((name + ".", name + "["))
        ]
        if known:
            longest = max(known, key=len)
            error.param = names[longest] + old.removeprefix(longest)
            error.message = error.message.replace(old, error.param, 1)
        raise


def unsupported(name: str, why: str) -> RequestError:
    return RequestError(f"{name}: {why}", param=name, code="unsupported")


def wrong(name: str, what: str) -> RequestError:
    return RequestError(f"{name}: {what}", param=name, code="invalid_value")
