"""What an experiment is given, and what that makes of each of its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec

from loadgen.errors import LoadgenError
from loadgen.experiment.cells import KINDS
from loadgen.flags import flag
from loadgen.judge.options import JudgementOptions
from loadgen.options import RunOptions
from loadgen.send.options import ServerOptions
from loadgen.show.options import ReportOptions, WatchOptions
from loadgen.workload.options import PaceOptions, WorkloadOptions

_LONG = 4000  # prompt tokens from which a request counts as long
# What an experiment asks instead of the options' defaults.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "overload": {
        "long_fractions": (0.0,),
        "loads": (1.0, 2.0, 4.0, 10.0),
        "input_len": "100",
        "output_len": "32",
        "num_prompts": 600,
        "goodput": ("ttft:1000",),
    },
    "fairness": {"loads": (0.75, 10.0)},
    "convoy": {"goodput": ("ttft:1.5x",)},
}


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """What sets one run of an experiment apart from the others."""

    isolated_ttft: str
    request_rate: float | None = None
    max_concurrency: int | None = None
    policy: str | None = None


class ExperimentOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command is given."""

    kind: str = "convoy"
    serve_config: Annotated[
        str,
        flag("what the variants change", metavar="FILE"),
    ] = "serve_config.yaml"
    result_dir: Annotated[str, flag("goes on there if it exists")] = (
        "results/experiment"
    )
    variants: Annotated[tuple[str, ...], flag("some only", metavar="NAME")] = ()
    long_fractions: Annotated[
        tuple[float, ...], flag("of long requests", metavar="SHARE", ge=0, le=1)
    ] = (0.05,)
    loads: Annotated[
        tuple[float, ...], flag("of the capacity", metavar="SHARE", gt=0)
    ] = (0.75,)
    # None: measured first for each long fraction, in a closed loop
    capacity: Annotated[
        float | None, flag("requests/s", shown="measured first", gt=0)
    ] = None
    repeats: Annotated[int, flag("rounds of the alternation", ge=1)] = 1
    num_prompts: Annotated[int, flag("requests of a cell", ge=1)] = 150
    input_len: Annotated[str, flag(metavar="LENGTHS")] = "lognormal:100:0.8:8:512"
    long_input_len: Annotated[str, flag(metavar="LENGTHS")] = "6000:7500"
    output_len: Annotated[str, flag(metavar="LENGTHS")] = "16:64"
    goodput: Annotated[
        tuple[str, ...], flag("objectives of a good answer, in ms", metavar="METRIC:MS")
    ] = ()
    seed: Annotated[int, flag()] = 1
    simulated: Annotated[
        bool, flag("fairness: in the twin, a seed for each of --repeats")
    ] = False

    def chosen(self) -> dict[str, dict[str, Any]]:
        """The variants; raises LoadgenError."""
        known = KINDS[self.kind]
        unknown = [name for name in self.variants if name not in known]
        if unknown:
            raise LoadgenError(
                f"--variants {' '.join(unknown)}: known are {', '.join(known)}"
            )
        return {name: known[name] for name in self.variants} if self.variants else known

    def options(
        self, url: str, directory: Path, long_fraction: float, conditions: Conditions
    ) -> RunOptions:
        """Of one run."""
        return RunOptions(
            server=ServerOptions(base_url=url, ignore_eos=True),
            workload=WorkloadOptions(
                num_prompts=self.num_prompts,
                input_len=self.input_len,
                output_len=self.output_len,
                long_fraction=long_fraction,
                long_input_len=self.long_input_len,
                long_threshold=_LONG,
                seed=self.seed,
            ),
            pace=PaceOptions(
                request_rate=conditions.request_rate,
                max_concurrency=conditions.max_concurrency,
                num_warmups=2,
            ),
            judgement=JudgementOptions(
                isolated_ttft=conditions.isolated_ttft, goodput=self.goodput
            ),
            report=ReportOptions(result_dir=str(directory), label=directory.name),
            watch=WatchOptions(policy=conditions.policy, quiet=True),
        )


def with_defaults(asked: ExperimentOptions) -> ExperimentOptions:
    """What is not given is as the kind of experiment wants it."""
    plain = ExperimentOptions()
    missing = {
        name: value
        for name, value in _DEFAULTS.get(asked.kind, {}).items()
        if getattr(asked, name) == getattr(plain, name)
    }
    return msgspec.structs.replace(asked, **missing)
