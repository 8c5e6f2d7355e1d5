"""StageActor: one tensor rank of pipeline stage s of KV group k, pinned, with its share of the
layers and its slices of KV caches.

The actor's Ray methods set it up and link it with its neighbours; then its Service works alone. No
Ray call is made while serving.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

import msgspec
import ray
import torch

from medha_actors.actors.cells import Cell
from medha_actors.actors.cores import Cores
from medha_actors.actors.exchange import open_mailboxes
from medha_actors.actors.links import Endpoint, Listener, dial
from medha_actors.actors.measuring import fastest_of
from medha_actors.actors.orphans import Owner, follow
from medha_actors.actors.plans import Identity, Place, StagePlan
from medha_actors.actors.service import Service, Wires
from medha_actors.actors.shared_memory import forget
from medha_actors.actors.teams import open_board
from medha_actors.errors import EngineError
from medha_actors.messages import StepMessage
from medha_actors.model.device import Device, device_of
from medha_actors.model.host_tier import HostTier, SlotFile, page_bytes
from medha_actors.model.kernels import Rehearsal
from medha_actors.model.stage import Stage
from medha_actors.model.team import ALONE, Team
from medha_actors.model_shares import shares_of

_ACCEPT_S = 60.0


class _Loaded:
    """A stage that can compute."""

    def __init__(self, plan: StagePlan, bound: bool) -> None:
        """`bound`: to the cores of the plan, which are nobody else's."""
        self.plan = plan
        unbound = plan.config.actors.threads or 1
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
            threads=len(plan.cores) if bound else unbound,
            attention=plan.config.actors.attention,
            ranks=(plan.cell.rank, plan.shape.ranks),
            borrowed=plan.borrowed if bound else (),
        )
        self._prepare()

    def resize(self, plan: StagePlan) -> None:
        """The same with the pages and slots of this plan."""
        self.plan = plan
        self.stage.resize(plan.pages)
        self._prepare()

    def _prepare(self) -> None:
        self.stage.tier = _tier_of(self.plan, self.stage) if self.plan.slots else None
        self.stage.warm_up(_rehearsal(self.plan))


class StageActor:
    """One cell of the grid, or a spare that may become one. See Cluster for the order of calls."""

    def __init__(self, device: str, owner: Owner | None) -> None:
        """`owner`: whom this actor outlives for a while (it is detached); None: it ends with its
        creator."""
        self._device = device_of(device)
        self._place = _locate(self._device)
        self._host = ray.util.get_node_ip_address()
        self._loaded: _Loaded | None = None
        self._listener: Listener | None = None
        self._wires = Wires()
        self._service: Service | None = None
        self._kept = b""
        self._cores = Cores()
        if owner is not None:
            follow(owner)

    def locate(self) -> Place:
        """Where this actor runs, how much memory is free there, and whether it can compute. Never
        raises."""
        if self._device.asynchronous:  # others on the same GPU have come and gone
            self._place = _locate(self._device)
        return self._place

    def identify(self) -> bytes:
        """The msgpack of an Identity."""
        plan = self._loaded.plan if self._loaded else None
        return msgspec.msgpack.encode(Identity(self._place, plan, self._kept))

    def keep(self, kept: bytes) -> None:
        """Keep something for the controller that comes after this one."""
        self._kept = kept

    def load(self, packed_plan: bytes) -> int:
        """Pin this process, read the weights, reserve the KV pool, warm up; returns the resident
        bytes."""
        plan = msgspec.msgpack.decode(packed_plan, type=StagePlan)
        bound = bool(plan.cores) and self._cores.take(plan.cores)
        if bound:
            # This thread's cores, and so those of every thread it starts.
            os.sched_setaffinity(0, plan.cores)
        self._loaded = _Loaded(plan, bound)
        return resident_bytes()

    def rehearse(self) -> None:
        """Run the largest steps that may come, so that the memory they take is taken."""
        loaded = self._ready()
        limits = loaded.plan.config.scheduler
        team = _rehearsal(loaded.plan)
        loaded.stage.rehearse(
            limits.max_batch_tokens, limits.max_running_requests, team
        )
        self._device.synchronise()

    def resize(self, packed_plan: bytes) -> None:
        """Reserve the KV pool and the second tier anew, as in this plan; warm up."""
        loaded = self._ready()
        loaded.resize(msgspec.msgpack.decode(packed_plan, type=StagePlan))
        self._device.release()

    def computes(self) -> str:
        """What computes here, how it attends, and what else its seconds depend on."""
        name = self._ready().stage.decoder.name
        capability = torch.backends.cpu.get_cpu_capability()
        return f"{name}, torch {torch.__version__}, {capability}"

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
        `serve`). All ranks of a team measure together, and are linked before."""
        loaded = self._ready()
        messages = msgspec.msgpack.decode(packed_steps, type=list[StepMessage])
        team = self._wires.team(loaded.plan.cell)
        dtype = getattr(torch, loaded.plan.dtype)
        return fastest_of(repeats, loaded.stage, self._device, team, messages, dtype)

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
        self,
        secret: str,
        targets: list[tuple[Cell, Endpoint]],
        nearby: tuple[bool, bool],
    ) -> None:
        """Dial the cells of `targets`; `nearby`: whether all groups of this stage and rank are on
        this host, and whether all ranks of this team are, on CPUs."""
        plan = self._ready().plan
        shape = plan.shape
        groups_nearby, ranks_nearby = nearby
        if groups_nearby:
            heads = shares_of(plan.spec, shape.ranks)[plan.cell.rank].heads.size
            name = _mailbox_name(secret, plan.cell)
            self._wires.mailboxes = open_mailboxes(
                name, shape.groups, heads, plan.spec.head_dim
            )
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
        if loaded.stage.device.type == "cuda":
            from medha_actors.actors.tensor_links import link_tensors

            lookout = link_tensors(
                cell, self._wires.neighbours(cell), loaded.stage.device
            )
            if self._wires.control is not None:
                # nothing computed of a dead cell's is told
                self._wires.control.lookout = lookout
        for name in (_mailbox_name(secret, cell), _board_name(secret, cell)):
            forget(name)  # everybody has opened them by now

    def serve(self, secret: str) -> None:
        """Start to compute what comes; `secret`: of the links."""
        loaded = self._ready()
        loaded.stage.reset()
        tier = loaded.stage.tier
        if tier is not None and tier.file is not None:
            tier.file.sign(secret)
        self._service = Service(
            loaded.plan.cell, loaded.stage, self._wires, self._device
        )

    def _ready(self) -> _Loaded:
        if self._loaded is None:
            raise EngineError("this actor is a spare: it has no stage")
        return self._loaded


def _locate(device: Device) -> Place:
    context = ray.get_runtime_context()
    node_id = context.get_node_id()
    cores = tuple(sorted(os.sched_getaffinity(0)))
    obstacle = device.obstacle()
    if obstacle:
        return Place(node_id, cores, 0, None, obstacle=obstacle)
    gpu_id = ",".join(context.get_accelerator_ids().get("GPU", ()))
    free = device.free_bytes()
    dtype = device.usual_dtype()
    return Place(node_id, cores, free, device.name(), gpu_id, dtype=dtype)


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
