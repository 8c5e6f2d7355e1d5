"""What a server tells of itself: whether it is well, its version, its load, its model, its API."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

from deployments import openapi
from deployments.admission import Admission
from deployments.handle import EngineHandle
from deployments.operations import Operation
from deployments.replies import (
    HealthReply,
    LoadReply,
    ModelList,
    ModelReply,
    TokenizerInfoReply,
    VersionReply,
)
from deployments.text import Text
from medha_actors.config import MedhaConfig
from medha_actors.errors import UnavailableError

_ICON: Final = Path(__file__).parent / "static" / "favicon.svg"
_KEPT: Final = {"cache-control": "max-age=86400"}
_DISTRIBUTION: Final = "medha-on-ray"


class About:
    """The GET routes of one server."""

    def __init__(
        self,
        config: MedhaConfig,
        engine: EngineHandle,
        text: Text,
        admission: Admission,
        open_requests: Callable[[], int],
    ) -> None:
        """`open_requests`: how many requests this replica is answering."""
        self._loading = config.model_loading_config
        self._engine = engine
        self._text = text
        self._admission = admission
        self._open_requests = open_requests
        self._has_page = config.telemetry.enabled and config.telemetry.live_page
        self._started_at = int(time.time())
        self._api = b""

    def describe(self, operations: Sequence[Operation], with_keys: bool) -> None:
        """What /openapi.json shall say."""
        self._api = msgspec.json.encode(
            openapi.document(operations, own_version(), with_keys)
        )

    async def health(self, request: Request) -> Response:
        if not self._engine.ready():
            raise UnavailableError("the engine is not ready", retry_after_s=2.0)
        return answer_with(HealthReply())

    async def models(self, request: Request) -> Response:
        model = self._model()
        return answer_with(ModelList(data=[model], first_id=model.id, last_id=model.id))

    async def model(self, request: Request) -> Response:
        self._admission.check_model(request.path_params["model"])
        return answer_with(self._model())

    def _model(self) -> ModelReply:
        name = self._loading.model_id
        context = self._admission.context_tokens
        return ModelReply(
            id=name,
            root=self._loading.model_source,
            created=self._started_at,
            max_model_len=context,
            display_name=name,
            created_at=_as_date(self._started_at),
            max_input_tokens=context,
            max_tokens=context,
        )

    async def version(self, request: Request) -> Response:
        return answer_with(VersionReply(version=own_version()))

    async def load(self, request: Request) -> Response:
        return answer_with(LoadReply(server_load=self._open_requests()))

    async def tokenizer_info(self, request: Request) -> Response:
        """What a client needs of the tokenizer to write prompts of its own."""
        special = self._text.special_tokens
        eos = [
            self._text.tokenizer.id_to_token(i) for i in self._text.eos_token_ids[:1]
        ]
        return answer_with(
            TokenizerInfoReply(
                eos_token=special.get("eos_token", eos[0] if eos else None),
                bos_token=special.get("bos_token"),
                pad_token=special.get("pad_token"),
                unk_token=special.get("unk_token"),
                chat_template=self._text.chat_template,
                model_max_length=self._admission.context_tokens,
            )
        )

    async def api(self, request: Request) -> Response:
        return Response(self._api, media_type="application/json")

    async def home(self, request: Request) -> Response:
        """What a person who types only the address wants to see."""
        root = request.scope.get("root_path", "").rstrip("/")
        return RedirectResponse(
            root + ("/medha" if self._has_page else "/openapi.json")
        )

    async def icon(self, request: Request) -> Response:
        return FileResponse(_ICON, media_type="image/svg+xml", headers=_KEPT)


def _as_date(seconds: int) -> str:
    """RFC 3339, from seconds since the epoch."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def own_version() -> str:
    """The version of the installed package."""
    try:
        return version(_DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"


def answer_with(value: object) -> Response:
    """A Struct as JSON."""
    return Response(msgspec.json.encode(value), media_type="application/json")
