"""Reads one call of a tool out of growing text: a JSON object with a name and arguments, or
arguments alone. What it says of the arguments is their own text, as it comes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

_SPACE: Final = " \t\r\n"
_ARGUMENTS: Final = ("arguments", "parameters")


class NotACallError(Exception):
    """The text is no call after all."""


class JsonEnd:
    """Finds the end of a JSON value, character by character."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_text = False
        self._escaped = False
        self.kind = ""  # the value's first character

    def takes(self, char: str) -> bool:
        """Whether the character is part of the value. After the last one of an object, list or
        string `complete` is true; a number or word ends before the first that is not part of it."""
        if not self.kind:
            self.kind = char
        if self._in_text:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_text = False
            return True
        if char == '"':
            self._in_text = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]" and self._depth:
            self._depth -= 1
        elif not self._depth and (char in ",}]" or char in _SPACE):
            return False
        return True

    @property
    def complete(self) -> bool:
        return self.kind in ("{", "[", '"') and not self._depth and not self._in_text


class CallReader:
    """Feed it characters from the opening brace on (or, with a `name`, from the arguments' first
    one)."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self.complete = False
        self._bare = name is not None
        self._state: Callable[[str], None] = self._value if self._bare else self._start
        self._key = "arguments"
        self._end = JsonEnd()
        # of the key or value being read, where it is needed whole
        self._text: list[str] = []
        self._arguments: list[str] = []  # of their text, what was not asked for yet
        self._any = False  # there were arguments

    def feed(self, char: str) -> None:
        """Raises NotACallError."""
        self._state(char)

    def said(self) -> str:
        """The arguments' text since it was asked last; a call without any has none in JSON, too."""
        if self.complete and not self._any:
            self._arguments.append("{}")
            self._any = True
        new = "".join(self._arguments)
        self._arguments.clear()
        return new

    def _start(self, char: str) -> None:
        if char != "{":
            raise NotACallError
        self._state = self._between

    def _between(self, char: str) -> None:
        """Between the members of the object."""
        if char == '"':
            self._begin(self._in_key)
            self._in_key(char)
        elif char == "}":
            self._finish()
        elif char != "," and char not in _SPACE:
            raise NotACallError

    def _begin(self, state: Callable[[str], None]) -> None:
        self._state = state
        self._text = []
        self._end = JsonEnd()

    def _in_key(self, char: str) -> None:
        self._text.append(char)
        self._end.takes(char)
        if self._end.complete:
            self._key = self._string()
            self._state = self._colon

    def _colon(self, char: str) -> None:
        if char == ":":
            self._begin(self._value)
        elif char not in _SPACE:
            raise NotACallError

    def _value(self, char: str) -> None:
        if not self._end.kind and char in _SPACE:
            return
        if not self._end.takes(char):
            self._take_value()
            self._between(char)
            return
        if self._key in _ARGUMENTS and self._end.kind in "{[":
            self._arguments.append(char)
            self._any = True
        elif self._key == "name" or (self._key in _ARGUMENTS and self._end.kind == '"'):
            self._text.append(char)
        if self._end.complete:
            self._take_value()

    def _take_value(self) -> None:
        self._state = self._between
        if self._key == "name":
            self.name = self._string()
        elif self._text:  # arguments as a JSON text with JSON inside
            self._arguments.append(self._string())
            self._any = True
        if self._bare:
            self._finish()

    def _finish(self) -> None:
        if self.name is None:
            raise NotACallError
        self.complete = True

    def _string(self) -> str:
        try:
            value = json.loads("".join(self._text))
        except ValueError:
            raise NotACallError from None
        if not isinstance(value, str):
            raise NotACallError
        return value
