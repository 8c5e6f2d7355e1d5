"""aiperf: chats and completions, streaming or not, with sessions and the server's own metrics."""

from __future__ import annotations

import json
import os
from pathlib import Path

from checks import MODEL, URL, check, command, end

TOKENIZER = os.environ["MEDHA_TOKENIZER"]  # a folder with the model's tokenizer.json
folder = Path.cwd()
PROMPTS = [
    "Tell me about rivers.",
    "What is a hill?",
    "Who sails the sea?",
    "Why is ice cold?",
]
data = folder / "prompts.jsonl"
data.write_text("\n".join([json.dumps({"text": prompt}) for prompt in PROMPTS]))


def run(kind: str, *more: str) -> None:
    out = folder / f"{kind}{len(more)}"
    command(
        "aiperf",
        *("profile", "--model", MODEL, "--url", URL, "--endpoint-type", kind),
        *("--input-file", str(data), "--custom-dataset-type", "single_turn"),
        *("--use-server-token-count", "--no-gpu-telemetry", "--tokenizer", TOKENIZER),
        *("--request-count", "4", "--concurrency", "2"),
        *("--ui", "none", "--workers-max", "1"),
        *("--extra-inputs", "max_tokens:8", "--extra-inputs", "min_tokens:8"),
        *("--output-artifact-dir", str(out), *more),
        HF_HUB_OFFLINE="",  # with any text in it the folder is taken for a name on the hub
    )
    [report] = out.rglob("profile_export_aiperf.json")
    told = json.loads(report.read_text())
    assert told["request_count"]["avg"] == 4, told["request_count"]
    assert not told.get("error_summary"), told["error_summary"]


for kind in ("chat", "completions"):
    with check(kind):
        run(kind)
    with check(f"{kind}, streaming"):
        run(kind, "--streaming")

end()
