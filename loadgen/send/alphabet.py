"""Finds words that are exactly one token each for a server's tokenizer, whatever it is.

All it needs is a way to count the tokens of a text: the server's `/tokenize`, a `tokenizer.json`,
or the usage that a 1-token request comes back with. Words are tested in groups, halved until they
count right, so that a good vocabulary takes a handful of calls.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path

from loadgen.errors import LoadgenError

Count = Callable[[str], Awaitable[int]]

# Common English words: single tokens, with their space, in every vocabulary of some
# tens of thousands of entries.
_TEXT = """
    the of and to in is for that on with as are this by from at was be have not they which you
    all one were we there can out other has more when up use your how said each she word time
    will way about many then them write would like so these her long make thing see him two look
    day could go come did number sound most people over know water than call first who may down
    side been now find any new work part take get place made live where after back little only
    round man year came show every good me give our under name very through just form great
    think say help low line before turn cause same mean move right boy old too does tell set
    three want air well also play small end put home read hand port large add even land here
    must big high such follow act why ask men change went light kind off need house picture try
    us again animal point mother world near build self earth father head stand own page should
    country found answer school grow study still learn plant cover food sun four between state
    keep eye never last let thought city tree cross farm hard start might story saw far sea draw
    left late run while press close night real life few north open seem together next white
    children begin got walk example paper group always music those both mark often letter until
    mile river car feet care second book carry took science eat room friend began idea fish
    mountain stop once base hear horse cut sure watch color face wood main
"""
WORDS = tuple(_TEXT.split())
_LEAST = 16  # words that a text alphabet must have


def joined(words: tuple[str, ...] | list[str]) -> str:
    """The text whose tokens are counted: every word with its space before it."""
    return "".join(f" {word}" for word in words)


async def single_token_words(count: Count) -> tuple[tuple[str, ...], int]:
    """Words that stay one token each in any sequence, and the tokens that every prompt has on top.

    Raises LoadgenError if there are too few.
    """
    overhead = await _overhead(count)
    words = await _good(list(WORDS), overhead, count)
    if len(words) >= _LEAST:
        sample = random.Random("check").choices(words, k=512)
        if await count(joined(sample)) == len(sample) + overhead:
            return tuple(words), overhead
    raise LoadgenError(
        "this tokenizer knows too few single-token words; use --prompt-format ids or approximate"
    )


async def _overhead(count: Count) -> int:
    """Tokens beside the text's own: seen where repeating a word adds one token per repetition."""
    for word in WORDS[:24]:
        once = await count(joined([word]))
        often = await count(joined([word] * 9))
        if often - once == 8:
            return once - 1
    raise LoadgenError(
        "this tokenizer has no single-token words; use --prompt-format ids or approximate"
    )


async def _good(words: list[str], overhead: int, count: Count) -> list[str]:
    if await count(joined(words)) == len(words) + overhead:
        return words
    if len(words) == 1:
        return []
    middle = len(words) // 2
    return await _good(words[:middle], overhead, count) + await _good(
        words[middle:], overhead, count
    )


def file_counter(path: Path) -> Count:
    """Counts with a local tokenizer.json (or a directory that holds one); special tokens as the
    model adds them."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise LoadgenError("--tokenizer needs the package 'tokenizers'") from None
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise LoadgenError(
            f"--tokenizer: there is no {file}; give a tokenizer.json, or a folder that holds one"
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise LoadgenError(f"--tokenizer: {file}: {error}") from None

    async def count(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    return count
