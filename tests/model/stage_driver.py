"""Drives stages in this process, as the scheduler and the actors would: pages, spans, groups and
ranks in lock-step."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from operator import itemgetter

import numpy as np
import torch

from medha_actors.config import ModelLoadingConfig
from medha_actors.messages import (
    Introduction,
    SampledToken,
    SamplingParams,
    Span,
    StepMessage,
    pack_tokens,
)
from medha_actors.model import merge
from medha_actors.model.kernels import Board, SharedTeam
from medha_actors.model.spec import load_spec, split_layers
from medha_actors.model.stage import Stage, StageOutput
from medha_actors.model.team import ALONE, Team, add_up

GREEDY = SamplingParams(max_tokens=1, temperature=0.0, logprobs=3, prompt_logprobs=2)


PAGE_TOKENS = {"auto": 64, "sdpa": 16}  # the CPU kernels need 64


class Rendezvous:
    """Where threads meet, one per group, in the same order, and leave what they have."""

    def __init__(self, groups: int) -> None:
        self.barriers = {}
        self.given = {}
        self.lock = threading.Lock()
        self.groups = groups

    def of(self, group: int) -> ThreadExchange:
        return ThreadExchange(self, group)


class ThreadExchange(merge.Exchange):
    def __init__(self, meeting: Rendezvous, group: int) -> None:
        self.meeting = meeting
        self.group = group

    def merge(self, groups, out, lse):
        partials = self.gather(groups, merge.pack(out, lse))
        out.copy_(merge.merge_packed(partials))

    def gather(self, groups, partial):
        meeting = self.meeting
        with meeting.lock:
            barrier = meeting.barriers.setdefault(
                groups, threading.Barrier(len(groups), timeout=60)
            )
        meeting.given[groups, self.group] = partial.clone()
        barrier.wait()
        found = [meeting.given[groups, group] for group in groups]
        barrier.wait()
        return found


class ThreadTeam(Team):
    """Ranks that are threads, and meet as groups do."""

    def __init__(self, meeting: Rendezvous, rank: int) -> None:
        super().__init__(rank, meeting.groups)
        self.exchange = meeting.of(rank)

    def gather(self, x):
        return self.exchange.gather(tuple(range(self.ranks)), x.reshape(-1))

    def total(self, x):
        return add_up(self.exchange.gather(tuple(range(self.ranks)), x)).to(x.dtype)


def teams_of(ranks: int, hidden: int, kind: str) -> list[Team]:
    """Every rank's side of one team: of "threads" or on a "board" in memory."""
    if ranks == 1:
        return [ALONE]
    if kind == "threads":
        meeting = Rendezvous(ranks)
        return [ThreadTeam(meeting, rank) for rank in range(ranks)]
    memory = np.zeros(Board.nbytes(ranks, hidden) // 8, np.int64).data
    board = Board(memory, ranks, hidden)
    return [SharedTeam(rank, board, lambda: None) for rank in range(ranks)]


class Tracked:
    """One request: its tokens, how many are computed, and its pages and piece in each group."""

    def __init__(self, request_id, prompt, sampling):
        self.id = request_id
        self.prompt = len(prompt)
        self.sampling = sampling
        self.tokens = list(prompt)
        self.computed = 0
        self.pages: dict[int, list[int]] = {}
        self.pieces: dict[int, list[int]] = {}  # group -> [first position, tokens]
        self.sampled: list[SampledToken] = []
        self.prompt_logprobs: dict[int, tuple] = {}


class Driver:
    """`groups` pipelines of `stages` stages; each request's KV is split at `cutoffs` over groups 0,
    1, ..."""

    def __init__(
        self,
        config=None,
        stages=1,
        groups=1,
        pages=64,
        page_tokens=None,
        dtype=torch.float32,
        cutoffs=(),
        attention="auto",
        device="cpu",
        ranks=1,
        team="board",
        helpers=0,
    ):
        """`helpers`: threads that share each step with the caller's; all steps have the grid to
        themselves."""
        self.config = config or ModelLoadingConfig()
        self.spec = load_spec(self.config)
        page_tokens = page_tokens or PAGE_TOKENS[attention]
        self.page_tokens = page_tokens
        self.cutoffs = cutoffs
        own = (pages, page_tokens, device, dtype, 1, attention)
        layers = split_layers(self.spec, stages)
        cores = sorted(os.sched_getaffinity(0))
        borrowed = [cores[-1 - number % len(cores)] for number in range(helpers)]
        self.alone = helpers > 0
        # (group, rank) -> its stages, and its side of each stage's team
        self.lines: dict[tuple[int, int], list[tuple[Stage, Team]]] = {}
        for group in range(groups):
            for index in range(stages):
                teams = teams_of(ranks, self.spec.hidden, team)
                for rank in range(ranks):
                    place = (layers[index], (index, stages), group)
                    stage = Stage(
                        self.spec, self.config, *place, *own, (rank, ranks), borrowed
                    )
                    self.lines.setdefault((group, rank), []).append(
                        (stage, teams[rank])
                    )
        self.groups = groups
        self.ranks = ranks
        self.free = [list(reversed(range(pages))) for _ in range(groups)]
        self.requests: dict[str, Tracked] = {}
        self.failed: dict[
            str, str
        ] = {}  # requests that a stage could not compute, and why
        self.closed: list[str] = []
        self.batches = 0

    @property
    def pipelines(self) -> list[list[Stage]]:
        """The stages of each group's first rank."""
        lines = [self.lines[group, 0] for group in range(self.groups)]
        return [list(map(itemgetter(0), line)) for line in lines]

    def add(self, request_id, prompt, sampling=GREEDY):
        self.requests[request_id] = Tracked(request_id, prompt, sampling)

    def drop(self, request_id):
        """Forget a request's KV; its known tokens are computed again."""
        request = self.requests[request_id]
        for group, pages in request.pages.items():
            self.free[group].extend(pages)
        request.pages = {}
        request.pieces = {}
        request.computed = 0
        self.closed.append(request_id)

    def remove(self, request_id):
        self.drop(request_id)
        return self.requests.pop(request_id)

    def step(self, work: Iterable[tuple[str, int]]) -> None:
        """Compute `count` tokens of each request in one batch."""
        spans = [[] for _ in range(self.groups)]
        opened = [[] for _ in range(self.groups)]
        work = sorted(work, key=lambda item: -len(self._groups(*item)))
        for request_id, count in work:
            self._span(self.requests[request_id], count, spans, opened)
        messages = [
            StepMessage(
                self.batches,
                tuple(mine),
                tuple(new),
                tuple(self.closed),
                alone=self.alone,
            )
            for mine, new in zip(spans, opened, strict=True)
        ]
        self.batches += 1
        self.closed = []
        for output in self._run(messages):
            for token in output.tokens:
                request = self.requests[token.request_id]
                assert token.index == len(request.tokens) - request.prompt
                request.tokens.append(token.token_id)
                request.sampled.append(token)
            for found in output.prompt_logprobs:
                entries = enumerate(found.entries, found.start + 1)
                self.requests[found.request_id].prompt_logprobs.update(entries)
            for failure in output.failures:
                self.failed.setdefault(failure.request_id, failure.message)
        for request_id in self.failed.keys() & self.requests.keys():
            self.remove(request_id)

    def generate(self, counts: dict[str, int], chunk: int) -> None:
        """Run until each request has its number of output tokens; prefills advance by `chunk`."""
        while left := [
            r
            for r in self.requests.values()
            if len(r.tokens) - r.prompt < counts.get(r.id, 0)
        ]:
            self.step(
                [
                    (r.id, min(chunk, len(r.tokens) - r.computed, self._room(r)))
                    for r in left
                ]
            )

    def _room(self, request):
        """A span never straddles a cutoff."""
        return min(
            [cut - request.computed for cut in self.cutoffs if cut > request.computed],
            default=1 << 30,
        )

    def _groups(self, request_id, count):
        return range(
            sum(cut <= self.requests[request_id].computed for cut in self.cutoffs) + 1
        )

    def _span(self, request, count, spans, opened):
        start = request.computed
        stop = request.computed + count
        groups = tuple(self._groups(request.id, count))
        known = len(request.tokens)
        for group in groups:
            writes = group == groups[-1]
            if group not in request.pieces:
                request.pieces[group] = [start, 0]
                request.pages[group] = []
                before = pack_tokens(request.tokens[:start])
                opened[group].append(Introduction(request.id, request.sampling, before))
            first, held = request.pieces[group]
            new = 0
            if writes:
                new = -(-(held + count) // self.page_tokens) - len(request.pages[group])
                request.pieces[group][1] += count
            pages = tuple(self.free[group].pop() for _ in range(new))
            request.pages[group].extend(pages)
            following = request.tokens[stop] if stop < request.prompt else -1
            spans[group].append(
                Span(
                    request.id,
                    start,
                    stop,
                    pack_tokens(request.tokens[start:stop]),
                    first,
                    held,
                    pages,
                    writes,
                    sample=writes and stop == known,
                    index=known - request.prompt,
                    groups=groups if len(groups) > 1 else (),
                    next_token_id=following,
                )
            )
        request.computed = stop

    def _run(self, messages) -> list[StageOutput]:
        """What the first rank of each group has sampled."""
        if len(self.lines) == 1:
            return [self._line((0, 0), messages[0], None)]
        meetings = [Rendezvous(self.groups) for _ in range(self.ranks)]
        outputs: dict[tuple[int, int], StageOutput | BaseException] = {}

        def work(line):
            group, rank = line
            exchange = meetings[rank].of(group) if self.groups > 1 else None
            try:
                outputs[line] = self._line(line, messages[group], exchange)
            except BaseException as error:
                outputs[line] = error

        threads = [threading.Thread(target=work, args=(line,)) for line in self.lines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for output in outputs.values():
            if isinstance(output, BaseException):
                raise output
        return [outputs[group, 0] for group in range(self.groups)]

    def _line(self, line, message, exchange):
        output = StageOutput(None)
        failures = ()
        for stage, team in self.lines[line]:
            output = stage.step(message, output.hidden, exchange, team)
            failures += output.failures
        return output._replace(failures=failures)
