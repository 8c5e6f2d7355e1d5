"""Flags that are made of Structs."""

import argparse
from typing import Annotated, Any, Literal

import msgspec
import pytest

from loadgen.cli import parser, run_options
from loadgen.errors import LoadgenError
from loadgen.flags import add_flags, check, fill, flag


class Options(msgspec.Struct, frozen=True, kw_only=True):
    size: Annotated[int, flag("how large", ge=1)] = 3
    share: Annotated[float | None, flag("of all", shown="everything", ge=0, le=1)] = (
        None
    )
    shape: Annotated[Literal["round", "flat"], flag()] = "round"
    names: Annotated[tuple[str, ...], flag("of it", metavar="NAME")] = ()
    pair: Annotated[tuple[int, int] | None, flag(metavar=("A", "B"), ge=0)] = None
    notes: Annotated[tuple[str, ...], flag("more", repeated=True)] = ()
    body: Annotated[dict[str, Any], flag("JSON")] = {}
    quick: Annotated[bool, flag("hurry")] = False
    speed: Annotated[
        float, flag("as it is", name="--rate", aliases=("--fast",), gt=0)
    ] = 1.5
    hidden: int = 7


def given(*arguments):
    command = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    add_flags(command, Options)
    return fill(command.parse_args(arguments), Options)


def test_what_is_not_given_keeps_its_default():
    assert given() == Options()


def test_every_kind_of_field_is_read():
    words = ["--size", "5", "--share", "0.5", "--shape", "flat", "--names", "a", "b"]
    words += [
        "--pair",
        "1",
        "2",
        "--notes",
        "x",
        "--notes",
        "y",
        "--body",
        '{"k": 1}',
        "--quick",
    ]
    assert given(*words, "--fast", "2") == Options(
        size=5,
        share=0.5,
        shape="flat",
        names=("a", "b"),
        pair=(1, 2),
        notes=("x", "y"),
        body={"k": 1},
        quick=True,
        speed=2.0,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "0"], "--size must be at least 1"),
        (["--share", "1.5"], "--share must be at least 0 and at most 1"),
        (["--share", "nan"], "--share must be at least 0 and at most 1"),
        (["--pair", "1", "-2"], "--pair must be at least 0"),
        (["--rate", "0"], "--rate must be above 0"),
    ],
)
def test_what_is_out_of_bounds_is_named(words, message):
    with pytest.raises(LoadgenError, match=message):
        given(*words)


def test_bounds_hold_for_structs_made_by_hand_too():
    with pytest.raises(LoadgenError, match="--size"):
        check(Options(size=-1))


@pytest.mark.parametrize(
    "words", [["--hidden", "1"], ["--shape", "odd"], ["--body", "[1]"]]
)
def test_what_is_no_flag_is_refused(words, capsys):
    with pytest.raises(SystemExit):
        given(*words)


def test_the_help_shows_the_structs_defaults():
    command = argparse.ArgumentParser()
    add_flags(command, Options)
    text = " ".join(command.format_help().split())
    for part in (
        "how large (3)",
        "of all (everything)",
        "(round)",
        "as it is (1.5)",
        "hurry",
    ):
        assert part in text


def test_every_section_of_a_run_is_filled():
    words = ["run", "--base-url", "http://x", "--seed", "4", "--request-rate", "2"]
    words += [
        "--attainment",
        "0.5",
        "--label",
        "l",
        "--policy",
        "p",
        "--backend",
        "openai-chat",
    ]
    options = run_options(parser().parse_args(words))
    assert (options.server.base_url, options.server.chat) == ("http://x", True)
    assert (options.workload.seed, options.pace.request_rate) == (4, 2.0)
    assert (options.judgement.attainment, options.report.label) == (0.5, "l")
    assert options.watch.policy == "p"
