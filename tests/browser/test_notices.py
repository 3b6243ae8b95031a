"""What people are told in the page: the bell, the inbox, and what their programs are told."""

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from playwright.async_api import Browser, Page, WebSocketRoute, expect

from services.cli.servers import PostgresServer
from tests.browser.conftest import Enter, opened
from tests.browser.person import Person
from tests.browser.test_notifications import Doorman, everything, no_stream, no_upgrade
from tests.browser.test_shop import hold, sell
from tests.conftest import Migrated
from tests.harness import ServiceProcess, eventually, figure
from tests.receiver import Receiver

HOOKS = {
    "BOXOFFICE_WEBHOOK_SECRET": "nobody-can-guess-this-for-there-is-no-need-to",
    "BOXOFFICE_WEBHOOK_PRIVATE_ADDRESSES": "1",
    "BOXOFFICE_WEBHOOK_RETRY_SECONDS": "0.00001",
}


@pytest.fixture(scope="module")
async def shop(postgres: PostgresServer, migrated: Migrated) -> AsyncIterator[ServiceProcess]:
    """One for all tests here, with webhooks that may lead to this machine."""
    async with opened(postgres, migrated, **HOOKS) as process:
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
    ticket_id = await sell(shop, "Told <b>at once")
    ada = await enter("ada-told")
    await ada.page.goto("/?q=nothing-like-that")
    await hears_over(ada.page, "WebSocket")
    await has_unread(ada.page, 0)
    order_id = await hold(shop, ticket_id, "ada-told", 2, 600)
    await has_unread(ada.page, 1)
    news = ada.page.get_by_role("complementary", name="New notices")
    await expect(news.get_by_role("status")).to_contain_text("You hold 2 of Told <b>at once until")
    await news.hover()  # so it stays
    await ada.show("notices-news")
    await pay(shop, "ada-told", order_id)
    await has_unread(ada.page, 2)
    await expect(news).to_contain_text("Your order of Told <b>at once is complete: 2 paid for.")
    await news.get_by_role("button", name="Dismiss").first.click()
    await expect(news).not_to_contain_text("You hold 2")
    await expect(news.get_by_role("button", name="Dismiss")).to_be_focused()
    await news.get_by_role("link", name="See the order").click()
    await ada.sees("2 seats are yours.")
    await expect(news).not_to_contain_text("Told <b>at once")
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


async def test_the_bell_rings_over_long_polling_where_nothing_else_gets_through(
    shop: ServiceProcess, enter: Enter
) -> None:
    ticket_id = await sell(shop, "Polled")
    ada = await enter("ada-poll")
    ada.allow("ERR_FAILED")
    await ada.page.route_web_socket("**/api/notifications/ws*", lambda socket: socket.close())
    await ada.page.route("**/api/notifications/stream*", lambda route: route.abort())
    await ada.page.goto("/?q=nothing-like-that")
    await hears_over(ada.page, "long-polling")
    await has_unread(ada.page, 0)
    news = ada.page.get_by_role("complementary", name="New notices")
    for count in (1, 2):
        await hold(shop, ticket_id, "ada-poll", count, 600)
        await expect(news).to_contain_text(f"You hold {count} of Polled until")
        await has_unread(ada.page, count)

    async def acknowledged() -> list[bool]:
        return [item["acknowledged"] for item in (await inbox(shop, "ada-poll"))["items"]]

    await eventually(acknowledged, [True, True])
    await hears_over(ada.page, "long-polling")


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


async def test_what_is_not_wanted_live_comes_silently(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "Silently")
    ada = await enter("ada-silent")
    await ada.page.goto("/notices")
    await ada.page.get_by_role("link", name="What you are told live").click()
    box = ada.page.get_by_label("You reserved seats: WebSocket")
    await expect(box).to_be_checked()
    await box.uncheck()
    await ada.sees("Not saved yet.")
    await ada.page.get_by_role("button", name="Save").click()
    await ada.sees("Saved.")
    await ada.show("notices-preferences")
    async with httpx.AsyncClient(base_url=shop.url, headers=login("ada-silent")) as http:
        kept = (await http.get("/api/notifications/preferences")).json()
    assert {channel: kinds for channel, kinds in kept["muted"].items() if kinds} == {"websocket": ["order.created"]}
    await hears_over(ada.page, "WebSocket")
    order_id = await hold(shop, ticket_id, "ada-silent", 1, 600)
    await pay(shop, "ada-silent", order_id)
    news = ada.page.get_by_role("complementary", name="New notices")
    await expect(news).to_contain_text("is complete")  # what came before it was not told
    await expect(news).not_to_contain_text("You hold")
    await ada.page.reload()
    await expect(box).not_to_be_checked()
    await has_unread(ada.page, 2)


async def test_preferences_that_cannot_be_saved_say_so_and_stay_as_they_were_chosen(enter: Enter) -> None:
    ada = await enter("ada-unsaved")
    ada.allow("ERR_FAILED")
    await ada.page.goto("/notices/preferences")
    box = ada.page.get_by_label("A job of yours has failed: Long-polling")
    await box.uncheck()
    await ada.page.route("**/api/notifications/preferences", lambda route: route.abort())
    await ada.page.get_by_role("button", name="Save").click()
    await expect(ada.page.get_by_role("alert")).to_contain_text("The server does not answer.")
    await expect(box).not_to_be_checked()
    await ada.sees("Not saved yet.")
    await ada.page.unroute("**/api/notifications/preferences")
    await ada.page.get_by_role("button", name="Save").click()
    await ada.sees("Saved.")
    await expect(ada.page.get_by_role("alert")).to_have_count(0)


async def test_a_webhook_is_made_failing_seen_and_posted_to_again(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "Posted")
    ada = await enter("ada-hook")
    ada.allow("422")
    await ada.page.goto("/notices/webhooks")
    await ada.sees("You have no webhooks yet")
    await ada.show("webhooks-none")
    async with Receiver(lambda n: "503 Service Unavailable\r\n\r\nnot now" if n <= 10 else "200 OK") as receiver:
        await ada.page.get_by_role("link", name="New webhook").click()
        await ada.page.get_by_label("Address").fill("ftp://example.org/")
        await ada.page.get_by_label("Only some things").check()
        await ada.page.get_by_role("button", name="Make it").click()
        await ada.sees("Choose one at least.")
        await ada.page.get_by_label("You reserved seats").check()
        await ada.page.get_by_role("button", name="Make it").click()
        await expect(ada.page.get_by_label("Address")).to_have_attribute("aria-invalid", "true")
        await expect(ada.page.get_by_label("Address")).to_be_focused()
        await ada.show("webhook-new")
        await ada.page.get_by_label("Address").fill(receiver.url)
        await ada.page.get_by_role("button", name="Make it").click()
        await expect(ada.page.get_by_role("region", name="The secret")).to_be_focused()
        secret = await ada.page.get_by_label("Secret", exact=True).input_value()
        await ada.show("webhook-secret")
        await ada.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await ada.page.get_by_role("button", name="Copy").click()
        await ada.sees("Copied.")
        assert await ada.page.evaluate("navigator.clipboard.readText()") == secret
        await ada.page.get_by_role("link", name="To the webhook").click()
        await ada.sees("Nothing was posted yet")
        await hears_over(ada.page, "WebSocket")
        await hold(shop, ticket_id, "ada-hook", 1, 600)
        delivery = ada.page.locator("ul.notices > li")
        await expect(delivery).to_contain_text("Given up: it was tried often enough", timeout=60_000)
        await delivery.get_by_text("10 attempts").click()
        await expect(delivery.locator("ol > li")).to_have_count(10)
        await expect(delivery.locator("ol > li").last).to_contain_text("Answered 503 Service Unavailable: not now")
        await ada.show("webhook-given-up")
        posts = await receiver.has(10)
        assert all(post.signed_by(secret) for post in posts)
        assert await delivery.locator("code").inner_text() == posts[0].id
        await delivery.get_by_role("button", name="Post again").click()
        await expect(delivery).to_contain_text("Delivered")
        await expect(delivery.locator("ol > li").last).to_contain_text("answered 200")
        assert (await receiver.has(11))[-1].id == posts[0].id
        await ada.page.get_by_label("Show", exact=True).select_option("parked")
        await ada.sees("None of it")
        await ada.page.reload()
        await expect(ada.page.get_by_label("Show", exact=True)).to_have_value("parked")
        await ada.page.get_by_label("Show", exact=True).select_option("delivered")
        await expect(delivery).to_have_count(1)


async def test_a_webhook_is_changed_paused_given_a_new_secret_and_deleted(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "Changed")
    ada = await enter("ada-change")
    async with Receiver() as receiver, httpx.AsyncClient(base_url=shop.url, headers=login("ada-change")) as http:
        made = (await http.post("/api/webhooks", json={"url": f"http://127.0.0.1:{receiver.port}/old"})).json()
        await ada.page.goto("/notices/webhooks")
        await ada.show("webhooks")
        await ada.page.get_by_role("link", name="127.0.0.1").click()
        button = ada.page.get_by_role("button", name="Change")
        await button.click()
        await ada.page.get_by_label("Address").fill(receiver.url)
        await ada.page.get_by_role("button", name="Save").click()
        await ada.sees("Saved.")
        await expect(button).to_be_focused()
        await ada.page.get_by_role("button", name="New secret").click()
        await ada.show("webhook-sure")
        await ada.page.keyboard.press("Escape")
        await expect(ada.page.get_by_role("button", name="New secret")).to_be_focused()
        await ada.page.keyboard.press("Enter")
        await ada.page.get_by_role("button", name="Make it").click()
        await expect(ada.page.get_by_role("region", name="The secret")).to_be_focused()
        secret = await ada.page.get_by_label("Secret", exact=True).input_value()
        assert secret != made["secret"]
        await ada.sees("The secret before signs too until")
        await ada.page.get_by_role("button", name="Pause").click()
        await ada.sees("It is paused: nothing is posted.")
        await hold(shop, ticket_id, "ada-change", 1, 600)
        await has_unread(ada.page, 1)
        await ada.page.get_by_role("button", name="Resume").click()
        await ada.sees("It is active")
        await hold(shop, ticket_id, "ada-change", 1, 600)
        await expect(ada.page.locator("ul.notices > li")).to_contain_text("Delivered")
        [post] = await receiver.has(1)
        assert post.line == "POST /hooks?of=ada HTTP/1.1"
        assert post.signed_by(secret)
        assert post.signed_by(made["secret"])
        await ada.page.get_by_role("button", name="Delete").click()
        await ada.page.get_by_role("button", name="Keep it").click()
        await ada.page.get_by_role("button", name="Delete").click()
        await ada.page.get_by_role("button", name="Delete it").click()
        await ada.sees("You have no webhooks yet")
        assert (await http.get("/api/webhooks")).json() == {"items": []}
        ada.allow("404")
        await ada.page.goto(f"/notices/webhooks/{made['id']}")
        await ada.sees("You have no such webhook.")


HIDDEN = """(hidden) => {
    const get = () => (hidden ? "hidden" : "visible");
    Object.defineProperty(document, "visibilityState", { get, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}"""


async def test_a_tab_in_the_background_holds_no_stream_and_hears_later_what_came(
    shop: ServiceProcess, browser: Browser
) -> None:
    ticket_id = await sell(shop, "Background")

    async def streams() -> int:
        async with httpx.AsyncClient(base_url=shop.url) as http:
            return int(figure((await http.get("/metrics")).text, "boxoffice_open_connections"))

    before = await streams()
    async with Doorman(shop.port) as doorman, Person.enters(browser, doorman.url) as ada:
        ada.allow("WebSocket", "ERR_")
        await ada.is_known_as("ada-back", "buyer")
        doorman.judge = no_upgrade
        await ada.page.goto("/notices")
        await hears_over(ada.page, "server-sent events")
        await hold(shop, ticket_id, "ada-back", 1, 600)
        await has_unread(ada.page, 1)
        for count in (2, 3):
            await ada.page.evaluate(HIDDEN, True)
            await eventually(streams, before)
            await hold(shop, ticket_id, "ada-back", 1, 600)
            await has(shop, "ada-back", count)
            await has_unread(ada.page, count - 1)
            await ada.page.evaluate(HIDDEN, False)
            await has_unread(ada.page, count)
            await hears_over(ada.page, "server-sent events")
        assert await shown(ada.page) == await has(shop, "ada-back", 3)
        async with httpx.AsyncClient(base_url=shop.url, headers=login("ada-back")) as http:
            newest = (await inbox(shop, "ada-back"))["items"][0]["notification"]["cursor"]
            assert (await http.post("/api/notifications/read", json={"cursor": newest})).status_code == 204
        await ada.page.evaluate(HIDDEN, False)
        await has_unread(ada.page, 0)  # who looks again, sees what was read elsewhere


async def test_a_seller_is_told_that_all_is_sold(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "All gone", quantity=1)
    sam = await enter("sam", "seller")
    await sam.page.goto("/")
    await hears_over(sam.page, "WebSocket")
    await pay(shop, "ada-gone", await hold(shop, ticket_id, "ada-gone", 1, 600))
    await has_unread(sam.page, 1)
    news = sam.page.get_by_role("complementary", name="New notices")
    await expect(news).to_contain_text("All gone is sold out: all 1 are paid.")
    await expect(news.get_by_role("link", name="See the ticket")).to_have_attribute("href", f"/sell/{ticket_id}")
    await sam.page.get_by_role("link", name="Notices").click()
    await expect(sam.page.locator("ul.notices > li")).to_contain_text("All gone is sold out")
    await expect(news).to_be_hidden()


async def test_who_logs_out_elsewhere_is_logged_out_here(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "Elsewhere")
    ada = await enter("ada-out")
    ada.allow("401", "WebSocket")
    await ada.page.goto("/notices")
    await hears_over(ada.page, "WebSocket")
    other = await ada.context.new_page()
    await other.goto("/")
    await other.get_by_role("button", name="Log out").click()
    await expect(other.get_by_role("button", name="Log in")).to_be_visible()
    await hold(shop, ticket_id, "ada-out", 1, 600)  # this tab is not told any more
    await expect(ada.page.get_by_role("button", name="Log in").first).to_be_visible(timeout=60_000)
    await expect(ada.page.locator("a.bell")).to_have_count(0)
    await expect(ada.page.locator("#page")).not_to_contain_text("You hold")
    await ada.page.get_by_label("Your name").fill("bob-out")
    await ada.page.get_by_role("button", name="Log in").last.click()
    await ada.sees("You have no notices yet")
    await has_unread(ada.page, 0)
    await hold(shop, ticket_id, "bob-out", 1, 600)
    await has_unread(ada.page, 1)


async def test_a_page_whose_log_was_replaced_asks_for_everything_again(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "Replaced", quantity=100)
    order_id = await hold(shop, ticket_id, "ada-log", 1, 600)
    await has(shop, "ada-log", 1)
    ada = await enter("ada-log")
    sockets: list[WebSocketRoute] = []

    def between(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()
        sockets.append(socket)
        if len(sockets) > 1:  # as it is after a restore

            def pass_on(message: str | bytes) -> None:
                socket.send(str(message).replace('"recovered":true', '"recovered":false'))

            server.on_message(pass_on)

    await ada.page.route_web_socket("**/api/notifications/ws*", between)
    await ada.page.goto(f"/orders/{order_id}")
    await ada.sees("left to pay")
    await hears_over(ada.page, "WebSocket")
    async with ada.page.expect_response(f"**/api/orders/{order_id}"):
        await sockets[0].close(code=1012)
    await hears_over(ada.page, "WebSocket")
    assert len(sockets) > 1
    await ada.page.get_by_role("link", name="Notices").click()
    await expect(ada.page.locator("ul.notices > li")).to_have_count(1)
    await hold(shop, ticket_id, "ada-log", 1, 600)
    await has_unread(ada.page, 2)
    await expect(ada.page.locator("ul.notices > li")).to_have_count(2)


async def test_much_at_once_covers_no_more_than_a_corner_and_can_be_left_by_keyboard(
    shop: ServiceProcess, enter: Enter
) -> None:
    ticket_id = await sell(shop, "Much", quantity=100)
    ada = await enter("ada-much")
    await ada.page.goto("/?q=much")
    await hears_over(ada.page, "WebSocket")
    news = ada.page.get_by_role("complementary", name="New notices")
    dismiss = news.get_by_role("button", name="Dismiss")
    await hold(shop, ticket_id, "ada-much", 1, 600)
    await dismiss.focus()  # so it stays, and nothing is pushed out
    for quantity in (2, 3, 4, 5):
        await hold(shop, ticket_id, "ada-much", quantity, 600)
    await expect(news.get_by_role("link", name="2 more in Notices")).to_be_visible()
    await expect(dismiss).to_have_count(3)
    await expect(dismiss.first).to_be_focused()
    await expect(news).not_to_contain_text("You hold 5 of Much")
    await ada.show("notices-many")
    for left in (4, 3, 2, 1):
        await ada.page.keyboard.press("Enter")
        await expect(dismiss).to_have_count(min(left, 3))
        await expect(news.locator(".message :focus")).to_have_count(1)
    await expect(news).to_contain_text("You hold 5 of Much")
    await ada.page.keyboard.press("Enter")
    await expect(dismiss).to_have_count(0)
    await expect(ada.page.locator("main")).to_be_focused()
    await has_unread(ada.page, 5)
    await ada.page.set_viewport_size({"width": 360, "height": 640})
    for _ in range(2):
        await hold(shop, ticket_id, "ada-much", 1, 600)
    await expect(news.get_by_role("link", name="1 more in Notices")).to_be_visible()
    await expect(dismiss).to_have_count(1)
