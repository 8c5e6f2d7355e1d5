"""Probes: the synthetic steps that a GPU is measured with. Pure.

A GPU is bound by launches in small steps, by reading weights in larger ones and by computing in
chunks of a thousand rows; so the probes go as far as the batches do, and to long contexts as far as
the pool holds them. Some probes are mixed batches; others are held out, to tell how well the rest
predicts them.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from medha_actors.core.group_load import GroupLoad
from medha_actors.messages import (
    Introduction,
    SamplingParams,
    Span,
    StepMessage,
    pack_tokens,
)

LONGEST_TOKENS = 131_072
_DECODED_TOKENS = 524_288  # that the decodes of a batch see together, at most
_CHUNKS = (16, 64, 128, 256, 384, 512, 768)
_DECODES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SHORT_TOKENS = 64
_LONG_CHUNKS = (16, 64, 128, 256, 384, 512, 1024, 2048)


class Part(msgspec.Struct, frozen=True):
    """So many requests with so many new positions each, on so many cached ones."""

    requests: int
    tokens: int
    cached: int


class Probe(msgspec.Struct, frozen=True):
    """One step. `held_out`: it is not to be fitted, but predicted."""

    parts: tuple[Part, ...]
    sample: bool = False
    held_out: bool = False

    def load(self) -> GroupLoad:
        """As the predictor sees it."""
        load = GroupLoad()
        for part in self.parts:
            for _ in range(part.requests):
                if part.tokens == 1:
                    load = load.with_decode(part.cached, self.sample)
                else:
                    load = load.with_prefill(
                        part.tokens, part.cached, sample=self.sample
                    )
        return load

    def pages(self, page_tokens: int) -> int:
        """Pages that its requests take."""
        return sum(
            [part.requests * _pages_of(part, page_tokens) for part in self.parts]
        )


class Limits(msgspec.Struct, frozen=True):
    """What a batch, a request and the pool can be at most."""

    batch_tokens: int
    requests: int
    positions: int
    pages: int
    page_tokens: int


def probes(limits: Limits) -> list[Probe]:
    """What is measured, as far as the limits go."""
    contexts = _contexts(limits)
    chunks = [*_CHUNKS]
    while chunks[-1] < limits.batch_tokens:
        chunks.append(chunks[-1] * 4 // 3 if len(chunks) % 2 else chunks[-1] * 3 // 2)
    chunks[-1] = limits.batch_tokens
    made = [_probe(Part(1, chunk, 0)) for chunk in chunks]
    for count in (*_DECODES, limits.requests):
        made.append(_probe(Part(count, 1, _SHORT_TOKENS)))
    for count in (1, 8, limits.requests):
        made.append(Probe((Part(count, 1, _SHORT_TOKENS),), sample=True))
    for context in contexts:
        made += [_probe(Part(1, chunk, context)) for chunk in _LONG_CHUNKS]
        made.append(_probe(Part(1, 1, context)))
    room = min(limits.pages * limits.page_tokens, _DECODED_TOKENS)
    for count in (4, 16, limits.requests):
        each = min(contexts[0], room // count - limits.page_tokens)
        made.append(_probe(Part(count, 1, each)))
        made.append(_probe(Part(count, 1, each // 4)))
    made += _mixed(contexts)
    return [probe for probe in dict.fromkeys(made) if _fits(probe, limits)]


def _mixed(contexts: list[int]) -> list[Probe]:
    """Batches as the scheduler makes them: the first of them fitted, the others held out."""
    long = contexts[0]
    middle = contexts[len(contexts) // 2]
    small = contexts[-1]
    fitted = [
        (Part(16, 1, small), Part(1, 512, middle)),
        (Part(32, 1, small // 2), Part(1, 1500, 0)),
        (Part(4, 1, middle), Part(1, 128, long // 2), Part(2, 64, 0)),
        (Part(60, 1, small // 8), Part(1, 64, 0)),
        (Part(32, 1, small // 4), Part(1, 128, small)),
        (Part(8, 16, small),),
    ]
    held_out = [
        (Part(12, 1, small), Part(1, 400, middle)),
        (Part(24, 1, small // 2), Part(1, 1000, middle // 2), Part(1, 100, 0)),
        (Part(24, 1, small),),
        (Part(3, 1, middle),),
        (Part(1, 1800, small),),
        (Part(8, 1, small), Part(1, 48, long * 3 // 4)),
        (Part(2, 200, 0), Part(1, 600, small)),
        (Part(48, 1, small // 4), Part(1, 256, small)),
    ]
    return [
        *[Probe(parts) for parts in fitted],
        *[Probe(parts, held_out=True) for parts in held_out],
    ]


def message_of(
    probe: Probe, page_tokens: int, vocabulary: int, number: int
) -> StepMessage:
    """The probe as a message that opens its requests and gives them the pool's first pages; a later
    one closes them (`closing`). They are of unlike tokens, as in service."""
    sampling = SamplingParams(max_tokens=1, temperature=0.0)
    opened: list[Introduction] = []
    spans: list[Span] = []
    first_page = 0
    for part in probe.parts:
        for _ in range(part.requests):
            name = f"calibration-{number}-{len(spans)}"
            pages = _pages_of(part, page_tokens)
            ids = pack_tokens((len(spans) + i) % vocabulary for i in range(part.tokens))
            span = Span(
                request_id=name,
                start=part.cached,
                stop=part.cached + part.tokens,
                token_ids=ids,
                piece_start=0,
                piece_tokens=part.cached,
                new_pages=tuple(range(first_page, first_page + pages)),
                sample=probe.sample,
            )
            first_page += pages
            spans.append(span)
            opened.append(Introduction(name, sampling))
    return StepMessage(batch_id=-1, spans=tuple(spans), opened=tuple(opened))


def again(message: StepMessage) -> StepMessage:
    """The same work once more, for requests that are known and have their pages: what a step costs
    in the middle of them."""
    spans = [msgspec.structs.replace(span, new_pages=()) for span in message.spans]
    return StepMessage(batch_id=-1, spans=tuple(spans))


def closing(message: StepMessage) -> StepMessage:
    """Forgets the requests of a message, and computes nothing."""
    return StepMessage(
        -1, (), closed=tuple([span.request_id for span in message.spans])
    )


def _probe(*parts: Part) -> Probe:
    return Probe(parts)


def _contexts(limits: Limits) -> list[int]:
    """From the longest that fits with a chunk behind it down to a short one."""
    room = limits.pages * limits.page_tokens
    longest = (
        min(LONGEST_TOKENS, limits.positions, room)
        - max(_LONG_CHUNKS)
        - limits.page_tokens
    )
    longest = max(2 * _SHORT_TOKENS, longest)
    lengths = {max(2 * _SHORT_TOKENS, longest // share) for share in (1, 4, 32)}
    return sorted(lengths, reverse=True)


def _fits(probe: Probe, limits: Limits) -> bool:
    rows = sum([part.requests * part.tokens for part in probe.parts])
    requests = sum([part.requests for part in probe.parts])
    longest = max([part.cached + part.tokens for part in probe.parts])
    shortest = min([part.cached for part in probe.parts])
    return (
        rows <= limits.batch_tokens
        and requests <= max(limits.requests, 1)
        and longest <= limits.positions
        and shortest >= 0
        and probe.pages(limits.page_tokens) <= limits.pages
    )


def _pages_of(part: Part, page_tokens: int) -> int:
    return -(-(part.cached + part.tokens) // page_tokens)


def pages_of(probes: Iterable[Probe], page_tokens: int) -> int:
    """Pages that the largest of them takes."""
    return max([probe.pages(page_tokens) for probe in probes])
