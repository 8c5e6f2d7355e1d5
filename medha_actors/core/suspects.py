"""Suspects: the requests that were in flight when the pipeline died.

One of them may be what killed it, and most of the time none is. So each goes on, but the positions
that were in flight are its danger: they run once with nothing else in flight. If the pipeline lives
through that, the suspect is cleared; if it dies, nobody else can have done it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from medha_actors.core.assembly import Flight
from medha_actors.core.batch import Batch
from medha_actors.core.request import NO_DANGER, RequestState


class Suspects:
    """Requests with a danger that has not been passed, those that were accused first in front."""

    def __init__(self) -> None:
        self._by_id: dict[str, RequestState] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def accuse(
        self, flights: Iterable[Flight], dead: Collection[int]
    ) -> list[RequestState]:
        """The stages of the groups `dead` have died with these flights in them.

        Returns the requests that were alone in flight because they were suspects already.
        """
        convicted: list[RequestState] = []
        for flight in flights:
            aboard = _aboard(flight.batch, dead)
            for flown in flight.spans:
                state = flown.state
                if state.id not in aboard or flown.epoch != state.epoch:
                    continue
                if flight.suspect:
                    convicted.append(state)
                else:
                    state.endanger(state.computed, state.dispatched)
                    self._by_id[state.id] = state
        return convicted

    def due(self) -> Iterator[RequestState]:
        """Those whose next position is dangerous; who loses its KV meanwhile is none of them."""
        for state in list(self._by_id.values()):
            if state.at_danger:
                yield state

    def passed(self, state: RequestState) -> None:
        """Some positions of a suspect have come back."""
        state.danger = range(max(state.computed, state.danger.start), state.danger.stop)
        if not state.danger:
            self.forget(state)

    def forget(self, state: RequestState) -> None:
        """A request is cleared, or has ended; nothing happens if it is no suspect."""
        state.danger = NO_DANGER
        self._by_id.pop(state.id, None)


def _aboard(batch: Batch, groups: Collection[int]) -> set[str]:
    """The requests that a batch has in these groups."""
    aboard: set[str] = set()
    for group, message in enumerate(batch.groups):
        if message is not None and group in groups:
            aboard.update([span.request_id for span in message.spans])
    return aboard
