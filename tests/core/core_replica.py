"""A tiny model of the stages of one KV group: page tables and who wrote what where."""

from medha_actors.messages import unpack_tokens


class Replica:
    """What the stages of one KV group hold: page tables, and in each slot who wrote which position
    last."""

    def __init__(self, page_tokens):
        self.page = page_tokens
        self.tables = {}
        self.slots = {}

    def read(self, request_id, start, tokens):
        """The (position, token) pairs cached in [start, start + tokens), all of them this
        request's."""
        first, pages = self.tables[request_id]
        assert start == first
        found = []
        for offset in range(tokens):
            owner, position, token = self.slots[pages[offset // self.page], offset % self.page]
            assert owner == request_id
            found.append((position, token))
        return found

    def step(self, message):
        for request_id in message.closed:
            del self.tables[request_id]
        opened = [sequence.request_id for sequence in message.opened]
        assert len(opened) == len(set(opened))
        assert not set(opened) & set(self.tables)
        runs = [(not span.groups, span.groups) for span in message.spans]
        assert runs == sorted(runs), (
            "spans of several groups come first, and in the same order of runs everywhere"
        )
        for span in message.spans:
            if span.request_id in opened and span.request_id not in self.tables:
                self.tables[span.request_id] = (span.piece_start, [])
            _, pages = self.tables[span.request_id]
            pages.extend(span.new_pages)
        held = [page for _, pages in self.tables.values() for page in pages]
        assert len(held) == len(set(held)), "a page belongs to two live requests"
        assert set(opened) <= set(self.tables)

    def write(self, span):
        _, pages = self.tables[span.request_id]
        for position, token in zip(
            range(span.start, span.stop), unpack_tokens(span.token_ids), strict=True
        ):
            offset = position - span.piece_start
            assert offset // self.page < len(pages), "no page for a written token"
            self.slots[pages[offset // self.page], offset % self.page] = (
                span.request_id,
                position,
                token,
            )
