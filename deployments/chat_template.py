"""The model's chat template, rendered as transformers renders it: sandboxed Jinja. Clients cannot
send templates."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from deployments.protocol import Message
from medha_actors.errors import ModelError, RequestError


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for training; here its body is just
    rendered."""

    tags = {"generation"}  # noqa: RUF012  (the name and type are Jinja's)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **options)


class ChatTemplate:
    """Compiled once; `render` is quick and thread-safe."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        self._special_tokens = dict(special_tokens)
        try:
            self._render: Callable[..., str] = environment.from_string(source).render
        except jinja2.TemplateError as error:
            raise ModelError(f"the model's chat template is broken: {error}") from None

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool, extra: Mapping[str, Any]
    ) -> str:
        """The prompt's text; raises RequestError with the template's own complaint."""
        turns = [_turn(message) for message in messages]
        variables = {
            **self._special_tokens,
            **extra,
            "messages": turns,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._render(tools=None, documents=None, **variables)
        except Exception as error:  # a template can fail in any way on what it did not expect
            raise RequestError(
                f"the model's chat template refuses the messages: {error}", param="messages"
            ) from None


def _turn(message: Message) -> dict[str, str]:
    role = "system" if message.role == "developer" else message.role
    turn = {"role": role, "content": flat_text(message)}
    if message.name is not None:
        turn["name"] = message.name
    return turn


def flat_text(message: Message) -> str:
    """A message's content as one string."""
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text or "" for part in message.content)
