"""Bodies: what is accepted, what is refused, and that nothing else can happen."""

import json

import pytest

from deployments import limits, objectives, protocol
from deployments.protocol import ChatBody, CompletionBody, MedhaOptions
from medha_actors.config import LimitsConfig, ObjectivesConfig
from medha_actors.errors import RequestError

LIMITS = LimitsConfig()
HELLO = [{"role": "user", "content": "hi"}]


def check(body: dict, kind: type = CompletionBody):
    """As the server does it, up to tokenising."""
    decoded = protocol.decode(json.dumps(body).encode(), kind)
    if isinstance(decoded, CompletionBody | ChatBody):
        limits.check_generation(decoded, LIMITS, 512)
    if isinstance(decoded, CompletionBody):
        limits.split_prompts(decoded, LIMITS, 512)
    if isinstance(decoded, ChatBody):
        limits.check_messages(decoded.messages, LIMITS)
    return decoded


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("temperature", -0.1, "temperature"),
        ("temperature", "hot", "temperature"),
        ("temperature", 1e300, "temperature"),
        ("top_p", -0.1, "top_p"),
        ("top_p", 1.01, "top_p"),
        ("top_k", -2, "top_k"),
        ("min_p", 2, "min_p"),
        ("n", 0, "n"),
        ("n", 10**6, "n"),
        ("n", 17, "n"),
        ("n", 1.5, "n"),
        ("n", "1", "n"),
        ("n", 1e300, "n"),
        ("n", True, "n"),
        ("max_tokens", 0, "max_tokens"),
        ("max_tokens", -1, "max_tokens"),
        ("max_tokens", 2**40, "max_tokens"),
        ("min_tokens", -1, "min_tokens"),
        ("seed", 2**64, "seed"),
        ("seed", 10**60, "seed"),
        ("stop", ["a"] * 129, "stop"),
        ("stop", "x" * 257, "stop"),
        ("stop", [1], "stop[0]"),
        ("stop_token_ids", [512], "stop_token_ids"),
        ("stop_token_ids", [-1], "stop_token_ids[0]"),
        ("stop_token_ids", [1] * 65, "stop_token_ids"),
        ("logit_bias", {"x": 1}, "logit_bias"),
        ("logit_bias", {"512": 1}, "logit_bias"),
        ("logit_bias", {"²": 1}, "logit_bias"),
        ("logit_bias", {"5": 101}, "logit_bias[...]"),
        ("logprobs", 21, "logprobs"),
        ("repetition_penalty", 0, "repetition_penalty"),
        ("repetition_penalty", 1e-39, "repetition_penalty"),
        ("repetition_penalty", 1e39, "repetition_penalty"),
        ("repeat_penalty", 0, "repeat_penalty"),
        ("truncate_prompt_tokens", 0, "truncate_prompt_tokens"),
        ("truncate_prompt_tokens", -2, "truncate_prompt_tokens"),
        ("prompt_logprobs", 21, "prompt_logprobs"),
        ("prompt_logprobs", -1, "prompt_logprobs"),
        ("reasoning_effort", "high", "reasoning_effort"),
        ("typical_p", 0.5, "typical_p"),
        ("presence_penalty", 2.5, "presence_penalty"),
        ("request_id", "a b", "request_id"),
        ("request_id", "x" * 300, "request_id"),
        ("stream", "yes", "stream"),
        ("stream_options", {"include_usag": True}, "stream_options.include_usag"),
        ("medha", {"ttft": 1}, "medha.ttft"),
        ("medha", {"ttft_s": 0}, "medha.ttft_s"),
        ("suffix", "x", "suffix"),
        ("best_of", 3, "best_of"),
        ("tools", [{}], "tools"),
        ("tool_choice", "auto", "tool_choice"),
        ("response_format", {"type": "yaml"}, "response_format.type"),
        ("structured_outputs", {"jsn": {}}, "structured_outputs.jsn"),
        ("guided_json", {}, "guided_json"),
        ("temprature", 0.5, "temprature"),
        ("prompt", [], "prompt"),
        ("prompt", [1, "a"], "prompt"),
        ("prompt", [512], "prompt"),
        ("prompt", [[1], [600]], "prompt[1]"),
        ("prompt", [[1], [-6]], "prompt[1][0]"),
        ("prompt", ["a"] * 4097, "prompt"),
        ("prompt", {"a": 1}, "prompt"),
        ("prompt", [True], "prompt[0]"),
    ],
)
def test_wrong_field_is_named(field: str, value: object, param: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        check({"prompt": "x", field: value})
    assert caught.value.param == param
    assert caught.value.status == 400
    assert len(caught.value.message) < 600


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\\udc00x"}',
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": Infinity}',
        b'{"prompt": "x", "temperature": 1e999}',
        b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"prompt": "x"} {}',
    ],
)
def test_broken_bodies(raw: bytes) -> None:
    with pytest.raises(RequestError):
        protocol.decode(raw, CompletionBody)


def test_harmless_and_null_fields_are_accepted() -> None:
    body = check(
        {
            "prompt": "x",
            "user": "me",
            "metadata": {"a": "b"},
            "store": True,
            "service_tier": "auto",
            "n": None,
            "temperature": None,
            "stop": None,
            "best_of": 1,
            "tools": None,
            "tool_choice": "none",
            "unheard_of": None,
            "response_format": {"type": "text"},
            "logit_bias": {"7": -3},
            "stream_options": {"include_usage": None},
        }
    )
    assert (body.n, body.temperature, body.stops) == (1, 1.0, [])
    assert check({"prompt": "x", "n": 3, "best_of": 3}).n == 3


def test_messages() -> None:
    body = check(
        {
            "messages": [
                {
                    "role": "developer",
                    "content": [
                        {"type": "text", "text": "be "},
                        {"type": "text", "text": "kind"},
                    ],
                },
                {
                    "role": "assistant",
                    "content": "hi",
                    "tool_calls": None,
                    "refusal": None,
                    "annotations": [],
                },
            ]
        },
        ChatBody,
    )
    assert body.messages[1].content == "hi"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hi", "messages"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "robot", "content": "x"}], "messages[0].role"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "system", "content": None}], "messages[0].content"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            "messages[0].content[0].type",
        ),
        (
            [{"role": "tool", "content": [{"type": ["text"]}]}],
            "messages[0].content[0].type",
        ),
        (
            [{"role": "user", "content": [{"text": "x", "y": 1}]}],
            "messages[0].content[0].y",
        ),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            "messages[0].content[0].text",
        ),
        (
            [*HELLO, {"role": "assistant", "content": "x", "tool_calls": [{}]}],
            "messages[1].tool_calls[0].function",
        ),
        (
            [
                {
                    "role": "user",
                    "content": "x",
                    "tool_calls": [{"function": {"name": "f"}}],
                }
            ],
            "messages[0].tool_calls",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}],
            "messages[0].tool_calls[0].function.name",
        ),
        ([*HELLO, {"role": "user", "content": "x", "colour": 1}], "messages[1].colour"),
        (HELLO * 2049, "messages"),
        ([5], "messages[0]"),
    ],
)
def test_wrong_messages(messages: object, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        check({"messages": messages}, ChatBody)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "field",
    [
        "chat_template",
        "functions",
        "audio",
        "modalities",
        "structured_outputs",
        "guided_json",
        "prompt",
    ],
)
def test_unsupported_chat_fields(field: str) -> None:
    with pytest.raises(RequestError) as caught:
        check({"messages": HELLO, field: ["x"]}, ChatBody)
    assert caught.value.param == field


@pytest.mark.parametrize(
    ("body", "prompt_tokens", "expected"),
    [
        ({}, 10, 16),
        ({}, 95, 5),
        ({"max_tokens": 90}, 10, 90),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 10, 7),
        ({"max_tokens": 0, "echo": True}, 10, 1),
        ({"min_tokens": 20}, 10, 20),
        ({"max_tokens": 91}, 10, None),
        ({}, 100, None),
        ({}, 0, None),
        ({"min_tokens": 95}, 10, None),
    ],
)
def test_max_tokens(body: dict, prompt_tokens: int, expected: int | None) -> None:
    decoded = check({"prompt": "x", **body})
    if expected is not None:
        assert (
            limits.resolve_max_tokens(decoded, "prompt", prompt_tokens, 100) == expected
        )
    else:
        with pytest.raises(RequestError):
            limits.resolve_max_tokens(decoded, "prompt", prompt_tokens, 100)


def test_chat_gets_the_rest_of_the_context() -> None:
    assert (
        limits.resolve_max_tokens(
            check({"messages": HELLO}, ChatBody), "messages", 30, 100
        )
        == 70
    )


def test_what_is_wanted_of_a_late_request() -> None:
    policy = ObjectivesConfig()
    assert objectives.resolve(MedhaOptions(), {}, policy).late is None
    for late in ("shed", "queue", "accept"):
        body = check({"messages": HELLO, "medha": {"late": late}}, ChatBody)
        assert objectives.resolve(body.medha, {}, policy).late == late
    with pytest.raises(RequestError) as caught:
        check({"messages": HELLO, "medha": {"late": "never"}}, ChatBody)
    assert caught.value.param == "medha.late"


def test_objectives() -> None:
    policy = ObjectivesConfig(min_ttft_s=0.1, default_timeout_s=60, max_timeout_s=100)

    def resolve(headers: dict[str, str], **options: float):
        return objectives.resolve(MedhaOptions(**options), headers, policy)

    assert resolve({}).timeout_s == 60
    assert resolve({"x-slo-ttft-ms": "250", "x-llm-d-slo-tpot-ms": "30"}).ttft_s == 0.25
    # policy; newer name first
    assert resolve({"x-llm-d-slo-ttft-ms": "1", "x-slo-ttft-ms": "250"}).ttft_s == 0.1
    assert resolve({"x-slo-ttft-ms": "250"}, ttft_s=3.0).ttft_s == 3.0
    for asked, given_s in [
        ("5", 5),
        ("0", 100),
        ("-3", 100),
        ("1e6", 100),
        ("0.001", 0.001),
    ]:
        assert resolve({"x-request-timeout-seconds": asked}).timeout_s == given_s
    for name in ("x-slo-ttft-ms", "x-llm-d-slo-tpot-ms", "x-request-timeout-seconds"):
        for wrong in ("", "soon", "nan", "inf"):
            with pytest.raises(RequestError) as caught:
                resolve({name: wrong})
            assert caught.value.param == name
    with pytest.raises(RequestError):
        resolve({"x-slo-ttft-ms": "0"})
