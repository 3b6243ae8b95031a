"""A real Chromium without the internet, told what to do over the Chrome DevTools Protocol."""

import asyncio
import itertools
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx
import msgspec
from websockets.asyncio.client import ClientConnection, connect

SECONDS = 60
ALONE = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)

VIOLATIONS = """
globalThis.violations = [];
document.addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI, sample }) => {
    violations.push(`${violatedDirective} ${blockedURI} ${sample}`);
});
"""
"""What a page wanted to do against its Content-Security-Policy, as long as it is open."""


def chromium() -> str:
    """The program."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    assert browser, "there is no chromium on PATH; install it, on Debian with: apt-get install chromium"
    return browser


class Page:
    """A tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def call(self, method: str, **params: object) -> dict[str, Any]:
        """A command of the protocol; raises AssertionError if it fails."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send(msgspec.json.encode({"id": number, "method": method, "params": params}).decode())
        answer = await asyncio.wait_for(self._answers[number], SECONDS)
        assert "error" not in answer, answer["error"]
        result: dict[str, Any] = answer["result"]
        return result

    async def go(self, url: str) -> None:
        """Open a page, and wait until it has loaded."""
        self._loaded.clear()
        await self.call("Page.enable")
        await self.call("Page.addScriptToEvaluateOnNewDocument", source=VIOLATIONS)
        await self.call("Page.navigate", url=url)
        await asyncio.wait_for(self._loaded.wait(), SECONDS)

    async def run(self, script: str) -> Any:
        """The value of an expression, or of what it promises; raises AssertionError with what it throws."""
        told = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    async def close(self) -> None:
        """Close the tab."""
        await self.call("Page.close")
        self._reading.cancel()
        with suppress(asyncio.CancelledError):
            await self._reading
        await self._socket.close()

    async def _read(self) -> None:
        async for text in self._socket:
            message = msgspec.json.decode(text)
            if future := self._answers.pop(message.get("id"), None):
                future.set_result(message)
            elif message.get("method") == "Page.loadEventFired":
                self._loaded.set()


class Chromium:
    """The browser, as long as the context lasts."""

    def __init__(self, home: Path) -> None:
        self._profile = home / "profile"

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(chromium(), *ALONE, f"--user-data-dir={self._profile}", "--remote-debugging-port=0", "about:blank"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        told = self._profile / "DevToolsActivePort"
        async with asyncio.timeout(SECONDS):
            while not (told.exists() and "\n" in told.read_text()):
                assert self._process.returncode is None, f"chromium ended with {self._process.returncode}"
                await asyncio.sleep(0.02)
        self._url = f"http://127.0.0.1:{told.read_text().split()[0]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), 10)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    @asynccontextmanager
    async def page(self) -> AsyncIterator[Page]:
        """A new tab, as long as the context lasts."""
        async with httpx.AsyncClient() as http:
            target = (await http.put(f"{self._url}/json/new?about:blank")).json()
        page = Page(await connect(target["webSocketDebuggerUrl"], max_size=None))
        try:
            yield page
        finally:
            await page.close()
