"""The routes of other APIs: each is a chat in other words."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request

from deployments.admission import Admission
from deployments.answers import ChatAnswer
from deployments.dialect import Dialect
from deployments.dialects import asked, messages_body, responses_body
from deployments.dialects.messages_events import MessagesEvents
from deployments.dialects.messages_reply import CountReply
from deployments.dialects.responses_events import ResponsesEvents
from deployments.dialects.responses_reply import InputCount
from deployments.job import Job
from deployments.protocol import ChatBody
from deployments.resuming import place_of
from deployments.text import Text
from deployments.tool_answer import chat_answer


class Dialects:
    """Of one server."""

    def __init__(self, admission: Admission, text: Text) -> None:
        self._admission = admission
        self._text = text

    async def responses(
        self, request: Request, body: bytes, arrived_at: float
    ) -> tuple[Job, ChatAnswer, Dialect]:
        """OpenAI's responses."""
        given = responses_body.decode(body)
        chat = given.chat()
        job = await self._job(request, chat, arrived_at, "resp_", responses_body.NAMES)
        return job, chat_answer(job, self._text.table), ResponsesEvents(job, given)

    async def messages(
        self, request: Request, body: bytes, arrived_at: float
    ) -> tuple[Job, ChatAnswer, Dialect]:
        """Anthropic's messages."""
        chat = messages_body.decode(body).chat(self._takes_effort)
        names = messages_body.NAMES
        # max_tokens must be there, so clients send what the largest models can do.
        job = await self._job(request, chat, arrived_at, "msg_", names, less=True)
        return job, chat_answer(job, self._text.table), MessagesEvents(job)

    async def message_tokens(self, body: bytes) -> CountReply:
        """How many the prompt has that a body of messages makes."""
        chat = messages_body.decode_count(body).chat(self._takes_effort)
        return CountReply(input_tokens=await self._length(chat, messages_body.NAMES))

    async def response_tokens(self, body: bytes) -> InputCount:
        """How many the prompt has that a body of responses makes."""
        chat = responses_body.decode(body).chat()
        return InputCount(input_tokens=await self._length(chat, responses_body.NAMES))

    async def _length(self, chat: ChatBody, names: Mapping[str, str]) -> int:
        with asked.named(names):
            return await self._admission.chat_length(chat)

    @property
    def _takes_effort(self) -> bool:
        return "reasoning_effort" in self._text.template.variables

    async def _job(
        self,
        request: Request,
        chat: ChatBody,
        arrived_at: float,
        kind: str,
        names: Mapping[str, str],
        less: bool = False,
    ) -> Job:
        place = place_of(request.headers)
        if place is not None:
            raise asked.unsupported(
                place.header, "only completions and chats can be resumed"
            )
        with asked.named(names):
            job = await self._admission.chat(
                chat, request.headers, arrived_at, kind, less
            )
        job.event_ids = False
        return job
