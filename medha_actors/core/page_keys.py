"""Names of KV pages by what is in them.

A page's keys and values depend on its own tokens and on all before them. So its key is a chained
hash, BLAKE2b of 128 bits over the key of the page before it and its own token ids; the first page
follows a root made of the model, the adapter and the client's salt. Two sequences have a key in
common only if model, adapter, salt and every token up to the page's end are the same (for others a
collision would have to be searched for among 2^64 hashes).
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

import msgspec

KEY_BYTES = 16

PageKey = bytes
_encode = msgspec.msgpack.Encoder().encode


def root_key(model: str, adapter: str, salt: str) -> PageKey:
    """What the key of a sequence's first page is chained to."""
    return blake2b(_encode((model, adapter, salt)), digest_size=KEY_BYTES).digest()


class PageKeys:
    """The keys of one sequence's pages, first to last. Each is made once, when it is asked for:
    about 1 us for a page of 64 tokens."""

    __slots__ = ("_keys", "_page_tokens", "_root", "_tokens")

    def __init__(
        self, root: PageKey, page_tokens: int, tokens: Callable[[int, int], bytes]
    ) -> None:
        """`tokens(start, stop)`: the packed ids of those positions, which never change."""
        self._root = root
        self._page_tokens = page_tokens
        self._tokens = tokens
        self._keys: list[PageKey] = []

    def __getitem__(self, page: int) -> PageKey:
        """The key of a page all of whose tokens are known."""
        keys = self._keys
        while len(keys) <= page:
            start = len(keys) * self._page_tokens
            before = keys[-1] if keys else self._root
            tokens = self._tokens(start, start + self._page_tokens)
            keys.append(blake2b(before + tokens, digest_size=KEY_BYTES).digest())
        return keys[page]

    def some(self, start: int, stop: int) -> list[PageKey]:
        """The keys of pages [start, stop): the first of them, and what follows as far as it has
        been made already."""
        self[start]
        return self._keys[start:stop]

    def known(self, stop: int) -> list[PageKey]:
        """The keys of pages [0, stop), as far as they have been made already."""
        return self._keys[:stop]
