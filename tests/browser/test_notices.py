"""What people are told in the page: the bell, the inbox, and what their programs are told."""

import re
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from playwright.async_api import Browser, Page, expect

from services.cli.servers import PostgresServer
from services.cli.system import SERVICES
from tests.browser.conftest import Enter
from tests.browser.person import Person
from tests.browser.test_notifications import Doorman, everything, no_stream, no_upgrade
from tests.browser.test_shop import hold, sell
from tests.conftest import Migrated, copied
from tests.harness import ServiceProcess, eventually

HOOKS = {
    "BOXOFFICE_WEBHOOK_SECRET": "nobody-can-guess-this-for-there-is-no-need-to",
    "BOXOFFICE_WEBHOOK_PRIVATE_ADDRESSES": "1",
    "BOXOFFICE_WEBHOOK_RETRY_SECONDS": "0.00001",
}


@pytest.fixture(scope="module")
async def shop(postgres: PostgresServer, migrated: Migrated) -> AsyncIterator[ServiceProcess]:
    """Every service in one process, with webhooks that may lead to this machine."""
    with tempfile.TemporaryDirectory(prefix="boxoffice-test-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        async with (
            copied(postgres, migrated, home) as settings,
            ServiceProcess(" ".join(SERVICES), msgspec.structs.replace(settings, auth="dev"), home, **HOOKS) as process,
        ):
            yield process


def login(who: str) -> dict[str, str]:
    return {"Authorization": f"Bearer dev:{who}:buyer"}


async def inbox(shop: ServiceProcess, who: str) -> dict[str, Any]:
    """The newest hundred, as the API tells them."""
    async with httpx.AsyncClient(base_url=shop.url, headers=login(who)) as http:
        answer = await http.get("/api/notifications/inbox", params={"limit": 100})
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    return page


async def has(shop: ServiceProcess, who: str, count: int) -> list[str]:
    """Wait until somebody was told so often; what, newest first."""

    async def look() -> int:
        return len((await inbox(shop, who))["items"])

    await eventually(look, count, 60)
    return [item["notification"]["text"] for item in (await inbox(shop, who))["items"]]


async def pay(shop: ServiceProcess, who: str, order_id: str) -> None:
    async with httpx.AsyncClient(base_url=shop.url, headers=login(who), timeout=30) as http:
        paid = await http.post(f"/api/orders/{order_id}/payment", json={"token": "tok_ok"})
    assert paid.status_code == 200, paid.text


async def has_unread(page: Page, count: int) -> None:
    name = f"Notices, {count} unread" if count else "Notices"
    await expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()


async def hears_over(page: Page, how: str) -> None:
    """Wait until the bell says how notices come."""
    await expect(page.locator("a.bell")).to_have_accessible_description(f"Live over {how}.", timeout=60_000)


async def shown(page: Page) -> list[str]:
    """The texts of the inbox, without what marks them."""
    texts = await page.locator("ul.notices > li > p:first-child").all_inner_texts()
    return [re.sub(r"^New\s+", "", text) for text in texts]


async def test_a_buyer_is_told_at_once_what_becomes_of_their_orders(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "Told at once")
    ada = await enter("ada-told")
    await ada.page.goto("/?q=nothing-like-that")
    await hears_over(ada.page, "WebSocket")
    await has_unread(ada.page, 0)
    order_id = await hold(shop, ticket_id, "ada-told", 2, 600)
    await has_unread(ada.page, 1)
    news = ada.page.get_by_role("complementary", name="New notices")
    await expect(news.get_by_role("status")).to_contain_text("You hold 2 of Told at once until")
    await news.hover()  # so it stays
    await ada.show("notices-news")
    await pay(shop, "ada-told", order_id)
    await has_unread(ada.page, 2)
    await expect(news).to_contain_text("Your order of Told at once is complete: 2 paid for.")
    await news.get_by_role("button", name="Dismiss").first.click()
    await expect(news).not_to_contain_text("You hold 2")
    await expect(news.get_by_role("button", name="Dismiss")).to_be_focused()
    await news.get_by_role("link", name="See the order").click()
    await ada.sees("2 seats are yours.")
    await expect(news).not_to_contain_text("Told at once")
    await has_unread(ada.page, 1)  # who follows it, has read it
    gone = await hold(shop, ticket_id, "ada-told", 1, 1)
    await has_unread(ada.page, 3)
    await expect(news).to_contain_text("was cancelled: its time to pay was over.")
    await ada.page.goto(f"/orders/{gone}")
    await ada.sees("Not paid in time.")


async def test_an_order_that_is_paid_or_cancelled_elsewhere_shows_it_here(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "Two places")
    ada, same = await enter("ada-two"), await enter("ada-two")
    for cancels in (False, True):
        order_id = await hold(shop, ticket_id, "ada-two", 1, 600)
        for each in (ada, same):
            await each.page.goto(f"/orders/{order_id}")
            await each.sees("left to pay")
            await hears_over(each.page, "WebSocket")
        await ada.page.get_by_role("button", name="back" if cancels else "Pay", exact=not cancels).click()
        for each in (ada, same):
            await each.sees("Cancelled." if cancels else "1 seat is yours.")
        await expect(same.page.locator(".outcome")).to_be_focused()


async def test_an_order_whose_card_was_declined_can_be_paid_after_it_is_loaded_again(
    shop: ServiceProcess, enter: Enter
) -> None:
    order_id = await hold(shop, await sell(shop, "Another card"), "ada-card", 1, 600)
    ada = await enter("ada-card")
    ada.allow("402")
    await ada.page.goto(f"/orders/{order_id}")
    await ada.page.get_by_role("button", name="declined").click()
    await ada.sees("The payment was declined.")
    await ada.page.reload()
    await ada.sees("left to pay")
    await ada.page.get_by_role("button", name="Pay", exact=True).click()
    await ada.sees("1 seat is yours.")


async def test_the_inbox_is_read_one_by_one_and_as_a_whole_in_every_tab(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "Inbox", max_per_order=1, quantity=100)
    ada = await enter("ada-inbox")
    await ada.page.goto("/notices")
    await ada.sees("You have no notices yet")
    await ada.sees("Live over WebSocket.")
    await ada.show("notices-none")
    for _ in range(23):
        await hold(shop, ticket_id, "ada-inbox", 1, 600)
    await ada.sees("23 notices are unread.")
    await expect(ada.page.locator("ul.notices > li")).to_have_count(23)  # as they came
    await ada.page.reload()
    await expect(ada.page.locator("ul.notices > li")).to_have_count(20)
    await ada.show("notices")
    await ada.page.get_by_role("button", name="More").click()
    await expect(ada.page.locator("ul.notices > li")).to_have_count(23)
    told = (await inbox(shop, "ada-inbox"))["items"]
    assert await shown(ada.page) == [item["notification"]["text"] for item in told]
    other = await ada.context.new_page()
    await other.goto("/notices")
    await has_unread(other, 23)
    first = ada.page.locator("ul.notices > li").first
    await first.get_by_role("button", name="Mark as read").click()
    await expect(first).to_be_focused()
    await expect(first.get_by_text("New", exact=True)).to_have_count(0)
    for page in (ada.page, other):
        await has_unread(page, 22)
    await expect(other.locator("ul.notices > li").first.get_by_text("New", exact=True)).to_have_count(0)
    await other.get_by_role("button", name="Mark all as read").click()
    for page in (other, ada.page):
        await has_unread(page, 0)
        await expect(page.locator("#page")).to_contain_text("Nothing is unread.")
        await expect(page.get_by_text("New", exact=True)).to_have_count(0)
    assert (await inbox(shop, "ada-inbox"))["unread"] == 0
    await hold(shop, ticket_id, "ada-inbox", 1, 600)
    await has_unread(other, 1)
    await ada.page.reload()
    await has_unread(ada.page, 1)
    await expect(ada.page.get_by_text("New", exact=True)).to_have_count(1)


async def test_whatever_becomes_of_the_server_each_notice_is_shown_once(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "Killed", max_per_order=1, quantity=100)
    ada = await enter("ada-killed")
    ada.allow("ERR_", "503", "WebSocket")
    await ada.page.goto("/notices")
    await ada.sees("Live over WebSocket.")
    for turn in range(1, 3):
        for _ in range(2):
            await hold(shop, ticket_id, "ada-killed", 1, 3)
        await shop.kill()
        try:
            await ada.sees("The connection for notices is lost; it is tried again.")
            await expect(ada.page.locator("a.bell")).to_have_accessible_description(re.compile("lost"))
            if turn == 1:
                await ada.show("notices-lost")
        finally:
            await shop.start()
        await has(shop, "ada-killed", 4 * turn)  # held, and expired when there was nobody to tell it
        await expect(ada.page.locator("ul.notices > li")).to_have_count(4 * turn, timeout=60_000)
    told = await has(shop, "ada-killed", 8)
    assert await shown(ada.page) == told
    await has_unread(ada.page, 8)
    await expect(ada.page.locator("main").get_by_text("Live over")).to_be_visible(timeout=60_000)
    await ada.page.reload()
    await expect(ada.page.locator("ul.notices > li")).to_have_count(8)
    assert await shown(ada.page) == told


async def test_where_no_websocket_can_be_opened_notices_come_another_way(
    shop: ServiceProcess, browser: Browser
) -> None:
    ticket_id = await sell(shop, "Another way", max_per_order=1, quantity=100)
    async with Doorman(shop.port) as doorman, Person.enters(browser, doorman.url) as ada:
        ada.allow("WebSocket", "ERR_")
        await ada.is_known_as("ada-way", "buyer")
        ways = [(everything, "WebSocket"), (no_upgrade, "server-sent events"), (no_stream, "long-polling")]
        for count, (doorman.judge, how) in enumerate(ways, 1):
            await ada.page.goto("/notices")
            await hears_over(ada.page, how)
            await ada.sees(f"Live over {how}.")
            await hold(shop, ticket_id, "ada-way", 1, 600)
            await has_unread(ada.page, count)
            await expect(ada.page.locator("ul.notices > li")).to_have_count(count)
        assert await shown(ada.page) == await has(shop, "ada-way", 3)
        doorman.judge = everything
        await ada.page.evaluate("dispatchEvent(new Event('online'))")
        await hears_over(ada.page, "WebSocket")
        doorman.judge = no_upgrade  # and while it is open
        doorman.hang_up()
        await hears_over(ada.page, "server-sent events")
        doorman.judge = no_stream
        doorman.hang_up()
        await hears_over(ada.page, "long-polling")
        await hold(shop, ticket_id, "ada-way", 1, 600)
        await has_unread(ada.page, 4)
        assert await ada.went_wrong() == []


async def test_a_tab_listens_from_login_to_logout_over_one_connection(enter: Enter) -> None:
    ada = await enter()
    opened: list[str] = []
    closed: list[str] = []

    def watch(socket: Any) -> None:
        opened.append(socket.url)
        socket.on("close", lambda _: closed.append(socket.url))

    ada.page.on("websocket", watch)
    await ada.page.goto("/")
    await ada.page.get_by_role("button", name="Log in").click()
    await ada.page.get_by_label("Your name").fill("ada-once")
    await ada.page.get_by_role("button", name="Log in").last.click()
    await hears_over(ada.page, "WebSocket")
    await ada.page.get_by_role("link", name="Notices").click()
    await ada.sees("You have no notices yet")
    await ada.page.get_by_role("link", name="Shop").click()
    await has_unread(ada.page, 0)
    assert (len(opened), closed) == (1, [])
    await ada.page.get_by_role("button", name="Log out").click()
    await expect(ada.page.get_by_role("button", name="Log in")).to_be_visible()
    await expect(ada.page.locator("a.bell")).to_have_count(0)

    async def over() -> int:
        return len(closed)

    await eventually(over, 1)
    await ada.page.goto("/notices")
    await ada.sees("Log in to see your notices.")
    assert len(opened) == 1
