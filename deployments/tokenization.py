"""The routes that only count, make or read tokens."""

from __future__ import annotations

from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from deployments import protocol
from deployments.about import answer_with
from deployments.admission import Admission
from deployments.bodies import Bodies
from deployments.dialects.routes import Dialects
from deployments.limits import check_ids, over_tokens
from deployments.protocol import DetokenizeBody, TokenizeBody
from deployments.replies import DetokenizeReply, TokenizeReply
from deployments.text import Text, TooManyTokensError
from medha_actors.errors import RequestError

B = TypeVar("B", TokenizeBody, DetokenizeBody)


class Tokenization:
    """Of one server."""

    def __init__(
        self,
        text: Text,
        admission: Admission,
        dialects: Dialects,
        bodies: Bodies,
        max_tokens: int,
    ) -> None:
        """`max_tokens`: of one document; counting one that is longer than the context is what
        /tokenize is for, so it is the context's length at least."""
        self._text = text
        self._admission = admission
        self._dialects = dialects
        self._bodies = bodies
        self._max_tokens = max(max_tokens, admission.context_tokens)

    async def tokenize(self, request: Request) -> Response:
        body = await self._decoded(request, TokenizeBody)
        self._admission.check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise RequestError(
                "give either prompt or messages", param="prompt", code="missing_field"
            )
        if body.messages is not None:
            ids = await self._admission.tokenized(body)
        else:
            ids = await self._prompt_tokens(
                body.prompt or "", body.add_special_tokens is not False
            )
        names = None
        if body.return_token_strs:
            names = [self._text.tokenizer.id_to_token(i) or "" for i in ids]
        length = self._admission.context_tokens
        return answer_with(
            TokenizeReply(
                count=len(ids), max_model_len=length, tokens=ids, token_strs=names
            )
        )

    async def detokenize(self, request: Request) -> Response:
        body = await self._decoded(request, DetokenizeBody)
        self._admission.check_model(body.model)
        if len(body.tokens) > self._max_tokens:
            raise over_tokens("tokens", len(body.tokens), self._max_tokens)
        check_ids("tokens", body.tokens, self._text.vocabulary)
        return answer_with(DetokenizeReply(prompt=await self._text.decode(body.tokens)))

    async def message_tokens(self, request: Request) -> Response:
        async with self._bodies.read(request) as body:
            return answer_with(await self._dialects.message_tokens(body.data))

    async def response_tokens(self, request: Request) -> Response:
        async with self._bodies.read(request) as body:
            return answer_with(await self._dialects.response_tokens(body.data))

    async def _prompt_tokens(self, prompt: str, add_special_tokens: bool) -> list[int]:
        try:
            ids = await self._text.encode(
                prompt, add_special_tokens, limit=self._max_tokens
            )
        except TooManyTokensError as error:
            raise over_tokens("prompt", error.at_least, self._max_tokens) from None
        return ids

    async def _decoded(self, request: Request, kind: type[B]) -> B:
        async with self._bodies.read(request) as body:
            return protocol.decode(body.data, kind)
