"""How much of each prompt earlier requests have sent before: the hits of a cache without bounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from loadgen.records import PlannedRequest

_ROOT = 0


def with_known(requests: Sequence[PlannedRequest]) -> list[PlannedRequest]:
    """The same requests, in order of arrival, each with its `known_tokens`; unchanged where no
    request has prefix blocks or is a turn of a session.

    Blocks count from the first prompt that has them on; of answers, those that a later turn of
    their session repeats, without the last token, whose keys and values nobody needed.
    """
    if not any(request.blocks or request.turn for request in requests):
        return list(requests)
    seen = _Seen()
    history: dict[int, int] = {}
    marked = []
    for request in requests:
        if request.after is None:
            known = seen.add(
                request.blocks, request.block_tokens, request.prompt_tokens
            )
        else:
            known = history[request.after] - 1
        if request.turn is not None:
            history[request.index] = request.prompt_tokens + request.output_tokens
        marked.append(msgspec.structs.replace(request, known_tokens=known))
    return marked


class _Seen:
    """A tree of the blocks that prompts have begun with."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int], int] = {}  # (node before, block): node
        self._tokens: list[int] = [0]  # of a node's block, as far as any prompt had it

    def add(self, blocks: Iterable[int], block_tokens: int, prompt_tokens: int) -> int:
        """Take in a prompt; returns how many of its first tokens were there before."""
        node = _ROOT
        known = 0
        left = prompt_tokens
        found = True
        for block in blocks:
            tokens = min(block_tokens, left)
            left -= tokens
            follower = self._nodes.setdefault((node, block), len(self._tokens))
            if follower == len(self._tokens):
                self._tokens.append(0)
            had = min(tokens, self._tokens[follower])
            if found:
                known += had
                found = had == tokens
            self._tokens[follower] = max(tokens, self._tokens[follower])
            node = follower
        return known
