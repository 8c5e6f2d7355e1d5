"""Tells what a model thinks from what it answers, by the marks that its template or vocabulary has
for it: `<think>...</think>` before the answer.

Many templates write the opening mark at the end of the prompt, so that an answer begins inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from deployments.text import Text

_PAIRS: Final = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<thinking>", "</thinking>"),
)
_SPACE: Final = " \t\r\n"
_MOST_SPACE: Final = 64  # that may stand before the opening mark
_TAIL_TOKENS: Final = 16  # of a prompt, where an opening mark may stand


class Marks(NamedTuple):
    """Around thoughts; with their ids where they are special tokens, which have no text."""

    opening: str
    closing: str
    opening_id: int | None = None
    closing_id: int | None = None


def marks_of(text: Text) -> Marks | None:
    """Those of a model; None: it is not one that thinks aloud."""
    template = text.chat_template or ""
    for pair in _PAIRS:
        ids = [text.tokenizer.token_to_id(mark) for mark in pair]
        if any(mark in template for mark in pair) or None not in ids:
            opening_id, closing_id = [
                i if i in text.table.special else None for i in ids
            ]
            return Marks(*pair, opening_id, closing_id)
    return None


class Thinking(NamedTuple):
    """Of one answer; `inside`: it begins with thoughts, the prompt has the opening mark."""

    marks: Marks
    inside: bool

    def reader(self) -> ThoughtReader:
        return ThoughtReader(self.marks, self.inside)

    def speller(self) -> MarkSpeller:
        return MarkSpeller(self.marks, self.inside)


def thinking_after(marks: Marks, text: Text, prompt: Sequence[int]) -> Thinking:
    """How an answer to this prompt begins."""
    tail = b"".join([text.table.bytes_of(i) for i in prompt[-_TAIL_TOKENS:]])
    said = tail.decode("utf-8", "replace").rstrip(_SPACE)
    return Thinking(marks, said.endswith(marks.opening))


class MarkSpeller:
    """Of one choice: gives special tokens that are marks the text that a ThoughtReader looks for,
    where they are marks: elsewhere they stay hidden."""

    def __init__(self, marks: Marks, inside: bool) -> None:
        self._marks = marks
        self._inside = inside
        self._spoken = inside  # thoughts are what an answer begins with, or not there

    def spell(self, token_id: int, text: str) -> str:
        """The text of one token. `text`: what is shown of it anyway."""
        marks = self._marks
        if self._inside and token_id == marks.closing_id:
            self._inside = False
            return marks.closing
        if not self._spoken and token_id == marks.opening_id:
            self._inside = True
            self._spoken = True
            return marks.opening
        self._spoken = self._spoken or bool(text.strip(_SPACE))
        return text


class Told(NamedTuple):
    """What new text says."""

    thoughts: str
    content: str


class ThoughtReader:
    """One choice's text, as it grows. Space around marks is nothing."""

    def __init__(self, marks: Marks, inside: bool) -> None:
        self._marks = marks
        self._held = ""  # may be a mark, or a part of one
        self._begun = inside  # it is known whether there are thoughts
        self._fresh = True  # nothing but space was there since the last mark
        self.inside = inside

    def push(self, text: str) -> Told:
        """What is certain with this text."""
        self._held += text
        if not self._begun:
            self._begin()
        thoughts = self._think() if self.inside else ""
        return Told(thoughts, self._speak() if self._begun and not self.inside else "")

    def finish(self) -> Told:
        """At the end of the answer: what was held back."""
        held = self._held
        self._held = ""
        return Told(held, "") if self.inside else Told("", held)

    def _begin(self) -> None:
        """Thoughts are what an answer begins with, or not there."""
        opening = self._marks.opening
        said = self._held.lstrip(_SPACE)
        if (
            opening.startswith(said)
            and said != opening
            and len(self._held) < _MOST_SPACE
        ):
            return
        self._begun = True
        self.inside = said.startswith(opening)
        self._fresh = self.inside
        if self.inside:
            self._held = said.removeprefix(opening)

    def _think(self) -> str:
        before, found, after = self._held.partition(self._marks.closing)
        if found:
            self._held = after
            self.inside = False
            thoughts = self._without_space(before)
            self._fresh = True
            return thoughts
        safe = len(before) - _overlap(before, self._marks.closing)
        self._held = before[safe:]
        return self._without_space(before[:safe])

    def _speak(self) -> str:
        said = self._held
        self._held = ""
        return self._without_space(said)

    def _without_space(self, text: str) -> str:
        """Without what stands between a mark and the text that follows."""
        if self._fresh:
            text = text.lstrip(_SPACE)
            self._fresh = not text
        return text


def _overlap(text: str, mark: str) -> int:
    """How much of the text's end may be the mark's beginning."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)
