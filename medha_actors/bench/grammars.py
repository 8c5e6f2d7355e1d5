"""What grammars cost a decode step: requests of the embedded model that follow a schema, and as
many that are free, on one stage with one thread, in turn.

A step is timed until its tokens are known, with what is forced; working out the next masks, for
which nobody waits, is timed alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from statistics import median
from typing import Any, Final

import msgspec
import torch

from medha_actors.actors.local import greedy, prompt_of
from medha_actors.config import ModelLoadingConfig
from medha_actors.errors import MedhaError
from medha_actors.messages import (
    Grammar,
    Introduction,
    SampledToken,
    SamplingParams,
    Span,
    StepMessage,
    pack_tokens,
)
from medha_actors.model.spec import load_spec
from medha_actors.model.stage import Stage

_PAGE_TOKENS: Final = 64
_PROMPT: Final = 32  # tokens of each request
_FIRST_STEPS: Final = 4  # not counted
_ANY_END: Final = 256  # of a model that has none: no answer comes to its end here
# An answer that goes on for as long as it is measured.
_SCHEMA: Final = {
    "type": "array",
    "minItems": 10_000,
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
}


def run(
    repeats: int = 120,
    dtype: str = "auto",
    requests: int = 16,
    model: ModelLoadingConfig | None = None,
) -> list[dict[str, Any]]:
    """One row: medians over `repeats` pairs of steps, milliseconds; of how much longer a step is,
    too, so that what slows the machine down for a while slows both of a pair."""
    config = model or ModelLoadingConfig()
    spec = load_spec(config)
    pages = -(-(_PROMPT + _FIRST_STEPS + repeats + 1) // _PAGE_TOKENS)
    place = ((0, spec.layers), (0, 1), 0)
    kind = torch.float32 if dtype == "float32" else torch.bfloat16
    stage = Stage(spec, config, *place, 2 * requests * pages, _PAGE_TOKENS, "cpu", kind)
    stage.warm_up()
    ends = spec.eos_ids or (_ANY_END,)
    grammar = Grammar(f"start: %json {json.dumps(_SCHEMA)}", ends)
    forever = greedy(1_000_000)
    free = _Crowd(stage, "free", forever, requests, 0)
    bound = _Crowd(
        stage,
        "bound",
        msgspec.structs.replace(forever, grammar=grammar),
        requests,
        requests * pages,
    )
    for _ in range(_FIRST_STEPS):
        free.step()
        bound.step()
    free.forget_times()
    bound.forget_times()
    for _ in range(repeats):
        free.step()
        bound.step()
    return [_row(free, bound, requests)]


def _row(free: _Crowd, bound: _Crowd, requests: int) -> dict[str, Any]:
    pairs = zip(bound.steps_s, free.steps_s, strict=True)
    ratio = median([slower / faster for slower, faster in pairs])
    return {
        "requests": requests,
        "free_step_ms": 1e3 * median(free.steps_s),
        "with_a_schema_ms": 1e3 * median(bound.steps_s),
        "longer_percent": 100 * (ratio - 1),
        "next_masks_ms": 1e3 * median(bound.looks_s),
    }


class _Crowd:
    """Requests that decode together, one token a step: no forced one is taken."""

    def __init__(
        self,
        stage: Stage,
        name: str,
        sampling: SamplingParams,
        requests: int,
        first_page: int,
    ) -> None:
        """Computes the prompts."""
        self.forget_times()
        self._stage = stage
        self._names = [f"{name}-{number}" for number in range(requests)]
        self._pages = first_page  # the next one that nobody has
        self._computed = 0
        opened = tuple(Introduction(name, sampling) for name in self._names)
        prompts = [prompt_of(_PROMPT, salt=number) for number in range(requests)]
        self._last = self._run(prompts, 0, opened)

    def forget_times(self) -> None:
        """What was measured so far."""
        self.steps_s: list[float] = []
        self.looks_s: list[float] = []

    def step(self) -> None:
        """One token more for everybody."""
        drawn = [[token.token_id] for token in self._last]
        self._last = self._run(drawn, self._last[0].index + 1, ())

    def _run(
        self,
        fresh: Sequence[Sequence[int]],
        index: int,
        opened: tuple[Introduction, ...],
    ) -> tuple[SampledToken, ...]:
        spans = []
        for name, tokens in zip(self._names, fresh, strict=True):
            spans.append(self._span(name, tokens, index))
        self._computed += len(fresh[0])
        message = StepMessage(index, tuple(spans), opened)
        began = time.perf_counter()
        output = self._stage.step(message, None, None)
        known = time.perf_counter()
        self._stage.look_ahead(output)
        self.steps_s.append(known - began)
        self.looks_s.append(time.perf_counter() - known)
        if output.failures:
            raise MedhaError(output.failures[0].message)
        return output.tokens

    def _span(self, name: str, tokens: Sequence[int], index: int) -> Span:
        """These tokens of one request, in new pages where the old ones are full."""
        start = self._computed
        stop = start + len(tokens)
        new = -(-stop // _PAGE_TOKENS) - -(-start // _PAGE_TOKENS)
        pages = tuple(range(self._pages, self._pages + new))
        self._pages += new
        packed = pack_tokens(tokens)
        return Span(name, start, stop, packed, 0, start, pages, True, True, index)
