"""vllm bench serve: 20 requests over completions, 20 over chats; none lost, every token counted."""

from __future__ import annotations

import json
import os
from pathlib import Path

from checks import MODEL, URL, check, command, end

TOKENIZER = os.environ["MEDHA_TOKENIZER"]  # a folder with the model's tokenizer.json
# What `vllm bench serve` does; the command itself asks for the version of a package
# `vllm`, which the CPU wheel is not.
BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


def run(backend: str, endpoint: str) -> None:
    folder = Path.cwd() / backend
    command(
        "python",
        *("-c", BENCH, "--backend", backend, "--base-url", URL, "--endpoint", endpoint),
        *("--model", MODEL, "--tokenizer", TOKENIZER, "--dataset-name", "random"),
        *(
            "--random-input-len",
            "32",
            "--random-output-len",
            "16",
            "--num-prompts",
            "20",
        ),
        *("--ignore-eos", "--save-result", "--result-dir", str(folder)),
        *("--result-filename", "result.json"),
    )
    told = json.loads((folder / "result.json").read_text())
    assert told["completed"] == 20, told["completed"]
    assert told["total_output_tokens"] == 320, told["total_output_tokens"]


with check("completions"):
    run("openai", "/v1/completions")
with check("chats"):
    run("openai-chat", "/v1/chat/completions")

end()
