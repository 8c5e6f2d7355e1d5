"""Made-up but consistent lives of requests, told to the recorder as the controller tells them."""

from zlib import crc32

from medha_actors.actors.telemetry.recorder import Recorder
from medha_actors.core.batch import Batch
from medha_actors.core.record import BatchRecord, Slack
from medha_actors.messages import (
    Accepted,
    FinishedEvent,
    Request,
    SamplingParams,
    Span,
    StepMessage,
    StepResult,
    TokenEvent,
    pack_tokens,
)

START = 1_000.0
TRACE = "0af7651916cd43dd8448eb211c80319c"


def request(name: str, prompt: int = 100, at: float = START) -> Request:
    return Request(
        id=name,
        prompt_token_ids=pack_tokens(
            [crc32(name.encode()) % 2**30, *[0] * (prompt - 1)]
        ),
        sampling=SamplingParams(max_tokens=4),
        arrived_at=at,
        traceparent=f"00-{TRACE}-{len(name):016x}-01",
    )


def accepted(asked: Request, ttft_s: float = 1.0, tpot_s: float = 0.1) -> Accepted:
    return Accepted(
        deadline_at=asked.arrived_at + ttft_s,
        ttft_objective_s=ttft_s,
        tpot_objective_s=tpot_s,
        predicted_ttft_s=0.5,
    )


def finished(name: str, at: float, reason: str = "length", **more) -> FinishedEvent:
    return FinishedEvent(request_id=name, reason=reason, finished_at=at, **more)


class Story:
    """A recorder and the batches it is told of; every batch takes 10 ms in each of two stages."""

    def __init__(self, last: int = 10, max_chunks: int = 16) -> None:
        self.recorder = Recorder(last, max_chunks)
        self.now = START
        self._batch = 0
        self._places: dict[str, int] = {}

    def arrives(self, name: str, prompt: int = 100, **objectives) -> None:
        asked = request(name, prompt, self.now)
        self.recorder.accepted(asked, accepted(asked, **objectives), self.now)
        self._places[name] = 0

    def send(
        self, *chunks: tuple[str, int], preempted=(), evicted=(), groups=(0,)
    ) -> int:
        """One batch of chunks (request, tokens) in `groups`; returns its id."""
        spans = []
        for name, tokens in chunks:
            start = self._places[name]
            spans.append(
                Span(name, start, start + tokens, bytes(4 * tokens), 0, start, ())
            )
            self._places[name] = start + tokens
        messages = tuple(
            StepMessage(self._batch, tuple(spans)) if k in groups else None
            for k in range(2)
        )
        batch = Batch(
            self._batch, messages, 0.02, 0.012, sum(tokens for _, tokens in chunks), 0
        )
        slacks = tuple(Slack(name, 0.3, 0.6) for name, _ in chunks)
        self.recorder.sent(
            batch,
            BatchRecord(self._batch, slacks, tuple(preempted), tuple(evicted)),
            self.now,
        )
        self._batch += 1
        return batch.id

    def back(self, batch_id: int, groups=(0,)) -> None:
        """Its results, after 20 ms."""
        starts = (self.now, self.now + 0.01)
        self.now += 0.02
        self.recorder.done(
            [
                StepResult(batch_id, k, (), (0.01, 0.008), (), starts, (0.002, 0.001))
                for k in groups
            ],
            self.now,
        )

    def step(self, *chunks: tuple[str, int], **more) -> None:
        groups = more.get("groups", (0,))
        self.back(self.send(*chunks, **more), groups)

    def token(self, name: str, index: int, after: float) -> None:
        self.now += after
        self.recorder.happened(TokenEvent(name, index, 7, self.now))

    def ends(self, name: str, reason: str = "length") -> None:
        timeline = self.recorder.live[name]
        first = timeline.chunks[0].sent_at
        last = timeline.first_token_at
        self.recorder.happened(
            finished(name, self.now, reason, scheduled_at=first, prefilled_at=last)
        )


def convoy() -> Story:
    """A long prompt in pipelined chunks and over two groups, a short one that takes its turn, a
    stall in decode."""
    story = Story()
    story.arrives("long", 1000)
    first = story.send(("long", 300))
    second = story.send(("long", 300))  # before the first is back: SPP
    story.back(first)
    story.back(second)
    story.arrives("short", 50)
    story.step(("short", 50), preempted=[("long", "short")])
    story.token("short", 0, 0.001)
    story.ends("short")
    story.step(("long", 400), groups=(0, 1))
    story.token("long", 0, 0.0)
    story.token("long", 1, 0.05)
    story.token("long", 2, 0.5)
    story.ends("long")
    return story
