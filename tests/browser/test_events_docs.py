"""The page of what services tell each other, as a browser shows it that has no internet and runs no scripts."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest
from playwright.async_api import expect

from common.asyncapi import document
from common.runtime import Platform
from services.cli.system import DECIDERS, LISTENERS, READ_MODELS
from tests.browser.conftest import Enter
from tests.harness import ServiceProcess


@pytest.fixture
async def shop(platform: Platform, home: Path) -> AsyncIterator[ServiceProcess]:
    """The history service alone, as in a cluster."""
    async with ServiceProcess("history", platform.settings, home) as process:
        yield process


async def test_whoever_asks_is_shown_every_event_and_what_becomes_of_it(shop: ServiceProcess, enter: Enter) -> None:
    async with httpx.AsyncClient(base_url=shop.url) as http:
        told = await http.get("/api/events/asyncapi.json")
        assert told.json() == msgspec.to_builtins(document(DECIDERS, LISTENERS, [*READ_MODELS.values()]))
        again = await http.get(
            "/api/events/docs", headers={"If-None-Match": (await http.get("/api/events/docs")).headers["etag"]}
        )
        assert again.status_code == 304
    reader = await enter()
    page = reader.page
    await page.goto("/api/events/docs")
    await page.get_by_role("link", name="order_cancelled").first.click()
    await expect(page).to_have_url(re.compile("#order_cancelled$"))
    place = page.get_by_role("article", name="order_cancelled")
    await expect(place).to_be_in_viewport()
    await expect(place).to_contain_text("SettlePayments of orders")
    await expect(place.get_by_role("row", name="buyer_id")).to_contain_text("personal: person")
    # All of it is the same again and again, and would take axe a minute.
    await page.evaluate("document.querySelectorAll('article:nth-of-type(n+3)').forEach(each => each.remove())")
    await reader.show("events-docs")


async def test_the_page_needs_no_script_and_is_walked_by_keyboard(enter: Enter) -> None:
    reader = await enter(java_script_enabled=False)
    page = reader.page
    await page.goto("/api/events/docs#book_opened")
    await expect(page.get_by_role("article", name="book_opened")).to_be_in_viewport()
    await page.get_by_role("article", name="book_opened").get_by_role("link", name="BookListing").click()
    await expect(page.get_by_role("article", name="BookListing")).to_be_in_viewport()
    await page.goto("/api/events/docs")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="To the events")).to_be_focused()
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("main").get_by_role("link").first).to_be_focused()
