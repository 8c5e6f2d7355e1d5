"""litellm's proxy before the server: its health check, chats, streams and messages through it."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import openai
from checks import MODEL, QUESTION, URL, check, end

folder = Path.cwd()
config = folder / "config.yaml"
row = {
    "model_name": "medha",
    "litellm_params": {
        "model": f"openai/{MODEL}",
        "api_base": f"{URL}/v1",
        "api_key": "none",
    },
}
config.write_text(json.dumps({"model_list": [row]}))  # JSON is YAML
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
PROXY = f"http://127.0.0.1:{port}"
KEY = f"sk-{secrets.token_hex(16)}"  # it does not start without one
client = openai.OpenAI(base_url=f"{PROXY}/v1", api_key=KEY)


def wait(proxy: subprocess.Popen) -> None:
    """Until it answers; it takes its time to be imported."""
    until = time.monotonic() + 120
    while time.monotonic() < until and proxy.poll() is None:
        try:
            urllib.request.urlopen(f"{PROXY}/health/liveliness", timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the proxy did not start")


proxy = subprocess.Popen(
    [
        str(Path(sys.executable).parent / "litellm"),
        *("--config", str(config), "--host", "127.0.0.1", "--port", str(port)),
    ],
    env={
        **os.environ,
        "LITELLM_MASTER_KEY": KEY,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    },
    stdin=subprocess.DEVNULL,
)
try:
    with check("start"):
        wait(proxy)
    with check("its health check"):
        asked = urllib.request.Request(
            f"{PROXY}/health", headers={"x-litellm-api-key": KEY}
        )
        with urllib.request.urlopen(asked, timeout=60) as answer:
            health = json.load(answer)
        assert health["healthy_count"] == 1, health
        assert health["unhealthy_count"] == 0, health
    with check("chat"):
        messages = [{"role": "user", "content": QUESTION}]
        whole = client.chat.completions.create(
            model="medha", messages=messages, max_tokens=8
        )
        assert whole.choices[0].message.content
    with check("chat stream"):
        stream = client.chat.completions.create(
            model="medha", messages=messages, max_tokens=8, stream=True
        )
        said = [
            piece.choices[0].delta.content or "" for piece in stream if piece.choices
        ]
        assert "".join(said)
    with check("completion"):
        assert (
            client.completions.create(model="medha", prompt="One", max_tokens=8)
            .choices[0]
            .text
        )
    with check("responses"):
        assert client.responses.create(
            model="medha", input=QUESTION, max_output_tokens=16
        ).output
finally:
    proxy.terminate()
    proxy.wait(timeout=60)
end()
