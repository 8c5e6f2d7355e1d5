"""StageActor: one tensor rank of pipeline stage s of KV group k, pinned, with its share of the
layers and its slices of KV caches.

The actor's Ray methods set it up and link it with its neighbours; then its Service works alone. No
Ray call is made while serving.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import msgspec
import ray
import torch

from medha_actors.actors.cells import Cell
from medha_actors.actors.exchange import open_mailboxes
from medha_actors.actors.links import Endpoint, Listener, dial
from medha_actors.actors.orphans import Owner, follow
from medha_actors.actors.plans import Identity, Place, StagePlan
from medha_actors.actors.service import Service, Wires
from medha_actors.actors.shared_memory import forget
from medha_actors.actors.teams import open_board
from medha_actors.errors import EngineError
from medha_actors.messages import StepMessage
from medha_actors.model.host_tier import HostTier, SlotFile, page_bytes
from medha_actors.model.kernels import Rehearsal
from medha_actors.model.stage import Stage
from medha_actors.model.team import ALONE, Team
from medha_actors.model_shares import rows_of, shares_of

_ACCEPT_S = 60.0


class _Loaded:
    """A stage that can compute."""

    def __init__(self, plan: StagePlan) -> None:
        self.plan = plan
        self.stage = Stage(
            plan.spec,
            plan.config.model_loading_config,
            layers=plan.layers,
            stages=(plan.cell.stage, plan.shape.stages),
            group=plan.cell.group,
            pages=plan.pages,
            page_tokens=plan.config.kv_cache.page_tokens,
            device=plan.device,
            dtype=getattr(torch, plan.dtype),
            threads=plan.config.actors.threads,
            attention=plan.config.actors.attention,
            ranks=(plan.cell.rank, plan.shape.ranks),
        )
        self.stage.tier = _tier_of(plan, self.stage) if plan.slots else None
        self.stage.warm_up(_rehearsal(plan))


class StageActor:
    """One cell of the grid, or a spare that may become one. See Cluster for the order of calls."""

    def __init__(self, device: str, owner: Owner | None) -> None:
        """`owner`: whom this actor outlives for a while (it is detached); None: it ends with its
        creator."""
        context = ray.get_runtime_context()
        self._place = _locate(context.get_node_id(), device)
        self._host = ray.util.get_node_ip_address()
        self._loaded: _Loaded | None = None
        self._listener: Listener | None = None
        self._wires = Wires()
        self._service: Service | None = None
        self._kept = b""
        if owner is not None:
            follow(owner)

    def locate(self) -> Place:
        """Where this actor runs and how much memory was free there."""
        return self._place

    def identify(self) -> bytes:
        """The msgpack of an Identity."""
        plan = self._loaded.plan if self._loaded else None
        return msgspec.msgpack.encode(Identity(self._place, plan, self._kept))

    def keep(self, kept: bytes) -> None:
        """Keep something for the controller that comes after this one."""
        self._kept = kept

    def load(self, packed_plan: bytes) -> int:
        """Pin this process, read the weights, reserve the KV pool; returns the resident bytes."""
        plan = msgspec.msgpack.decode(packed_plan, type=StagePlan)
        if plan.cores:
            # This thread's cores, and so those of every thread it starts.
            os.sched_setaffinity(0, plan.cores)
        torch.set_num_threads(plan.config.actors.threads)
        self._loaded = _Loaded(plan)
        return resident_bytes()

    def tier_mark(self) -> str:
        """The secret of the links with which the second tier's file was last at work."""
        tier = self._ready().stage.tier
        return tier.file.mark if tier is not None and tier.file is not None else ""

    def fill(self, pages: int) -> None:
        """Write noise into the first pages of the KV pool (calibration, benchmarks)."""
        with torch.inference_mode():
            self._ready().stage.decoder.fill(pages)

    def measure(self, packed_steps: bytes, repeats: int) -> list[float]:
        """Seconds of each synthetic step, the fastest of `repeats` tries (calibration; before
        `serve`). All ranks of a team measure together, and are linked before.

        All steps are tried before any is tried again, so that a moment's disturbance does not spoil
        all tries of one.
        """
        plan = self._ready().plan
        stage = self._ready().stage
        team = self._wires.team(plan.cell)
        messages = msgspec.msgpack.decode(packed_steps, type=list[StepMessage])
        fastest = [float("inf")] * len(messages)
        for _ in range(repeats):
            for number, message in enumerate(messages):
                rows = sum(span.stop - span.start for span in message.spans)
                hidden = None
                if plan.cell.stage:
                    hidden = torch.randn(rows, plan.spec.hidden).to(getattr(torch, plan.dtype))
                    hidden = hidden[rows_of(rows, plan.cell.rank, plan.shape.ranks)]
                started = time.perf_counter()
                stage.step(message, hidden, None, team)
                if message.moves and stage.tier is not None:
                    stage.tier.wait()
                fastest[number] = min(fastest[number], time.perf_counter() - started)
        return fastest

    def listen(self) -> Endpoint:
        """Open this actor's listener; links of before are closed, and what requests it knew is
        forgotten."""
        self._wires.close()
        if self._service is not None:
            self._service.stop()
            self._service = None
        self._wires = Wires()
        if self._listener is not None:
            self._listener.close()
        self._listener = Listener(self._place.node_id, self._host)
        return self._listener.endpoint

    def connect(
        self, secret: str, targets: list[tuple[Cell, Endpoint]], nearby: tuple[bool, bool]
    ) -> None:
        """Dial the cells of `targets`; `nearby`: whether all groups of this stage and rank are on
        this host, and whether all ranks of this team are, on CPUs."""
        plan = self._ready().plan
        shape = plan.shape
        groups_nearby, ranks_nearby = nearby
        if groups_nearby:
            heads = shares_of(plan.spec, shape.ranks)[plan.cell.rank].heads.size
            name = _mailbox_name(secret, plan.cell)
            self._wires.mailboxes = open_mailboxes(name, shape.groups, heads, plan.spec.head_dim)
        if ranks_nearby:
            name = _board_name(secret, plan.cell)
            self._wires.board = open_board(name, shape.ranks, plan.spec.hidden)
        for cell, endpoint in targets:
            link = dial(endpoint, self._place.node_id, secret, plan.cell)
            self._wires.take(plan.cell, cell, link)

    def accept(self, secret: str) -> None:
        """Let in the peers that dial this cell."""
        loaded = self._ready()
        cell = loaded.plan.cell
        if self._listener is None:
            raise EngineError(f"{cell} was not told to listen")
        for _ in range(loaded.plan.shape.callers(cell)):
            caller, link = self._listener.accept(secret, timeout_s=_ACCEPT_S)
            self._wires.take(cell, caller, link)
        self._listener.close()
        self._listener = None
        for name in (_mailbox_name(secret, cell), _board_name(secret, cell)):
            forget(name)  # everybody has opened them by now

    def serve(self, secret: str) -> None:
        """Start to compute what comes; `secret`: of the links."""
        loaded = self._ready()
        loaded.stage.reset()
        tier = loaded.stage.tier
        if tier is not None and tier.file is not None:
            tier.file.sign(secret)
        self._service = Service(loaded.plan.cell, loaded.stage, self._wires)

    def _ready(self) -> _Loaded:
        if self._loaded is None:
            raise EngineError("this actor is a spare: it has no stage")
        return self._loaded


def _locate(node_id: str, device: str) -> Place:
    cores = tuple(sorted(os.sched_getaffinity(0)))
    if device == "cuda":
        free_bytes = torch.cuda.mem_get_info()[0]
        return Place(node_id, cores, free_bytes, torch.cuda.get_device_name())
    free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Place(node_id, cores, free_bytes, None)


def _tier_of(plan: StagePlan, stage: Stage) -> HostTier:
    cells = stage.decoder.cells()
    folder = plan.config.kv_cache.disk
    if folder is None:
        return HostTier(cells, plan.slots)
    cell = plan.cell
    name = f"{plan.run}-{cell.stage}-{cell.group}-{cell.rank}"
    file = SlotFile(Path(folder), name, plan.slots * page_bytes(cells))
    return HostTier(cells, plan.slots, file)


def _mailbox_name(secret: str, cell: Cell) -> str:
    return f"medha-{secret}-{cell.stage}-{cell.rank}"


def _board_name(secret: str, cell: Cell) -> str:
    return f"medha-{secret}-{cell.stage}-of-{cell.group}"


def _rehearsal(plan: StagePlan) -> Team:
    """A team for warming up."""
    ranks = plan.shape.ranks
    return ALONE if ranks == 1 else Rehearsal(plan.cell.rank, ranks, plan.spec.hidden)


def resident_bytes() -> int:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
