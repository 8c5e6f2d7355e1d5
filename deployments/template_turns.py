"""From messages to the turns that a chat template reads, for templates of every age.

Where a template knows no tools, calls and results are written as text, in the words that most
models with tools have learnt (Hermes', Qwen's); where it has no system turn, that text heads the
first question.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from deployments.histories import Message, ToolCall

# A history with everything in it, to find out whether a template shows it all.
PROBED: Final = ("probesystem", "probefunction", "probevalue", "proberesult")
PROBE: Final[list[dict[str, Any]]] = [
    {"role": "user", "content": "a question"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "probe0000",
                "type": "function",
                "function": {
                    "name": "probefunction",
                    "arguments": {"key": "probevalue"},
                },
            }
        ],
    },
    {
        "role": "tool",
        "name": "probefunction",
        "content": "proberesult",
        "tool_call_id": "probe0000",
    },
]
SYSTEM_PROBE: Final[list[dict[str, Any]]] = [
    {"role": "system", "content": "probesystem"},
    {"role": "user", "content": "a question"},
]


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What a template can say."""

    tools: bool
    developer: bool
    system: bool


def turns(messages: Sequence[Message], knows: Knowledge) -> list[dict[str, Any]]:
    """One dictionary for each turn, as Hugging Face's templates expect them."""
    names: dict[str, str] = {}  # of the functions, by the ids of their calls
    made: list[dict[str, Any]] = []
    before = ""
    for message in messages:
        for call in message.tool_calls:
            names[call.id or ""] = call.function.name
        turn = _turn(message, knows, names.get(message.tool_call_id or ""))
        if before == message.role == "tool" and not knows.tools:
            made[-1]["content"] += "\n" + turn["content"]
        else:
            made.append(turn)
        before = message.role
    return made if knows.system else _without_system(made)


def _turn(message: Message, knows: Knowledge, function: str | None) -> dict[str, Any]:
    role: str = message.role
    if role == "developer" and not knows.developer:
        role = "system"
    turn: dict[str, Any] = {"role": role, "content": message.text}
    name = message.name or (function if role == "tool" else None)
    if name is not None:
        turn["name"] = name
    if message.reasoning_content is not None:
        turn["reasoning_content"] = message.reasoning_content
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls and knows.tools:
        turn["tool_calls"] = [_call(call) for call in message.tool_calls]
    elif message.tool_calls:
        said = [message.text] if message.text else []
        turn["content"] = "\n".join([*said, *map(_call_as_text, message.tool_calls)])
    if role == "tool" and not knows.tools:
        turn = {
            "role": "user",
            "content": f"<tool_response>\n{message.text}\n</tool_response>",
        }
    return turn


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.parsed()}
    return {"id": call.id or "", "type": call.type, "function": function}


def _call_as_text(call: ToolCall) -> str:
    said = {"name": call.function.name, "arguments": call.function.parsed()}
    return f"<tool_call>\n{json.dumps(said, ensure_ascii=False)}\n</tool_call>"


def _without_system(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What system turns say, at the head of the next turn of the user."""
    kept: list[dict[str, Any]] = []
    waiting: list[str] = []
    for turn in made:
        if turn["role"] == "system":
            waiting.append(turn["content"])
        elif turn["role"] == "user" and waiting:
            kept.append({**turn, "content": "\n\n".join([*waiting, turn["content"]])})
            waiting = []
        else:
            kept.append(turn)
    if waiting:
        kept.append({"role": "user", "content": "\n\n".join(waiting)})
    return kept
