"""What the answers of one request must look like, from all the fields that say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deployments.grammars import GrammarCheck
from deployments.histories import Message
from deployments.protocol import ChatBody, GenerationBody
from deployments.structure import of_response_format, of_structured_outputs
from deployments.text import Text
from deployments.thoughts import Thinking, marks_of, thinking_after
from deployments.tools import Tools, ToolUse
from medha_actors.config import MedhaConfig
from medha_actors.errors import RequestError
from medha_actors.files.vocabulary import load_vocabulary
from medha_actors.messages import Grammar
from medha_actors.model.matchers import Matchers


class Shaping:
    """Of one model; nothing of it is loaded before a request asks for a grammar."""

    def __init__(
        self, config: MedhaConfig, text: Text, rows: int, end_ids: tuple[int, ...]
    ) -> None:
        """`rows`: of the model's logits."""
        self._most_tools = config.limits.max_tools
        self._tools = Tools(text)
        self._text = text
        self._marks = marks_of(text)
        loading = config.model_loading_config
        matchers = Matchers(lambda: load_vocabulary(loading), rows)
        self._check = GrammarCheck(matchers, end_ids, config.limits)

    def tools(self, body: ChatBody) -> ToolUse | None:
        """What a chat does with tools; raises RequestError."""
        return self._tools.use(body, self._most_tools)

    def told(
        self, messages: list[Message], use: ToolUse | None
    ) -> tuple[list[Message], list[dict[str, Any]] | None]:
        """What the chat template is told: turns and tools."""
        return (messages, None) if use is None else self._tools.told(messages, use)

    def thinking(
        self, prompt: Sequence[int], grammar: Grammar | None
    ) -> Thinking | None:
        """How thoughts are told from the answer to a chat; None: there are none. A grammar holds
        from the first token on, and so leaves no room for them."""
        if self._marks is None or grammar is not None:
            return None
        return thinking_after(self._marks, self._text, prompt)

    async def grammar(
        self, body: GenerationBody, use: ToolUse | None = None
    ) -> Grammar | None:
        """The grammar that each answer must follow; raises RequestError."""
        outputs = body.structured_outputs
        shape = body.response_format
        if shape is not None and shape.type == "text":
            shape = None
        forced = use if use is not None and use.forced else None
        if sum(asked is not None for asked in (outputs, shape, forced)) > 1:
            raise RequestError(
                "response_format, structured_outputs and a forced tool_choice exclude each other",
                param="response_format" if outputs is None else "structured_outputs",
                code="invalid_value",
            )
        if forced is not None:
            return await self._check("tools", lambda: self._tools.grammar(forced))
        if outputs is not None:
            return await self._check(
                "structured_outputs", lambda: of_structured_outputs(outputs)
            )
        if shape is not None:
            return await self._check(
                "response_format", lambda: of_response_format(shape)
            )
        return None
