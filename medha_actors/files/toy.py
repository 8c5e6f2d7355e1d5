"""The vocabulary of a model of random weights: a token for each byte, an end, fillers."""

from __future__ import annotations

from typing import Final

from medha_actors.files.spelling import byte_alphabet

END: Final = 256  # the id of the end token
END_TEXT: Final = "<eos>"
FEWEST: Final = END + 1  # tokens that such a vocabulary has


def toy_words(count: int) -> dict[str, int]:
    """The first `count` tokens and their ids, spelled as byte-level vocabularies are; only a model
    can produce the fillers behind the end token."""
    words = {**byte_alphabet(), END_TEXT: END}
    words |= {f"<{i}>": i for i in range(FEWEST, count)}
    return {word: i for word, i in words.items() if i < count}
