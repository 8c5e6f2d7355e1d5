"""`medha-client "prompt"`: ask a server from the command line. `medha-client trace ID`: where a
request's time went.

Exit codes: 0 done, 1 the request failed (one line on stderr says why), 2 wrong arguments, 130
interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from clients import trace
from clients.client import Client
from clients.errors import ClientError
from clients.flags import add_server_flags
from clients.terminal import JsonView, TextView, View, describe

DESCRIPTION = (
    "Ask an OpenAI-compatible server and watch it answer; `medha-client trace ID` shows where the "
    "time went."
)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("medha-client", description=DESCRIPTION)
    add = parser.add_argument
    add("prompt", nargs="?", help="the prompt; - reads it from standard input")
    add(
        "--file",
        action="append",
        default=[],
        metavar="PATH",
        help="a document to put before the prompt; repeatable",
    )
    add("--system", help="a system message (chat only)")
    add_server_flags(parser)
    add("--model", help="default: the server's first model")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--chat", action="store_true", help="POST /v1/chat/completions (the default)"
    )
    kind.add_argument("--completion", action="store_true", help="POST /v1/completions")
    add(
        "--max-tokens",
        type=int,
        metavar="N",
        help="end the answer after so many tokens",
    )
    add("--temperature", type=float, metavar="T", help="0: always the likeliest token")
    add(
        "--top-p",
        type=float,
        metavar="P",
        help="draw from the likeliest tokens, P of all",
    )
    add("--seed", type=int, metavar="N", help="the same seed, the same answer")
    add("--stop", action="append", metavar="TEXT", help="stop at this text; repeatable")
    add(
        "--ttft-s",
        type=float,
        metavar="S",
        help="objective: seconds to the first token",
    )
    add(
        "--tpot-s", type=float, metavar="S", help="objective: seconds per further token"
    )
    add("--timeout-s", type=float, metavar="S", help="give up after this time")
    add("--no-stream", action="store_true", help="wait for the whole answer")
    add("--json", action="store_true", help="print every event as a line of JSON")
    options = parser.parse_args(arguments)
    if options.prompt is None and not options.file:
        parser.error("give a prompt, or --file, or both")
    return options


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    try:
        tracing = given[:1] == ["trace"]  # the prompt of this one word: `-- trace`
        status = trace.main(given[1:]) if tracing else answer(parse(given))
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("medha-client: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def answer(options: argparse.Namespace) -> int:
    """Ask, and show what comes; returns the exit code."""
    try:
        prompt = read_prompt(options)
    except OSError as error:
        print(f"medha-client: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"medha-client: {error}", file=sys.stderr)
        return 1
    view: View = (
        JsonView(sys.stdout) if options.json else TextView(sys.stdout, sys.stderr)
    )
    try:
        asyncio.run(ask(options, prompt, view))
    except KeyboardInterrupt:
        view.close()
        raise
    except ClientError as error:
        view.close()
        print(f"medha-client: {describe(error)}", file=sys.stderr)
        return 1
    view.close()
    return 0


def read_prompt(options: argparse.Namespace) -> str:
    """Documents first, then the question; raises OSError, or ValueError for what is no text."""
    parts = [_read(path) for path in options.file]
    if options.prompt == "-":
        parts.append(sys.stdin.read())
    elif options.prompt is not None:
        parts.append(options.prompt)
    return "\n\n".join(parts)


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: no text in UTF-8") from None


async def ask(options: argparse.Namespace, prompt: str, view: View) -> None:
    """Send one request and show its events; raises ClientError."""
    fields: dict[str, Any] = {
        name: getattr(options, name)
        for name in (
            "max_tokens",
            "temperature",
            "top_p",
            "seed",
            "stop",
            "ttft_s",
            "tpot_s",
            "timeout_s",
        )
    }
    fields["stream"] = not options.no_stream
    async with Client(
        options.base_url, model=options.model, api_key=options.api_key
    ) as client:
        if options.completion:
            events = client.complete(prompt, **fields)
        else:
            system = (
                [{"role": "system", "content": options.system}]
                if options.system
                else []
            )
            events = client.chat(
                [*system, {"role": "user", "content": prompt}], **fields
            )
        async for event in events:
            view.show(event)


if __name__ == "__main__":
    sys.exit(main())
