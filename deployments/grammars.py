"""Tries a client's grammar before any stage sees it: in a thread, within limits.

Where the limits of medha_actors.model.matchers hold, compiling takes at most about a tenth of a
second; the time limit here is for what they do not foresee.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from deployments.structure import Wanted
from medha_actors.config import LimitsConfig
from medha_actors.errors import MedhaError, OverloadedError, RequestError
from medha_actors.messages import Grammar
from medha_actors.model.matchers import Matchers, require_sound


class GrammarCheck:
    """Turns what a client wants into a Grammar that the last stage can follow."""

    def __init__(
        self, matchers: Matchers, end_ids: tuple[int, ...], limits: LimitsConfig
    ) -> None:
        self._matchers = matchers
        self._end_ids = end_ids
        self._limits = limits
        self._thread = ThreadPoolExecutor(1, "medha-grammars")

    async def __call__(self, param: str, make: Callable[[], Wanted]) -> Grammar:
        """`make` is called in the thread; `param`: the field it reads. Raises RequestError naming
        the field, or OverloadedError if others' grammars are being tried."""
        began = threading.Event()

        def work() -> Grammar:
            began.set()
            return self._tried(make())

        limit_s = self._limits.grammar_timeout_s
        trying = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            async with asyncio.timeout(limit_s):
                return await trying
        except TimeoutError:
            if began.is_set():
                raise _wrong(
                    param, f"takes more than {limit_s:g} s to compile"
                ) from None
            raise OverloadedError(
                "other requests' grammars are being tried",
                code="grammars",
                retry_after_s=1.0,
            ) from None

    def _tried(self, wanted: Wanted) -> Grammar:
        most = self._limits.max_grammar_bytes
        if len(wanted.text.encode("utf-8", "surrogatepass")) > most:
            raise _wrong(
                wanted.param, f"the grammar that comes of it is over {most} bytes"
            )
        grammar = Grammar(wanted.text, self._end_ids)
        try:
            matcher = self._matchers.matcher(grammar)
            matcher.compute_bitmask()
            require_sound(matcher)
        except MedhaError as error:
            raise _wrong(wanted.param, error.message) from None
        return grammar


def _wrong(param: str, reason: str) -> RequestError:
    return RequestError(f"{param}: {reason}", param=param, code="invalid_grammar")
