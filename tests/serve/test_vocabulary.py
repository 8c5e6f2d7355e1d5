"""Token ids are checked against the rows that the model has, not only against the tokenizer."""

import pytest

from deployments.admission import Admission
from deployments.histories import Message
from deployments.protocol import ChatBody, CompletionBody
from deployments.text_sources import toy_text
from medha_actors.config import MedhaConfig
from medha_actors.errors import RequestError

ROWS = 110  # the toy tokenizer has 512 tokens; "n" is token 110, "a" is 97


@pytest.fixture
def admission():
    return Admission(MedhaConfig(), toy_text(512), 4096, model_vocabulary=ROWS)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [ROWS]}, "prompt"),
        ({"prompt": [[5], [1, ROWS]]}, "prompt[1]"),
        ({"prompt": "an"}, "prompt"),
        ({"prompt": ["a", "an"]}, "prompt[1]"),
        ({"prompt": "a", "stop_token_ids": [ROWS]}, "stop_token_ids"),
        ({"prompt": "a", "logit_bias": {"110": 1.0}}, "logit_bias"),
    ],
)
async def test_ids_without_a_row_are_refused(admission, fields, param):
    with pytest.raises(RequestError) as refused:
        await admission.completion(CompletionBody(**fields), {}, 0.0)
    assert refused.value.param == param


async def test_text_of_a_chat_too(admission):
    body = ChatBody(messages=[Message(role="user", content="a")])
    with pytest.raises(RequestError) as refused:
        await admission.chat(body, {}, 0.0)
    assert refused.value.param == "messages"


async def test_what_has_a_row_passes_and_an_end_token_without_one_is_left_out(
    admission,
):
    body = CompletionBody(prompt="a", stop_token_ids=[ROWS - 1])
    [choice] = (await admission.completion(body, {}, 0.0)).choices
    assert choice.request.sampling.stop_token_ids == (ROWS - 1,)


@pytest.mark.parametrize("penalty", [0.01, 0.5, 1.3, 5.0, 100.0])
async def test_penalties_that_are_sent_pass(penalty):
    admission = Admission(MedhaConfig(), toy_text(512), 4096)
    body = CompletionBody(prompt="an", repetition_penalty=penalty)
    [choice] = (await admission.completion(body, {}, 0.0)).choices
    assert choice.request.sampling.repetition_penalty == penalty
