"""Somebody in front of the page, as Playwright has them do things."""

import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, Self

import axe_playwright_python  # type: ignore[import-untyped]  # it has no types
from playwright.async_api import Browser, BrowserContext, CDPSession, ConsoleMessage, Page, async_playwright, expect

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
SCREENSHOTS = Path(__file__).parents[2] / ".screenshots"
"""Where what was seen is kept, to be looked at."""

DEVICES: Mapping[str, tuple[int, Literal["light", "dark"]]] = {"phone": (360, "light"), "desk": (1200, "dark")}
"""How wide, and in which colours."""

SECONDS = 20
expect.set_options(timeout=SECONDS * 1000)

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser")
ALONE = ("--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")

VIOLATIONS = """
globalThis.violations = [];
document.addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI, sample }) => {
    violations.push(`${violatedDirective} ${blockedURI} ${sample}`);
});
"""
"""What a page wanted to do against its Content-Security-Policy, as long as it is open."""

VIOLATED = """
(async () => {
    const { violations } = await axe.run({ resultTypes: ["violations"] });
    return violations.map(({ id, nodes }) => [id, nodes.map(({ html }) => html)]);
})()
"""
"""Which rules of axe the page breaks, and where; of the many that it keeps nothing is told."""


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A real Chromium without the internet, as long as the context lasts.

    Its shell without windows takes half the CPU, as it draws none.
    """
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    assert program, f"there is no {PROGRAMS[0]} on PATH; install it, on Debian with: apt-get install {PROGRAMS[0]}"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=ALONE)
        yield browser
        await browser.close()


class Person:
    """A browser context of its own, with one page open."""

    def __init__(self, context: BrowserContext, page: Page, session: CDPSession, url: str) -> None:
        self.context = context
        self.page = page
        self.url = url
        self.allowed = ["closed before the connection is established"]  # given up by the page itself: it has gone on
        self.session = session
        self._errors: list[str] = []
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self._errors.append(f"thrown: {error}"))

    @classmethod
    @asynccontextmanager
    async def enters(cls, browser: Browser, url: str, **how: Any) -> AsyncIterator[Self]:
        """Open a browser context at this address, nothing loaded yet.

        Whatever went wrong in it (an error in the console, what the policy forbids) fails the test when it is left.
        """
        context = await browser.new_context(base_url=url, **{"locale": "en-GB", **how})
        context.set_default_timeout(SECONDS * 1000)
        await context.add_init_script(VIOLATIONS)
        page = await context.new_page()
        try:
            person = cls(context, page, await context.new_cdp_session(page), url)
            yield person
            wrong = await person._went_wrong()
            assert not wrong, wrong
        finally:
            await context.close()

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._errors.append(f"{message.type}: {message.text} {message.location.get('url', '')}")

    async def is_known_as(self, name: str, role: str) -> None:
        """Log in, without the page."""
        answer = await self.context.request.post(
            "/api/auth/dev", data={"name": name, "role": role, "page": True}, headers={"Origin": self.url}
        )
        assert answer.ok, await answer.text()

    def allow(self, *parts: str) -> None:
        """What the console may say: the browser itself tells of each answer that refuses, as it should."""
        self.allowed += parts

    async def _went_wrong(self) -> list[str]:
        """What this browser complained of."""
        told = [*self._errors]
        if not self.page.is_closed() and self.page.url != "about:blank":
            told += [f"policy: {each}" for each in await self.page.evaluate("globalThis.violations ?? []")]
        return [each for each in told if not any(part in each for part in self.allowed)]

    async def sees(self, text: str) -> None:
        """Wait until the page shows this."""
        await expect(self.page.locator("body")).to_contain_text(text, use_inner_text=True)

    async def show(self, name: str) -> None:
        """What is seen is sound for those who see, hear and type differently, in light and dark, on phone and desk.

        Each is kept as a picture of this name.
        """
        SCREENSHOTS.mkdir(exist_ok=True)
        before = self.page.viewport_size
        if not await self.page.evaluate("'axe' in globalThis"):
            await self.session.send("Runtime.evaluate", {"expression": AXE})  # which the page's policy does not forbid
        for device, (width, scheme) in DEVICES.items():
            await self.page.emulate_media(color_scheme=scheme)
            await self.page.set_viewport_size({"width": width, "height": 800})
            beyond = await self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert beyond <= 0, f"{name} is {beyond} px too wide for {width} px"
            wrong = await self.page.evaluate(VIOLATED)
            assert wrong == [], f"{name}, {device}: {wrong}"
            await self.page.screenshot(path=SCREENSHOTS / f"{name}-{device}.png", full_page=True)
        await self.page.emulate_media(color_scheme="light")
        if before:
            await self.page.set_viewport_size(before)
