"""What a GGUF file says is used, or refused by name: RoPE's keys, parts of a split file, sizes and
shapes of tensors."""

from __future__ import annotations

import shutil

import gguf
import numpy as np
import pytest
import torch
from gguf_files import SMALL, add, convert, write
from stage_driver import GREEDY, Driver
from transformers import LlamaConfig, LlamaForCausalLM

from medha_actors.config import ModelLoadingConfig, RopeScaling
from medha_actors.errors import ModelError
from medha_actors.files.gguf import GgufFile
from medha_actors.model.spec import load_spec


def tiny(**changes):
    """A Llama whose answers differ."""
    torch.manual_seed(2)
    return LlamaForCausalLM(LlamaConfig(**{**SMALL, **changes})).eval()


def spec_of(path):
    return load_spec(ModelLoadingConfig(model_source=str(path)))


def refusal(path):
    with pytest.raises(ModelError) as error:
        spec_of(path)
    assert "\n" not in error.value.message
    return error.value.message


def rope_of(kind, **values):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1000.0, **values}}


LINEAR = rope_of("linear", factor=4.0)
YARN = rope_of("yarn", factor=4.0, original_max_position_embeddings=32)
FAST = rope_of(
    "yarn",
    factor=4.0,
    original_max_position_embeddings=32,
    beta_fast=8.0,
    beta_slow=2.0,
)
LOUD = rope_of(
    "yarn",
    factor=4.0,
    original_max_position_embeddings=32,
    attention_factor=1.25 * (1 + 0.1 * np.log(4.0)),
)
YARN_KEYS = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 32,
    "rope.scaling.finetuned": True,
}


@pytest.mark.parametrize(
    ("keys", "theirs"),
    [
        ({"rope.scale_linear": 4.0}, LINEAR),
        ({"rope.scaling.factor": 4.0}, LINEAR),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, LINEAR),
        ({"rope.scaling.factor": 4.0, "rope.scale_linear": 2.0}, LINEAR),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, rope_of("default")),
        ({"rope.scale_linear": 0.0}, rope_of("default")),
        ({"rope.scaling.type": "linear"}, rope_of("default")),
        (YARN_KEYS, YARN),
        (YARN_KEYS | {"rope.scaling.yarn_ext_factor": 1.0}, YARN),
        (
            YARN_KEYS
            | {"rope.scaling.yarn_beta_fast": 8.0, "rope.scaling.yarn_beta_slow": 2.0},
            FAST,
        ),
        (YARN_KEYS | {"rope.scaling.attn_factor": 1.25}, LOUD),
    ],
)
def test_ropes_keys_are_those_of_llama_cpp(tmp_path, check, keys, theirs):
    model = tiny(**theirs)
    path = tmp_path / "tiny.gguf"
    convert(model, path, "llama", keys=keys)
    driver = Driver(ModelLoadingConfig(model_source=str(path)))
    assert driver.spec.max_positions == 128
    driver.add("r", list(range(1, 100)), GREEDY)
    driver.generate({"r": 8}, 40)
    check(driver.remove("r"), model)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.scaling.type", "longrope"),
        ("rope.scaling.yarn_ext_factor", 0.5),
        ("rope.scaling.yarn_attn_factor", 1.5),
        ("rope.scaling.yarn_log_multiplier", 0.1),
        ("rope.scaling.attn_factor", 1.5),
        ("rope.scaling.factor", -2.0),
        ("rope.scaling.alpha", 1000.0),
        ("rope.dimension_count", 8),
        ("rope.dimension_sections", [4, 2, 2, 0]),
        ("rope.freq_base_swa", 10_000.0),
        ("rope.unheard_of", 1),
        ("attention.clamp_kqv", 8.0),
        ("attention.causal", False),
        ("logit_scale", 0.1),
    ],
)
def test_what_is_not_done_is_refused_by_name(tmp_path, key, value):
    path = tmp_path / "tiny.gguf"
    convert(tiny(), path, "llama", keys={key: value})
    assert f"llama.{key}" in refusal(path)


def test_numbers_that_make_no_sense_are_named(tmp_path):
    path = tmp_path / "tiny.gguf"
    convert(tiny(), path, "llama", keys={"attention.head_count_kv": [2, 1]})
    assert "attention.head_count_kv differs" in refusal(path)
    convert(tiny(), path, "llama", keys={"block_count": 0})
    assert "block_count is 0" in refusal(path)
    convert(tiny(), path, "llama", keys={"attention.value_length": 8})
    assert "values of another length" in refusal(path)
    convert(tiny(), path, "llama", keys={"attention.head_count_kv": [2, 2]})
    assert spec_of(path).kv_heads == 2


def test_a_sliding_window_bounds_the_length(tmp_path):
    """Also where our configuration stretches RoPE."""
    path = tmp_path / "tiny.gguf"
    convert(tiny(), path, "llama", keys={"attention.sliding_window": 50})
    assert spec_of(path).max_positions == 50
    stretched = ModelLoadingConfig(
        model_source=str(path), rope_scaling=RopeScaling(rope_type="yarn", factor=4.0)
    )
    spec = load_spec(stretched)
    assert (spec.rope.original_max_positions, spec.max_positions) == (128, 50)
    with pytest.raises(ModelError, match="sliding window of 50"):
        load_spec(ModelLoadingConfig(model_source=str(path), max_model_len_tokens=51))


def test_tensors_are_checked_against_the_metadata(tmp_path):
    path = tmp_path / "tiny.gguf"
    wrong = np.zeros((95, 64), np.float32)
    convert(tiny(), path, "llama", tensors={"blk.1.ffn_up.weight": wrong})
    assert (
        "blk.1.ffn_up.weight has shape [95, 64]; by the file's metadata it has [96, 64]"
        in (refusal(path))
    )
    convert(tiny(), path, "llama", tensors={"blk.1.attn_norm.weight": None})
    assert "has no tensor blk.1.attn_norm.weight" in refusal(path)
    convert(tiny(), path, "llama", tensors={"token_embd.weight": None})
    assert "token_embd.weight" in refusal(path)
    extra = np.zeros(16, np.float32)
    convert(tiny(), path, "llama", tensors={"blk.0.attn_q_norm.weight": extra})
    assert "blk.0.attn_q_norm.weight is none that a llama has" in refusal(path)
    convert(tiny(), path, "llama", tensors={"rope_freqs.weight": extra})
    assert "rope_freqs.weight has not one value" in refusal(path)
    convert(tiny(), path, "llama", tensors={"blk.0.attn_rot_embd": extra})
    assert spec_of(path).layers == 2


def test_a_file_that_was_cut_off_names_a_tensor(tmp_path):
    path = tmp_path / "tiny.gguf"
    convert(tiny(), path, "llama")
    whole = path.read_bytes()
    for cut in (1, 1000, 50_000):
        path.write_bytes(whole[:-cut])
        said = refusal(path)
        assert "tensor" in said
        assert "it was cut off" in said
    path.write_bytes(whole[:300])
    assert "not a readable GGUF file" in refusal(path)


def test_broken_tensors_are_named(tmp_path):
    path = tmp_path / "one.gguf"
    for kind, shape, says in (
        (gguf.GGMLQuantizationType.Q8_K, (4, 292), "tensor x is of a kind"),
        (gguf.GGMLQuantizationType.Q4_0, (4, 18), None),
    ):
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tensor("x", np.zeros(shape, np.uint8), raw_dtype=kind)
        write(writer)
        if says is None:
            assert GgufFile(path).tensors["x"].shape == (4, 32)
        else:
            with pytest.raises(ModelError, match=says):
                GgufFile(path)
    raw = path.read_bytes()  # 32 columns become 31
    path.write_bytes(
        raw.replace(b"\x20\0\0\0\0\0\0\0\x04\0\0\0", b"\x1f\0\0\0\0\0\0\0\x04\0\0\0")
    )
    with pytest.raises(
        ModelError, match=r"x has shape .4, 31., which Q4_0 cannot store"
    ):
        GgufFile(path)
    for alignment in (0, "eight"):
        writer = gguf.GGUFWriter(path, "llama")
        add(writer, "general.alignment", alignment)
        write(writer)
        with pytest.raises(ModelError, match="alignment"):
            GgufFile(path)


@pytest.fixture
def split(tmp_path):
    """A model and the three parts of its file."""
    model = tiny()
    convert(model, tmp_path / "tiny.gguf", "llama", part_tensors=8)
    parts = sorted(tmp_path.glob("tiny-0000?-of-00003.gguf"))
    assert len(parts) == 3
    return model, parts


def test_a_split_file_is_loaded_whole(split, check, tmp_path):
    """Whichever part is given."""
    model, parts = split
    convert(model, tmp_path / "whole.gguf", "llama")
    whole = GgufFile(tmp_path / "whole.gguf")
    for part in parts:
        file = GgufFile(part)
        assert file.tensors.keys() == whole.tensors.keys()
        for name in whole.tensors:
            assert (file.stored(name) == whole.stored(name)).all()
        assert spec_of(part) == spec_of(tmp_path / "whole.gguf")
    driver = Driver(ModelLoadingConfig(model_source=str(parts[0])), stages=2)
    assert not driver.spec.tied_head
    driver.add("r", list(range(1, 100)), GREEDY)
    driver.generate({"r": 8}, 40)
    check(driver.remove("r"), model)


def test_missing_parts_are_named(split):
    _, parts = split
    parts[1].unlink()
    for part in (parts[0], parts[2]):
        assert "missing: tiny-00002-of-00003.gguf" in refusal(part)
    parts[0].unlink()
    assert "missing: tiny-00001-of-00003.gguf, tiny-00002-of-00003.gguf" in refusal(
        parts[2]
    )


def test_parts_that_do_not_belong_together_are_refused(split, tmp_path):
    _, parts = split
    renamed = tmp_path / "renamed.gguf"
    shutil.copy(parts[0], renamed)
    assert "is one of 3 parts of a split model, but is not named like one" in refusal(
        renamed
    )
    shutil.copy(parts[2], parts[1])
    assert "00002-of-00003.gguf is not part 2 of 3" in refusal(parts[0])
    convert(tiny(), tmp_path / "other.gguf", "llama", part_tensors=7)
    shutil.copy(tmp_path / "other-00002-of-00003.gguf", parts[1])
    assert "twice" in refusal(parts[0])
