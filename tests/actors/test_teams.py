"""Tensor ranks as services: a whole grid of them in this process, with the links and the shared
memory that actors have."""

from __future__ import annotations

import threading

import msgspec
import pytest
import torch

from medha_actors.actors.cells import Cell, Shape
from medha_actors.actors.exchange import open_mailboxes
from medha_actors.actors.links import Link
from medha_actors.actors.service import Service, Wires
from medha_actors.actors.shared_memory import forget
from medha_actors.actors.teams import LinkTeam, open_board, shared_team, wait_for
from medha_actors.config import ModelLoadingConfig
from medha_actors.errors import LinkClosedError
from medha_actors.messages import StepResult
from medha_actors.model.device import HOST, Device
from medha_actors.model.stage import StageOutput
from medha_actors.model_shares import specs_of
from tests.actors.link_ends import pair
from tests.device_double import RecordingDevice
from tests.model.stage_driver import GREEDY, Driver
from tests.tiny_llama import tiny_llama

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(StepResult).decode


class Grid:
    """Services for every stage of a driver, linked as Cluster does it."""

    def __init__(
        self, driver: Driver, stages: int, shared: bool, device: Device
    ) -> None:
        self.device = device
        self.shape = shape = Shape(stages, driver.groups, driver.ranks)
        self.wires = {cell: Wires() for cell in shape.cells()}
        self.controls = {}
        for cell, wires in self.wires.items():
            for other in shape.dials(cell):
                mine, theirs = pair()
                wires.take(cell, other, mine)
                self.wires[other].take(other, cell, theirs)
            if shape.controlled(cell):
                self.controls[cell], theirs = pair()
                wires.take(cell, None, theirs)
            if shared:
                self.share(cell, driver.spec)
        self.services = {}
        for cell, wires in self.wires.items():
            stage, _ = driver.lines[cell.group, cell.rank][cell.stage]
            self.services[cell] = Service(cell, stage, wires, device)

    def share(self, cell: Cell, spec) -> None:
        """Memory for its groups and its team; the last one that opens it takes the name away."""
        boxes = f"medha-test-{id(self)}-{cell.stage}-{cell.rank}"
        board = f"medha-test-{id(self)}-{cell.stage}-of-{cell.group}"
        heads = specs_of(spec, self.shape.ranks)[cell.rank].heads
        if self.shape.groups > 1:
            self.wires[cell].mailboxes = open_mailboxes(
                boxes, self.shape.groups, heads, spec.head_dim
            )
            if cell.group == self.shape.groups - 1:
                forget(boxes)
        if self.shape.ranks > 1:
            self.wires[cell].board = open_board(board, self.shape.ranks, spec.hidden)
            if cell.rank == self.shape.ranks - 1:
                forget(board)

    def run(self, messages) -> list[StageOutput]:
        """What the last stage of each group answers."""
        for group, message in enumerate(messages):
            self.controls[Cell(0, group)].send(_encode(message))
        outputs = []
        for group in range(self.shape.groups):
            last = Cell(self.shape.stages - 1, group)
            if self.shape.stages == 1 and self.device.asynchronous:
                assert self.controls[last].recv() == (
                    b"",
                    None,
                )  # the credit comes first
            result = _decode(self.controls[last].recv()[0])
            assert len(result.stage_seconds) == self.shape.stages
            outputs.append(
                StageOutput(
                    None, result.tokens, result.prompt_logprobs, result.failures
                )
            )
            if self.shape.stages > 1:
                assert self.controls[Cell(0, group)].recv() == (b"", None)  # the credit
        return outputs

    def stop(self) -> None:
        for link in self.controls.values():
            link.close()
        for service in self.services.values():
            service.stop()


class GridDriver(Driver):
    """Hands its steps to services."""

    def __init__(
        self,
        config,
        stages,
        groups,
        ranks,
        cutoffs,
        shared,
        attention="auto",
        device=HOST,
    ) -> None:
        grid = {"stages": stages, "groups": groups, "ranks": ranks, "cutoffs": cutoffs}
        super().__init__(config, **grid, attention=attention)
        self.grid = Grid(self, stages, shared, device)

    def _run(self, messages):
        return self.grid.run(messages)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return tiny_llama(folder, vocabulary=160, length=512, seed=3), str(folder)


def tokens(count, seed=0):
    return torch.randint(
        160, (count,), generator=torch.Generator().manual_seed(seed)
    ).tolist()


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "links"])
@pytest.mark.parametrize(
    ("stages", "groups", "ranks", "cutoffs"),
    [(1, 1, 2, ()), (2, 1, 2, ()), (1, 2, 2, (37,)), (2, 2, 2, (30,)), (1, 1, 4, ())],
)
@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_a_grid_gives_the_log_probabilities_of_transformers(
    model, stages, groups, ranks, cutoffs, shared, attention
):
    check_log_probabilities(
        model, stages, groups, ranks, cutoffs, shared, attention, HOST
    )


@pytest.mark.parametrize(
    ("stages", "groups", "ranks", "cutoffs"),
    [(1, 1, 1, ()), (2, 1, 1, ()), (2, 2, 1, (30,)), (2, 1, 2, ()), (2, 2, 2, (30,))],
)
def test_a_grid_of_asynchronous_devices_gives_them_too(
    model, stages, groups, ranks, cutoffs
):
    check_log_probabilities(
        model, stages, groups, ranks, cutoffs, False, "sdpa", RecordingDevice()
    )


def check_log_probabilities(
    model, stages, groups, ranks, cutoffs, shared, attention, device
):
    made, folder = model
    config = ModelLoadingConfig(model_source=folder)
    driver = GridDriver(
        config, stages, groups, ranks, cutoffs, shared, attention, device
    )
    try:
        for seed, length in enumerate((70, 1, 20)):
            driver.add(str(length), tokens(length, seed), GREEDY)
        driver.generate({"70": 6, "1": 9, "20": 7}, 13)
        for name in list(driver.requests):
            compare(driver.remove(name), made)
    finally:
        driver.grid.stop()


@torch.inference_mode()
def compare(request, model):
    expected = model(torch.tensor([request.tokens])).logits[0].log_softmax(-1)
    drawn = request.tokens[request.prompt :]
    assert drawn == expected[request.prompt - 1 : -1].argmax(-1).tolist()
    for position, token in enumerate(request.sampled, request.prompt):
        assert abs(token.logprob - expected[position - 1, token.token_id]) < 1e-3
    assert set(request.prompt_logprobs) == set(range(1, request.prompt))


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "links"])
@pytest.mark.parametrize("dead", [Cell(0, 0, 1), Cell(1, 0, 1), Cell(1, 0, 0)], ids=str)
def test_the_death_of_an_idle_rank_reaches_the_controller(model, dead, shared):
    """Its process would close its links; the first rank of its team does then."""
    driver = GridDriver(ModelLoadingConfig(model_source=model[1]), 2, 1, 2, (), shared)
    driver.add("r", tokens(20), GREEDY)
    driver.generate({"r": 2}, 13)
    driver.grid.wires[dead].close()
    with pytest.raises(LinkClosedError):
        driver.grid.controls[Cell(dead.stage, 0)].recv()
    driver.grid.stop()


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "links"])
def test_a_rank_that_dies_in_a_step_ends_the_others_wait(shared):
    links = [pair() for _ in range(2)]
    mates = {1: links[0][0], 2: links[1][0]}
    if shared:
        board = open_board("medha-test-death", 3, 64)
        forget("medha-test-death")
        team = shared_team(0, mates, board)
    else:
        team = LinkTeam(0, mates)
    died = threading.Event()

    def wait() -> None:
        with pytest.raises(LinkClosedError):
            team.total(torch.zeros(4, 64))
        died.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    links[1][1].send(b"a frame that nobody reads is no death")
    links[0][1].close()
    waiting.join(timeout=30)
    assert died.is_set()
    for ends in links:
        for link in ends:
            link.close()


def test_waiting_for_a_batch_goes_on_until_there_is_one():
    source, far = pair()
    mate, other = pair()
    other.send(b"not a death")
    far.send(b"a batch")
    wait_for(source, [mate])
    assert source.recv() == (b"a batch", None)
    other.close()
    with pytest.raises(LinkClosedError, match="a rank is gone"):
        wait_for(source, [mate])
    for link in (source, far, mate):
        link.close()


@pytest.mark.parametrize("ranks", [2, 3])
def test_links_add_up_as_memory_does(ranks):
    mates: list[dict[int, Link]] = [{} for _ in range(ranks)]
    for a in range(ranks):
        for b in range(a + 1, ranks):
            mates[a][b], mates[b][a] = pair()
    given = [
        torch.randn(700, 64, generator=torch.Generator().manual_seed(r))
        for r in range(ranks)
    ]
    expected = given[0].clone()
    for part in given[1:]:
        expected += part
    found = {}

    def work(rank: int) -> None:
        team = LinkTeam(rank, mates[rank])
        found[rank] = (team.total(given[rank]), team.gather(torch.arange(rank)))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for rank in range(ranks):
        total, gathered = found[rank]
        assert torch.equal(total, expected)
        assert [len(part) for part in gathered] == list(range(ranks))
        for link in mates[rank].values():
            link.close()
