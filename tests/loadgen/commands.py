"""Running the command line against a scripted server."""

import json

from loadgen.__main__ import main


def load(server, directory, *more):
    """A small run; returns its exit status."""
    url = server if isinstance(server, str) else server.url
    arguments = [
        "run",
        "--base-url",
        url,
        "--num-prompts",
        "12",
        "--request-rate",
        "400",
        "--input-len",
        "20:40",
    ]
    return main(
        [
            *arguments,
            "--output-len",
            "3",
            "--result-dir",
            str(directory),
            "--quiet",
            *more,
        ]
    )


def result_of(directory):
    return json.loads((directory / "result.json").read_text())


def rows_of(directory):
    lines = (
        (directory / "metrics" / "request_level_metrics.jsonl").read_text().splitlines()
    )
    return [json.loads(line) for line in lines]


def error_line(capsys):
    """The one line that a user sees."""
    lines = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("medha-loadgen: error:")
    ]
    assert len(lines) == 1
    return lines[0]
