"""Cuts the attention of a step into items of work for the kernel: plain numbers, no device.

A tile is a few rows of one sequence, with all query heads of a key head as rows beside each other
("packed" rows: rows x share). Where tiles are too few to fill the processors, their keys are cut
into pieces too, and what comes of the pieces is merged. Cuts depend on a sequence's own numbers
alone, so that a result does not depend on what is batched beside it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]

ALIGNED_KEYS = 128  # where pieces may begin: a multiple of every block of keys
MOST_PIECES = 64
HEADER = 1  # rows of `work` before the first item
_MANY_WAVES = 8  # so many rounds of all processors are even enough without pieces


class Tiles(NamedTuple):
    """What the cuts depend on besides the sequences; the same for all steps of a stage."""

    share: int  # query heads of a key head
    kv_heads: int
    narrow: int  # packed rows of a tile for sequences of few rows, at least `share`
    middle: int  # of those that fit into one such tile
    wide: int  # of all others
    processors: int
    uncut: int = 2048  # so many keys are never cut into pieces
    shortest: int = 512  # keys of a piece, at least


class Work(NamedTuple):
    """The items of a step, `work` int32 [HEADER + items, 5]: sequence, first row within it, first
    key, stop key, slot of the partial result (-1: the result is whole). Its first row tells how
    many there are: items, wide items (they come first), merges, items of middle tiles (they come
    next), 0.

    `merges` int32 [merges, 4]: first row of the step, rows, first slot, pieces. Piece p of row r
    lies in slot `first slot + p * rows + r`.
    """

    work: Ints
    merges: Ints
    wide: int  # items that are not narrow
    slots: int  # that partial results need


def plan_work(sequences: NDArray[np.integer], tiles: Tiles) -> Work:
    """Work on `sequences` [n, 4]: first row, rows, cached, writes (0 or 1), rows >= 1.

    Every row belongs to one tile, and its keys to the pieces of that tile; a row that sees nothing
    has an item without keys, so that its result is written too.
    """
    first, rows, cached, writes = np.asarray(sequences, np.int64).reshape(-1, 4).T
    sizes = np.array([tiles.wide, tiles.middle, tiles.narrow]) // tiles.share
    kind = (rows <= sizes[1]).astype(np.int64) + (
        rows <= sizes[2]
    )  # the places in `sizes`
    tile_rows = sizes[kind]
    counts = -(-rows // tile_rows)
    piece_keys = _piece_keys(cached + rows * writes, counts, kind, tiles)

    owner, tile = _spread(counts)
    tile_first = tile * tile_rows[owner]
    tile_stop = np.minimum(tile_first + tile_rows[owner], rows[owner])
    tile_size = tile_stop - tile_first
    seen = cached[owner] + writes[owner] * tile_stop
    pieces = np.maximum(-(-seen // piece_keys[owner]), 1)
    split = pieces > 1
    needed = np.where(split, pieces * tile_size, 0)
    first_slots = np.cumsum(needed) - needed
    slots = int(needed.sum())

    tile_of, piece = _spread(pieces)
    sequence = owner[tile_of]
    first_key = piece * piece_keys[sequence]
    stop_key = np.minimum(first_key + piece_keys[sequence], seen[tile_of])
    slot = np.where(
        split[tile_of], first_slots[tile_of] + piece * tile_size[tile_of], -1
    )
    kinds = kind[sequence]
    order = _order(kinds, stop_key - first_key, piece, tile[tile_of])

    wide, middle, _ = np.bincount(kinds, minlength=3).tolist()
    work = np.zeros((HEADER + len(order), 5), np.int32)
    work[0, :4] = len(order), wide, int(split.sum()), middle
    for column, values in enumerate(
        (sequence, tile_first[tile_of], first_key, stop_key, slot)
    ):
        work[HEADER:, column] = values[order]
    merged = (first[owner] + tile_first, tile_size, first_slots, pieces)
    merges = np.stack(merged, 1)[split].astype(np.int32)
    return Work(work, merges, wide + middle, slots)


def most_work(rows: int, tiles: Tiles) -> tuple[int, int, int]:
    """The most that `rows` sequences of one row each can need: rows of `work`, merges, slots."""
    pieces = int(_best_pieces(tiles.kv_heads, 2 * tiles.processors)[1].max())
    return HEADER + rows * pieces, rows, rows * pieces


def _piece_keys(
    keys: NDArray[np.int64],
    counts: NDArray[np.int64],
    kind: NDArray[np.int64],
    tiles: Tiles,
) -> NDArray[np.int64]:
    """Keys of a piece, for each sequence."""
    most = np.where(keys > tiles.uncut, keys // tiles.shortest, 1)
    most = np.clip(most, 1, MOST_PIECES)
    # two tiles that are not wide share a processor
    few = _best_pieces(tiles.kv_heads, 2 * tiles.processors)
    many = _best_pieces(tiles.kv_heads, tiles.processors)
    pieces = np.where(
        kind > 0,
        few[np.minimum(counts, len(few) - 1), most],
        many[np.minimum(counts, len(many) - 1), most],
    )
    aligned: NDArray[np.int64] = -(-keys // (pieces * ALIGNED_KEYS)) * ALIGNED_KEYS
    return aligned.clip(ALIGNED_KEYS)


@functools.lru_cache(maxsize=16)
def _best_pieces(kv_heads: int, places: int) -> NDArray[np.int64]:
    """[tiles, most pieces] -> pieces with which the tiles of a sequence, alone, take the fewest
    rounds of `places`; of many tiles none is cut."""
    tiles = np.arange(_MANY_WAVES * places // kv_heads + 2)[:, None]
    pieces = np.arange(1, MOST_PIECES + 1)
    rounds = np.ceil(tiles * kv_heads * pieces / places)
    cost = rounds / pieces * (1 + 0.01 * pieces)  # each piece has a price
    best = np.ones((len(tiles), MOST_PIECES + 1), np.int64)
    for most in range(1, MOST_PIECES + 1):
        best[:, most] = cost[:, :most].argmin(1) + 1
    best[-1] = 1
    return best


def _spread(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts [n] -> for each of their sum: its owner, and its place among the owner's."""
    owner = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(counts) - counts
    return owner, np.arange(len(owner)) - before[owner]


def _order(
    kind: NDArray[np.int64],
    keys: NDArray[np.int64],
    piece: NDArray[np.int64],
    tile: NDArray[np.int64],
) -> NDArray[np.intp]:
    """Wide tiles first, and of a kind the longest; those that read the same keys side by side."""
    longest = (kind << 31) + (2**31 - 1 - keys)
    return np.argsort(
        (longest << 29) + (piece << 22) + tile, kind="stable"
    )  # in 62 bits
