"""The live page in headless Chromium, fed by the local controller under load, and its colours
wherever there is a JavaScript engine."""

import asyncio
import json
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import uvicorn
from chromium import browse, executable
from local import LocalController
from observed import World, asking

from medha_actors.actors.telemetry.recorder import page_name

PAGE = Path(__file__).parents[2] / "deployments" / "static" / "medha.html"
# The same in every browser, in every order, for ever.
COLOURS = {
    "cmpl-a-b-0": "hsl(184 61% 62%)",
    "chatcmpl-0123456789abcdef-1a2b3c4d-0": "hsl(322 70% 46%)",
    "chatcmpl-0123456789abcdef-1a2b3c4d-1": "hsl(95 70% 62%)",
    "mine": "hsl(156 52% 54%)",
}
needs_chromium = pytest.mark.skipif(executable() is None, reason="needs Chromium")


@pytest.fixture
async def address(make_world):
    """The URL of a server on a free port."""
    config = uvicorn.Config(
        make_world.server.asgi(), log_level="error", lifespan="off", ws="none"
    )
    config.load()
    state = uvicorn.server.ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: config.http_protocol_class(config, state, {}), "127.0.0.1", 0
    )
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    for connection in list(state.connections):
        connection.transport.abort()
    if state.tasks:
        await asyncio.wait(set(state.tasks), timeout=5)


@pytest.fixture
async def make_world():
    world = World(live_period_s=0.05)
    world.controller = LocalController(stages=2)
    yield world
    await world.http.aclose()


@needs_chromium
async def test_the_page_shows_pipeline_queue_and_caches(make_world, address):
    controller = make_world.controller
    controller.add("cmpl-first-aaaa-0", 20_000)
    for i in range(3):
        controller.add(f"cmpl-other-{i}-0", 2_000)
    async with browse(f"{address}/medha") as page:
        await page.until("typeof last === 'object' && last !== null")
        controller.run(4)
        controller.now += 0.01
        await page.until("steps.length >= 4")
        assert await page.evaluate(
            "document.querySelectorAll('#queue tr').length - 1"
        ) == len(controller.scheduler.live.queue)
        assert "2 stages" in await page.evaluate(
            "document.getElementById('state').textContent"
        )
        assert await page.evaluate("document.querySelectorAll('#kv .bar').length") == 1
        assert await page.evaluate("document.querySelectorAll('.tile').length") == 11
        await page.until(  # coloured pixels in the pipeline's rows
            "(() => { const c = document.getElementById('pipeline'), d = "
            "c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0; for (let i "
            "= 0; i < d.length; i += 4) if (d[i + 3] && Math.max(d[i], d[i + 1], d[i + 2]) - "
            "Math.min(d[i], d[i + 1], d[i + 2]) > 60) n++; return n > 50 })()"
        )
        controller.run()
        await page.until(
            "document.getElementById('queue').textContent.includes('nobody waits')"
        )
        make_world.down = True
        await page.until("document.getElementById('state').className === 'lost'")
        make_world.down = False
        await page.until("document.getElementById('state').className === ''")
        for name in (
            "chatcmpl-0123456789abcdef-1a2b3c4d-0",
            "cmpl-a-b-0",
            "resp_a-b-0",
            "mine",
        ):
            assert await page.evaluate(f"short('{name}')") == page_name(name)
        for name, colour in COLOURS.items():
            assert await page.evaluate(f"colour('{name}')") == colour
        assert page.errors == []
    while asking():
        await asyncio.wait(asking(), timeout=0.1)


def colours(names: list[str]) -> list[str]:
    """As the page's own function gives them, in a new process each time."""
    (function,) = re.findall(
        r"^function colour.*?^}$", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    script = f"{function}\nconsole.log(JSON.stringify({json.dumps(names)}.map(colour)))"
    run = subprocess.run(
        ["node", "-e", script], capture_output=True, text=True, check=True
    )
    return list(json.loads(run.stdout))


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_a_request_has_its_colour_in_every_browser():
    names = list(COLOURS)
    assert colours(names) == list(COLOURS.values())
    assert colours(names[::-1]) == list(COLOURS.values())[::-1]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_requests_that_follow_each_other_look_unlike():
    found = colours([f"chatcmpl-0123456789abcdef-{i:08x}-0" for i in range(2000)])
    hues = [int(re.findall(r"\d+", colour)[0]) for colour in found]
    sectors = [sum(1 for hue in hues if hue // 30 == sector) for sector in range(12)]
    assert min(sectors) > 120  # of 167
    near = sum(1 for one, other in pairwise(hues) if abs(one - other) < 15)
    assert near < 240  # chance: 160
    assert len(set(found)) > 1200


GRIDS = """
const elements = { fleet: {}, grids: {} };
const $ = id => elements[id];
SCRIPT
const row = (name, tokens) => ({ name, running: 1, prefilling: 2, waiting: 3, backlog_s: 0.5,
  kv_usage: 0.25, generation_tokens_total: tokens, ttft_s: { p50: 0.1, p99: 0.2 } });
grids({ now: 10, grid: "a", grids: [row("a", 100)] });
const alone = elements.fleet.hidden;
grids({ now: 10, grid: "a", grids: [row("a", 100), row("<b>", 0)] });
grids({ now: 12, grid: "a", grids: [row("a", 300), row("<b>", 0)] });
console.log(JSON.stringify([alone, elements.fleet.hidden, elements.grids.innerHTML]));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_several_grids_have_a_table_and_one_has_none():
    page = PAGE.read_text()
    wanted = (
        r"^(?:const text =.*?;$|const paces.*?;$|function (?:time|pace|grids)\(.*?^}$)"
    )
    parts = re.findall(wanted, page, re.DOTALL | re.MULTILINE)
    assert len(parts) == 5
    script = GRIDS.replace("SCRIPT", "\n".join(parts))
    run = subprocess.run(
        ["node", "-e", script], capture_output=True, text=True, check=True
    )
    alone, hidden, table = json.loads(run.stdout)
    assert (alone, hidden) == (True, False)
    assert 'class="drawn"' in table
    assert "&lt;b&gt;" in table
    assert "<b>" not in table
    assert '<td class="n">100</td>' in table  # tokens per second
    assert table.count("data-grid") == 2


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_script_of_the_page_can_be_read(tmp_path):
    (script,) = re.findall(r"<script>(.*?)</script>", PAGE.read_text(), re.DOTALL)
    path = tmp_path / "page.js"
    path.write_text(script)
    subprocess.run(["node", "--check", path], check=True)
