"""Reads the calls of tools out of an answer's text, as it grows."""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from deployments.call_reader import CallReader, NotACallError
from deployments.tool_styles import Style

_SPACE: Final = " \t\r\n"
_BETWEEN: Final = _SPACE + ",;[]"  # what may stand between calls
_MOST_HELD: Final = 4096  # characters that may still turn out to be a call or text


@dataclass(slots=True)
class Call:
    """A piece of call number `index`; id and name come with the first piece."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class Read:
    """What new text says."""

    content: str = ""
    calls: list[Call] = field(default_factory=list)


class ToolReader:
    """One choice. Text around calls is content; space next to calls is nothing.

    Every state takes one character and returns what has to be read again: text that began like a
    call and was none may have another call in it.
    """

    def __init__(
        self,
        style: Style,
        names: frozenset[str],
        answer_id: str,
        most: int | None = None,
    ) -> None:
        """`most`: further calls are left out."""
        self._style = style
        self._names = names
        self._answer_id = answer_id
        self._most = most
        self._state = self._in_text
        self._held = ""  # may be a call, or text
        self._space = ""  # nothing, until content follows
        self._call: CallReader | None = None
        # the call being read is known; None: it is left out
        self._told: bool | None = None
        self._content = False  # there was some
        self._read = Read()
        self.calls = 0

    def push(self, text: str) -> Read:
        """What is certain with this text."""
        self._read = Read()
        waiting = deque(text)
        while waiting:
            waiting.extendleft(reversed(self._state(waiting.popleft())))
        self._tell()
        return self._read

    def finish(self) -> Read:
        """At the end of the answer: what was held back, if it is text."""
        self._read = Read()
        if not (self.calls and not self._held.strip(_BETWEEN)):
            self._show(self._held)
        if not self.calls:
            self._read.content += self._space
        self._held = self._space = ""
        return self._read

    def _in_text(self, char: str) -> str:
        opening = self._style.opening
        if not opening:
            if self._content or self.calls or char not in "{[":
                self._show(char)
                return ""
            self._state = self._before_call
            return char
        self._held += char
        while self._held and not opening.startswith(self._held):
            self._show(self._held[0])
            self._held = self._held[1:]
        if self._held == opening:
            self._state = self._before_call
        return ""

    def _before_call(self, char: str) -> str:
        self._held += char
        if char == "{":
            return self._begin(CallReader(), char)
        if char in _BETWEEN:
            return ""
        if self._style.opening == "[TOOL_CALLS]":
            self._state = self._in_bare_name
            return ""
        return self._give_up()

    def _in_bare_name(self, char: str) -> str:
        self._held += char
        if char == "{":
            _, _, name = self._held[:-1].rpartition(self._style.opening)
            return self._begin(CallReader(name.partition("[")[0].strip(_BETWEEN)), char)
        return self._give_up() if len(self._held) > _MOST_HELD else ""

    def _begin(self, call: CallReader, char: str) -> str:
        self._call = call
        self._told = False
        self._state = self._in_call
        return self._feed(call, char)

    def _in_call(self, char: str) -> str:
        assert self._call is not None
        if self._told is False:
            self._held += char
        return self._feed(self._call, char)

    def _feed(self, call: CallReader, char: str) -> str:
        try:
            call.feed(char)
        except NotACallError:
            return self._give_up()
        if call.name is not None and call.name not in self._names:
            return self._give_up()
        if call.name is None and len(self._held) > _MOST_HELD:
            return self._give_up()
        if call.complete:
            self._tell()
            self._call = None
            self._held = ""
            self._state = self._after_call if self._style.closing else self._before_call
        return ""

    def _after_call(self, char: str) -> str:
        """The closing marker, if the model writes it."""
        if char in _SPACE and not self._held:
            return ""
        self._held += char
        if self._held == self._style.closing:
            self._held = ""
            self._state = self._in_text
        elif not self._style.closing.startswith(self._held):
            again = self._held
            self._held = ""
            self._state = self._in_text
            return again
        return ""

    def _give_up(self) -> str:
        """It was no call: its first character is text, the rest is read again."""
        again = self._held
        self._held = ""
        self._call = None
        self._state = self._in_text
        if len(again) > _MOST_HELD or not self._style.opening:
            again = again if self._content or not self.calls else again.lstrip(_BETWEEN)
            self._show(again)
            return ""
        self._show(again[:1])
        return again[1:]

    def _tell(self) -> None:
        """What is new of the call being read."""
        call = self._call
        if call is None or call.name is None or self._told is None:
            return
        arguments = call.said()
        if self._told:
            if arguments:
                self._read.calls.append(Call(self.calls - 1, arguments=arguments))
            return
        self._held = self._space = ""
        if self._most is not None and self.calls >= self._most:
            self._told = None
            return
        self._told = True
        self._read.calls.append(Call(self.calls, self._id(), call.name, arguments))
        self.calls += 1

    def _id(self) -> str:
        """The same when an answer is resumed. Mistral's templates take nine letters and digits."""
        digest = hashlib.blake2b(
            f"{self._answer_id}:{self.calls}".encode(), digest_size=12
        )
        if self._style.opening == "[TOOL_CALLS]":
            return digest.hexdigest()[:9]
        return f"call_{digest.hexdigest()}"

    def _show(self, text: str) -> None:
        if not text.strip(_SPACE):
            self._space += text
            return
        self._read.content += self._space + text
        self._space = ""
        self._content = True
