"""Sessions: one attachment of an ingress replica to one controller each, and how the next one is
found."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Any

import msgspec
from ray.exceptions import RayActorError, RayTaskError

from medha_actors.errors import EngineError, MedhaError
from medha_actors.messages import EngineFacts

_log = logging.getLogger("medha.engine")
_decode_facts = msgspec.msgpack.Decoder(EngineFacts).decode
_RETRY_S = 0.1
_RETRY_START_S = 2.0  # after an engine that could not start
Find = Callable[[], Any]


class Session:
    """One attachment to one controller."""

    def __init__(self, controller: Any, facts: EngineFacts) -> None:
        self.controller = controller
        self.facts = facts
        self.replica = secrets.token_hex(8)
        self.draining = False  # it takes no new requests


async def attach(find: Find) -> Session:
    """Wait for a controller that serves; raises MedhaError when it cannot start. `find` looks its
    handle up (ValueError: not there yet)."""
    while True:
        try:
            controller = find()
            facts = _decode_facts(await controller.ready.remote())
        except RayActorError as error:  # lost again while starting
            if error.actor_init_failed:
                raise EngineError(str(error)) from None
            await asyncio.sleep(_RETRY_S)
        except ValueError:  # not made yet
            await asyncio.sleep(_RETRY_S)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, MedhaError):
                raise cause from None
            raise EngineError(str(cause)) from None
        else:
            return Session(controller, facts)


async def attach_again(find: Find) -> Session:
    """The same after a loss; an engine that cannot start is asked again, for as long as it
    takes."""
    while True:
        try:
            return await attach(find)
        except MedhaError as error:
            _log.error("the next engine could not start: %s", error.message)
            await asyncio.sleep(_RETRY_START_S)
