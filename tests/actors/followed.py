"""One request to real actors, its events as they come, and what transformers says of its tokens."""

import itertools
import time

import torch

from medha_actors.actors.local import events_of, prompt_of
from medha_actors.messages import (
    FinishedEvent,
    ProgressEvent,
    PromptLogprobsEvent,
    Request,
    SamplingParams,
    TokenEvent,
    pack_tokens,
)

_names = itertools.count()


class Followed:
    """One request, its events as they come; `order`: who got each token, of all that share it."""

    def __init__(self, prompt, output, order=None):
        sampling = SamplingParams(
            max_tokens=output, temperature=0.0, logprobs=2, prompt_logprobs=1
        )
        self.prompt = prompt_of(prompt, salt=prompt)
        self.request = Request(
            id=f"followed-{next(_names)}",
            prompt_token_ids=pack_tokens(self.prompt),
            sampling=sampling,
            arrived_at=time.time(),
        )
        self.order = [] if order is None else order
        self.drawn = []
        self.scored = {}
        self.prefilled = 0
        self.finished = None

    async def follow(self, handle, happened=lambda: None):
        async for event in await events_of(handle, self.request):
            if isinstance(event, TokenEvent):
                assert event.index == len(self.drawn), "a token lost or doubled"
                self.drawn.append(event)
                self.order.append(self)
            elif isinstance(event, PromptLogprobsEvent):
                self.scored.update(enumerate(event.entries, event.start + 1))
            elif isinstance(event, ProgressEvent):
                self.prefilled = event.prefilled_tokens
            elif isinstance(event, FinishedEvent):
                self.finished = event
            happened()

    @torch.inference_mode()
    def check(self, model):
        """Greedy tokens equal, log-probabilities within 1e-3, each position of the prompt scored
        once."""
        assert self.finished.reason == "length"
        tokens = [token.token_id for token in self.drawn]
        expected = model(torch.tensor([self.prompt + tokens])).logits[0].log_softmax(-1)
        after = expected[len(self.prompt) - 1 : -1]
        assert tokens == after.argmax(-1).tolist()
        for token, row in zip(self.drawn, after, strict=True):
            for token_id, logprob in (
                (token.token_id, token.logprob),
                *token.top_logprobs,
            ):
                assert abs(logprob - row[token_id]) < 1e-3
        assert sorted(self.scored) == list(range(1, len(self.prompt)))
        for position, (logprob, _) in self.scored.items():
            assert abs(logprob - expected[position - 1, self.prompt[position]]) < 1e-3
