"""The documentation page as a browser without the internet shows it."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from common.runtime import Platform
from tests.browser.chromium import ALONE, Chromium, chromium
from tests.harness import ServiceProcess, eventually

SECONDS = 60


@pytest.fixture
async def shop(platform: Platform, home: Path) -> AsyncIterator[ServiceProcess]:
    """Everything with doors, in one process."""
    async with ServiceProcess("tickets orders expiration", platform.settings, home) as process:
        yield process


async def shown(url: str, home: Path) -> str:
    """What a page is once its scripts have run, as HTML."""
    process = await asyncio.create_subprocess_exec(
        *(chromium(), *ALONE, f"--user-data-dir={home / 'profile'}", "--virtual-time-budget=10000", "--dump-dom", url),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        page, errors = await asyncio.wait_for(process.communicate(), SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, errors.decode(errors="replace")
    return page.decode()


async def test_the_documentation_shows_every_operation_without_the_internet(shop: ServiceProcess, home: Path) -> None:
    async with httpx.AsyncClient(base_url=shop.url) as http:
        document = (await http.get("/api/openapi.json")).json()
        source = (await http.get("/api/docs")).text
    documented = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert len(documented) == 13
    page = await shown(f"{shop.url}/api/docs", home)
    there = re.findall(r'class="opblock opblock-(\w+)".*?data-path="([^"]+)"', page)
    assert set(there) == documented
    assert "Authorize" in page
    elsewhere = re.findall(r"""(?:src|href)=["']((?:https?:)?//[^"']+)""", source)
    assert elsewhere == []


async def test_the_example_of_an_operation_is_one_that_can_be_sent(shop: ServiceProcess, home: Path) -> None:
    page = await shown(f"{shop.url}/api/docs#/tickets/ApiTicketsCreate", home)
    example = re.sub(r"<[^>]+>", "", page[page.index("body-param__example") :].partition("</pre>")[0]).partition(">")[2]
    sent = example.replace("&quot;", '"').encode()
    async with httpx.AsyncClient(base_url=shop.url) as http:
        headers = {"Authorization": "Bearer dev:sam", "Content-Type": "application/json"}
        made = await http.post("/api/tickets", content=sent, headers=headers)
    assert made.status_code == 201, f"{example}\n{made.text}"


async def test_the_documentation_keeps_to_its_policy_which_lets_nothing_else_run(
    shop: ServiceProcess, home: Path
) -> None:
    async with Chromium(home) as browser, browser.page() as page:
        await page.go(f"{shop.url}/api/docs#/tickets/ApiTicketsCreate")

        async def opened() -> bool:
            return bool(await page.run("document.querySelector('.opblock.is-open .try-out__btn') !== null"))

        await eventually(opened, True)
        await page.run("document.querySelector('.opblock.is-open .try-out__btn').click()")
        await page.run("document.querySelector('.opblock.is-open .execute').click()")

        async def answered() -> Any:
            return await page.run("document.querySelector('.live-responses-table tbody td')?.textContent")

        await eventually(answered, "401")
        assert await page.run("violations") == []
        tries = {
            "script-src-elem inline": "document.head.append(Object.assign(document.createElement('script'), "
            "{ textContent: 'globalThis.ran = 1' }))",
            "script-src-elem data": "document.head.append(Object.assign(document.createElement('script'), "
            "{ src: 'data:text/javascript,globalThis.ran=1' }))",
            "script-src-attr inline": "document.body.setAttribute('onclick', 'globalThis.ran = 1')",
            "connect-src https://elsewhere.example/": "fetch('https://elsewhere.example/').catch(() => 0)",
            "form-action https://elsewhere.example/": "(() => { const form = document.createElement('form'); "
            "form.action = 'https://elsewhere.example/'; document.body.append(form); form.submit(); })()",
            "base-uri https://elsewhere.example/": "document.head.append(Object.assign(document.createElement('base'), "
            "{ href: 'https://elsewhere.example/' }))",
            "frame-src https://elsewhere.example": "document.body.append(Object.assign("
            "document.createElement('iframe'), { src: 'https://elsewhere.example/' }))",
        }
        for number, (told, script) in enumerate(tries.items(), start=1):
            await page.run(script)

            async def refused() -> int:
                return int(await page.run("violations.length"))

            await eventually(refused, number)
            assert (await page.run("violations.at(-1)")).startswith(told)
        assert await page.run("globalThis.ran === undefined")
