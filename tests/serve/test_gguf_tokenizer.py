"""Tokenizers out of GGUF metadata: small ones written here, and the embedded model's if it has been
fetched."""

import struct
from pathlib import Path
from typing import Any

import pytest

from deployments.histories import Message
from deployments.text_sources import gguf_text
from medha_actors.errors import ModelError
from medha_actors.files.embedded import GGUF_NAME
from medha_actors.files.ends import gguf_ends
from medha_actors.files.folders import cache_folder
from medha_actors.files.gguf import GgufFile
from medha_actors.files.spelling import byte_alphabet


def packed(value: Any) -> bytes:
    """A GGUF value with its type."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, str):
        return struct.pack("<IQ", 8, len(value.encode())) + value.encode()
    kind, parts = (
        (6, [struct.pack("<f", x) for x in value])
        if isinstance(value[0], float)
        else (None, [])
    )
    if kind is None:
        kind = struct.unpack("<I", packed(value[0])[:4])[0]
        parts = [packed(part)[4:] for part in value]
    return struct.pack("<IIQ", 9, kind, len(value)) + b"".join(parts)


def write(path: Path, metadata: dict[str, Any], version: int = 3) -> Path:
    pairs = b"".join(packed(key)[4:] + packed(value) for key, value in metadata.items())
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, 0, len(metadata)) + pairs)
    return path


def byte_level(pre: str, merges: list[str]) -> dict[str, Any]:
    tokens = sorted(byte_alphabet(), key=byte_alphabet().__getitem__)
    tokens += [merge.replace(" ", "") for merge in merges]
    tokens += ["<|end|>"]
    return {
        "general.architecture": "llama",
        "llama.context_length": 99,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 1) + [3],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
        "tokenizer.chat_template": "{{ messages[0].content }}{{ eos_token }}",
    }


@pytest.mark.parametrize(
    ("pre", "digits"),
    [
        ("smollm", ["1", "2", "3", "4"]),
        ("qwen2", ["1", "2", "3", "4"]),
        ("llama-bpe", ["123", "4"]),
        ("gpt-2", ["1234"]),
    ],
)
async def test_byte_level(tmp_path: Path, pre: str, digits: list[str]) -> None:
    merges = ["1 2", "12 3", "123 4", "h i"]
    text = gguf_text(write(tmp_path / "m.gguf", byte_level(pre, merges)))
    ids = await text.encode("hi1234<|end|>")
    assert [text.table.text_of(i) for i in ids] == ["hi", *digits, "<|end|>"]
    assert (text.context_tokens, text.eos_token_ids) == (99, (len(merges) + 256,))
    assert (
        text.template.render([Message(role="user", content="x")], True, {})
        == "x<|end|>"
    )
    assert await text.decode(await text.encode("héllo \n wörld")) == "héllo \n wörld"


async def test_sentencepiece(tmp_path: Path) -> None:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = ["\u2581", "a", "b", "ab", "\u2581a", "\u2581ab"]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens + words,
        "tokenizer.ggml.scores": [0.0] * len(tokens)
        + [-9.0, -9.0, -9.0, -1.0, -2.0, -3.0],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(words),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    text = gguf_text(write(tmp_path / "m.gguf", metadata))
    ids = await text.encode("ab aé")
    assert [text.tokenizer.id_to_token(i) for i in ids] == [
        "<s>",
        "\u2581ab",
        "\u2581a",
        "<0xC3>",
        "<0xA9>",
    ]
    assert await text.decode(ids[1:]) == "ab aé"
    detokenizer = text.detokenizer()
    # mid-sequence, so its space counts
    assert "".join(map(detokenizer.push, ids)) == " ab aé"


def ends_of(path: Path) -> tuple[int, ...]:
    """The same for the text side and for the engine, which does not read the vocabulary."""
    ends = gguf_text(path).eos_token_ids
    assert gguf_ends(GgufFile(path)) == gguf_ends(GgufFile(path, texts=True)) == ends
    return ends


def with_tokens(*texts: str, types: int = 3, **named: int) -> dict[str, Any]:
    """Metadata with more tokens behind the 257 of `byte_level`; `named`: eos, eot, eom."""
    metadata = byte_level("llama-bpe", [])
    metadata["tokenizer.ggml.tokens"] += texts
    metadata["tokenizer.ggml.token_type"] += [types] * len(texts)
    for key in ("merges", "eos_token_id"):
        del metadata[f"tokenizer.ggml.{key}"]
    return metadata | {
        f"tokenizer.ggml.{name}_token_id": i for name, i in named.items()
    }


def test_a_llama_3_file_that_names_the_wrong_end_stops_at_the_end_of_a_turn(
    tmp_path: Path,
) -> None:
    texts = ("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|start_header_id|>")
    path = write(tmp_path / "m.gguf", with_tokens(*texts, eos=257))
    # 256 is <|end|>, of every file written here
    assert ends_of(path) == (257, 256, 258, 259)


@pytest.mark.parametrize(
    ("metadata", "ends"),
    [
        (
            with_tokens("a", "b", "c", types=1, eos=257, eot=258, eom=259),
            (257, 258, 259, 256),
        ),
        (with_tokens("<|im_start|>", "<|im_end|>", eos=258, eot=258), (258, 256)),
        (with_tokens("</s>", "<end_of_turn>", "<|endoftext|>"), (256, 257, 258, 259)),
        (with_tokens("</s>", "<|im_end|>", types=1), (256,)),
        (with_tokens("</s>", "<|im_end|>", types=4), (256,)),
        (with_tokens(eos=7), (7, 256)),
    ],
)
def test_the_ends_that_a_file_names_or_that_are_well_known(
    tmp_path: Path, metadata: dict[str, Any], ends: tuple[int, ...]
) -> None:
    """Only where they are control tokens: a text of markup may be an ordinary token."""
    assert ends_of(write(tmp_path / "m.gguf", metadata)) == ends


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer.ggml.model": "bert"},
        {"tokenizer.ggml.pre": "martian"},
        {"tokenizer.ggml.tokens": ""},
    ],
)
def test_unknown_kinds_say_so(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        gguf_text(write(tmp_path / "m.gguf", byte_level("gpt-2", ["h i"]) | change))


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer.ggml.merges": ["h notthere"]},
        {"tokenizer.ggml.token_type": [1]},
        {"tokenizer.ggml.bos_token_id": 99_999, "tokenizer.ggml.add_bos_token": True},
    ],
)
def test_broken_tokenizers_say_so(tmp_path: Path, change: dict[str, Any]) -> None:
    path = write(tmp_path / "m.gguf", byte_level("gpt-2", ["h i"]) | change)
    with pytest.raises(ModelError, match="its tokenizer is broken"):
        gguf_text(path)


def test_broken_files(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", byte_level("gpt-2", ["h i"]))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ModelError):
        GgufFile(path, texts=True)
    with pytest.raises(ModelError):
        GgufFile(write(path, {}, version=1))


@pytest.mark.skipif(
    not (cache_folder() / GGUF_NAME).is_file(),
    reason="the embedded model is not downloaded",
)
async def test_embedded_model() -> None:
    """Ids as in the model's own tokenizer.json (digits one by one), checked once against
    transformers by hand."""
    text = gguf_text(cache_folder() / GGUF_NAME)
    assert (text.vocabulary, text.eos_token_ids, text.context_tokens) == (
        49152,
        (2, 0),
        8192,
    )
    ids = await text.encode("Hello world 123  café 日本 <|im_start|>user")
    assert ids == [
        19556,
        905,
        216,
        33,
        34,
        35,
        216,
        37366,
        17097,
        241,
        115,
        40993,
        216,
        1,
        4093,
    ]
    rendered = text.template.render([Message(role="user", content="hi")], True, {})
    assert rendered.startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM"
    )
    assert rendered.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    for sample in ("Don't  stop\n\n\tme 42!", "日本語 тест 😀👩‍👩‍👧", "\u0301 é\r\n"):
        ids = await text.encode(sample)
        detokenizer = text.detokenizer()
        assert (
            "".join([*map(detokenizer.push, ids), detokenizer.flush()])
            == sample
            == await text.decode(ids)
        )
