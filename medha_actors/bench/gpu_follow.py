"""Drives one whole-model stage in this process: what it makes of sequences that are known, and what
it generates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medha_actors.messages import (
    Introduction,
    SamplingParams,
    Span,
    StepMessage,
    pack_tokens,
)
from medha_actors.model.stage import Stage

_SAMPLING = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1)


@dataclass
class Followed:
    """One sequence: `prompt` of its `tokens` were given; of every given token but the first its
    log-probability, and which token would have been likeliest there."""

    tokens: list[int]
    prompt: int
    computed: int = 0
    pages: int = 0
    logprobs: list[float] = field(default_factory=list)
    likeliest: list[int] = field(default_factory=list)

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.prompt :]


def follow(
    stage: Stage,
    prompts: Mapping[str, Sequence[int]],
    generate: int = 0,
    chunk: int = 256,
    singly: int = 0,
) -> dict[str, Followed]:
    """All prompts side by side in chunks, each one's last `singly` tokens one a step; then
    `generate` tokens of each."""
    stage.reset()
    found = {
        name: Followed(list(tokens), len(tokens)) for name, tokens in prompts.items()
    }
    free = iter(range(stage.pages))
    unknown = set(found)
    batch = 0
    while True:
        spans = []
        for name, state in found.items():
            rows = _rows(state, generate, chunk, singly)
            if rows:
                pages = -(-(state.computed + rows) // stage.page_tokens) - state.pages
                spans.append(
                    _span(name, state, rows, tuple(next(free) for _ in range(pages)))
                )
                state.pages += pages
        if not spans:
            return found
        opened = [Introduction(span.request_id, _SAMPLING) for span in spans]
        new = tuple(one for one in opened if one.request_id in unknown)
        unknown -= {one.request_id for one in new}
        _step(stage, StepMessage(batch, tuple(spans), new), found)
        batch += 1


def _rows(state: Followed, generate: int, chunk: int, singly: int) -> int:
    """How many tokens of a sequence the next step computes."""
    left = len(state.tokens) - state.computed
    if len(state.generated) >= generate and state.computed >= state.prompt:
        return 0
    in_chunks = state.prompt - singly - state.computed
    return min(left, chunk, in_chunks) if in_chunks > 0 else min(left, 1)


def _span(name: str, state: Followed, rows: int, pages: tuple[int, ...]) -> Span:
    start = state.computed
    stop = start + rows
    known = len(state.tokens)
    return Span(
        name,
        start,
        stop,
        pack_tokens(state.tokens[start:stop]),
        piece_start=0,
        piece_tokens=start,
        new_pages=pages,
        sample=stop == known,
        index=known - state.prompt,
        next_token_id=state.tokens[stop] if stop < state.prompt else -1,
    )


def _step(stage: Stage, message: StepMessage, found: Mapping[str, Followed]) -> None:
    output = stage.step(message, None, None)
    assert not output.failures, output.failures
    for span in message.spans:
        found[span.request_id].computed = span.stop
    for known in output.prompt_logprobs:
        state = found[known.request_id]
        for logprob, top in known.entries:
            state.logprobs.append(logprob)
            state.likeliest.append(top[0][0])
    for token in output.tokens:
        found[token.request_id].tokens.append(token.token_id)
