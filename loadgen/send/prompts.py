"""Prompts of an exact number of tokens, made fast enough to be made while the load runs.

A prompt is a sequence of atoms: pieces of JSON that are one token each. In the `ids` format they
are token ids, in the `text` format words whose sequence was checked to be one token per word
(loadgen.send.alphabet). A prompt starts with atoms of its own, so that no prefix cache helps, and
goes on with a slice of a common pool, which is a mere copy of bytes. Prompts whose plan has prefix
blocks are put together from blocks: equal block ids give equal tokens. Of a session's turn only the
message is made here (loadgen.send.talks puts the history before it).
"""

from __future__ import annotations

import random
from collections import OrderedDict
from itertools import accumulate

import msgspec

from loadgen.errors import LoadgenError
from loadgen.records import PlannedRequest

_HEAD = 16  # atoms that make a prompt unlike every other
_POOL = 32_768
_CACHE_BYTES = 128 * 2**20  # of prefix blocks


class Alphabet(msgspec.Struct, frozen=True, kw_only=True):
    """What prompts are made of. `overhead` tokens are added by the server (BOS, chat template)."""

    atoms: tuple[bytes, ...]
    separator: bytes
    opening: bytes
    closing: bytes
    overhead: int = 0
    exact: bool = True  # False: one atom is about one token, nobody could check


def ids_alphabet(token_ids: tuple[int, ...], overhead: int = 0) -> Alphabet:
    """Prompts as JSON arrays of these token ids."""
    atoms = tuple(b"%d" % token_id for token_id in token_ids)
    return Alphabet(
        atoms=atoms, separator=b",", opening=b"[", closing=b"]", overhead=overhead
    )


def text_alphabet(
    words: tuple[str, ...], overhead: int = 0, exact: bool = True
) -> Alphabet:
    """Prompts as JSON strings of these words, each with its space before it."""
    atoms = tuple(msgspec.json.encode(f" {word}")[1:-1] for word in words)
    return Alphabet(
        atoms=atoms,
        separator=b"",
        opening=b'"',
        closing=b'"',
        overhead=overhead,
        exact=exact,
    )


class PromptMaker:
    """Makes the JSON value of a request's prompt; the same for the same seed and request."""

    def __init__(self, alphabet: Alphabet, seed: int | str) -> None:
        self.alphabet = alphabet
        self.seed = seed
        rng = random.Random(f"{seed}/pool")
        pool = [rng.choice(alphabet.atoms) for _ in range(_POOL)]
        gap = len(alphabet.separator)
        self._pool = alphabet.separator.join(pool) + alphabet.separator
        self._starts = [0, *accumulate(len(atom) + gap for atom in pool)]
        self._blocks: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._cached = 0

    def make(self, request: PlannedRequest) -> bytes:
        """JSON of exactly `request.prompt_tokens` tokens, the server's own overhead included."""
        return b"".join(
            (self.alphabet.opening, self.content(request), self.alphabet.closing)
        )

    def content(self, request: PlannedRequest) -> bytes:
        """The inside of that; of a turn with a history, its message."""
        if request.after is not None and request.turn is not None:
            return self._piece(
                f"{self.seed}/turn/{request.index}", request.turn.message_tokens
            )
        wanted = request.prompt_tokens - self.alphabet.overhead
        if wanted < 1:
            least = self.alphabet.overhead + 1
            raise LoadgenError(
                f"the shortest prompt this server can be sent has {least} tokens; ask for more"
            )
        parts = []
        missing = wanted
        for block_id in request.blocks:
            if missing <= 0:
                break
            take = min(missing, request.block_tokens)
            parts.append(self._block(block_id, take))
            missing -= take
        if missing:
            parts.append(
                self._piece(f"{self.seed}/{request.kind}/{request.index}", missing)
            )
        return self.alphabet.separator.join(parts)

    def _block(self, block_id: int, atoms: int) -> bytes:
        """The first `atoms` atoms of a prefix block; whole blocks are kept, the least used are
        dropped."""
        key = (block_id, atoms)
        kept = self._blocks.get(key)
        if kept is not None:
            self._blocks.move_to_end(key)
            return kept
        made = self._piece(f"{self.seed}/block/{block_id}", atoms)
        self._blocks[key] = made
        self._cached += len(made)
        while self._cached > _CACHE_BYTES:
            self._cached -= len(self._blocks.popitem(last=False)[1])
        return made

    def _piece(self, key: str, count: int) -> bytes:
        """`count` atoms that depend on `key` alone; a shorter piece is the start of a longer
        one."""
        rng = random.Random(key)
        separator = self.alphabet.separator
        head = [rng.choice(self.alphabet.atoms) for _ in range(_HEAD)][:count]
        parts = [separator.join(head)]
        missing = count - len(head)
        while missing > 0:
            start = rng.randrange(_POOL)
            take = min(missing, _POOL - start)
            parts.append(
                self._pool[
                    self._starts[start] : self._starts[start + take] - len(separator)
                ]
            )
            missing -= take
        return separator.join(parts)
