"""One pipeline stage of the model: some layers, their slice of the KV cache, and the state it needs
of each request."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from medha_actors.config import ModelLoadingConfig
from medha_actors.files.encoder import load_encoder
from medha_actors.files.vocabulary import load_vocabulary
from medha_actors.messages import (
    Failure,
    Introduction,
    PromptLogprobs,
    SampledToken,
    SamplingParams,
    Span,
    StepMessage,
)
from medha_actors.model.backend import build_decoder
from medha_actors.model.constraints import Grammars
from medha_actors.model.decoder import Resizable, TokenIds
from medha_actors.model.guard import Failures, require_known
from medha_actors.model.head import Head
from medha_actors.model.host_tier import HostTier
from medha_actors.model.layers import Embedding, Loader
from medha_actors.model.matchers import Matchers
from medha_actors.model.merge import Exchange
from medha_actors.model.rank_weights import RankWeights
from medha_actors.model.sampler import Pending, Sampler
from medha_actors.model.step_plan import plan_step
from medha_actors.model.team import ALONE, Team
from medha_actors.model.weights import Weights, open_weights
from medha_actors.model_shares import rows_of, shares_of
from medha_actors.model_spec import ModelSpec

_LOGITS_TRIED = 64  # rows, where ranks share the head


class StageOutput(NamedTuple):
    """Hidden states for the next stage (of a rank its rows of them, see rows_of), or from the last
    stage what was sampled (there, ranks after the first have nothing).

    `failures`: requests whose part is worthless. Their rows are there all the same, so that stages
    and groups stay in step. `pending`: sampling that is under way; the fields that it fills are
    empty until `finish`.
    """

    hidden: Tensor | None
    tokens: tuple[SampledToken, ...] = ()
    prompt_logprobs: tuple[PromptLogprobs, ...] = ()
    failures: tuple[Failure, ...] = ()
    pending: Pending | None = None

    def finish(self) -> StageOutput:
        """All of it, once the device has done the step; in any thread."""
        if self.pending is None:
            return self
        return StageOutput(self.hidden, *self.pending.finish())


class Stage:
    """Layers [i, j) of the model; the first stage embeds, the last one samples.

    `stages` is (this stage, number of stages), `ranks` (this rank, number of ranks). Steps must be
    given in the order the scheduler made them: they carry changes (new pages, opened and closed
    requests) to the state replicated here.
    """

    def __init__(
        self,
        spec: ModelSpec,
        config: ModelLoadingConfig,
        layers: tuple[int, int],
        stages: tuple[int, int],
        group: int,
        pages: int,
        page_tokens: int,
        device: torch.device | str,
        dtype: torch.dtype,
        threads: int = 1,
        attention: str = "auto",
        ranks: tuple[int, int] = (0, 1),
        borrowed: Sequence[int] = (),
    ) -> None:
        """`borrowed`: cores of others, for steps that have the pipeline to themselves (CPU)."""
        self.spec = spec
        self.shares = shares_of(spec, ranks[1])
        self.rank = ranks[0]
        self.group = group
        self.pages = pages
        self.page_tokens = page_tokens
        self.device = torch.device(device)
        self.borrows = len(borrowed) > 0
        self.is_first = stages[0] == 0
        self.is_last = stages[0] == stages[1] - 1
        if self.device.type == "cpu":
            torch.set_num_threads(threads)
        with torch.inference_mode(), self._weights(config) as weights:
            loader = self._loader(weights, dtype)
            embedding = self._embedding(loader) if self.is_first else None
            self.decoder = build_decoder(
                loader,
                layers,
                self.is_last,
                pages,
                page_tokens,
                attention,
                [share.spec(spec) for share in self.shares],
                embedding,
                (threads, borrowed),
            )
        self.embedding = None if self.decoder.embeds else embedding
        matchers = Matchers(
            lambda: load_vocabulary(config),
            spec.vocabulary,
            lambda: load_encoder(config),
        )
        self.grammars = Grammars(matchers) if self.samples else None
        self.sampler = self._sampler()
        self.tables: dict[str, array[int]] = {}  # page numbers of each request
        self.tier: HostTier | None = None

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn here."""
        return self.is_last and self.rank == 0

    def step(
        self,
        message: StepMessage,
        hidden: Tensor | None,
        exchange: Exchange | None,
        team: Team = ALONE,
    ) -> StageOutput:
        """Run one batch, to the end. `hidden` comes from the stage before (of a rank, the rows that
        the same rank there handed over); None in the first stage."""
        return self.launch(message, hidden, exchange, team).finish()

    @torch.inference_mode()
    def launch(
        self,
        message: StepMessage,
        hidden: Tensor | None,
        exchange: Exchange | None,
        team: Team = ALONE,
    ) -> StageOutput:
        """The same, as far as it goes without waiting for tokens: they are there when the output is
        finished. On a GPU hidden states too are only on their way."""
        assert team.ranks == len(self.shares), "every rank has a part in each step"
        failures = Failures()
        if self.tier is not None:
            self.tier.carry_out(message.moves)
        self._follow(message, failures)
        spans = message.spans
        if not spans:
            return StageOutput(hidden, failures=failures.all())
        x = (
            self._begin(spans, failures, team)
            if hidden is None
            else self._whole(hidden, team)
        )
        plan = plan_step(spans, self.tables, self.page_tokens, message.alone)
        x = self.decoder(x, plan, exchange, team)
        if not self.is_last:
            handed = x[rows_of(len(x), self.rank, team.ranks)]
            return StageOutput(handed, failures=failures.all())
        head = Head(self.decoder, self.shares, team, x)
        if not self.samples:
            head.assist()
            return StageOutput(None, failures=failures.all())
        likeliest = head.likeliest if team.ranks > 1 else None
        pending = self.sampler.launch(spans, head.logits, failures, likeliest)
        head.finish()
        return StageOutput(None, pending=pending)

    def look_ahead(self, output: StageOutput) -> None:
        """After a step whose output is on its way: what can be done before the next one comes. In
        any thread, while the next steps are launched in theirs."""
        self.sampler.look_ahead(output.tokens)

    @torch.inference_mode()
    def resize(self, pages: int) -> None:
        """Another number of pages; what was in them is lost."""
        assert isinstance(self.decoder, Resizable)
        self.pages = pages
        self.decoder.resize(pages)

    def reset(self) -> None:
        """Forget all requests; the KV pool keeps its contents."""
        self.tables.clear()
        self.sampler = self._sampler()

    def _follow(self, message: StepMessage, failures: Failures) -> None:
        """Apply the message's changes to the replicated state."""
        for request_id in message.closed:
            self.tables.pop(request_id, None)
            self.sampler.close(request_id)
        for introduction in message.opened:
            self.tables[introduction.request_id] = array("i")
            with failures.guard(introduction.request_id):
                self.sampler.open(introduction)
        unused: list[int] = []
        for span in message.spans:
            table = self.tables[span.request_id]
            filled = -(-span.piece_tokens // self.page_tokens)
            unused += span.new_pages[max(0, filled - len(table)) :]
            table.extend(span.new_pages)
        if unused:
            self.decoder.clear(unused)

    def _sampler(self) -> Sampler:
        if self.device.type == "cpu" or not self.samples:
            return Sampler(self.spec.vocabulary, self.grammars)
        from medha_actors.model.cuda.sampler import CudaSampler

        return CudaSampler(self.spec.vocabulary, self.grammars, self.device)

    def _whole(self, hidden: Tensor, team: Team) -> Tensor:
        """All rows that the stage before has handed over."""
        if team.ranks > 1:
            hidden = torch.cat(team.gather(hidden)).view(-1, self.spec.hidden)
        return hidden.to(self.device, self.decoder.dtype)

    def _begin(
        self, spans: Sequence[Span], failures: Failures, team: Team
    ) -> Tensor | TokenIds:
        """What the first stage's decoder is given: hidden states, or the ids themselves."""
        assert self.is_first, "only the first stage may be given no hidden states"
        packed = bytearray(b"".join([span.token_ids for span in spans]))
        token_ids = np.frombuffer(packed, np.int32)
        if token_ids.view(np.uint32).max() >= self.spec.vocabulary:  # or negative
            _find_strangers(spans, token_ids, self.spec.vocabulary, failures)
        if self.embedding is None:
            return token_ids
        x = team.total(self.embedding(torch.from_numpy(token_ids).to(self.device)))
        return x.to(self.decoder.dtype)

    def _weights(self, config: ModelLoadingConfig) -> AbstractContextManager[Weights]:
        """All of the model's, on the device where that is faster."""
        weights = open_weights(self.spec, config)
        if self.device.type == "cpu":
            return nullcontext(weights)
        from medha_actors.model.cuda.weights import DeviceWeights

        return DeviceWeights(weights, self.device)

    def _loader(self, weights: Weights, dtype: torch.dtype) -> Loader:
        """Of this rank's part of the weights."""
        spec = self.spec
        if len(self.shares) > 1:
            share = self.shares[self.rank]
            weights = RankWeights(weights, spec, share, self.rank == 0)
            spec = share.spec(spec)
        return Loader(weights, spec, self.device, dtype)

    def _embedding(self, loader: Loader) -> Embedding:
        if len(self.shares) == 1:
            return loader.embedding()
        return loader.embedding(self.shares[self.rank].vocabulary.first)

    @torch.inference_mode()
    def warm_up(self, team: Team = ALONE) -> None:
        """Run a few steps of typical shapes, so that the first request does not pay for compilation
        or allocation. `team`: one in which nobody has to be waited for."""
        if self.grammars is not None:
            self.grammars.prepare()
        self.sampler.prepare()
        self.decoder.prepare()
        for rows in (64, 16, 1):
            self._try(1, rows, None, team)
            if self.borrows:
                self._try(1, rows, None, team, alone=True)

    @torch.inference_mode()
    def rehearse(self, rows: int, requests: int, team: Team = ALONE) -> None:
        """Run the largest steps that may come, so that the memory they take is taken: a prefill of
        so many rows with log-probabilities, and decodes of so many requests."""
        self._try(1, rows, SamplingParams(max_tokens=1, prompt_logprobs=1), team)
        self._try(
            requests, 1, SamplingParams(max_tokens=1, temperature=1.0, top_p=0.9), team
        )

    def _try(
        self,
        requests: int,
        rows: int,
        sampling: SamplingParams | None,
        team: Team,
        alone: bool = False,
    ) -> None:
        """A step of so many requests with so many rows each, or as many as there are pages for."""
        pages = -(-rows // self.page_tokens)
        requests = min(requests, self.pages // pages)
        if not requests:
            return
        sample = team.ranks == 1  # the others' logits are not there yet
        names = [f"warm-up-{number}" for number in range(requests)]
        spans = []
        for number, name in enumerate(names):
            held = tuple(range(number * pages, (number + 1) * pages))
            spans.append(
                Span(name, 0, rows, bytes(4 * rows), 0, 0, held, sample=sample)
            )
        opened = tuple(
            [Introduction(name, sampling if sample else None) for name in names]
        )
        count = requests * rows
        hidden = torch.zeros(count, self.spec.hidden, dtype=self.decoder.dtype)
        message = StepMessage(0, tuple(spans), opened, alone=alone)
        self.step(message, None if self.is_first else hidden, None, team)
        if self.is_last and not sample:
            self.decoder.logits(hidden[-_LOGITS_TRIED:].to(self.device))
        self._follow(StepMessage(0, (), (), tuple(names)), Failures())


def _find_strangers(
    spans: Sequence[Span], token_ids: np.ndarray, vocabulary: int, failures: Failures
) -> None:
    """Note the spans with ids that no token has, and put 0 in the place of these."""
    first = 0
    for span in spans:
        mine = token_ids[first : first + span.stop - span.start]
        with failures.guard(span.request_id):
            require_known("the prompt", int(mine.min()), int(mine.max()), vocabulary)
        first += len(mine)
    token_ids[(token_ids < 0) | (token_ids >= vocabulary)] = 0
