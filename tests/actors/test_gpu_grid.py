"""A grid on GPUs that are only acted: how many pages it gets, and keeps; who counts as dead."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest
from ray.exceptions import RayActorError, RayTaskError

from medha_actors.actors import cluster, rooms
from medha_actors.actors.calibration import profile_of
from medha_actors.actors.capacity import measured_pages, trial_pages
from medha_actors.actors.cells import Cell
from medha_actors.actors.cluster import Cluster
from medha_actors.actors.crew import Crew
from medha_actors.actors.plans import Identity, Kept, Place, StagePlan, shape_of
from medha_actors.config import load
from medha_actors.core.group_load import GroupLoad, load_of
from medha_actors.core.predictor import ExecutionModel
from medha_actors.errors import ConfigError
from medha_actors.messages import StepMessage
from medha_actors.model.spec import load_spec
from medha_actors.model_spec import kv_bytes_per_token, split_layers

CONTEXT_BYTES = 500 << 20  # of each process on a GPU
WEIGHT_BYTES = 3 << 30
ACTIVATION_BYTES = 1 << 30
ALL = 80 << 30
_encode = msgspec.msgpack.Encoder().encode
decode_steps = msgspec.msgpack.Decoder(list[StepMessage]).decode


def config_of(device="cuda", **more):
    model = {"model_source": "random", "dtype": "bfloat16"}
    return load({"model_loading_config": model, "actors": {"device": device}, **more})


class ActedCrew:
    """Actors on one GPU; `others`: bytes that other programs have taken of it."""

    others = 0
    gpu = "H100"
    kernels = "cuda triton"
    made: list[ActedCrew]

    def __init__(self, config, device, owner, stage_class, make_room):
        self.config = config
        self.device = device
        self.plans: dict[Cell, StagePlan] = {}
        self.rehearsed: set[Cell] = set()
        self.living: set[Cell] = set()
        self.found: dict[Cell, Identity] = {}
        self.calls: list[str] = []
        self.replaced: list[Cell] = []
        type(self).made.append(self)

    @property
    def shape(self):
        return shape_of(self.config)

    async def adopt(self):
        return self.found

    def dismiss(self):
        self.plans = {}
        self.rehearsed = set()
        self.living = set()

    async def hire(self):
        self.living = set(self.shape.cells())

    async def dead(self):
        return [cell for cell in self.shape.cells() if cell not in self.living]

    async def refill(self, dead, nodes):
        self.replaced += dead
        self.living |= set(dead)
        return {cell: self.locate(cell) for cell in dead}

    async def everybody(self, method, *arguments):
        return await self.call(method, dict.fromkeys(self.shape.cells(), arguments))

    async def call(self, method, arguments):
        self.calls.append(method)
        return {
            cell: getattr(self, method)(cell, *own) for cell, own in arguments.items()
        }

    def page_bytes(self, cell):
        plan = self.plans[cell]
        tokens = plan.config.kv_cache.page_tokens
        return tokens * kv_bytes_per_token(plan.spec, plan.layers, plan.dtype)

    def free_bytes(self):
        taken = self.others + len(self.living) * CONTEXT_BYTES
        for cell, plan in self.plans.items():
            taken += WEIGHT_BYTES + plan.pages * self.page_bytes(cell)
        return ALL - taken - len(self.rehearsed) * ACTIVATION_BYTES

    def locate(self, cell):
        if self.device == "cpu":
            return Place("node", (0,), self.free_bytes(), None)
        return Place("node", (0,), self.free_bytes(), self.gpu, "0")

    def load(self, cell, packed):
        self.plans[cell] = msgspec.msgpack.decode(packed, type=StagePlan)
        assert self.free_bytes() > 0, "out of memory"
        return 1

    def resize(self, cell, packed):
        self.load(cell, packed)
        return

    def rehearse(self, cell):
        assert (
            self.plans[cell].pages * self.plans[cell].config.kv_cache.page_tokens
            >= 4096
        )
        self.rehearsed.add(cell)

    def keep(self, cell, kept):
        pass

    def computes(self, cell):
        return self.kernels

    def fill(self, cell, pages):
        assert pages <= self.plans[cell].pages

    def measure(self, cell, packed, repeats):
        """Two milliseconds for launching, or what the rows take."""
        loads = [load_of(message) for message in decode_steps(packed)]
        return [max(2e-3, 5e-6 * load.rows) + 1e-6 * load.spans for load in loads]


@pytest.fixture(autouse=True)
def one_gpu(monkeypatch):
    """The cluster has one; torch is built for it."""
    monkeypatch.setattr(ActedCrew, "made", [], raising=False)
    monkeypatch.setattr(ActedCrew, "others", 0)
    monkeypatch.setattr(cluster, "Crew", ActedCrew)
    monkeypatch.setattr(rooms, "version", lambda _: "2.11.0+cu130")
    monkeypatch.setattr(
        cluster.ray, "cluster_resources", lambda: {"GPU": 1.0, "CPU": 16.0}
    )


async def test_the_pool_is_what_is_free_when_everything_else_is_there():
    started = await Cluster.start(config_of())
    crew = ActedCrew.made[-1]
    assert crew.calls == ["locate", "locate", "load", "rehearse", "locate", "resize"]
    page_bytes = crew.page_bytes(Cell(0, 0))
    rest = ALL - 2 * (CONTEXT_BYTES + WEIGHT_BYTES + ACTIVATION_BYTES)
    for plan in crew.plans.values():
        assert plan.pages == started.pages
    assert 0.88 * rest < 2 * started.pages * page_bytes < 0.92 * rest
    assert crew.free_bytes() > 0.05 * rest
    assert started.blueprint.gpus == ("H100",)


async def test_the_cpu_and_a_budget_load_at_once():
    for config in (config_of("cpu"), config_of(kv_cache={"budget_bytes": 1 << 30})):
        started = await Cluster.start(config)
        assert ActedCrew.made[-1].calls == ["locate", "locate", "load"]
        assert started.pages > 0


async def test_auto_is_one_stage_on_one_gpu_and_a_fixed_layout_shares_it(caplog):
    started = await Cluster.start(config_of("auto"))
    assert (started.crew.shape.stages, started.config.actors.num_gpus) == (1, 1.0)
    assert "1 stages instead of 2" in caplog.text
    assert started.credits_apart, "a GPU takes a batch while it computes another"
    started = await Cluster.start(config_of("cuda"))
    assert (started.crew.shape.stages, started.config.actors.num_gpus) == (2, 0.5)


async def test_a_lone_stage_on_a_cpu_gives_its_credit_with_the_result():
    started = await Cluster.start(config_of("cpu", parallel={"spp": 1}))
    assert not started.credits_apart
    started = await Cluster.start(config_of("cpu", parallel={"spp": 2}))
    assert started.credits_apart


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("everything", [True, False])
async def test_pages_stay_when_a_rebuilt_grid_finds_less_memory(device, everything):
    """The scheduler has given out their numbers."""
    started = await Cluster.start(config_of(device))
    pages = started.pages
    slots = started.slots
    crew = ActedCrew.made[-1]
    crew.living.discard(Cell(1, 0))
    del crew.plans[Cell(1, 0)]
    crew.rehearsed.clear()
    ActedCrew.others = 5 << 30
    lost = await started.revive(everything=everything)
    assert lost.groups == {0}
    assert {plan.pages for plan in crew.plans.values()} == {pages}
    assert (started.pages, started.slots) == (pages, slots)
    if not everything:
        assert crew.replaced == [Cell(1, 0)]


async def test_a_found_grid_goes_on_as_it_was_fitted():
    """Also where the GPUs would fit another layout now."""
    asked = config_of("auto")
    blueprint = (await Cluster.start(asked)).blueprint
    kept = _encode(Kept(blueprint, b"profile"))
    place = Place("node", (0,), 1 << 30, "H100", "0")
    identity = Identity(place, blueprint.plan(Cell(0, 0)), kept)

    class Left(ActedCrew):
        def __init__(self, *rest):
            super().__init__(*rest)
            self.found = {Cell(0, 0): identity}
            self.living = {Cell(0, 0)}

    cluster.Crew = Left
    cluster.ray.cluster_resources = lambda: {"GPU": 2.0}
    again = await Cluster.start(asked)
    assert again.blueprint == blueprint
    assert again.crew.shape.stages == 1
    assert again.profile == b"profile"


async def test_a_gpu_that_torch_cannot_use_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(
        ActedCrew, "locate", lambda *_: Place("n", (0,), 0, None, obstacle="no driver")
    )
    with pytest.raises(ConfigError, match=r"^actors\.device is cuda, but no driver$"):
        await Cluster.start(config_of())


async def test_a_profile_is_of_this_gpu_these_kernels_and_these_limits(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    async def profile(**more):
        """And how often it was measured: stages on one GPU in turns."""
        started = await Cluster.start(config_of(**more))
        found = await profile_of(started)
        return found, ActedCrew.made[-1].calls.count("measure")

    first, measured = await profile()
    assert measured == 2
    assert ExecutionModel(first).base(GroupLoad().with_prefill(16, 0)) == pytest.approx(
        2e-3, 0.01
    )
    assert await profile() == (first, 0), "it was kept"
    for name, value in (("gpu", "H200"), ("kernels", "cuda flash")):
        monkeypatch.setattr(ActedCrew, name, value)
        assert (await profile())[1] == 2
        assert (await profile())[1] == 0
    assert (await profile(scheduler={"max_batch_tokens": 8192}))[1] == 2
    assert (await profile(parallel={"spp": 1}))[1] == 1
    guessed, measured = await profile(predictor={"calibrate": False})
    assert measured == 0
    assert guessed != first


def test_neighbours_share_what_is_free_and_the_tightest_counts():
    config = config_of(parallel={"spp": 3})
    spec = load_spec(config.model_loading_config)
    layers = split_layers(spec, 3)
    places = {
        Cell(0, 0): Place("a", (0,), 8 << 30, "H100", "0"),
        Cell(1, 0): Place("a", (0,), 8 << 30, "H100", "0"),
        Cell(2, 0): Place("b", (0,), 40 << 30, "H100", "0"),  # another node's
    }
    page_bytes = 64 * max(kv_bytes_per_token(spec, one, "bfloat16") for one in layers)
    trial = trial_pages(config)
    assert trial * 64 >= config.scheduler.max_batch_tokens
    pages = measured_pages(config, spec, layers, "bfloat16", places, trial)
    assert pages == trial + int(0.9 * (8 << 30) / 2) // page_bytes
    quarter = config_of(parallel={"spp": 3})
    actors = msgspec.structs.replace(quarter.actors, num_gpus=0.25)
    quarter = msgspec.structs.replace(quarter, actors=actors)
    fewer = measured_pages(quarter, spec, layers, "bfloat16", places, trial)
    assert fewer == trial + int(0.9 * (8 << 30) / 4) // page_bytes
    long = config_of(model_loading_config={"max_model_len_tokens": 10**9})
    with pytest.raises(ConfigError, match="max_model_len_tokens is 1000000000"):
        measured_pages(long, spec, layers, "bfloat16", places, trial)


class Handle:
    """An actor that answers `locate` in some way."""

    def __init__(self, answer):
        self.locate = SimpleNamespace(remote=self._remote)
        self.answer = answer

    async def _remote(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def test_whoever_is_gone_fails_or_cannot_compute_is_dead():
    well = Place("node", (0,), 1, "H100", "0")
    crew = Crew(config_of(parallel={"spp": 6}), "cuda", None)
    answers = [
        well,
        RayActorError(),
        RayTaskError(
            "locate", "a traceback", RuntimeError("CUDA error: device-side assert")
        ),
        TimeoutError(),
        msgspec.structs.replace(
            well, obstacle="the GPU has failed: device-side assert"
        ),
    ]
    crew.actors = {
        Cell(stage, 0): Handle(answer) for stage, answer in enumerate(answers)
    }
    assert await crew.dead() == [Cell(5, 0), *[Cell(stage, 0) for stage in range(1, 5)]]
