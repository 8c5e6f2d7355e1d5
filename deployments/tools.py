"""What one chat does with tools: what the model is told of them, and what its answer must be."""

from __future__ import annotations

from typing import Any, NamedTuple

from deployments.histories import Message
from deployments.protocol import ChatBody
from deployments.structure import Wanted
from deployments.text import Text
from deployments.tool_fields import Tool, callable_tools
from deployments.tool_reader import Call, ToolReader
from deployments.tool_styles import Style, forced_calls, style_of, told_of

__all__ = ["Call", "ToolUse", "Tools"]


class ToolUse(NamedTuple):
    """`tools`: those that may be called; `told`: those that the model hears of."""

    style: Style
    tools: tuple[Tool, ...]
    told: tuple[Tool, ...]
    forced: bool
    several: bool
    markers: dict[int, str]  # control tokens that are shown to the reader

    def reader(self, answer_id: str) -> ToolReader:
        """Reads one choice; `answer_id` makes its calls' ids."""
        names = frozenset(tool.function.name for tool in self.tools)
        return ToolReader(self.style, names, answer_id, None if self.several else 1)


class Tools:
    """The tools of one model's chats."""

    def __init__(self, text: Text) -> None:
        self.style = style_of(text.chat_template)
        # Some families' markers are control tokens: part of no text, and not shown as any.
        marks = (self.style.opening, self.style.closing, self.style.arguments_mark)
        found = {text.tokenizer.token_to_id(mark): mark for mark in marks if mark}
        self._markers = {
            i: mark
            for i, mark in found.items()
            if i is not None and i in text.table.special
        }

    def use(self, body: ChatBody, most: int) -> ToolUse | None:
        """None: this chat has none. Raises RequestError."""
        tools = callable_tools(body.tools, body.tool_choice, most)
        if not tools:
            return None
        return ToolUse(
            style=self.style,
            tools=tuple(tools),
            told=tuple(body.tools),
            forced=body.tool_choice not in (None, "auto"),
            several=body.parallel_tool_calls and not _is_named(body),
            markers=self._markers,
        )

    def grammar(self, use: ToolUse) -> Wanted:
        """Of an answer that must call one of the tools."""
        ids = {mark: i for i, mark in self._markers.items()}

        def mark(text: str) -> str:
            return f"<[{ids[text]}]>" if text in ids else f'"{text}"'

        return Wanted("tools", forced_calls(use.style, use.tools, use.several, mark))

    def told(
        self, messages: list[Message], use: ToolUse
    ) -> tuple[list[Message], list[dict[str, Any]] | None]:
        """The turns, and the tools for the template; where it has no place for them, a turn tells
        of them."""
        if use.style.by_template:
            return messages, [tool.plain() for tool in use.told]
        return self._with_word(messages, use), None

    def _with_word(self, messages: list[Message], use: ToolUse) -> list[Message]:
        word = told_of(use.told, use.several)
        first = messages[0] if messages else None
        if first is not None and first.role in ("system", "developer"):
            whole = Message(role=first.role, content=f"{first.text}\n\n{word}")
            return [whole, *messages[1:]]
        return [Message(role="system", content=word), *messages]


def _is_named(body: ChatBody) -> bool:
    return body.tool_choice is not None and not isinstance(body.tool_choice, str)
