"""guidellm: a synchronous and a concurrent benchmark, of chats and of completions."""

from __future__ import annotations

import json
from pathlib import Path

from checks import MODEL, URL, check, command, end

folder = Path.cwd()
PROMPTS = [
    "Tell me about rivers.",
    "What is a hill?",
    "Who sails the sea?",
    "Why is ice cold?",
]
data = folder / "prompts.jsonl"
data.write_text("\n".join([json.dumps({"prompt": prompt}) for prompt in PROMPTS]))


def run(name: str, profile: str, route: str) -> None:
    out = folder / name
    backend = f"kind=openai_http,target={URL},model={MODEL},request_format={route},max_tokens=16"
    command(
        "guidellm",
        *("run", "--backend", backend, "--profile", profile),
        *("--constraint", "kind=max_requests,count=4"),
        *("--data", f"kind=json_file,path={data}"),
        *("--output", f"kind=json,path={out / 'report.json'}", "--disable-progress"),
    )
    [report] = out.rglob("*.json")
    for benchmark in json.loads(report.read_text())["benchmarks"]:
        made = benchmark["metrics"]["request_totals"]
        assert made["successful"] == 4, made
        assert not made["errored"], made


with check("chats, one at a time"):
    run("chats", "kind=synchronous", "/v1/chat/completions")
with check("chats, four at a time"):
    run("four", "kind=concurrent,streams=4", "/v1/chat/completions")
with check("completions"):
    run("completions", "kind=synchronous", "/v1/completions")
with check("responses"):
    run("responses", "kind=synchronous", "/v1/responses")

end()
