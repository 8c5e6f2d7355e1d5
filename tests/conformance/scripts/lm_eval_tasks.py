"""lm-eval: log-likelihoods over token ids, with the server's tokenizer, texts, and chats."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from checks import MODEL, URL, check, command, end

QUESTIONS = [
    {
        "question": "The capital of France is",
        "choices": [" Paris", " Berlin"],
        "answer": 0,
    },
    {"question": "The opposite of hot is", "choices": [" blue", " cold"], "answer": 1},
    {"question": "Rivers end in the", "choices": [" sea", " sky"], "answer": 0},
]
CHOICE = """\
task: medha_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_target: answer
doc_to_choice: choices
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
TEXT = """\
task: medha_text
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: question
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
WORDS = """\
task: medha_words
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n", "."], max_gen_toks: 16, do_sample: false}
metric_list: [{metric: exact_match}]
"""

folder = Path.cwd()
data = folder / "questions.json"
data.write_text("\n".join([json.dumps(question) for question in QUESTIONS]))
for name, task in (("choice", CHOICE), ("text", TEXT), ("words", WORDS)):
    (folder / f"{name}.yaml").write_text(task.replace("DATA", str(data)))


def run(kind: str, tasks: str, path: str, *more: str, **arguments: object) -> dict:
    """Results of one call of lm_eval, by task."""
    given = {"model": MODEL, "base_url": URL + path, "num_concurrent": 2, **arguments}
    out = Path(tempfile.mkdtemp(dir=folder))
    command(
        "lm_eval",
        *("--model", kind, "--tasks", tasks, "--include_path", str(folder)),
        *("--model_args", ",".join([f"{key}={value}" for key, value in given.items()])),
        *("--output_path", str(out), *more),
        HF_DATASETS_CACHE=str(folder / "datasets"),
        HF_HOME=str(folder),
    )
    [results] = out.rglob("results_*.json")
    return json.loads(results.read_text())["results"]


LOCAL = "local-completions"
REMOTE = {"tokenizer_backend": "remote", "tokenized_requests": True, "max_length": 2048}

with check("choices, rolling log-likelihoods and texts, with the server's tokenizer"):
    tasks = "medha_choice,medha_text,medha_words"
    found = run(LOCAL, tasks, "/v1/completions", **REMOTE)
    assert set(found) == set(tasks.split(",")), found

with check("choices in batches of 3"):
    run(LOCAL, "medha_choice", "/v1/completions", "--batch_size", "3", **REMOTE)

with check("chats"):
    run(
        "local-chat-completions",
        "medha_words",
        "/v1/chat/completions",
        "--apply_chat_template",
    )

end()
