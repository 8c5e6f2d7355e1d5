"""Bodies in Anthropic's words, and the events of an answer."""

from __future__ import annotations

import json
from typing import Any

import httpx

HI = [{"role": "user", "content": "hi"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"name": "weather", "description": "today's", "input_schema": SCHEMA}
CLOCK = {"name": "clock", "input_schema": {"type": "object"}, "cache_control": {}}


def ask(**fields: Any) -> dict[str, Any]:
    return {"model": "toy", "max_tokens": 100, "messages": HI, **fields}


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events; each is named as it says itself."""
    events = []
    for frame in answer.text.strip().split("\n\n"):
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events
