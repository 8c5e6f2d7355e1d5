"""Pages of each group, and configurations that memory cannot hold, refused with the numbers."""

import msgspec
import pytest

from medha_actors.actors.capacity import pages_of, refuse_impossible, slots_of
from medha_actors.actors.cells import Cell
from medha_actors.actors.local import engine
from medha_actors.actors.plans import Place
from medha_actors.config import load
from medha_actors.errors import ConfigError
from medha_actors.model.spec import load_spec
from medha_actors.model_shares import specs_of
from medha_actors.model_spec import Experts, kv_bytes_per_token

TOKEN_BYTES = 1000


def config_of(cutoff=None, longest=None, kvp=2, budget=2**21):
    return load(
        {
            "model_loading_config": {
                "model_source": "random",
                "dtype": "float32",
                "max_model_len_tokens": longest,
            },
            "parallel": {"spp": 1, "kvp": kvp, "max_tokens_per_kvp_group": cutoff},
            "kv_cache": {"budget_bytes": budget, "page_tokens": 64},
        }
    )


def test_a_piece_larger_than_a_group_is_refused():
    refuse_impossible(config_of(cutoff=640), 10, TOKEN_BYTES)
    with pytest.raises(
        ConfigError,
        match=r"max_tokens_per_kvp_group is 641, .* 640 tokens \(10 pages of 64 tokens, "
        r"1000 bytes a token .*budget_bytes of 704000 or more",
    ):
        refuse_impossible(config_of(cutoff=641), 10, TOKEN_BYTES)
    # one group has no pieces
    refuse_impossible(config_of(cutoff=641, kvp=1), 10, TOKEN_BYTES)


@pytest.mark.parametrize(
    ("cutoff", "kvp", "most", "pages_needed"),
    [(None, 1, 640, 11), (None, 3, 1920, 11), (64, 3, 768, 11)],
)
def test_a_context_longer_than_the_pieces_is_refused(cutoff, kvp, most, pages_needed):
    refuse_impossible(config_of(cutoff, most, kvp), 10, TOKEN_BYTES)
    too_long = config_of(cutoff, most + 1, kvp)
    with pytest.raises(ConfigError) as caught:
        refuse_impossible(too_long, 10, TOKEN_BYTES)
    for number in (
        f"is {most + 1},",
        f"at most {most} of them in {kvp} ",
        f"of {pages_needed * 64 * TOKEN_BYTES} or",
    ):
        assert number in str(caught.value)
    # what the message asks for is enough
    refuse_impossible(too_long, pages_needed, TOKEN_BYTES)


def test_a_budget_without_a_page_is_refused():
    with pytest.raises(
        ConfigError, match=r"0 pages of 64 .*budget_bytes of 64000 or more"
    ):
        refuse_impossible(config_of(), 0, TOKEN_BYTES)


@pytest.mark.parametrize("cutoff", [0, -5])
def test_a_cutoff_that_is_not_positive_is_refused(cutoff):
    with pytest.raises(
        ConfigError,
        match=rf"args: parallel.max_tokens_per_kvp_group is {cutoff}, allowed is 1 to",
    ):
        config_of(cutoff=cutoff)


def test_more_running_requests_than_a_batch_has_rows_is_refused():
    with pytest.raises(
        ConfigError, match=r"max_running_requests is 4096, allowed is 1 to 4095"
    ):
        load({"scheduler": {"max_running_requests": 4096, "max_batch_tokens": 4096}})


def test_the_stage_with_the_most_layers_decides():
    config = config_of()
    here = Place("node", (0,), 2**30, None)
    spec = load_spec(config.model_loading_config)
    token_bytes = kv_bytes_per_token(spec, (0, 3), "float32")
    pages = pages_of(
        config, spec, [(0, 3), (3, 4)], "float32", {Cell(0, 0): here, Cell(1, 0): here}
    )
    assert pages == 2**21 // (64 * token_bytes)


def test_without_a_budget_actors_share_the_free_memory_of_their_node():
    config = config_of(budget=None)
    spec = load_spec(config.model_loading_config)
    nodes = {Cell(0, 0): "a", Cell(0, 1): "a", Cell(1, 0): "b"}
    places = {cell: Place(node, (0,), 2**26, None) for cell, node in nodes.items()}
    page_bytes = 64 * kv_bytes_per_token(spec, (0, 2), "float32")
    assert (
        pages_of(config, spec, [(0, 2), (2, 4)], "float32", places)
        == 2**26 // 4 // 2 // page_bytes
    )


def test_a_gpu_holds_all_experts_of_its_layers_or_says_so():
    config = config_of(budget=None, kvp=1)
    dense = load_spec(config.model_loading_config)
    experts = Experts(count=64, used=2, normalised=True)
    spec = msgspec.structs.replace(dense, experts=experts)
    layers = [(0, 4)]
    tables = 2 * spec.vocabulary * spec.hidden
    weights = 4 * (4 * spec.layer_parameters + tables)
    assert weights > 4 * 4 * 64 * spec.mlp_parameters
    page_bytes = 64 * kv_bytes_per_token(spec, (0, 4), "float32")
    place = Place("a", (0,), weights + 100 * page_bytes, "a GPU")
    assert pages_of(config, spec, layers, "float32", {Cell(0, 0): place}) == 85
    full = Place("a", (0,), weights, "a GPU")
    with pytest.raises(
        ConfigError,
        match=rf"spp is 1: the 4 layers .* 64 experts take {weights} bytes in float32",
    ):
        pages_of(config, spec, layers, "float32", {Cell(0, 0): full})
    assert pages_of(config, dense, layers, "float32", {Cell(0, 0): full}) > 85


@pytest.mark.parametrize(("kv_heads", "most"), [(2, 1), (3, 2), (1, 1)])
def test_the_rank_with_the_most_kv_heads_decides(kv_heads, most):
    """Of two ranks; a KV head that both read is in both caches."""
    sizes = {"heads": 6, "kv_heads": kv_heads}
    model = {"model_source": "random", "random": sizes}
    config = load(
        {
            "model_loading_config": model,
            "parallel": {"spp": 1, "tp": 2},
            "kv_cache": {"budget_bytes": 2**21, "page_tokens": 64},
        }
    )
    spec = load_spec(config.model_loading_config)
    places = {Cell(0, 0, rank): Place("node", (0,), 2**30, None) for rank in range(2)}
    token_bytes = kv_bytes_per_token(spec, (0, 4), "float32") * most // kv_heads
    assert pages_of(config, spec, [(0, 4)], "float32", places) == 2**21 // (
        64 * token_bytes
    )


@pytest.mark.parametrize("tp", [0, 65])
def test_a_number_of_ranks_out_of_bounds_is_refused(tp):
    with pytest.raises(ConfigError, match=rf"parallel.tp is {tp}, allowed is 1 to 64"):
        load({"parallel": {"tp": tp}})


async def test_a_start_that_cannot_fit_ends_with_the_numbers(cluster):
    args = {
        "model_loading_config": {
            "model_source": "random",
            "dtype": "float32",
            "max_model_len_tokens": 100_000,
        },
        "parallel": {"spp": 1, "kvp": 2},
        "actors": {"num_cpus": 0.5},
        "kv_cache": {"budget_bytes": 2**21},
    }
    with pytest.raises(
        Exception,
        match=r"max_model_len_tokens is 100000, .* at most 4096 of them .*_bytes of 51249152",
    ):
        async with engine(args):
            pass


def test_slots_of_the_second_tier_are_those_of_the_largest_stage():
    config = load(
        {
            "model_loading_config": {"model_source": "random", "random": {"layers": 5}},
            "kv_cache": {"host_bytes": 2**20, "page_tokens": 64},
        }
    )
    spec = load_spec(config.model_loading_config)
    page_bytes = 64 * kv_bytes_per_token(spec, (0, 3), "float32")
    assert (
        slots_of(config, spec, [(0, 3), (3, 5)], "float32") == 2**20 // page_bytes > 0
    )
    assert slots_of(load({"parallel": {}}), spec, [(0, 5)], "float32") == 0


def test_a_slot_holds_what_the_rank_with_the_most_kv_heads_has_of_a_page():
    model = {
        "model_source": "random",
        "random": {"layers": 4, "heads": 6, "kv_heads": 3},
    }
    cache = {"host_bytes": 2**20, "page_tokens": 64}
    config = load(
        {
            "model_loading_config": model,
            "parallel": {"tp": 2, "spp": 1},
            "kv_cache": cache,
        }
    )
    spec = load_spec(config.model_loading_config)
    page_bytes = 64 * kv_bytes_per_token(spec, (0, 4), "float32") * 2 // 3
    assert slots_of(config, spec, [(0, 4)], "float32") == 2**20 // page_bytes > 0


def test_a_rank_of_a_mixture_holds_its_part_of_every_expert():
    config = load(
        {
            "model_loading_config": {"model_source": "random"},
            "parallel": {"tp": 2, "spp": 1},
            "kv_cache": {"page_tokens": 64},
        }
    )
    dense = load_spec(config.model_loading_config)
    experts = Experts(count=64, used=2, normalised=True, shared=128)
    spec = msgspec.structs.replace(dense, experts=experts)
    rank = specs_of(spec, 2)[0]
    weights = 4 * (4 * rank.layer_parameters + 2 * rank.vocabulary * rank.hidden)
    routers = 4 * 4 * 64 * spec.hidden  # the rest is halved
    assert 2 * (weights - routers) + routers == 4 * (
        4 * spec.layer_parameters + 2 * spec.vocabulary * spec.hidden
    )
    full = {
        Cell(0, 0, number): Place("a", (0,), weights, "a GPU") for number in range(2)
    }
    with pytest.raises(
        ConfigError,
        match=rf"take {weights} bytes in float32 on one of 2 tensor ranks, but",
    ):
        pages_of(config, spec, [(0, 4)], "float32", full)


def test_a_second_tier_without_a_prefix_cache_is_refused():
    with pytest.raises(
        ConfigError, match=r"kv_cache\.host_bytes is 64, allowed is 0 to 0"
    ):
        load({"kv_cache": {"host_bytes": 64, "prefix_cache": False}})
    with pytest.raises(
        ConfigError, match=r"kv_cache\.host_bytes is 0, allowed is 1 to"
    ):
        load({"kv_cache": {"disk": "/tmp/somewhere"}})
