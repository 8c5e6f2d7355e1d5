"""Control tokens that a user types are text, and never begin or end a turn.

A chat template writes tokens such as `<|im_end|>` into the text that is tokenised. One in a message
would look the same. So before the template sees them, the client's own are replaced by marks that
nobody can guess; after it, the template's are given secret names, the marks become what they stood
for, and a tokenizer reads that which knows control tokens by their secret names only. All else is
tokenised as always, and a chat without such text takes the plain way.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from tokenizers import AddedToken, Tokenizer, models

# of Unicode's private use: no vocabulary merges them with anything
_OPEN: Final = "\ue000"
_CLOSE: Final = "\ue001"


class Prompt(NamedTuple):
    """A text to tokenise. `masked`: how the blind tokenizer has to read it; None: nobody typed a
    control token."""

    text: str
    masked: str | None = None


class ControlTokens:
    """The control tokens of one vocabulary, and a tokenizer that is blind for them in text."""

    def __init__(self, tokenizer: Tokenizer, token_ids: Iterable[int]) -> None:
        added = tokenizer.get_added_tokens_decoder()
        chosen = {i: added[i] for i in token_ids if i in added}
        secret = secrets.token_hex(8)
        self._names = {i: f"{_OPEN}{secret}.{i}{_CLOSE}" for i in chosen}
        self._places, self._finder = _finder(tokenizer, chosen)
        self._likely = _likely(tokenizer, chosen)
        renamed = {token.content: self._names[i] for i, token in chosen.items()}
        self.blind = _renamed(tokenizer, renamed) if chosen else tokenizer

    def find(self, text: str) -> list[tuple[int, int, int]]:
        """Where control tokens stand in a text, as the tokenizer finds them: start, stop, id."""
        if self._likely.search(text) is None:
            return []
        [encoding] = self._finder.encode_batch([text], add_special_tokens=False)
        return [
            (start, stop, self._places[i])
            for i, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
            if i in self._places
        ]

    def masked(self, text: str) -> str:
        """The text with all its control tokens by their secret names."""
        parts: list[str] = []
        done = 0
        for start, stop, token_id in self.find(text):
            parts += [text[done:start], self._names[token_id]]
            done = stop
        return "".join([*parts, text[done:]])


class Guard:
    """Keeps what one client wrote apart from what the template writes."""

    def __init__(self, control: ControlTokens) -> None:
        self._control = control
        self._typed: list[str] = []
        self._secret = secrets.token_hex(8)
        self._mark = re.compile(rf"{_OPEN}{self._secret}\.(\d+){_CLOSE}")

    def hide(self, value: Any) -> Any:
        """The same JSON value with marks for the control tokens in its texts."""
        if isinstance(value, str):
            return self._hidden(value)
        if isinstance(value, list):
            return [self.hide(item) for item in value]
        if isinstance(value, dict):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        return value

    def shown(self, text: str) -> str:
        """A text with what the client wrote in it."""
        if not self._typed:
            return text
        return self._mark.sub(lambda match: self._typed[int(match[1])], text)

    def prompt(self, rendered: str) -> Prompt:
        """What the template made of it."""
        if not self._typed:
            return Prompt(rendered)
        return Prompt(self.shown(rendered), self.shown(self._control.masked(rendered)))

    def _hidden(self, text: str) -> str:
        parts: list[str] = []
        done = 0
        for start, stop, _ in self._control.find(text):
            parts += [
                text[done:start],
                f"{_OPEN}{self._secret}.{len(self._typed)}{_CLOSE}",
            ]
            self._typed.append(text[start:stop])
            done = stop
        return "".join([*parts, text[done:]])


def _finder(
    tokenizer: Tokenizer, chosen: dict[int, AddedToken]
) -> tuple[dict[int, int], Tokenizer]:
    """A tokenizer for which a text is nothing but control tokens and what is between them; and
    which of the model's ids its own ids stand for."""
    finder = Tokenizer(models.WordLevel({"": 0}, unk_token=""))
    if tokenizer.normalizer is not None:
        finder.normalizer = tokenizer.normalizer
    finder.add_special_tokens(list(chosen.values()))
    places: dict[int, int] = {}
    for token_id, token in chosen.items():
        own_id = finder.token_to_id(token.content)
        assert own_id is not None, "added above"
        places[own_id] = token_id
    return places, finder


def _likely(tokenizer: Tokenizer, chosen: dict[int, AddedToken]) -> re.Pattern[str]:
    """Finds something in every text with a control token, and in few others: their beginnings."""
    if tokenizer.normalizer is not None and any(
        token.normalized for token in chosen.values()
    ):
        return re.compile("")  # what looks like another text may become one
    beginnings = sorted({re.escape(token.content[:2]) for token in chosen.values()})
    return re.compile("|".join(beginnings) or r"(?!)")


def _renamed(tokenizer: Tokenizer, names: dict[str, str]) -> Tokenizer:
    """The same tokenizer with other texts for some of its tokens."""
    tree = json.loads(tokenizer.to_str())
    for token in tree["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = tree["model"]
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = {
            names.get(text, text): i for text, i in model["vocab"].items()
        }
    else:  # Unigram: pairs of text and score
        model["vocab"] = [
            [names.get(text, text), score] for text, score in model["vocab"]
        ]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    return Tokenizer.from_str(json.dumps(tree))
