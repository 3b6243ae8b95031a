"""The documentation page as a browser without the internet shows it."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from common.runtime import Platform
from tests.browser.chromium import ALONE, chromium
from tests.harness import ServiceProcess

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
    assert len(documented) == 11
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
