"""StageActor: pipeline stage s of KV group k, pinned, with its layers and its slices of KV caches.

The actor's Ray methods set it up; then a thread of its own reads one frame per step from the stage
before (or from the controller), computes, and writes one frame to the stage after (or the result to
the controller). No Ray call is made while serving.
"""

from __future__ import annotations

import logging
import os
import re
import resource
import threading
import time

import msgspec
import ray
import torch

from medha_actors.actors.exchange import (
    LinkExchange,
    SharedExchange,
    forget_mailboxes,
    open_mailboxes,
)
from medha_actors.actors.links import Endpoint, Hello, Link, Listener, dial
from medha_actors.config import MedhaConfig
from medha_actors.errors import LinkClosedError
from medha_actors.messages import StepMessage, StepResult
from medha_actors.model.spec import ModelSpec
from medha_actors.model.stage import Stage

_log = logging.getLogger("medha.stage")
_encode = msgspec.msgpack.Encoder().encode
_decode_step = msgspec.msgpack.Decoder(StepMessage).decode
CREDIT = b""  # stage 0 tells the controller with an empty message that it is free


class Place(msgspec.Struct, frozen=True):
    """Where an actor turned out to run."""

    node_id: str
    cores: tuple[int, ...]
    free_bytes: int  # memory that KV caches could use: of the GPU, or of the host
    gpu: str | None


class StagePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What one actor of the grid is to be."""

    config: MedhaConfig
    spec: ModelSpec
    stage: int
    group: int
    layers: tuple[int, int]
    pages: int
    cores: tuple[int, ...]  # empty: not pinned
    device: str
    dtype: str


class StageActor:
    """One cell of the grid. Constructed without side effects; see Cluster for the order of
    calls."""

    def __init__(self) -> None:
        self._links: list[Link] = []
        self._upstream: Link | None = None
        self._downstream: Link | None = None
        self._control: Link | None = None
        self._peers: dict[int, Link] = {}
        self._loop: threading.Thread | None = None

    def locate(self, device: str) -> Place:
        """Where this actor runs and how much memory is free there."""
        self._node_id, self._host = (
            ray.get_runtime_context().get_node_id(),
            ray.util.get_node_ip_address(),
        )
        if device == "cuda":
            free, name = torch.cuda.mem_get_info()[0], torch.cuda.get_device_name()
        else:
            free, name = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
        return Place(self._node_id, tuple(sorted(os.sched_getaffinity(0))), free, name)

    def load(self, packed_plan: bytes) -> int:
        """Pin this process, read the weights, reserve the KV pool; returns the resident bytes."""
        plan = msgspec.msgpack.decode(packed_plan, type=StagePlan)
        if plan.cores:
            os.sched_setaffinity(
                0, plan.cores
            )  # this thread's, and so that of every thread it starts
        torch.set_num_threads(plan.config.actors.threads)
        self._plan, parallel = plan, plan.config.parallel
        self._stage = Stage(
            plan.spec,
            plan.config.model_loading_config,
            layers=plan.layers,
            stages=(plan.stage, parallel.spp),
            group=plan.group,
            pages=plan.pages,
            page_tokens=plan.config.kv_cache.page_tokens,
            device=plan.device,
            dtype=getattr(torch, plan.dtype),
            threads=plan.config.actors.threads,
            attention=plan.config.actors.attention,
        )
        self._stage.warm_up()
        return resident_bytes()

    def fill(self, pages: int) -> None:
        """Write noise into the first pages of the KV pool (calibration, benchmarks)."""
        with torch.inference_mode():
            self._stage.decoder.fill(pages)

    def measure(self, packed_steps: bytes, repeats: int) -> list[float]:
        """Seconds of each synthetic step, the fastest of `repeats` tries (calibration; before
        `serve`).

        All steps are tried before any is tried again, so that a moment's disturbance does not spoil
        all tries of one.
        """
        messages = msgspec.msgpack.decode(packed_steps, type=list[StepMessage])
        fastest = [float("inf")] * len(messages)
        for _ in range(repeats):
            for number, message in enumerate(messages):
                rows = sum(span.stop - span.start for span in message.spans)
                hidden = None
                if self._plan.stage:
                    hidden = torch.randn(rows, self._plan.spec.hidden).to(
                        getattr(torch, self._plan.dtype)
                    )
                started = time.perf_counter()
                self._stage.step(message, hidden, None)
                fastest[number] = min(fastest[number], time.perf_counter() - started)
        return fastest

    def listen(self) -> Endpoint:
        """Open this actor's listener; links of before are closed, and what requests it knew is
        forgotten."""
        self._hang_up()
        self._listener = Listener(self._node_id, self._host)
        return self._listener.endpoint

    def _hang_up(self) -> None:
        for link in (self._control, self._upstream, self._downstream, *self._peers.values()):
            if link is not None:
                link.close()
        if self._loop is not None:
            self._loop.join()  # it ends when its links do
        self._control = self._upstream = self._downstream = self._loop = None
        self._peers = {}

    def connect(
        self, secret: str, following: Endpoint | None, peers: dict[int, Endpoint], shared: bool
    ) -> None:
        """Dial the next stage and the same stage of the later groups; `shared`: all groups of it
        are on this host."""
        if following is not None:
            self._downstream = dial(following, self._node_id, Hello(secret, "hidden"))
        self._mailboxes = None
        if shared:
            spec, groups = self._plan.spec, self._plan.config.parallel.kvp
            self._mailboxes = open_mailboxes(
                self._mailbox_name(secret), groups, spec.heads, spec.head_dim
            )
        for group, endpoint in peers.items():
            self._peers[group] = dial(
                endpoint, self._node_id, Hello(secret, f"group:{self._plan.group}")
            )

    def serve(self, secret: str, expected: int) -> None:
        """Accept `expected` peers and start to compute."""
        for _ in range(expected):
            role, link = self._listener.accept(secret, timeout_s=60.0)
            if role == "control":
                self._control = link
            elif role == "hidden":
                self._upstream = link
            elif match := re.fullmatch(r"group:(\d+)", role):
                self._peers[int(match.group(1))] = link
        self._listener.close()
        forget_mailboxes(self._mailbox_name(secret))  # every group has opened them by now
        self._stage.reset()
        self._loop = threading.Thread(target=self._run, name="stage-loop", daemon=True)
        self._loop.start()

    def _run(self) -> None:
        """Compute step after step until a peer is gone; then close every link, so that the others
        notice."""
        exchange = self._exchange()
        source = self._control if self._plan.stage == 0 else self._upstream
        assert source is not None
        try:
            while True:
                self._step(*source.recv(), exchange)
        except LinkClosedError as error:
            _log.info(
                "stage %d of group %d stops: %s", self._plan.stage, self._plan.group, error.message
            )
        except Exception:
            _log.exception("stage %d of group %d failed", self._plan.stage, self._plan.group)
        finally:
            for link in (self._control, self._upstream, self._downstream, *self._peers.values()):
                if link is not None:
                    link.close()

    def _exchange(self) -> LinkExchange | None:
        if not self._peers:
            return None
        if self._mailboxes is None:
            return LinkExchange(self._plan.group, self._peers)
        return SharedExchange(self._plan.group, self._peers, self._mailboxes)

    def _mailbox_name(self, secret: str) -> str:
        return f"medha-{secret}-{self._plan.stage}"

    def _step(
        self, packed: bytes, hidden: torch.Tensor | None, exchange: LinkExchange | None
    ) -> None:
        started_at, started = time.time(), time.perf_counter()
        message = _decode_step(packed)
        output = self._stage.step(message, hidden, exchange)
        stage_seconds = (*message.stage_seconds, time.perf_counter() - started)
        stage_starts = (*message.stage_starts, started_at)
        exchange_seconds = (*message.exchange_seconds, exchange.take_seconds() if exchange else 0.0)
        if self._downstream is not None:
            passed_on = msgspec.structs.replace(
                message,
                stage_seconds=stage_seconds,
                stage_starts=stage_starts,
                exchange_seconds=exchange_seconds,
                failures=(*message.failures, *output.failures),
            )
            self._downstream.send(_encode(passed_on), output.hidden)
            if self._control is not None:
                self._control.send(CREDIT)
        else:
            assert self._control is not None
            result = StepResult(
                message.batch_id,
                self._plan.group,
                output.tokens,
                stage_seconds,
                output.prompt_logprobs,
                stage_starts,
                exchange_seconds,
                (*message.failures, *output.failures),
            )
            self._control.send(_encode(result))


def resident_bytes() -> int:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
