"""A greedy tenant beside a modest one, in the twin."""

import msgspec
import pytest

from loadgen.errors import LoadgenError
from loadgen.experiment.command import run_experiment
from loadgen.experiment.options import ExperimentOptions
from loadgen.twin.admission.neighbours import (
    GREEDY,
    MODEST,
    Neighbours,
    Outcome,
    capacity_of,
    play_neighbours,
)
from loadgen.workload.mixes import Mix

SHORTS = Mix(input_len="lognormal:100:0.8:8:512", output_len="8:24")
PLAIN = Neighbours(policy="spf", mix=SHORTS, count=80)


@pytest.fixture(scope="module")
def capacity() -> float:
    return capacity_of(PLAIN, 60)


def together(outcomes: dict[str, Outcome]) -> float:
    return sum(outcome.tokens_per_s for outcome in outcomes.values())


def test_ten_times_its_share_is_the_greedy_ones_own_wait(capacity):
    # three quarters of a minute: in its first seconds the greedy one has an advance, too
    plain = msgspec.structs.replace(PLAIN, count=240)
    greedy = msgspec.structs.replace(plain, times=10.0)
    alike = play_neighbours(plain, capacity)
    fair = play_neighbours(greedy, capacity)
    unfair = play_neighbours(msgspec.structs.replace(greedy, fair=False), capacity)
    assert fair[MODEST].short_p(90) < 1.5 * alike[MODEST].short_p(90)
    assert unfair[MODEST].short_p(90) > 3 * alike[MODEST].short_p(90)
    # all that is left is the greedy one's: as much goes through as without fairness
    assert together(fair) > 0.9 * together(unfair)
    assert fair[GREEDY].short_p(50) > 3 * fair[MODEST].short_p(50)


def test_who_is_overloaded_is_refused_and_nobody_else(capacity):
    """But for bursts of its own that it would have to wait for itself: from 1 to 22 of 80."""
    refused = 0
    for seed in range(8):
        shed = msgspec.structs.replace(PLAIN, times=10.0, late="shed", seed=seed)
        outcome = play_neighbours(shed, capacity)
        assert outcome[GREEDY].refused > outcome[GREEDY].sent // 2
        assert outcome[MODEST].short_p(90) < 1.0
        refused += outcome[MODEST].refused
    assert refused <= 8 * PLAIN.count // 8


def test_the_command_writes_a_table(tmp_path):
    asked = ExperimentOptions(
        kind="fairness",
        simulated=True,
        variants=("spf-fair", "spf-alike"),
        long_fractions=(0.0,),
        num_prompts=12,
        result_dir=str(tmp_path),
    )
    (header, rows), file = run_experiment(asked, lambda line: None)
    assert [row[0] for row in rows] == [
        "spf-fair, greedy 0.75x",
        "spf-fair, greedy 10x",
        "spf-alike, greedy 0.75x",
        "spf-alike, greedy 10x",
    ]
    assert "greedy 10x" in file.read_text()
    assert all(len(row) == len(header) for row in rows)


def test_other_experiments_have_their_own_commands_in_the_twin(tmp_path):
    with pytest.raises(LoadgenError, match="--simulated"):
        run_experiment(
            ExperimentOptions(kind="convoy", simulated=True, result_dir=str(tmp_path)),
            print,
        )
