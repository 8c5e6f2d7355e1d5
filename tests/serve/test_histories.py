"""Chats as agents keep them reach the engine, whatever the model's template knows."""

import json

import pytest

from deployments import protocol
from deployments.chat_template import ChatTemplate
from deployments.protocol import ChatBody
from deployments.text import ChatOptions, Text
from deployments.text_sources import load_text, toy_text
from medha_actors.config import ModelLoadingConfig
from medha_actors.errors import RequestError
from medha_actors.messages import unpack_tokens

CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Zürich"}'},
}
SECOND = {
    "id": "call_2",
    "type": "function",
    "function": {"name": "time", "arguments": ""},
}
HISTORY = [
    {"role": "developer", "content": "Be kind."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
    },
    {"role": "assistant", "content": None, "tool_calls": [CALL, SECOND]},
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    {
        "role": "tool",
        "tool_call_id": "call_2",
        "content": [{"type": "text", "text": "noon"}],
    },
    {"role": "assistant", "content": "It is sunny."},
    {"role": "user", "content": "and?"},
]
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
TOOLS = (
    "{% for m in messages %}[{{ m.role }}{{ '=' + m.name if m.name else '' }}]{{ m.content }}"
    "{% for call in m.tool_calls or [] %}({{ call.function.name }} {{ call.id }}"
    " {{ call.function.arguments | tojson }}){% endfor %}{% endfor %}"
)


def messages(*given: dict) -> list:
    body = json.dumps({"messages": given}).encode()
    return protocol.decode(body, ChatBody).messages


def rendered(source: str, *given: dict) -> str:
    return ChatTemplate(source, {}).render(messages(*given), False, {})


def test_a_template_that_knows_tools_gets_calls_and_the_names_of_results() -> None:
    assert rendered(TOOLS, *HISTORY) == (
        '[system]Be kind.[user]one\ntwo[assistant](weather call_1 {"city": "Zürich"})'
        "(time call_2 {})[tool=weather]sunny[tool=time]noon[assistant]It is sunny.[user]and?"
    )


def test_a_template_that_knows_none_gets_them_as_text() -> None:
    assert rendered(PLAIN, *HISTORY) == (
        "[system]Be kind.[user]one\ntwo[assistant]"
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
        "[user]<tool_response>\nsunny\n</tool_response>\n<tool_response>\nnoon\n</tool_response>"
        "[assistant]It is sunny.[user]and?"
    )


def test_a_developer_stays_one_where_the_template_knows_it() -> None:
    source = PLAIN + "{% if messages[0].role == 'developer' %}!{% endif %}"
    assert rendered(source, HISTORY[0], HISTORY[-1]) == "[developer]Be kind.[user]and?!"


def test_what_a_system_says_heads_the_question_where_a_template_has_no_system() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    assert rendered(source, HISTORY[0], HISTORY[-1]) == "[user]Be kind.\n\nand?"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"role": "assistant", "content": None}, "[assistant]"),
        ({"role": "assistant"}, "[assistant]"),
        (
            {"role": "tool", "tool_call_id": "c"},
            "[user]<tool_response>\n\n</tool_response>",
        ),
        (
            {"role": "assistant", "content": None, "refusal": "I won't."},
            "[assistant]I won't.",
        ),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            "[assistant]no",
        ),
        (
            {"role": "assistant", "content": "x", "refusal": None, "tool_calls": []},
            "[assistant]x",
        ),
        (
            {"role": "user", "content": ["a", {"type": "input_text", "text": "b"}]},
            "[user]a\nb",
        ),
        (
            {
                "role": "user",
                "content": [
                    {
                        "type": "text",
                        "text": "a",
                        "cache_control": {"type": "ephemeral"},
                    },
                ],
            },
            "[user]a",
        ),
        (
            {"role": "function", "name": "f", "content": "r"},
            "[user]<tool_response>\nr\n</tool_response>",
        ),
        (
            {
                "role": "assistant",
                "function_call": {"name": "f", "arguments": "not JSON"},
            },
            '[assistant]<tool_call>\n{"name": "f", "arguments": "not JSON"}\n</tool_call>',
        ),
        (
            {
                "role": "assistant",
                "content": "x",
                "provider_specific_fields": {"a": 1},
                "x_y": 2,
            },
            "[assistant]x",
        ),
    ],
)
def test_every_shape_has_its_text(message: dict, text: str) -> None:
    assert rendered(PLAIN, message) == text


def test_reasoning_goes_to_templates_that_take_it() -> None:
    source = "{{ messages[0].reasoning_content }}|{{ messages[0].content }}"
    for name in ("reasoning", "reasoning_content"):
        turn = {"role": "assistant", "content": "so", name: "because"}
        assert rendered(source, turn) == "because|so"


def test_an_image_is_refused_by_name() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    with pytest.raises(RequestError) as caught:
        messages({"role": "user", "content": [{"type": "text", "text": "look"}, image]})
    assert caught.value.param == "messages[0].content[1].type"
    assert "only text is supported, not 'image_url'" in caught.value.message


async def test_over_http_and_the_same_in_tokenize(start) -> None:
    service = await start()
    response = await service.post(
        "/v1/chat/completions", {"messages": HISTORY, "max_tokens": 5}
    )
    assert response.status_code == 200, response.text
    [request] = service.engine.requests
    ids = unpack_tokens(request.prompt_token_ids)
    assert (
        bytes(ids)
        .decode()
        .startswith("system: Be kind.\nuser: one\ntwo\nassistant: <tool_call>")
    )
    tokens = (await service.post("/tokenize", {"messages": HISTORY})).json()["tokens"]
    assert tokens == ids


@pytest.mark.parametrize("content", ["The answer is ", "The answer is"])
async def test_a_final_message_is_continued(start, content: str) -> None:
    service = await start()
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": content}]
    body = {"messages": chat, "continue_final_message": True, "max_tokens": 5}
    for ending in ({}, {"add_generation_prompt": False}):
        response = await service.post("/v1/chat/completions", {**body, **ending})
        assert response.status_code == 200, response.text
    for request in service.engine.requests:
        prompt = bytes(unpack_tokens(request.prompt_token_ids)).decode()
        assert prompt == f"user: ?\nassistant: {content}"
    response = await service.post(
        "/v1/chat/completions", {**body, "add_generation_prompt": True}
    )
    assert response.json()["error"]["param"] == "continue_final_message"


def test_a_trimming_template_keeps_what_is_continued() -> None:
    source = "{% for m in messages %}<{{ m.content | trim }}>{% endfor %}"
    told = messages(
        {"role": "user", "content": " q "}, {"role": "assistant", "content": " Yes, "}
    )
    template = ChatTemplate(source, {})
    assert template.render(told, False, {}, continue_final=True) == "<q><Yes, "
    with pytest.raises(RequestError) as caught:
        ChatTemplate("-", {}).render(told, False, {}, continue_final=True)
    assert caught.value.param == "continue_final_message"


@pytest.mark.parametrize(
    ("source", "asked", "text"),
    [
        ("{{ reasoning_effort }}", "high", "high"),
        ("{{ enable_thinking }}", "none", "False"),
        ("-", "none", "-"),
        ("-", "low", None),
        ("{{ enable_thinking }}", "low", None),
    ],
)
async def test_reasoning_effort_is_for_templates_that_take_it(
    source: str, asked: str, text: str | None
) -> None:
    template = Text(toy_text(300).tokenizer, chat_template=source).template
    told = messages({"role": "user", "content": "x"})
    if text is None:
        with pytest.raises(RequestError) as caught:
            template.effort(asked)
        assert caught.value.param == "reasoning_effort"
    else:
        assert template.render(told, False, template.effort(asked)) == text


async def test_the_embedded_model_reads_an_agents_history() -> None:
    text = load_text(ModelLoadingConfig())
    prompt = await text.chat(messages(*HISTORY), ChatOptions())
    assert "<|im_start|>user\n<tool_response>\nsunny\n" in prompt.text
    assert prompt.text.endswith("<|im_start|>assistant\n")
