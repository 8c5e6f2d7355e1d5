"""What one KV group has to do in one batch: what the predictor counts."""

from __future__ import annotations

import msgspec

from medha_actors.messages import StepMessage


class GroupLoad(msgspec.Struct, frozen=True):
    """What one KV group has to do in one batch."""

    rows: int = 0
    prefill_rows: int = 0
    spans: int = 0
    pairs: float = 0.0
    prefill_kv: int = 0
    decode_kv: int = 0
    exchanged: int = 0
    sampled: int = 0
    saved: int = 0  # pages
    loaded: int = 0
    alone: bool = False  # no other batch is in the grid meanwhile

    def with_moves(self, saved: int, loaded: int) -> GroupLoad:
        """The same with so many pages to and from the second tier."""
        return msgspec.structs.replace(self, saved=saved, loaded=loaded)

    def with_decode(
        self, cached: int, writes: bool = True, groups: int = 1
    ) -> GroupLoad:
        """One more decode, over `cached` tokens of this group."""
        return GroupLoad(
            self.rows + 1,
            self.prefill_rows,
            self.spans + 1,
            self.pairs,
            self.prefill_kv,
            self.decode_kv + cached,
            self.exchanged + groups - 1,
            self.sampled + writes,
            self.saved,
            self.loaded,
            self.alone,
        )

    def with_prefill(
        self,
        rows: int,
        cached: int,
        writes: bool = True,
        groups: int = 1,
        sample: bool = False,
        extend: bool = False,
    ) -> GroupLoad:
        """One more prefill span of `rows` over `cached` tokens of this group; `extend`: a longer
        last span."""
        return GroupLoad(
            self.rows + rows,
            self.prefill_rows + rows,
            self.spans + (not extend),
            self.pairs + rows * cached + (rows * rows / 2 if writes else 0),
            self.prefill_kv + (0 if extend else cached),
            self.decode_kv,
            self.exchanged + rows * (groups - 1),
            self.sampled + (sample and writes),
            self.saved,
            self.loaded,
            self.alone,
        )

    def decodes(self) -> GroupLoad:
        """The decodes alone."""
        rows = self.rows - self.prefill_rows
        return GroupLoad(
            rows=rows,
            spans=rows,
            decode_kv=self.decode_kv,
            sampled=min(rows, self.sampled),
            alone=self.alone,
        )


def load_of(message: StepMessage | None) -> GroupLoad:
    """The load of a step message, as a profiler or a simulator sees it."""
    load = GroupLoad()
    for span in () if message is None else message.spans:
        rows = span.stop - span.start
        groups = max(1, len(span.groups))
        if rows == 1 and (span.sample or not span.writes):
            load = load.with_decode(span.piece_tokens, span.sample, groups)
        else:
            load = load.with_prefill(
                rows, span.piece_tokens, span.writes, groups, span.sample
            )
    if message is not None and message.moves:
        loaded = sum([move.load for move in message.moves])
        load = load.with_moves(len(message.moves) - loaded, loaded)
    if message is not None and message.alone:
        load = msgspec.structs.replace(load, alone=True)
    return load
