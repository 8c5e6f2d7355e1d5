"""A run made by hand, and its results directory."""

from loadgen.judge.health import examine
from loadgen.judge.objectives import parse_objectives
from loadgen.judge.options import Terms
from loadgen.show.output import claim_directory
from loadgen.show.results import write_results
from tests.loadgen.made import a_run, failed, made

TERMS = Terms(
    objectives=parse_objectives(["ttft:1500", "tpot:200"]),
    percentiles=(50, 99),
    attainment=0.9,
)


def some_records():
    records = [
        made(
            i,
            sent=i / 2,
            tokens=(0.5 + i / 20, 0.6 + i / 20, 0.8 + i / 20),
            isolated_ttft_s=0.4,
        )
        for i in range(20)
    ]
    records += [
        made(20 + i, sent=i, tokens=(4.0, 4.2), kind="long", isolated_ttft_s=3.0)
        for i in range(3)
    ]
    records += [made(30, sent=1.0, tokens=(0.2,), kind="probe"), failed(31, sent=2.0)]
    records[0].blocks = (7, 8)
    records[0].block_tokens = 5
    return records


def written(directory, **more):
    claim_directory(directory)
    run = a_run(some_records(), **more)
    return write_results(run, TERMS, examine(run), directory)
