"""A headless Chromium, spoken to over its DevTools protocol: open a page, evaluate, take a
picture."""

import asyncio
import base64
import contextlib
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
]


def executable() -> str | None:
    return next(
        (
            path
            for name in ("chromium", "chromium-browser", "google-chrome")
            if (path := shutil.which(name))
        ),
        None,
    )


class Page:
    """One tab. `errors`: uncaught exceptions and console errors so far."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._last = 0
        self.errors: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last += 1
        await self._socket.send_json(
            {"id": self._last, "method": method, "params": parameters}
        )
        while True:
            message = await self._socket.receive_json(timeout=30)
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(message["params"]["exceptionDetails"]))
            elif message.get("id") == self._last:
                assert "error" not in message, message
                return message["result"]

    async def evaluate(self, script: str) -> Any:
        """The value of an expression; a promise is awaited."""
        answer = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, condition: str, timeout_s: float = 20) -> None:
        """Wait until an expression is true; it is looked at in every frame."""
        again = "requestAnimationFrame(look)"
        look = f"const look = () => ({condition}) ? done(true) : {again}; look()"
        async with asyncio.timeout(timeout_s):
            await self.evaluate(f"new Promise(done => {{ {look} }})")

    async def screenshot(self) -> bytes:
        """The whole page as PNG."""
        size = await self.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
        )
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        answer = await self.call(
            "Page.captureScreenshot",
            format="png",
            clip=clip,
            captureBeyondViewport=True,
        )
        return base64.b64decode(answer["data"])


@contextlib.asynccontextmanager
async def browse(url: str, width: int = 1280, height: int = 800) -> AsyncIterator[Page]:
    """A page that has been opened."""
    path = executable()
    assert path is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            path,
            *FLAGS,
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            "about:blank",
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stderr is not None
            port = None
            while port is None:
                async with asyncio.timeout(30):
                    line = (await process.stderr.readline()).decode()
                assert line, "chromium ended"
                port = re.search(r"ws://[^:]+:(\d+)/", line)
            async with aiohttp.ClientSession() as session:
                async with session.get(
                    f"http://127.0.0.1:{port.group(1)}/json/list"
                ) as answer:
                    (tab,) = [
                        tab for tab in await answer.json() if tab["type"] == "page"
                    ]
                async with session.ws_connect(
                    tab["webSocketDebuggerUrl"], max_msg_size=0
                ) as socket:
                    page = Page(socket)
                    await page.call("Runtime.enable")
                    await page.call("Page.enable")
                    await page.call("Page.navigate", url=url)
                    yield page
        finally:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(10):
                    await process.communicate()
