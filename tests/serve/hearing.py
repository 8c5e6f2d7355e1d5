"""One who listens to a stream, hangs up where told to, and remembers what came."""

import json
from dataclasses import dataclass, field
from typing import Any

IDS = {"x-medha-event-ids": "1"}
ROUTES = {"prompt": "/v1/completions", "messages": "/v1/chat/completions"}


@dataclass
class Heard:
    """What came of one answer: by event id, in order."""

    ids: list[str] = field(default_factory=list)
    choices: list[dict[str, Any]] = field(default_factory=list)
    frames: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False

    def block(self, block: str) -> None:
        lines = dict(
            line.split(": ", 1) for line in block.splitlines() if line[0] != ":"
        )
        if "data" not in lines:
            return
        if lines["data"] == "[DONE]":
            self.done = True
            return
        frame = json.loads(lines["data"])
        self.frames.append(frame)
        if frame.get("choices"):
            self.ids.append(lines["id"])
            self.choices.append(frame["choices"][0])

    @property
    def text(self) -> str:
        return "".join(
            choice.get("text", "") or said(choice) for choice in self.choices
        )

    @property
    def scores(self) -> list[Any]:
        """All log-probabilities, flat."""
        kept = [choice["logprobs"] for choice in self.choices if choice["logprobs"]]
        flat: list[Any] = []
        for entry in kept:
            columns = [entry["content"]] if "content" in entry else list(entry.values())
            flat += list(zip(*columns, strict=True))
        return flat

    @property
    def end(self) -> tuple[Any, ...]:
        usage = self.frames[-1]["usage"]
        last = self.choices[-1]
        return last["finish_reason"], last["stop_reason"], usage


def said(choice: dict[str, Any]) -> str:
    return choice.get("delta", {}).get("content", "")


async def listen(service, body, headers=None, until: str | None = None) -> Heard:
    """Ask; hang up after the event with the id `until`."""
    path = ROUTES["prompt" if "prompt" in body else "messages"]
    heard = Heard()
    buffer = ""
    asked = {**IDS, **(headers or {})}
    async with service.http.stream("POST", path, json=body, headers=asked) as response:
        assert response.status_code == 200, await response.aread()
        async for text in response.aiter_text():
            buffer += text
            *blocks, buffer = buffer.split("\n\n")
            for block in blocks:
                heard.block(block)
                if until is not None and f"id: {until}\n" in f"{block}\n":
                    return heard
    return heard
