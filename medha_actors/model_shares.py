"""How the matrices of a model fall to the ranks that share its layers (tensor parallelism).

A rank holds whole heads with the KV heads that they read, some columns of the MLP or of every
expert, and the rows of some tokens in the embedding and the head. To its layers the model looks
like a smaller one.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from medha_actors.errors import ModelError
from medha_actors.model_spec import ModelSpec

# Quantised matrices come in blocks of 32 or 256 inputs, and the kernels take outputs by 16: the
# coarsest of these units is taken with which no rank gets more than an eighth above the mean.
_MLP_UNITS = (256, 32, 1)
_TOKEN_UNITS = (64, 16, 1)
_MOST_ABOVE_MEAN = 1 / 8


class Range(NamedTuple):
    """[first, stop)"""

    first: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.first

    def times(self, count: int) -> Range:
        """The same where each one is `count` rows or columns."""
        return Range(self.first * count, self.stop * count)


class Share(NamedTuple):
    """What one rank holds. Several ranks hold the same KV head where there are fewer than ranks."""

    heads: Range
    kv_heads: Range
    intermediate: Range  # of the MLP, or of each expert
    vocabulary: Range
    shared: Range = Range(0, 0)  # of the expert that every row takes

    def spec(self, whole: ModelSpec) -> ModelSpec:
        """The model as the rank's layers see it."""
        experts = whole.experts
        if experts is not None:
            experts = msgspec.structs.replace(experts, shared=self.shared.size)
        return msgspec.structs.replace(
            whole,
            heads=self.heads.size,
            kv_heads=self.kv_heads.size,
            intermediate=self.intermediate.size,
            vocabulary=self.vocabulary.size,
            experts=experts,
        )


def shares_of(spec: ModelSpec, ranks: int) -> tuple[Share, ...]:
    """The share of every rank; raises ModelError, with the numbers, if heads cannot be shared
    so."""
    shared = spec.experts.shared if spec.experts else 0
    if ranks == 1:
        return (
            Share(
                Range(0, spec.heads),
                Range(0, spec.kv_heads),
                Range(0, spec.intermediate),
                Range(0, spec.vocabulary),
                Range(0, shared),
            ),
        )
    heads, kv_heads = _heads(spec, ranks)
    columns = _split("intermediate size", spec.intermediate, _MLP_UNITS, ranks)
    tokens = _split("vocabulary", spec.vocabulary, _TOKEN_UNITS, ranks)
    everybodys = [Range(0, 0)] * ranks
    if shared:
        everybodys = _split(
            "shared expert's intermediate size", shared, _MLP_UNITS, ranks
        )
    return tuple(map(Share, heads, kv_heads, columns, tokens, everybodys))


def specs_of(spec: ModelSpec, ranks: int) -> tuple[ModelSpec, ...]:
    """The model as the layers of each rank see it; raises as shares_of does."""
    return tuple([share.spec(spec) for share in shares_of(spec, ranks)])


def rows_of(rows: int, rank: int, ranks: int) -> slice:
    """The rows of a step that a rank hands to the next stage; together the ranks hand over all."""
    return slice(rows * rank // ranks, rows * (rank + 1) // ranks)


def _heads(spec: ModelSpec, ranks: int) -> tuple[list[Range], list[Range]]:
    """Heads and KV heads of every rank."""
    together = spec.heads // spec.kv_heads  # heads that read one KV head
    if ranks <= spec.kv_heads:
        kv_heads = _evenly(spec.kv_heads, 1, ranks)
        return [mine.times(together) for mine in kv_heads], kv_heads
    if spec.heads % ranks or ranks % spec.kv_heads:
        some = range(spec.kv_heads + 1, spec.heads + 1)
        more = [str(n) for n in some if not spec.heads % n and not n % spec.kv_heads]
        allowed = ", ".join([f"1 to {spec.kv_heads}", *more])
        raise ModelError(
            f"parallel.tp is {ranks}, but the model has {spec.heads} heads, {together} to each of "
            f"its {spec.kv_heads} KV heads: allowed is {allowed}"
        )
    copies = ranks // spec.kv_heads
    kv_heads = [Range(rank // copies, rank // copies + 1) for rank in range(ranks)]
    return _evenly(spec.heads, 1, ranks), kv_heads


def _split(what: str, size: int, units: tuple[int, ...], ranks: int) -> list[Range]:
    if size < ranks:
        raise ModelError(f"parallel.tp is {ranks}, but the model's {what} is {size}")
    for unit in units:
        if size % unit == 0 and size >= unit * ranks:
            parts = _evenly(size, unit, ranks)
            largest = max([part.size for part in parts])
            if unit == units[-1] or largest * ranks <= size * (1 + _MOST_ABOVE_MEAN):
                return parts
    raise AssertionError("the last unit is 1")


def _evenly(size: int, unit: int, ranks: int) -> list[Range]:
    """As even as whole units can be; the first ranks get one more."""
    each, more = divmod(size // unit, ranks)
    parts = []
    first = 0
    for rank in range(ranks):
        stop = first + (each + (rank < more)) * unit
        parts.append(Range(first, stop))
        first = stop
    return parts
