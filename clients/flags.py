"""Where the server is: the same flags in every command."""

from __future__ import annotations

import argparse
import os

BASE_URL = "http://127.0.0.1:8000"


def default_base_url() -> str:
    """Where a server is looked for when nothing is said."""
    return os.environ.get("MEDHA_BASE_URL") or BASE_URL


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base-url",
        default=default_base_url(),
        metavar="URL",
        help=f"with or without /v1; default: $MEDHA_BASE_URL, or else {BASE_URL}",
    )
    parser.add_argument(
        "--api-key",
        default=os.environ.get("OPENAI_API_KEY"),
        metavar="KEY",
        help="default: $OPENAI_API_KEY",
    )
