"""The tokenizer inside a GGUF file, as a `tokenizers.Tokenizer`.

Two kinds exist in the Llama family: byte-level BPE ("gpt2", with the pre-tokenizer's name) and
SentencePiece ("llama", merges ordered by score). The pre-tokenizers' patterns are those of the
models' own tokenizer.json files.
"""

from __future__ import annotations

from typing import Any, Final

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from medha_actors.errors import ModelError
from medha_actors.files.gguf_kinds import TokenType

_LLAMA3: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2: Final = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS: Final = {
    "llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3, "smaug-bpe": _LLAMA3,
    "qwen2": _QWEN2, "deepseek-r1-qwen": _QWEN2, "tekken": _TEKKEN,
}  # fmt: skip
# These take a word that is in the vocabulary as it is, without its merges, and begin
# prompts with a BOS by default.
_WHOLE_WORDS: Final = frozenset({"llama-bpe", "llama3", "llama-v3", "tekken"})


def build(metadata: dict[str, Any]) -> Tokenizer:
    """The tokenizer described by a GGUF file's metadata; raises ModelError for kinds outside the
    Llama family."""
    tokens: list[str] = metadata.get("tokenizer.ggml.tokens") or []
    kind = metadata.get("tokenizer.ggml.model")
    if not tokens or kind not in ("gpt2", "llama"):
        raise ModelError(
            f"the GGUF file's tokenizer is of kind {kind!r}; supported are 'gpt2' and 'llama'"
        )
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = (
        _byte_level(metadata, vocabulary)
        if kind == "gpt2"
        else _sentencepiece(metadata, tokens, vocabulary)
    )
    # Of the types, these two are matched in text; the others are not.
    types = metadata.get("tokenizer.ggml.token_type") or [TokenType.NORMAL] * len(
        tokens
    )
    typed = list(zip(tokens, types, strict=True))
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind_ in typed
            if kind_ == TokenType.CONTROL
        ]
    )
    tokenizer.add_tokens(
        [
            AddedToken(token, special=False, normalized=False)
            for token, kind_ in typed
            if kind_ == TokenType.USER_DEFINED
        ]
    )
    _add_edges(
        tokenizer,
        metadata,
        tokens,
        kind == "llama" or metadata.get("tokenizer.ggml.pre") in _WHOLE_WORDS,
    )
    return tokenizer


def _byte_level(metadata: dict[str, Any], vocabulary: dict[str, int]) -> Tokenizer:
    name = metadata.get("tokenizer.ggml.pre", "default")
    merges = [
        tuple(merge.split(" ", 1))
        for merge in metadata.get("tokenizer.ggml.merges") or []
    ]
    model = models.BPE(
        vocab=vocabulary, merges=merges, ignore_merges=name in _WHOLE_WORDS
    )
    tokenizer = Tokenizer(model)
    if name in ("smollm", "starcoder", "refact"):
        steps = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    elif name in ("default", "gpt-2", "gpt2", "mpt", "olmo"):
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    elif name in _PATTERNS:
        steps = [
            pre_tokenizers.Split(Regex(_PATTERNS[name]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    else:
        raise ModelError(
            f"the GGUF file's pre-tokenizer {name!r} is unknown; load the model from its Hugging "
            "Face form"
        )
    if _PATTERNS.get(name) == _QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(
    metadata: dict[str, Any], tokens: list[str], vocabulary: dict[str, int]
) -> Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores") or [0.0] * len(tokens)
    # A merge for every way to make a token of two others, the best-scored token first:
    # what SentencePiece would do.
    ranked: list[tuple[float, int, int, int, str, str]] = []
    for i, token in enumerate(tokens):
        for cut in range(1, len(token)):
            left = token[:cut]
            right = token[cut:]
            if left in vocabulary and right in vocabulary:
                place = (-scores[i], i, vocabulary[left], vocabulary[right])
                ranked.append((*place, left, right))
    merges = [(left, right) for *_, left, right in sorted(ranked)]
    unknown = tokens[metadata.get("tokenizer.ggml.unknown_token_id", 0)]
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True
        )
    )
    prefix = (
        [normalizers.Prepend("\u2581")]
        if metadata.get("tokenizer.ggml.add_space_prefix", True)
        else []
    )
    tokenizer.normalizer = normalizers.Sequence(
        [*prefix, normalizers.Replace(" ", "\u2581")]
    )
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *strip,
        ]
    )
    return tokenizer


def _add_edges(
    tokenizer: Tokenizer, metadata: dict[str, Any], tokens: list[str], default_bos: bool
) -> None:
    """Begin- and end-of-sequence tokens around every plain prompt, if the file says so."""
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    eos = metadata.get("tokenizer.ggml.eos_token_id")
    head = (
        [tokens[bos]]
        if bos is not None and metadata.get("tokenizer.ggml.add_bos_token", default_bos)
        else []
    )
    tail = (
        [tokens[eos]]
        if eos is not None and metadata.get("tokenizer.ggml.add_eos_token", False)
        else []
    )
    if head or tail:
        special = [(token, tokens.index(token)) for token in {*head, *tail}]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join([*head, "$A", *tail]).strip(),
            pair=None,
            special_tokens=special,
        )
