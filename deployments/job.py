"""What one HTTP request asks of the engine: a job, and the choices it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from deployments.protocol import GenerationBody
from deployments.resuming import Past
from deployments.thoughts import Thinking
from deployments.tools import ToolUse
from deployments.way import Way
from medha_actors.messages import Grammar, Request


@dataclass(frozen=True, slots=True)
class Choice:
    """One sequence to generate."""

    index: int
    request: Request
    prompt: Sequence[int]
    prompt_text: str | None = None  # set where `echo` has to repeat it


@dataclass(slots=True)
class Job:
    """One HTTP request: what its answer has to say, and its choices."""

    id: str
    model: str
    arrived_at: float  # epoch seconds
    body: GenerationBody
    event_ids: bool = False  # the client wants `id:` lines, to resume a cut stream
    comments: bool = True  # the client's stream may have comments
    choices: list[Choice] = field(default_factory=list)
    prompt_tokens: int = 0  # each prompt counted once, as OpenAI does
    past: Past | None = None  # of an answer that is resumed
    tools: ToolUse | None = None
    thinking: Thinking | None = None  # how thoughts are told from answers
    grammar: Grammar | None = None  # of each choice
    way: Way | None = None  # learns what this answer's first token takes to its client
    # the answer may be shorter than asked where the context has no room
    less: bool = False

    @property
    def created(self) -> int:
        return int(self.arrived_at)
