"""Where the queries, keys and values of a row go once they are rotated, in the form in which the
attention of this machine reads them."""

# ruff: noqa: ANN001, ANN201  (compiled functions take integers and records)
from __future__ import annotations

from medha_actors.model.kernels.attention_rounding import (
    put_key_and_value,
    put_query,
)
from medha_actors.model.kernels.attention_tile import TILE
from medha_actors.model.kernels.glue import put_key, put_value, scaled, to_bfloat
from medha_actors.model.kernels.ir import compiled


@compiled
def store(model, layer, step, row, first, head, slot, constants):
    """Put the queries of one row that share a key head where attention reads them, and its keys and
    values of that head into `slot` (-1: nowhere)."""
    dims = model.head_dim
    share = model.heads // model.kv_heads
    size = 2 if model.bfloat else 4
    place = step.q + ((head * step.rows + row) * share) * dims * model.query_bytes
    source = first + head * share * dims * 4
    if model.integers:
        for number in range(share):
            skip = number * dims * 4
            put_query(source + skip, dims, constants + 4, place + skip)
    elif model.query_bytes == 2:
        to_bfloat(source, share * dims, constants + 4, place)
    else:
        scaled(source, share * dims, constants + 4, place)
    if slot < 0:
        return
    page = slot // model.page_tokens
    offset = slot % model.page_tokens
    tile = layer * model.layer_bytes
    tile += (
        ((page * model.kv_heads + head) * model.page_tokens + offset // TILE * TILE)
        * dims
        * size
    )
    token = offset % TILE
    key = first + (model.heads + head) * dims * 4
    value = key + model.kv_heads * dims * 4
    if model.integers:
        pair = token // 32 * 16 + token % 16
        place = tile + (pair * dims * 2 + token // 16 % 2) * 2
        keys = model.keys + tile + token * 4
        put_key_and_value(key, value, dims, keys, model.values + place)
        return
    put_key(key, dims, TILE * 4, model.bfloat, model.keys + tile + token * 4)
    if model.bfloat:
        put_value(
            value,
            dims,
            1,
            model.values + tile + (token // 2 * dims * 2 + token % 2) * 2,
        )
    else:
        put_value(value, dims, 0, model.values + tile + token * dims * 4)
