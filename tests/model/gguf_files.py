"""Writes small GGUF files, as llama.cpp's converter would."""

from __future__ import annotations

import gguf

from medha_actors.model.gguf_weights import gguf_name

SMALL = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}


def write(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def convert(
    model,
    path,
    name,
    rope_divisors=None,
    keys=None,
    tensors=None,
    part_tensors=0,
    kinds=None,
    words=(),
):
    """A model of transformers as a file of architecture `name`.

    `keys` are added (without the architecture's name), `tensors` replaced (None: left out);
    `part_tensors`: the file is split into parts of so many; `kinds`: of tensors that are given as
    stored blocks; `words`: the texts of its tokens, which llama.cpp insists on.
    """
    config = model.config
    heads = config.num_attention_heads
    kv_heads = config.num_key_value_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer = gguf.GGUFWriter(path, name, split_max_tensors=part_tensors)
    given = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": dim,
        "attention.value_length": dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_parameters["rope_theta"],
        **(keys or {}),
    }
    for key, value in given.items():
        add(writer, f"{name}.{key}", value)
    writer.add_eos_token_id(3)
    writer.add_eot_token_id(5)
    if words:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(list(words))
        writer.add_token_scores([0.0] * len(words))
        writer.add_token_types([gguf.TokenType.NORMAL] * len(words))
    stored = {}
    for key, values in _each(model.state_dict()):
        for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if name == "llama" and part in key:
                values = (
                    values.view(count, 2, dim // 2, -1)
                    .transpose(1, 2)
                    .reshape(values.shape)
                )
        if key != "lm_head.weight" or not config.tie_word_embeddings:
            stored[gguf_name(key)] = values.numpy()
    if rope_divisors is not None:
        stored["rope_freqs.weight"] = rope_divisors.numpy()
    for key, values in {**stored, **(tensors or {})}.items():
        if values is not None:
            kind = (kinds or {}).get(key)
            raw = None if kind is None else gguf.GGMLQuantizationType(kind)
            writer.add_tensor(key, values, raw_dtype=raw)
    write(writer)


def _each(state):
    """Tensors as files name them; transformers holds the gate and up of all experts as one."""
    for key, values in state.items():
        if key.endswith("gate_up_proj"):
            stem = key.removesuffix("gate_up_proj")
            for part, half in zip(("gate", "up"), values.chunk(2, 1), strict=True):
                yield f"{stem}0.{part}_proj.weight", half.contiguous()
        elif key.endswith("experts.down_proj"):
            yield key.replace("down_proj", "0.down_proj.weight"), values
        else:
            yield key, values


def add(writer, key, value):
    """One key with the type that its value has in such files."""
    kinds = {
        bool: gguf.GGUFValueType.BOOL,
        int: gguf.GGUFValueType.UINT32,
        float: gguf.GGUFValueType.FLOAT32,
        str: gguf.GGUFValueType.STRING,
        list: gguf.GGUFValueType.ARRAY,
    }
    writer.add_key_value(key, value, kinds[type(value)])
