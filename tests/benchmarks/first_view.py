"""How soon the page can be used by somebody who opens it for the first time."""

from statistics import median

import httpx
from playwright.async_api import Browser

from common.settings import Settings
from services.cli import system
from tests.benchmarks.process import serving
from tests.benchmarks.row import Measured, Row, Scene, Target, alternate
from tests.browser.person import chromium
from tests.harness import SIGNING_KEY

MOST_KB, MOST_MS = 100, 1_000
TICKETS = 20

USABLE = """
globalThis.usable = new Promise((resolve) =>
  new MutationObserver((_, observer) => {
    if (document.querySelectorAll(".tickets a").length < %d || !document.querySelector("#search")) return;
    observer.disconnect();
    resolve(performance.now());
  }).observe(document, { childList: true, subtree: true }),
);
"""
"""Tells when the tickets are there, and what they are searched with, in ms since the page was asked for."""

LOADED = "new Promise((tell) => setTimeout(() => tell(performance.getEntriesByType('navigation')[0].loadEventEnd)))"


async def opened(browser: Browser, url: str, script: str, figure: str) -> tuple[float, float]:
    """Milliseconds that a figure of a page says, in a browser that has nothing of it yet; and KB over the wire."""
    context = await browser.new_context()
    try:
        await context.add_init_script(script)
        page = await context.new_page()
        session = await context.new_cdp_session(page)
        await session.send("Network.enable")
        sizes: list[float] = []
        session.on("Network.loadingFinished", lambda each: sizes.append(each["encodedDataLength"]))
        await page.goto(url)
        return float(await page.evaluate(figure)), sum(sizes) / 1000
    finally:
        await context.close()


async def first_view(scene: Scene) -> Measured:
    async with scene.nats() as nats, scene.postgres() as postgres, chromium() as browser:
        settings = Settings(nats_url=nats.url, database_url=postgres.url, auth="dev")
        await system.migrate(settings, lambda _: None)
        module, key = ("services.cli.main", "serve", *system.SERVICES), {"BOXOFFICE_SIGNING_KEY": SIGNING_KEY}
        async with serving(module, settings, scene.home, **key) as served:
            url = f"http://127.0.0.1:{served.port}"
            async with httpx.AsyncClient(base_url=url, headers={"Authorization": "Bearer dev:sam"}) as http:
                show = {"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": 100}
                for _ in range(TICKETS):
                    (await http.post("/api/tickets", json=show)).raise_for_status()
            sizes: list[float] = []

            async def page() -> float:
                milliseconds, size = await opened(browser, url, USABLE % TICKETS, "usable")
                sizes.append(size)
                return milliseconds

            async def text() -> float:
                return (await opened(browser, f"{url}/health/live", "", LOADED))[0]

            figures = await alternate(scene, page, text, rounds=scene.size(10, 1))
    return Measured("ms", *figures, details={"kb": sizes})


def reached(measured: Measured) -> bool:
    return median(measured.ours) <= MOST_MS and max(measured.details["kb"]) <= MOST_KB


FIRST_VIEW = Row(
    "page",
    f"the shop with {TICKETS} tickets can be used, in a browser that has nothing of it yet",
    "a line of text, of the same server",
    Target(f"<= {MOST_MS:,} ms, {MOST_KB} KB", reached),
    first_view,
)
