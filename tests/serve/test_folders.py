"""Folders in Hugging Face layout, as the text side and the engine read them."""

import json
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig

from deployments.text_sources import directory_text, toy_text
from medha_actors.config import ModelLoadingConfig
from medha_actors.errors import ModelError
from medha_actors.model.spec import load_spec


def save(folder, name: str, value: dict) -> None:
    (folder / name).write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ({"eos_token_id": [5, 7]}, {"eos_token_id": 9}, (5, 7, 256)),
        ({"eos_token_id": 5}, {}, (5, 256)),
        ({"eos_token_id": None}, {"eos_token_id": [9, 256]}, (9, 256)),
        ({}, {"eos_token_id": 9}, (9, 256)),
        ({}, {}, (256,)),
    ],
)
@pytest.mark.parametrize("decoder", [False, True])
def test_both_sides_know_the_same_ends(
    tmp_path, generation, config, ends, decoder
) -> None:
    toy_text(300).tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings = {"eos_token": {"content": "<eos>"}}
    if decoder:
        settings["added_tokens_decoder"] = {"256": {"content": "<eos>"}}
    save(tmp_path, "tokenizer_config.json", settings)
    save(tmp_path, "generation_config.json", generation)
    small = LlamaConfig(num_hidden_layers=1).to_dict() | {
        "architectures": ["LlamaForCausalLM"]
    }
    del small["eos_token_id"]
    save(tmp_path, "config.json", {**small, **config})
    assert directory_text(tmp_path).eos_token_ids == ends
    assert load_spec(ModelLoadingConfig(model_source=str(tmp_path))).eos_ids == ends


CORPUS = Path(__file__).parent.parent.parent / "README.md"
SAMPLES = (
    "Hello world  two", " lead", "a\nb é 日本 😀", "x", "", "   ", "the\tmodel's   pages \n\n end ",
)  # fmt: skip


def train(folder, **options) -> object:
    """A small tokenizer.model, made as Llama 2's was; its own processor."""
    sentencepiece = pytest.importorskip("sentencepiece")
    rules = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(
        input=str(CORPUS),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=500,
        byte_fallback=True,
        minloglevel=2,
        **{"model_type": "bpe", **rules, **options},
    )
    return sentencepiece.SentencePieceProcessor(
        model_file=str(folder / "tokenizer.model")
    )


@pytest.mark.parametrize("prefix", [True, False])
async def test_a_folder_with_only_a_sentencepiece_model(tmp_path, prefix: bool) -> None:
    theirs = train(tmp_path, add_dummy_prefix=prefix)
    save(tmp_path, "config.json", {"eos_token_id": 2})
    text = directory_text(tmp_path)
    assert (text.vocabulary, text.eos_token_ids) == (500, (2,))
    for sample in (*SAMPLES, CORPUS.read_text()[:2000]):
        ids = await text.encode(sample)
        assert ids == [1, *theirs.encode(sample)], sample
        assert await text.decode(ids[1:]) == theirs.decode(ids[1:])


async def test_tokens_that_were_added_to_a_sentencepiece_model(tmp_path) -> None:
    theirs = train(tmp_path)
    settings = {
        "add_bos_token": False,
        "eos_token": "<|im_end|>",
        "added_tokens_decoder": {
            "2": {"content": "</s>", "special": True},
            "501": {"content": "<|im_end|>", "special": True},
        },
    }
    save(tmp_path, "added_tokens.json", {"<tool>": 500, "<|im_end|>": 501})
    save(tmp_path, "tokenizer_config.json", settings)
    text = directory_text(tmp_path)
    ids = await text.encode("the<tool><|im_end|></s>")
    assert ids == [*theirs.encode("the"), 500, 501, 2]
    assert text.eos_token_ids == (501,)
    save(tmp_path, "added_tokens.json", {"<tool>": 502})
    with pytest.raises(ModelError, match="cannot have the id"):
        directory_text(tmp_path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model_type": "unigram"}, "kind bpe"),
        ({"normalization_rule_name": "nmt_nfkc"}, "nmt_nfkc"),
        ({"remove_extra_whitespaces": True}, "normalises"),
    ],
)
def test_other_sentencepiece_models_are_refused(tmp_path, options, says: str) -> None:
    train(tmp_path, **options)
    with pytest.raises(ModelError, match=says):
        directory_text(tmp_path)


def test_what_is_not_a_sentencepiece_model_is_named(tmp_path) -> None:
    """Llama 3's original tokenizer.model is another format."""
    pytest.importorskip("sentencepiece")
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    with pytest.raises(
        ModelError, match=r"tokenizer\.model is not a SentencePiece model"
    ):
        directory_text(tmp_path)


def test_without_the_library_a_line_names_it(tmp_path, monkeypatch) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(
        ModelError, match=r"pip install 'medha-on-ray\[sentencepiece\]'"
    ) as error:
        directory_text(tmp_path)
    assert "\n" not in error.value.message
