"""The command line. Flags are those of `vllm bench serve` where it has one; defaults stand in
loadgen.options."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any, TypeAlias, TypeVar

import msgspec

from loadgen.capacity import Search
from loadgen.errors import LoadgenError
from loadgen.experiment.cells import KINDS
from loadgen.experiment.command import Experiment
from loadgen.options import Options
from loadgen.selftest import Load
from loadgen.traces import FORMATS
from loadgen.twin import commands as twin_commands
from loadgen.workload import PRESETS

Kind = TypeVar("Kind", bound=msgspec.Struct)
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
_IGNORED_FLAGS = (
    "--save-result",
    "--save-detailed",
    "--disable-tqdm",
    "--self-timed",
    "--no-oversample",
)
_IGNORED_VALUES = ("--percentile-metrics", "--result-filename")


def parser() -> argparse.ArgumentParser:
    """All commands."""
    top = argparse.ArgumentParser(
        prog="medha-loadgen",
        description=(
            "Loads an OpenAI-compatible server with short and long requests and measures what they "
            "get."
        ),
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = _command(commands, "run", "send one load and write a results directory")
    _server_flags(run)
    _workload_flags(run)
    _pace_flags(run)
    _judgement_flags(run)
    _output_flags(run)
    capacity = _command(commands, "capacity", "find the highest rate at which objectives hold")
    for add in (_server_flags, _workload_flags, _pace_flags, _judgement_flags, _output_flags):
        add(capacity)
    search = capacity.add_argument_group("search")
    search.add_argument("--start-rate", dest="start", type=float, help="first rate to try (1)")
    search.add_argument(
        "--tolerance", type=float, help="stop when the answer is known to this share (0.05)"
    )
    search.add_argument("--highest-rate", dest="highest", type=float, help="never try more (10000)")
    search.add_argument("--max-runs", type=int, help="rates to try at most (16)")
    compare = _command(commands, "compare", "put results directories side by side")
    compare.add_argument("directories", nargs="+", metavar="DIR")
    compare.add_argument(
        "--result-dir", help="also write compare.md, compare.html and compare.png there"
    )
    selftest = _command(
        commands, "selftest", "how much load this machine can generate, and how truly it measures"
    )
    selftest.add_argument("--request-rate", dest="rate", type=float, help="requests/s (2000)")
    selftest.add_argument("--tokens-per-s", type=float, help="(20000)")
    selftest.add_argument("--duration", dest="seconds", type=float, help="seconds (5)")
    _experiment_flags(
        _command(
            commands, "experiment", "the paper's experiments on this machine, with real servers"
        )
    )
    twin_commands.add_to(commands)
    return top


def _experiment_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "kind", choices=tuple(KINDS), help="convoy: policies; chunks: fixed chunk sizes and budgets"
    )
    command.add_argument(
        "--serve-config", metavar="FILE", help="what the variants change (serve_config.yaml)"
    )
    command.add_argument("--result-dir", help="goes on there if it exists (results/experiment)")
    command.add_argument("--variants", nargs="+", metavar="NAME", help="some only")
    command.add_argument(
        "--long-fractions", nargs="+", type=float, metavar="SHARE", help="of long requests (0.05)"
    )
    command.add_argument(
        "--loads", nargs="+", type=float, metavar="SHARE", help="of the capacity (0.75)"
    )
    command.add_argument("--capacity", type=float, help="requests/s (measured first)")
    command.add_argument("--repeats", type=int, help="rounds of the alternation (1)")
    command.add_argument("--num-prompts", type=int, help="requests of a cell (150)")
    for name, text in (
        ("input", "lognormal:100:0.8:8:512"),
        ("long-input", "6000:7500"),
        ("output", "16:64"),
    ):
        command.add_argument(f"--{name}-len", help=f"({text})")
    command.add_argument("--seed", type=int, help="(1)")


def experiment_of(arguments: argparse.Namespace) -> Experiment:
    """What to measure."""
    return _struct(arguments, Experiment)


def options_of(arguments: argparse.Namespace) -> Options:
    """Options from parsed arguments; raises LoadgenError."""
    options = _struct(arguments, Options)
    if getattr(arguments, "backend", None) == "openai-chat":
        return msgspec.structs.replace(options, endpoint="/v1/chat/completions")
    return options


def search_of(arguments: argparse.Namespace) -> Search:
    """How capacity searches; raises LoadgenError."""
    search = _struct(arguments, Search)
    if not (0 < search.start <= search.highest and search.tolerance > 0 and search.max_runs > 0):
        raise LoadgenError(
            "--start-rate, --tolerance and --max-runs must be above 0, --highest-rate above "
            "--start-rate"
        )
    return search


def load_of(arguments: argparse.Namespace) -> Load:
    """What the self-test does; raises LoadgenError."""
    load = _struct(arguments, Load)
    if not all(0 < value < math.inf for value in (load.rate, load.tokens_per_s, load.seconds)):
        raise LoadgenError("--request-rate, --tokens-per-s and --duration must be above 0")
    return load


def _struct(arguments: argparse.Namespace, kind: type[Kind]) -> Kind:
    """Whatever was given of a Struct's fields; the rest keeps its default."""
    known = {field for field in kind.__struct_fields__ if hasattr(arguments, field)}
    given = {field: getattr(arguments, field) for field in known}
    return msgspec.convert(
        {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}, kind
    )


def _command(commands: Commands, name: str, text: str) -> argparse.ArgumentParser:
    about: dict[str, Any] = {"help": text, "description": f"{text[0].upper()}{text[1:]}."}
    return commands.add_parser(
        name, argument_default=argparse.SUPPRESS, allow_abbrev=False, **about
    )


def _server_flags(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("server")
    group.add_argument("--base-url", help="http://HOST:PORT (http://127.0.0.1:8000)")
    group.add_argument("--model", help="model to ask for (the first that the server names)")
    group.add_argument(
        "--backend", choices=("openai", "vllm", "openai-chat"), help=argparse.SUPPRESS
    )  # vllm's flag
    endpoints = ("/v1/completions", "/v1/chat/completions")
    group.add_argument("--endpoint", choices=endpoints, help="(/v1/completions)")
    group.add_argument(
        "--header", action="append", metavar="NAME=VALUE", help="HTTP header; may be repeated"
    )
    formats = ("auto", "ids", "text", "approximate")
    group.add_argument("--prompt-format", choices=formats, help="how prompts are sent (auto)")
    group.add_argument("--token-ids", metavar="LO:HI", help="token ids that prompts are made of")
    group.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="tokenizer.json for text prompts, if there is no /tokenize",
    )
    group.add_argument(
        "--ready-check-timeout-sec", type=float, help="wait so long for the server (0)"
    )
    group.add_argument(
        "--request-timeout", type=float, help="seconds until a request fails; 0: never (3600)"
    )
    group.add_argument(
        "--ignore-eos", action="store_true", help="let every answer be as long as planned"
    )
    group.add_argument("--temperature", type=float)
    group.add_argument(
        "--extra-body", type=_json_object, metavar="JSON", help="more fields of every request"
    )
    group.add_argument(
        "--send-objectives",
        action="store_true",
        help="send objectives in llm-d's x-llm-d-slo-* headers",
    )


def _workload_flags(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group(
        "workload (lengths: 128, 64:512, lognormal:MEDIAN:SIGMA[:LO:HI], zipf:, stair:)"
    )
    group.add_argument("--workload", choices=tuple(PRESETS), help="lengths of a known mix")
    group.add_argument(
        "--dataset-name", choices=("auto", "random", *FORMATS), help="format of the trace (auto)"
    )
    group.add_argument(
        "--dataset-path", metavar="FILE", help="trace to replay; also sample:mooncake, sample:azure"
    )
    group.add_argument("--num-prompts", type=int, help="requests (1000; of a trace: all)")
    group.add_argument("--duration", type=float, help="send for so many seconds")
    group.add_argument(
        "--input-len", "--random-input-len", metavar="LENGTHS", help="prompt lengths (1024)"
    )
    group.add_argument(
        "--output-len", "--random-output-len", metavar="LENGTHS", help="answer lengths (128)"
    )
    group.add_argument("--long-fraction", type=float, help="share of long requests (0)")
    group.add_argument(
        "--long-input-len", metavar="LENGTHS", help="their prompt lengths (6000:7500)"
    )
    group.add_argument(
        "--long-output-len", metavar="LENGTHS", help="their answer lengths (as --output-len)"
    )
    group.add_argument(
        "--long-threshold", type=int, help="longer prompts of a trace are long (8192)"
    )
    group.add_argument(
        "--scale-lengths", metavar="F[:F]", help="multiply prompt (and answer) lengths (1)"
    )
    group.add_argument(
        "--scale-time", type=float, help="multiply the times of a trace; 2 is half as fast (1)"
    )
    group.add_argument("--max-model-len", type=int, help="leave out requests with more tokens")
    group.add_argument(
        "--timed-trace-chunk-hash-size", type=int, help="tokens of a block of a timed_trace (16)"
    )
    group.add_argument(
        "--timed-trace-sec-multiplier", type=float, help="seconds of its unit of time (1)"
    )
    group.add_argument("--seed", type=int, help="same seed, same requests at the same times (0)")


def _pace_flags(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("pace (--max-concurrency without a rate is a closed loop)")
    group.add_argument(
        "--request-rate", type=float, help="requests/s, inf: all at once (a trace: its own times)"
    )
    group.add_argument("--burstiness", type=float, help="shape of gamma arrivals; 1: Poisson (1)")
    group.add_argument(
        "--arrival", choices=("poisson", "fixed"), help="fixed: at even intervals (poisson)"
    )
    group.add_argument("--max-concurrency", type=int, help="requests under way at most")
    group.add_argument(
        "--ramp-up", type=float, help="seconds until the full rate or concurrency (0)"
    )
    group.add_argument(
        "--probe-request-rate", type=float, help="1-token requests/s beside the load (0)"
    )
    group.add_argument("--probe-input-len", type=int, help="their prompt tokens (32)")
    group.add_argument("--num-warmups", type=int, help="requests sent before, one by one (0)")
    for flag in (
        _IGNORED_FLAGS
    ):  # of vllm bench serve: what they ask for is always done here, or has no meaning
        group.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    for flag in _IGNORED_VALUES:
        group.add_argument(flag, help=argparse.SUPPRESS)


def _judgement_flags(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("judgement")
    words: dict[str, Any] = {"nargs": "+", "metavar": "METRIC:MS"}
    group.add_argument(
        "--goodput", **words, help="objectives, in ms: ttft:500 tpot:50 e2el:9000; ttft:1.5x,500"
    )
    group.add_argument("--goodput-long", **words, help="other objectives for long requests")
    group.add_argument(
        "--attainment", type=float, help="share of requests that must meet them (0.99)"
    )
    group.add_argument("--metric-percentiles", metavar="P,P", help="(50,90,95,99)")
    group.add_argument("--isolated-ttft", metavar="measure|PATH", help="the idle server's TTFT")
    group.add_argument(
        "--late-threshold-ms", type=float, help="the load generator's own P99 lateness allowed (50)"
    )


def _output_flags(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("output")
    group.add_argument("--result-dir", help="new directory for the results (results/TIME-LABEL)")
    group.add_argument("--label", help="name of the run in tables and figures")
    group.add_argument("--policy", help="scheduling policy that the server runs, as a label")
    group.add_argument("--quiet", action="store_true", help="no live view")
    group.add_argument("--live-interval", type=float, help="seconds between its updates")
    group.add_argument(
        "--fail-unhealthy", action="store_true", help="exit with 3 if the health check fails"
    )


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    return value
