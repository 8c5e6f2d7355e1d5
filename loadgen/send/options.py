"""How the server is reached, and what goes into every request."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from clients.flags import default_base_url
from loadgen.flags import flag


class ServerOptions(msgspec.Struct, kw_only=True, frozen=True):
    """The server under load. Times in seconds."""

    base_url: Annotated[str, flag("http://HOST:PORT; also $MEDHA_BASE_URL")] = (
        msgspec.field(default_factory=default_base_url)
    )
    model: Annotated[
        str | None, flag("model to ask for", shown="the first that the server names")
    ] = None
    endpoint: Annotated[Literal["/v1/completions", "/v1/chat/completions"], flag()] = (
        "/v1/completions"
    )
    header: Annotated[
        tuple[str, ...],
        flag("HTTP header; may be repeated", metavar="NAME=VALUE", repeated=True),
    ] = ()
    prompt_format: Annotated[
        Literal["auto", "ids", "text", "approximate"], flag("how prompts are sent")
    ] = "auto"
    same_prompts: Annotated[
        bool,
        flag(
            "same --seed, same tokens; else every load has its own, which no server has cached"
        ),
    ] = False
    token_ids: Annotated[
        str | None, flag("token ids that prompts are made of", metavar="LO:HI")
    ] = None
    tokenizer: Annotated[
        str | None,
        flag(
            "tokenizer.json for text prompts, if there is no /tokenize", metavar="PATH"
        ),
    ] = None
    ready_check_timeout_sec: Annotated[
        float, flag("wait so long for the server", ge=0)
    ] = 0.0
    request_timeout: Annotated[
        float, flag("seconds until a request fails; 0: never", ge=0)
    ] = 3600.0
    ignore_eos: Annotated[bool, flag("let every answer be as long as planned")] = False
    temperature: Annotated[float | None, flag(ge=0)] = None
    extra_body: Annotated[
        dict[str, Any], flag("more fields of every request", metavar="JSON")
    ] = msgspec.field(default_factory=dict)
    send_objectives: Annotated[
        bool, flag("send objectives in llm-d's x-llm-d-slo-* headers")
    ] = False

    @property
    def chat(self) -> bool:
        return self.endpoint.endswith("/chat/completions")

    def body(self) -> dict[str, Any]:
        """Fields that every request has beside model, prompt and length."""
        body: dict[str, Any] = {}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.ignore_eos:
            body["ignore_eos"] = True
        return body | self.extra_body
