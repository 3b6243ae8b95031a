"""The documentation page as a browser without the internet shows it."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from playwright.async_api import expect

from common.runtime import Platform
from tests.browser.conftest import Enter
from tests.harness import ServiceProcess, eventually


@pytest.fixture
async def shop(platform: Platform, home: Path) -> AsyncIterator[ServiceProcess]:
    """Everything with doors, in one process."""
    async with ServiceProcess("tickets orders expiration", platform.settings, home) as process:
        yield process


async def test_the_documentation_shows_every_operation_without_the_internet(shop: ServiceProcess, enter: Enter) -> None:
    async with httpx.AsyncClient(base_url=shop.url) as http:
        document = (await http.get("/api/openapi.json")).json()
        source = (await http.get("/api/docs")).text
    documented = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert len(documented) == 13
    reader = await enter()
    await reader.page.goto("/api/docs")

    async def shown() -> set[tuple[str, str]]:
        there = await reader.page.locator(".opblock").evaluate_all(
            "all => all.map(each => [each.querySelector('.opblock-summary-method').textContent.toLowerCase(), "
            "each.querySelector('[data-path]').dataset.path])"
        )
        return {(method, path) for method, path in there}

    await eventually(shown, documented)
    await expect(reader.page.get_by_role("button", name="Authorize")).to_be_visible()
    elsewhere = re.findall(r"""(?:src|href)=["']((?:https?:)?//[^"']+)""", source)
    assert elsewhere == []


async def test_the_example_of_an_operation_is_one_that_can_be_sent(shop: ServiceProcess, enter: Enter) -> None:
    reader = await enter()
    await reader.page.goto("/api/docs#/tickets/ApiTicketsCreate")
    example = await reader.page.locator(".body-param__example").inner_text()
    async with httpx.AsyncClient(base_url=shop.url) as http:
        headers = {"Authorization": "Bearer dev:sam", "Content-Type": "application/json"}
        made = await http.post("/api/tickets", content=example.encode(), headers=headers)
    assert made.status_code == 201, f"{example}\n{made.text}"


TRIES = {
    "script-src-elem inline": """document.head.append(Object.assign(document.createElement("script"),
        { textContent: "globalThis.ran = 1" }))""",
    "script-src-elem data": """document.head.append(Object.assign(document.createElement("script"),
        { src: "data:text/javascript,globalThis.ran=1" }))""",
    "script-src-attr inline": """document.body.setAttribute("onclick", "globalThis.ran = 1")""",
    "connect-src https://elsewhere.example/": """fetch("https://elsewhere.example/").catch(() => 0)""",
    "form-action https://elsewhere.example/": """(() => {
        const form = document.createElement("form");
        form.action = "https://elsewhere.example/";
        document.body.append(form);
        form.submit();
    })()""",
    "base-uri https://elsewhere.example/": """document.head.append(Object.assign(document.createElement("base"),
        { href: "https://elsewhere.example/" }))""",
    "frame-src https://elsewhere.example": """document.body.append(Object.assign(document.createElement("iframe"),
        { src: "https://elsewhere.example/" }))""",
}
"""What the policy forbids, by how a violation of it is told."""


async def test_the_documentation_keeps_to_its_policy_which_lets_nothing_else_run(enter: Enter) -> None:
    reader = await enter()
    reader.allow("401")
    page = reader.page
    await page.goto("/api/docs#/tickets/ApiTicketsCreate")
    operation = page.locator(".opblock.is-open")
    await operation.get_by_role("button", name="Try it out").click()
    await operation.get_by_role("button", name="Execute").click()
    await expect(operation.locator(".live-responses-table tbody td").first).to_have_text("401")
    assert await page.evaluate("violations") == []
    reader.allow("Content Security Policy", *TRIES)
    for number, (told, script) in enumerate(TRIES.items(), start=1):
        await page.evaluate(script)

        async def refused() -> int:
            return int(await page.evaluate("violations.length"))

        await eventually(refused, number)
        assert (await page.evaluate("violations.at(-1)")).startswith(told)
    assert await page.evaluate("globalThis.ran === undefined")
