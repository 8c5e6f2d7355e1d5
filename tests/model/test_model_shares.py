"""How a model is cut for tensor ranks, and that every kind of file gives the parts of its whole."""

from __future__ import annotations

import itertools
import logging

import msgspec
import pytest
import torch

from medha_actors.config import ModelLoadingConfig, RandomWeights
from medha_actors.errors import ModelError
from medha_actors.model.cut import Cut
from medha_actors.model.rank_weights import RankWeights
from medha_actors.model.shapes import tensor_shapes
from medha_actors.model.spec import load_spec
from medha_actors.model.weights import open_weights
from medha_actors.model_shares import Range, rows_of, shares_of, specs_of
from tests.tiny_llama import tiny_llama

EMBEDDED = load_spec(ModelLoadingConfig())


def sized(**numbers):
    return msgspec.structs.replace(EMBEDDED, **numbers)


def test_the_parts_of_all_ranks_are_the_whole():
    for ranks in (1, 2, 3):
        shares = shares_of(EMBEDDED, ranks)
        for name in ("heads", "kv_heads", "intermediate", "vocabulary"):
            parts = [getattr(share, name) for share in shares]
            assert parts[0].first == 0
            assert parts[-1].stop == getattr(EMBEDDED, name)
            assert all(a.stop == b.first for a, b in itertools.pairwise(parts))


def test_heads_go_with_their_kv_heads():
    """Whole KV heads, so that an odd number of them makes uneven ranks."""
    two = shares_of(EMBEDDED, 2)
    assert [share.heads for share in two] == [Range(0, 6), Range(6, 9)]
    assert [share.kv_heads for share in two] == [Range(0, 2), Range(2, 3)]
    assert [spec.heads for spec in specs_of(EMBEDDED, 3)] == [3, 3, 3]


def test_kv_heads_are_there_several_times_where_ranks_are_more():
    shares = shares_of(sized(heads=8, kv_heads=2), 4)
    assert [share.heads for share in shares] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert [share.kv_heads for share in shares] == [(0, 1), (0, 1), (1, 2), (1, 2)]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "ranks", "allowed"),
    [
        (9, 3, 4, "9 heads, 3 to each of its 3 KV heads: allowed is 1 to 3, 9"),
        (4, 2, 3, "4 heads, 2 to each of its 2 KV heads: allowed is 1 to 2, 4"),
        (32, 8, 12, "32 heads, 4 to each of its 8 KV heads: allowed is 1 to 8, 16, 32"),
        (32, 8, 64, "parallel.tp is 64"),
    ],
)
def test_heads_that_cannot_be_shared_are_refused_with_the_numbers(
    heads, kv_heads, ranks, allowed
):
    with pytest.raises(ModelError, match=allowed):
        shares_of(sized(heads=heads, kv_heads=kv_heads), ranks)


def test_a_model_smaller_than_its_ranks_is_refused():
    with pytest.raises(ModelError, match="but the model's intermediate size is 2"):
        shares_of(sized(intermediate=2), 3)


@pytest.mark.parametrize(
    ("size", "ranks", "parts"),
    [
        (1536, 2, [768, 768]),
        (1536, 4, [384] * 4),  # blocks of 256 would make 512 and 256
        (11_008, 2, [5632, 5376]),  # 43 blocks of 256: within an eighth
        (64, 2, [32, 32]),
        (96, 2, [48, 48]),  # one block of 32 more would be half as much again
        (64, 3, [22, 21, 21]),
    ],
)
def test_the_mlp_is_cut_at_blocks_if_that_is_nearly_even(size, ranks, parts):
    shares = shares_of(sized(intermediate=size, heads=12, kv_heads=12), ranks)
    assert [share.intermediate.size for share in shares] == parts


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 48, 1000])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_rows_are_handed_over_once(rows, ranks):
    taken = []
    for rank in range(ranks):
        taken += range(rows)[rows_of(rows, rank, ranks)]
    assert taken == list(range(rows))


def joined(whole, spec, name, ranks):
    """The tensor `name` put together from what each rank reads."""
    parts = []
    for rank, share in enumerate(shares_of(spec, ranks)):
        parts.append(
            RankWeights(whole, spec, share, rank == 0).tensor(name, torch.float32)
        )
    if name.endswith("norm.weight"):
        return parts[0]
    if name.endswith(("o_proj.bias", "down_proj.bias")):
        return sum(parts)
    columns = name.endswith(("o_proj.weight", "down_proj.weight"))
    return torch.cat(parts, 1 if columns else 0)


def folder_source(tmp_path):
    tiny_llama(tmp_path, vocabulary=160, length=64, seed=3)
    return ModelLoadingConfig(model_source=str(tmp_path))


SOURCES = {
    "embedded": (lambda _: ModelLoadingConfig(), 3),
    "embedded, uneven": (lambda _: ModelLoadingConfig(), 2),
    "random": (
        lambda _: ModelLoadingConfig(model_source="random", random=RandomWeights()),
        2,
    ),
    "safetensors": (folder_source, 2),
}


@pytest.mark.parametrize("source", SOURCES)
def test_ranks_read_the_parts_of_every_tensor(source, tmp_path):
    make, ranks = SOURCES[source]
    config = make(tmp_path)
    spec = load_spec(config)
    whole = open_weights(spec, config)
    for name in tensor_shapes(spec):
        if ".layers." not in name or ".layers.1." in name:
            expected = whole.tensor(name, torch.float32)
            assert torch.equal(joined(whole, spec, name, ranks), expected), name


@pytest.mark.parametrize("matrix", ["q_proj", "o_proj", "down_proj", "up_proj"])
def test_blocks_are_cut_as_they_are_stored(matrix):
    """Without a value being worked out: the parts' bytes are the whole's."""
    whole = open_weights(EMBEDDED, ModelLoadingConfig())
    room = "mlp" if matrix in ("down_proj", "up_proj") else "self_attn"
    name = f"model.layers.0.{room}.{matrix}.weight"
    parts = []
    for share in shares_of(EMBEDDED, 2):
        parts.append(RankWeights(whole, EMBEDDED, share, False).blocks(name))
    expected, kind = whole.blocks(name)
    columns = matrix in ("o_proj", "down_proj")
    assert {part[1] for part in parts} == {kind}
    assert torch.equal(
        torch.cat([part[0] for part in parts], 1 if columns else 0), expected
    )


def test_a_cut_inside_blocks_dequantises_and_says_so(caplog):
    whole = open_weights(EMBEDDED, ModelLoadingConfig())
    name = "model.layers.0.mlp.down_proj.weight"
    cut = Cut("columns", Range(48, 112))
    with caplog.at_level(logging.WARNING, "medha.model"):
        assert whole.blocks(name, cut) is None
    assert "inputs 48 to 112 are no whole blocks of 32" in caplog.text
    expected = whole.tensor(name, torch.float32)[:, 48:112]
    assert torch.equal(whole.tensor(name, torch.float32, cut), expected)
