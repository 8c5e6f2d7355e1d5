"""What a router knows of a grid: its last notice, and what it has been sent since."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from medha_actors.core.page_keys import PageKeys, root_key
from medha_actors.fleet.notices import Notice, between, pack_names, unpack_names
from medha_actors.messages import TOKEN_BYTES, Request

# what was sent earlier than so long before a notice came is told of in it
_WAY_S = 0.05


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A request, as far as routers look at it."""

    prompt_tokens: int
    output_tokens: int
    names: Sequence[int] = ()  # of the prompt's whole pages, first to last
    tenant: str = ""


def ask_of(request: Request, cache_name: str | None, page_tokens: int) -> Ask:
    """What routers look at of a request; `cache_name` as in MedhaConfig."""
    names: Sequence[int] = ()
    if cache_name is not None and request.cache:
        prompt = request.prompt_token_ids

        def tokens(start: int, stop: int) -> bytes:
            return prompt[start * TOKEN_BYTES : stop * TOKEN_BYTES]

        keys = PageKeys(
            root_key(cache_name, "", request.cache_salt), page_tokens, tokens
        )
        pages = request.prompt_tokens // page_tokens
        names = unpack_names(pack_names([keys[page] for page in range(pages)]))
    return Ask(
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.sampling.max_tokens,
        names=names,
        tenant=request.tenant,
    )


class Prediction(NamedTuple):
    """What a request would find in a grid."""

    hit_tokens: int  # of its prompt
    work_s: float  # the rest of the prefill, alone
    ttft_s: float
    room: bool  # it can begin without another one's end


class _Sent(NamedTuple):
    at: float
    work_s: float


class GridView:
    """One grid, from a router's place."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pages: set[int] = set()
        self.notice: Notice | None = None
        self._sent: deque[_Sent] = deque()

    def heard(self, notice: Notice, now: float) -> bool:
        """Take a notice in. False: one before it was missed, and a whole one is needed."""
        if notice.whole:
            self.pages = set(unpack_names(notice.came))
        elif self.notice is not None and notice.serial == self.notice.serial + 1:
            self.pages.difference_update(unpack_names(notice.gone))
            self.pages.update(unpack_names(notice.came))
        else:
            return False
        self.notice = notice
        while self._sent and self._sent[0].at < now - _WAY_S:
            self._sent.popleft()
        return True

    def sent(self, work_s: float, now: float) -> None:
        """A request with so much work has been sent there, of which no notice tells yet."""
        self._sent.append(_Sent(now, work_s))

    @property
    def live(self) -> int:
        """Requests there."""
        told = 0 if self.notice is None else self.notice.live
        return told + len(self._sent)

    def takes(self, ask: Ask) -> bool:
        """Whether the grid can serve such a request at all."""
        notice = self.notice
        if notice is None or notice.draining:
            return False
        return ask.prompt_tokens + ask.output_tokens <= notice.max_tokens

    def hit_tokens(self, ask: Ask) -> int:
        """Tokens of its prompt that are found there; the last one is always computed."""
        if self.notice is None or not ask.names:
            return 0
        # what is left of a sequence is always its beginning
        pages = bisect_right(ask.names, False, key=lambda name: name not in self.pages)
        most = (ask.prompt_tokens - 1) // self.notice.page_tokens
        return self.notice.page_tokens * min(pages, most)

    def predict(self, ask: Ask) -> Prediction:
        """Of a grid that takes the request."""
        notice = self.notice
        assert notice is not None
        hit = self.hit_tokens(ask)
        whole_s = between(notice.costs, ask.prompt_tokens)
        rest_s = between(notice.costs, ask.prompt_tokens - hit)
        work_s = max(rest_s, whole_s - between(notice.costs, hit) if hit else whole_s)
        wait_s = between(dict(notice.tenants).get(ask.tenant, notice.waits), work_s)
        for sent in self._sent:  # of a long one ahead, as much as of our own
            wait_s += min(sent.work_s, work_s) / notice.pace
        needed = ask.prompt_tokens + ask.output_tokens - hit
        return Prediction(
            hit_tokens=hit,
            work_s=work_s,
            ttft_s=wait_s + work_s,
            room=notice.slots > len(self._sent) and notice.room_tokens >= needed,
        )
