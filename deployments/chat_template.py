"""The model's chat template, rendered as transformers renders it: sandboxed Jinja. Clients cannot
send templates."""

from __future__ import annotations

import datetime
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from deployments.histories import Message
from deployments.template_turns import PROBE, PROBED, SYSTEM_PROBE, Knowledge, turns
from medha_actors.errors import ModelError, RequestError


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for training; here its body is just
    rendered."""

    tags = {"generation"}  # noqa: RUF012  (the name and type are Jinja's)

    def parse(
        self, parser: jinja2.parser.Parser
    ) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **options)


def _unchanged(value: Any) -> Any:
    return value


class ChatTemplate:
    """Compiled once; `render` is quick and thread-safe."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, jinja2.ext.loopcontrols],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: (
            datetime.datetime.now().strftime(form)
        )
        self._special_tokens = dict(special_tokens)
        try:
            self._render: Callable[..., str] = environment.from_string(source).render
            parsed = environment.parse(source)
        except jinja2.TemplateError as error:
            raise ModelError(f"the model's chat template is broken: {error}") from None
        # the names of what it can be told beside the messages
        self.variables = frozenset(jinja2.meta.find_undeclared_variables(parsed))
        self._knows = Knowledge(
            tools="tool_calls" in source and self._shows(PROBE),
            developer="developer" in source,
            system=self._shows(SYSTEM_PROBE),
        )

    def effort(self, asked: str) -> dict[str, Any]:
        """What to tell the template of OpenAI's `reasoning_effort`; raises RequestError if it would
        be in vain."""
        if "reasoning_effort" in self.variables:
            return {"reasoning_effort": asked}
        if asked != "none":
            raise RequestError(
                "reasoning_effort: this model's chat template takes none",
                param="reasoning_effort",
                code="unsupported",
            )
        return {"enable_thinking": False} if "enable_thinking" in self.variables else {}

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        extra: Mapping[str, Any],
        *,
        continue_final: bool = False,
        hide: Callable[[Any], Any] = _unchanged,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The prompt's text; raises RequestError with the template's own complaint.

        `continue_final`: the prompt ends where the last message does. `hide`: what is done to all
        that the client wrote before the template sees it. `tools`: as the client described
        them."""
        told = hide(turns(messages, self._knows))
        shown = None if tools is None else hide([dict(tool) for tool in tools])
        written = hide(dict(extra))
        if not continue_final:
            return self._checked(told, add_generation_prompt, written, shown)
        end = f"\ue000{secrets.token_hex(8)}\ue001"
        told[-1]["content"] += end
        text, found, _ = self._checked(told, False, written, shown).rpartition(end)
        if not found:
            raise RequestError(
                "continue_final_message: the model's chat template leaves the last message out",
                param="continue_final_message",
                code="unsupported",
            )
        return text

    def _checked(
        self,
        told: list[dict[str, Any]],
        add_generation_prompt: bool,
        extra: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        variables = {
            **self._special_tokens,
            **extra,
            "messages": told,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._render(tools=tools, documents=None, **variables)
        except Exception as error:
            # a template can fail in any way on what it did not expect
            raise RequestError(
                f"the model's chat template refuses the messages: {error}",
                param="messages",
            ) from None

    def _shows(self, told: Sequence[dict[str, Any]]) -> bool:
        """Whether all that is marked in these turns comes out."""
        try:
            text = self._checked([dict(turn) for turn in told], True, {})
        except RequestError:
            return False
        wanted = [mark for mark in PROBED if mark in repr(told)]
        return all(mark in text for mark in wanted)
