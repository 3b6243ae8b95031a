"""Wherever somebody is on the page: lists stay as far as they were read, and a server that is away is told."""

import asyncio
import re

import httpx
import pytest
from playwright.async_api import Route, expect

from tests.browser.conftest import Enter
from tests.browser.person import Person
from tests.browser.test_shop import SAM, hold, sell
from tests.harness import ServiceProcess, eventually

MANY = 130  # tickets: more than a connection may be asked for by their ids


@pytest.fixture(scope="module")
async def many(shop: ServiceProcess) -> list[str]:
    """The ids of many tickets, in the order in which the shop has them."""
    await asyncio.gather(*(sell(shop, f"Show {number}") for number in range(MANY)))
    async with httpx.AsyncClient(base_url=shop.url, headers=SAM) as http:
        pages = [(await http.get("/api/tickets?limit=100")).json()]
        pages.append((await http.get(f"/api/tickets?limit=100&cursor={pages[0]['next_cursor']}")).json())
    return [ticket["id"] for page in pages for ticket in page["items"]]


async def more(person: Person, until: int) -> None:
    """Press More until so many are shown."""
    shown = person.page.locator(".tickets > li")
    await expect(shown).not_to_have_count(0)
    while (count := await shown.count()) < until:
        await person.page.get_by_role("button", name="More").click()
        await expect(shown).to_have_count(min(count + 20, MANY))


async def hears(person: Person) -> None:
    """Wait until notices come."""
    bell = person.page.get_by_role("link", name=re.compile("^Notices"))
    await expect(bell).to_have_attribute("title", re.compile("^Live"))


async def test_a_list_that_was_left_is_found_again_where_it_was(enter: Enter, many: list[str]) -> None:
    ada = await enter()
    await ada.page.goto("/")
    await more(ada, 60)
    link = ada.page.locator(f'a[href="/tickets/{many[45]}"]')
    await link.scroll_into_view_if_needed()
    where = await ada.page.evaluate("scrollY")
    assert where > 0

    async def is_there() -> bool:
        return bool(abs(await ada.page.evaluate("scrollY") - where) < 2)

    await link.click()
    await expect(ada.page.get_by_role("heading", name="Show")).to_be_visible()
    assert await ada.page.evaluate("scrollY") == 0
    for back in (ada.page.go_back, ada.page.reload):
        await back()
        await expect(ada.page.locator(".tickets > li")).to_have_count(60)
        await expect(link).to_be_in_viewport()
        await eventually(is_there, True)


async def test_all_tickets_that_are_shown_are_live(shop: ServiceProcess, enter: Enter, many: list[str]) -> None:
    ada = await enter()
    await ada.page.goto("/")
    await more(ada, MANY)
    first, last = (ada.page.locator(f'a[href="/tickets/{each}"]') for each in (many[0], many[-1]))
    for link, ticket_id in ((first, many[0]), (last, many[-1])):
        await expect(link).to_contain_text("5 left")
        await hold(shop, ticket_id, "bea-live", 3, 3600)
        await expect(link).to_contain_text("2 left")


async def test_a_notice_takes_nothing_from_a_list(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "Many orders", quantity=100)
    for _ in range(25):
        await hold(shop, ticket_id, "ada-many", 1, 3600)
    ada = await enter("ada-many")
    await ada.page.goto("/orders")
    orders = ada.page.locator("ul.rows > li")
    await expect(orders).to_have_count(20)
    await ada.page.get_by_role("button", name="More").click()
    await expect(orders).to_have_count(25)
    await hears(ada)
    await hold(shop, ticket_id, "ada-many", 2, 3600)
    await expect(orders.first).to_contain_text("2 seats")
    await expect(orders).to_have_count(26)


async def test_nobody_is_taken_for_logged_out_because_the_server_is_away(enter: Enter) -> None:
    ada = await enter("ada-away")
    ada.allow("ERR_")
    refused = asyncio.Event()

    async def refuse(route: Route) -> None:
        refused.set()
        await route.abort()

    await ada.page.route("**/api/auth/me", refuse)
    await ada.page.goto("/orders")
    for _ in range(3):  # times that it is asked
        await refused.wait()
        refused.clear()
    await ada.sees("Connection lost")
    await expect(ada.page.get_by_text("Log in")).to_have_count(0)
    await ada.page.unroute("**/api/auth/me")
    await ada.sees("You have no orders yet")
    await expect(ada.page.get_by_text("Connection lost")).to_have_count(0)


async def test_a_lost_connection_is_told_where_only_notices_are_live(shop: ServiceProcess, enter: Enter) -> None:
    order_id = await hold(shop, await sell(shop, "Held"), "ada-lost", 1, 3600)
    ada = await enter("ada-lost")
    ada.allow("ERR_", "503")
    await ada.page.goto(f"/orders/{order_id}")
    await hears(ada)
    await shop.kill()
    try:
        await ada.sees("Connection lost")
    finally:
        await shop.start()
    await expect(ada.page.get_by_text("Connection lost")).to_have_count(0)
    await hears(ada)


async def test_a_login_that_cannot_be_renewed_just_now_goes_on(enter: Enter) -> None:
    ada = await enter("ada-renewed")
    ada.allow("401", "503")
    await ada.context.clear_cookies(name="boxoffice-session")  # what is believed for some minutes only: it is renewed

    async def refuse(route: Route) -> None:
        await route.fulfill(status=503)

    await ada.page.route("**/api/auth/refresh", refuse)
    await ada.page.goto("/orders")
    await ada.sees("Connection lost")
    await expect(ada.page.get_by_text("Log in")).to_have_count(0)
    await ada.page.unroute("**/api/auth/refresh")
    await ada.sees("You have no orders yet")
    await expect(ada.page.get_by_text("Connection lost")).to_have_count(0)
