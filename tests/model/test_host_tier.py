"""Pages that go to the second tier and back are the same bit for bit, and so are the tokens."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from stage_driver import Driver

from medha_actors.config import ModelLoadingConfig, RandomWeights
from medha_actors.errors import ModelError
from medha_actors.messages import Move, SamplingParams, StepMessage
from medha_actors.model.host_tier import HostTier, SlotFile, page_bytes

RANDOM = ModelLoadingConfig(model_source="random", random=RandomWeights(layers=4))
SAMPLED = SamplingParams(max_tokens=1, temperature=1.0, seed=5, logprobs=2)
SLOTS = 5


def driver_of(attention="sdpa", dtype=torch.float32, stages=2, ranks=1):
    return Driver(
        RANDOM,
        stages,
        pages=8,
        page_tokens=64,
        dtype=dtype,
        attention=attention,
        ranks=ranks,
    )


def tier_of(stage, folder=None, name="run-0"):
    cells = stage.decoder.cells()
    file = None if folder is None else SlotFile(folder, name, SLOTS * page_bytes(cells))
    return HostTier(cells, SLOTS, file)


@torch.inference_mode()
def noise(stage, pages):
    """In the first pages, as the calibration puts it there."""
    stage.decoder.fill(pages)


@torch.inference_mode()
def carry(tier, moves):
    """As a step does."""
    tier.carry_out(moves)


def contents(stage, page):
    return [cell[:, page].clone() for cell in stage.decoder.cells()]


def same(found, expected):
    return all(
        torch.equal(one.view(torch.uint8), other.view(torch.uint8))
        for one, other in zip(found, expected, strict=True)
    )


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_a_page_comes_back_bit_for_bit(attention, dtype, where, tmp_path):
    stage = driver_of(attention, dtype).pipelines[0][0]
    tier = tier_of(stage, tmp_path if where == "file" else None)
    noise(stage, 8)
    saved = [contents(stage, page) for page in range(8)]
    carry(tier, [Move(2, 4, load=False), Move(7, 0, load=False)])
    carry(tier, [Move(5, 4, load=True), Move(2, 0, load=True)])
    expected = [*saved[:2], saved[7], *saved[3:5], saved[2], *saved[6:]]
    assert [same(contents(stage, page), expected[page]) for page in range(8)] == [
        True
    ] * 8


def test_moves_are_carried_out_in_their_order():
    stage = driver_of(stages=1).pipelines[0][0]
    tier = tier_of(stage)
    noise(stage, 3)
    first, second, _ = (contents(stage, page) for page in range(3))
    carry(tier, [Move(0, 1, load=False)])
    carry(tier, [Move(2, 1, load=True), Move(1, 1, load=False), Move(0, 1, load=True)])
    assert same(contents(stage, 2), first)
    assert same(contents(stage, 0), second)


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_request_goes_on_with_pages_that_were_away(stages, attention, ranks):
    """Each rank moves its own slices of a page."""

    def tokens(away):
        driver = driver_of(attention, stages=stages, ranks=ranks)
        driver.add("r", list(range(1, 140)), SAMPLED)
        driver.generate({"r": 3}, 100)
        pages = driver.requests["r"].pages[0]
        if away:
            lines = chain.from_iterable(driver.lines.values())
            held = [stage for stage, _ in lines]
            for stage in held:
                stage.tier = tier_of(stage)
            moves = [Move(page, slot, load=False) for slot, page in enumerate(pages)]
            move(driver, moves)
            for stage in held:
                noise(stage, 8)
            move(driver, [back(one) for one in moves])
        driver.generate({"r": 9}, 100)
        return driver.requests["r"].sampled

    assert tokens(away=True) == tokens(away=False)


def back(move):
    return Move(move.page, move.slot, load=True)


def move(driver, moves):
    """A message with nothing else in it passes the stages."""
    for line in driver.lines.values():
        for stage, team in line:
            output = stage.step(
                StepMessage(0, (), moves=tuple(moves)), None, None, team
            )
            assert (output.hidden, output.tokens) == (None, ())


@pytest.fixture
def opened():
    """Opens files, and closes them in the end."""
    files = []

    def open_one(*arguments):
        files.append(SlotFile(*arguments))
        return files[-1]

    yield open_one
    for file in files:
        file.close()


def test_a_file_is_found_again_by_its_name_and_size(tmp_path, opened):
    stage = driver_of(stages=1).pipelines[0][0]
    cells = stage.decoder.cells()
    size = SLOTS * page_bytes(cells)
    noise(stage, 2)
    first = contents(stage, 0)
    file = opened(tmp_path, "run-0", size)
    tier = HostTier(cells, SLOTS, file)
    assert file.mark == ""
    carry(tier, [Move(0, 3, load=False)])
    file.sign("first")
    file.sign("2nd")
    file.close()
    found = opened(tmp_path, "run-0", size)
    assert found.mark == "2nd"
    again = HostTier(cells, SLOTS, found)
    carry(again, [Move(1, 3, load=True)])
    assert same(contents(stage, 1), first)
    assert opened(tmp_path, "run-1", size).mark == ""
    found.close()
    assert opened(tmp_path, "run-0", size + 1).mark == "", (
        "another size, so no longer the same"
    )


def test_a_file_has_one_holder_and_goes_when_its_run_is_over(tmp_path, opened):
    opened(tmp_path, "old-0", 4096)
    with pytest.raises(ModelError, match="old-0"):
        opened(tmp_path, "old-0", 4096)
    opened(tmp_path, "dead-0", 4096).close()
    opened(tmp_path, "new-0", 4096)
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["new-0", "old-0"]


def test_a_disk_that_is_too_small_is_told_at_start(tmp_path):
    with pytest.raises(ModelError, match=r"kv_cache\.disk"):
        SlotFile(tmp_path, "big-0", 2**60)
