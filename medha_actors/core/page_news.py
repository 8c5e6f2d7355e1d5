"""What comes and goes in pages and slots, for those who tell others what can be found here."""

from __future__ import annotations

from medha_actors.core.page_keys import PageKey


class News:
    """In how many more places a key is found (pages or slots of any group; in less, if negative)
    than when they were last taken. Nothing is kept until somebody wants to know."""

    def __init__(self) -> None:
        self._changes: dict[PageKey, int] | None = None

    def take(self) -> dict[PageKey, int]:
        """All since the last time; from now on they are kept."""
        changes = self._changes or {}
        self._changes = {}
        return changes

    def tell(self, key: PageKey, change: int) -> None:
        """A key has come to a place, or has gone."""
        if self._changes is None:
            return
        change += self._changes.pop(key, 0)
        if change:
            self._changes[key] = change
