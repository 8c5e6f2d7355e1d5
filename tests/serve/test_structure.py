"""`response_format` and `structured_outputs`: what they allow, what is refused, and what the engine
gets."""

from __future__ import annotations

import json
import threading

import msgspec
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from deployments.grammars import GrammarCheck
from deployments.structure import (
    ResponseFormat,
    StructuredOutputs,
    Wanted,
    of_response_format,
    of_structured_outputs,
)
from deployments.text_sources import load_text, toy_text
from medha_actors.config import LimitsConfig, ModelLoadingConfig
from medha_actors.errors import OverloadedError, RequestError
from medha_actors.files.vocabulary import load_vocabulary
from medha_actors.messages import Grammar
from medha_actors.model.matchers import Matchers

RANDOM = ModelLoadingConfig(model_source="random")
END = 256
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def accepts():
    matchers = Matchers(lambda: load_vocabulary(RANDOM), 512)

    def check(text: str, answer: str) -> bool:
        matcher = matchers.matcher(Grammar(text, (END,)))
        raw = answer.encode()
        return (
            matcher.try_consume_tokens(list(raw)) == len(raw) and matcher.is_accepting()
        )

    return check


def outputs(**fields) -> str:
    return of_structured_outputs(msgspec.convert(fields, StructuredOutputs)).text


def shape(**fields) -> str:
    return of_response_format(msgspec.convert(fields, ResponseFormat)).text


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        (outputs(regex=r"^\d{3}/[a-z]+$"), "123/abc", "123/ABC"),
        (outputs(regex=r"a\n\$"), "a\n$", "a\n"),
        (outputs(regex="é+|a\nb"), "a\nb", "e"),
        (outputs(choice=["a b", 'q"uo\\te', "é\n"]), 'q"uo\\te', "a"),
        (outputs(choice=["\U0001f600", ""]), "\U0001f600", "x"),
        (outputs(grammar='root ::= "a" ("b" | "c")* "d"'), "abcd", "ab"),
        (outputs(grammar='start: "a" b+\nb: "x"'), "axx", "a"),
        (outputs(json=PERSON), '{"name": "é", "age": 5}', '{"name": "é"}'),
        (
            outputs(json={"type": "object", "properties": {"a": {"type": "integer"}}}),
            '{"a": 1}',
            '{"a": 1, "b": 2}',
        ),
        (outputs(json=json.dumps(PERSON)), '{\n  "name": "x",\n  "age": 5\n}', "{}"),
        (
            outputs(json=PERSON, disable_any_whitespace=True),
            '{"name":"x","age":5}',
            '{ "name"',
        ),
        (
            outputs(json=PERSON, whitespace_pattern=" ?"),
            '{ "name": "x","age":5}',
            '{  "name"',
        ),
        (outputs(json=True), "[1, null]", "x"),
        (outputs(json_object=True), '{"a": [1]}', "[1]"),
        (shape(type="json_object"), '{"a": {"b": null}}', "1"),
        (shape(type="json_object", schema=PERSON), '{"name": "x", "age": 5}', "{}"),
        (
            shape(
                type="json_schema",
                json_schema={"name": "p", "schema": PERSON, "strict": True},
            ),
            '{"name": "x", "age": 5}',
            '{"name": "x", "age": 5, "more": 1}',
        ),
        (
            shape(type="json_schema", json_schema={"schema": {"uniqueItems": True}}),
            "[1, 1]",  # without `strict`, what cannot be enforced is let go
            "x",
        ),
    ],
)
def test_what_is_allowed(accepts, text: str, right: str, wrong: str) -> None:
    assert accepts(text, right)
    assert not accepts(text, wrong)


def test_white_space_has_an_end(accepts) -> None:
    assert accepts(outputs(json_object=True), "{" + " " * 24 + "}")
    assert not accepts(outputs(json_object=True), "{" + " " * 25 + "}")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "(?=a)b"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "(" * 5000}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "a" * 70_000}}, "structured_outputs.regex"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "[1]"}}, "structured_outputs.json"),
        (
            {"structured_outputs": {"grammar": 'a ::= "x"\n' * 300}},
            "structured_outputs.grammar",
        ),
        ({"structured_outputs": {"json": "[" * 100_000}}, "structured_outputs.json"),
        (
            {"structured_outputs": {"json": '{"enum": ["\\ud800"]}'}},
            "structured_outputs.json",
        ),
        ({"structured_outputs": {"json": False}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": {"type": "x"}}}, "structured_outputs.json"),
        (
            {"structured_outputs": {"json": {"uniqueItems": True}}},
            "structured_outputs.json",
        ),
        (
            {"structured_outputs": {"json": {"$ref": "http://a.b/c"}}},
            "structured_outputs.json",
        ),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        (
            {"structured_outputs": {"grammar": "root ::= ("}},
            "structured_outputs.grammar",
        ),
        (
            {"structured_outputs": {"grammar": "a ::= " + "(" * 9000}},
            "structured_outputs.grammar",
        ),
        ({"structured_outputs": {"grammar": ""}}, "structured_outputs.grammar"),
        (
            {"structured_outputs": {"structural_tag": "x"}},
            "structured_outputs.structural_tag",
        ),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema.schema",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"type": 5}},
                }
            },
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_object", "schema": False}},
            "response_format",
        ),
        (
            {
                "response_format": {"type": "json_object"},
                "structured_outputs": {"regex": "a"},
            },
            "structured_outputs",
        ),
    ],
)
async def test_what_is_refused(start, fields, param: str) -> None:
    service = await start()
    for path, body in (
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", CHAT),
    ):
        response = await service.post(path, {**body, **fields})
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param), error
        assert len(error["message"]) < 600
    assert service.engine.requests == []


async def test_what_the_engine_gets(start) -> None:
    service = await start()
    shaped = {"structured_outputs": {"choice": ["yes", "no"]}}
    for path, body in (
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", CHAT),
    ):
        assert (await service.post(path, {**body, **shaped, "n": 2})).status_code == 200
        assert (
            await service.post(path, {**body, "ignore_eos": True, **shaped})
        ).status_code == 200
        plain = {**body, "response_format": {"type": "text"}}
        assert (await service.post(path, plain)).status_code == 200
    grammars = [request.sampling.grammar for request in service.engine.requests]
    assert grammars == [Grammar('start: "yes" | "no"', (END,))] * 3 + [None] + [
        Grammar('start: "yes" | "no"', (END,))
    ] * 3 + [None]


@pytest.mark.parametrize("waits", [False, True])
async def test_what_takes_too_long(waits: bool) -> None:
    """A compiler that hangs: its own request is refused, those behind it are told to come back."""
    go_on = threading.Event()

    def load():
        go_on.wait(20)
        return load_vocabulary(RANDOM)

    limits = LimitsConfig(grammar_timeout_s=0.05)
    check = GrammarCheck(Matchers(load, 512), (END,), limits)
    try:
        with pytest.raises(RequestError) as refused:
            await check("regex", lambda: Wanted("regex", "start: /a/"))
        assert refused.value.param == "regex"
        with pytest.raises(OverloadedError):
            await check("regex", lambda: Wanted("regex", "start: /b/"))
    finally:
        go_on.set()


@pytest.mark.parametrize(
    "config", [RANDOM, ModelLoadingConfig()], ids=["toy", "embedded"]
)
def test_the_stage_spells_tokens_as_the_edge_does(config) -> None:
    """Control tokens apart, of which there is no text."""
    words = load_vocabulary(config)
    text = load_text(config) if config is not RANDOM else toy_text(512)
    assert len(words.tokens) == text.vocabulary
    assert words.tokens == [text.table.bytes_of(i) for i in range(text.vocabulary)]
    assert set(words.control) >= text.table.special


def test_a_directory_with_byte_fallback_is_spelled_alike(tmp_path) -> None:
    words = [
        "<unk>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581a",
        "b\u2581",
    ]
    tokenizer = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text("{}")
    config = ModelLoadingConfig(model_source=str(tmp_path))
    vocabulary = load_vocabulary(config)
    text = load_text(config)
    assert vocabulary.tokens == [text.table.bytes_of(i) for i in range(text.vocabulary)]
    assert vocabulary.tokens[-3:] == [b" a", b"b ", b"<tool_call>"]
    assert vocabulary.control == [1]
