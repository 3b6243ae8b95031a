"""What a buyer does: find a ticket, reserve it, pay it or lose it."""

import asyncio
import io
import json
import re
from datetime import datetime
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.async_api import Route, expect
from pypdf import PdfReader

from tests.browser.conftest import Enter
from tests.browser.person import Person
from tests.harness import ServiceProcess, eventually

SAM = {"Authorization": "Bearer dev:sam:seller"}


async def sell(shop: ServiceProcess, title: str, **more: object) -> str:
    """Put a ticket on sale; its id."""
    what = {"title": title, "price": 2500, "currency": "EUR", "quantity": 5, **more}
    async with httpx.AsyncClient(base_url=shop.url) as http:
        listed = await http.post("/api/tickets", json=what, headers=SAM)
    assert listed.status_code == 201, listed.text
    ticket_id: str = listed.json()["id"]
    return ticket_id


async def hold(shop: ServiceProcess, ticket_id: str, who: str, quantity: int, seconds: int) -> str:
    """Reserve seats for a short time; the id of the order."""
    wanted = {"ticket_id": ticket_id, "quantity": quantity, "hold_seconds": seconds}
    async with httpx.AsyncClient(base_url=shop.url, headers={"Authorization": f"Bearer dev:{who}:buyer"}) as http:
        placed = await http.post("/api/orders", json=wanted)
    assert placed.status_code == 201, placed.text
    order_id: str = placed.json()["id"]
    return order_id


async def test_a_buyer_who_knows_nothing_buys_a_ticket(shop: ServiceProcess, enter: Enter) -> None:
    await sell(shop, "First night", venue="Town hall", starts_at="2030-12-31T20:00:00Z")
    ada = await enter()
    await ada.page.goto("/")
    await ada.sees("First night")
    await ada.show("shop")
    await ada.page.get_by_role("link", name="First night").click()
    await ada.page.get_by_label("How many?").fill("2")
    await ada.sees("€50.00")
    await ada.page.get_by_role("button", name="Reserve").click()
    await ada.show("login")
    await ada.page.get_by_label("Your name").fill("ada-first")
    await ada.page.get_by_role("button", name="Log in").last.click()
    await ada.page.wait_for_url(re.compile("/orders/"))
    await expect(ada.page.get_by_role("timer")).to_have_text(re.compile(r"1[45]:\d\d"))
    await ada.show("order-reserved")
    ada.allow("402")
    await ada.page.get_by_role("button", name="declined").click()
    await ada.sees("The payment was declined. The seats stay reserved until the time to pay is over: pay again")
    await ada.page.reload()
    await expect(ada.page.get_by_role("button", name="Pay", exact=True)).to_be_enabled()
    await ada.page.get_by_role("button", name="Pay", exact=True).click()
    await ada.sees("2 seats are yours.")
    await ada.show("order-paid")
    async with ada.page.expect_download() as download:
        await ada.page.get_by_role("link", name="e-ticket").click()
    text = PdfReader(io.BytesIO((await (await download.value).path()).read_bytes())).pages[0].extract_text()
    assert "First night" in text
    assert ada.page.url.rpartition("/")[2] in text
    await ada.page.get_by_role("link", name="My orders").last.click()
    await ada.sees("Paid")
    await ada.show("orders")


async def test_of_the_ways_to_pay_only_the_pressed_one_says_that_it_is_under_way(
    shop: ServiceProcess, enter: Enter
) -> None:
    order_id = await hold(shop, await sell(shop, "Slowly"), "ada-slow", 1, 600)
    ada = await enter("ada-slow")
    going = asyncio.Event()

    async def held(route: Route) -> None:
        await going.wait()
        await route.continue_()

    await ada.page.route("**/payment", held)
    await ada.page.goto(f"/orders/{order_id}")
    ways = ada.page.get_by_role("region", name="Payment").get_by_role("button")
    await ways.nth(1).click()
    for place, (count, name) in enumerate([(0, "Pay"), (1, "Pay, slowly"), (0, "Pay with a card that is declined")]):
        await expect(ways.nth(place)).to_have_text(name)
        await expect(ways.nth(place)).to_be_disabled()
        await expect(ways.nth(place).locator(".busy")).to_have_count(count)
    going.set()
    await ada.sees("1 seat is yours.")


class Looks:
    """What the page of somebody who pays is told of an order: how it is, or how it was, until this is let go."""

    def __init__(self, shop: ServiceProcess, who: str, order_id: str) -> None:
        self.url, self.headers = shop.url, {"Authorization": f"Bearer dev:{who}:buyer"}
        self.path = f"/api/orders/{order_id}"
        self.told: dict[str, str] = {}

    async def order(self) -> dict[str, Any]:
        """The order as it is now."""
        async with httpx.AsyncClient(base_url=self.url, headers=self.headers) as http:
            answer = await http.get(self.path)
        assert answer.status_code == 200, answer.text
        order: dict[str, Any] = answer.json()
        return order

    async def has_begun(self) -> bool:
        """Whether a payment has begun; if it is under way, that is what is to be told."""
        was = await self.order()
        self.told = {self.path: json.dumps(was), "/api/orders": json.dumps({"items": [was], "next_cursor": None})}
        return bool(was["status"] != "created")

    async def hold(self, person: Person) -> None:
        """From now on the page is told how the order was, however slow this machine is."""

        async def tell(route: Route) -> None:
            was = self.told.get(urlsplit(route.request.url).path) if route.request.method == "GET" else None
            if was is None:
                await route.continue_()
            else:
                await route.fulfill(content_type="application/json", body=was)

        await person.page.route("**/api/orders**", tell)

    def let_go(self) -> None:
        self.told = {}


async def pay_slowly(shop: ServiceProcess, person: Person, who: str, title: str) -> Looks:
    """Begin a payment for two seats; return while it is under way, or was a moment ago."""
    looks = Looks(shop, who, order_id := await hold(shop, await sell(shop, title), who, 2, 600))
    await person.page.goto(f"/orders/{order_id}")
    await person.page.get_by_role("button", name="Pay, slowly").click()
    await eventually(looks.has_begun, True)
    return looks


async def test_a_payment_under_way_is_told_after_a_reload_until_it_ends(shop: ServiceProcess, enter: Enter) -> None:
    ada = await enter("ada-under-way")
    looks = await pay_slowly(shop, ada, "ada-under-way", "Paid meanwhile")
    await looks.hold(ada)
    await ada.page.reload()
    await ada.sees("A payment is under way…")
    for way in await ada.page.get_by_role("region", name="Payment").get_by_role("button").all():
        await expect(way).to_be_disabled()
    await ada.sees("To give the seats back stops the payment: nothing is paid then.")
    await expect(ada.page.get_by_role("button", name="Give the seats back")).to_be_enabled()
    await ada.show("order-under-way")
    await ada.page.get_by_role("link", name="My orders").last.click()
    row = ada.page.get_by_role("listitem").filter(has_text="Paid meanwhile")
    await expect(row).to_contain_text("A payment is under way…")
    looks.let_go()
    await expect(row.get_by_text("Paid", exact=True)).to_be_visible()


async def test_an_order_of_which_a_payment_was_under_way_becomes_paid_on_screen(
    shop: ServiceProcess, enter: Enter
) -> None:
    ada = await enter("ada-screen")
    looks = await pay_slowly(shop, ada, "ada-screen", "Paid on screen")
    await looks.hold(ada)
    await ada.page.reload()
    await ada.sees("A payment is under way…")
    looks.let_go()
    await ada.sees("2 seats are yours.")


async def test_a_payment_whose_end_nobody_tells_may_be_made_again(shop: ServiceProcess, enter: Enter) -> None:
    ada = await enter("ada-crash")
    ada.allow("ERR_", "503", "WebSocket")
    await ada.page.clock.install()
    for turn in range(5):  # a machine may be too slow to kill it before the payment ends
        looks = await pay_slowly(shop, ada, "ada-crash", f"Paid twice {turn}")
        await shop.kill()
        await shop.start()
        if (await looks.order())["paying"]:
            break
    await ada.page.reload()
    await ada.sees("A payment is under way…")
    await ada.page.clock.run_for(31_000)
    await ada.sees("How the last payment ended is not known yet. You may pay again: nothing is paid twice.")
    await ada.page.get_by_role("button", name="Pay", exact=True).click()
    await ada.sees("2 seats are yours.")


async def test_a_reservation_expires_on_screen_and_its_seat_is_free_for_somebody_else(
    shop: ServiceProcess, enter: Enter
) -> None:
    ticket_id = await sell(shop, "Only one", quantity=1)
    ada, bob, cy = await enter("ada"), await enter("bob"), await enter()
    await cy.page.goto("/?q=only")
    await bob.page.goto(f"/tickets/{ticket_id}")
    await bob.sees("1 left")
    await ada.page.goto("/orders")
    await ada.sees("My orders")
    order_id = await hold(shop, ticket_id, "ada", 1, 10)
    await ada.page.goto(f"/orders/{order_id}")
    await expect(ada.page.get_by_role("timer")).to_have_text(re.compile(r"0:\d\d"))
    await bob.sees("Sold out")
    await cy.sees("Sold out")
    await bob.show("sold-out")
    await ada.sees("Not paid in time.")
    await bob.sees("1 left")
    await cy.sees("1 left")
    await ada.show("order-expired")
    await bob.page.get_by_role("button", name="Reserve").click()
    await bob.page.wait_for_url(re.compile("/orders/"))
    await cy.sees("Sold out")
    await bob.page.get_by_role("button", name="Give the seat back").click()
    await bob.sees("Cancelled.")
    await cy.sees("1 left")


CLOCK_AND_TIMER = """
async () => {
    const { now } = await (await fetch("/clock", { cache: "no-store" })).json();
    return [now, document.querySelector("[role=timer]").textContent];
}
"""
"""What time the server says it is, and just then the countdown."""


@pytest.mark.parametrize("wrong", ["2001-01-01T00:00:00Z", "2040-01-01T00:00:00Z"])
async def test_the_countdown_is_right_on_a_machine_whose_clock_is_wrong(
    shop: ServiceProcess, enter: Enter, wrong: str
) -> None:
    ticket_id = await sell(shop, "Wrong clock")
    order_id = await hold(shop, ticket_id, "ada", 1, 600)
    ends = datetime.fromisoformat((await Looks(shop, "ada", order_id).order())["expires_at"])
    ada = await enter("ada")
    await ada.page.clock.install(time=wrong)
    for _ in range(2):
        await ada.page.goto(f"/orders/{order_id}")  # opened, and loaded again
        await expect(ada.page.get_by_role("timer")).to_have_text(re.compile(r"\d:\d\d"))
        asked = monotonic()
        now, shown = await ada.page.evaluate(CLOCK_AND_TIMER)
        took = monotonic() - asked
        left = (ends - datetime.fromisoformat(now)).total_seconds()
        minutes, _, seconds = shown.partition(":")
        most = int(minutes) * 60 + int(seconds)  # a second that has begun is shown
        assert most - 1 - left <= 1 + took, (left, shown, took)
        assert left - most <= 1 + took, (left, shown, took)


async def test_a_purchase_by_keyboard(shop: ServiceProcess, enter: Enter) -> None:
    await sell(shop, "By keyboard")
    ada = await enter()
    await ada.page.goto("/")
    await ada.sees("By keyboard")
    keys = ada.page.keyboard

    async def reach(name: str) -> None:
        """Press Tab until this has the focus."""
        for _ in range(30):
            await keys.press("Tab")
            focused = await ada.page.evaluate(
                "(document.activeElement.labels?.[0] ?? document.activeElement).innerText"
            )
            if name in focused:
                return
        raise AssertionError(f"{name} is not reached")

    await reach("Search")
    await keys.type("keyboard")
    await expect(ada.page).to_have_url(re.compile("q=keyboard"))
    await reach("By keyboard")
    await keys.press("Enter")
    await ada.sees("All tickets")
    await reach("How many?")
    await keys.press("ArrowUp")
    await keys.press("Enter")
    await expect(ada.page.get_by_label("Your name")).to_be_focused()
    await keys.type("ada-keys")
    await keys.press("Enter")
    await ada.sees("left to pay")
    await reach("Pay")
    await keys.press("Enter")
    await ada.sees("2 seats are yours.")


async def test_what_cannot_be_had_is_told_where_it_happened(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "Full house", quantity=2)
    ada = await enter("ada")
    ada.allow("404", "409", "ERR_FAILED")
    await ada.page.goto("/?q=there-is-no-such-thing")
    await ada.sees("Nothing has “there-is-no-such-thing” in its title")
    await ada.show("shop-nothing-found")
    await ada.page.goto("/tickets/01920c3c-7a3e-7cc4-8a3e-3d1f0c5b9a10")
    await ada.sees("There is no ticket 01920c3c")
    await expect(ada.page.get_by_role("button", name="Try again")).to_have_count(0)
    await ada.page.route("**/api/tickets/stream*", lambda route: route.abort())  # it does not hear of it
    await ada.page.goto(f"/tickets/{ticket_id}")
    await ada.sees("2 left")
    await ada.page.get_by_label("How many?").fill("2")
    await hold(shop, ticket_id, "bob", 2, 60)
    await ada.page.get_by_role("button", name="Reserve").click()
    await expect(ada.page.get_by_role("alert")).to_contain_text("sold out")


async def test_who_it_is_need_not_be_known_to_reserve(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "Early")
    ada = await enter("ada-early")
    answering = asyncio.Event()

    async def held(route: Route) -> None:
        await answering.wait()
        await route.continue_()

    await ada.page.route("**/api/auth/me", held)
    await ada.page.goto(f"/tickets/{ticket_id}")
    await ada.page.get_by_role("button", name="Reserve").click()
    await ada.page.wait_for_url(re.compile("/orders/"))
    answering.set()
    await ada.sees("left to pay")


async def test_whose_login_has_ended_logs_in_and_has_reserved(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "Late")
    ada = await enter("ada-late")
    ada.allow("401", "WebSocket")
    await ada.page.goto(f"/tickets/{ticket_id}")
    await expect(ada.page.get_by_role("link", name="ada-late")).to_be_visible()
    await ada.page.get_by_label("How many?").fill("3")
    await ada.context.clear_cookies(name=re.compile("session|refresh"))
    await ada.page.get_by_role("button", name="Reserve").click()
    await ada.page.get_by_label("Your name").fill("ada-again")
    await ada.page.get_by_label("Your name").press("Enter")
    await ada.sees("left to pay")
    await ada.sees("€75.00")


@pytest.mark.parametrize("lost", [True, False])
async def test_a_reservation_in_doubt_says_how_to_go_on_and_is_made_once(
    shop: ServiceProcess, enter: Enter, lost: bool
) -> None:
    ticket_id = await sell(shop, "In doubt")
    ada = await enter(f"ada-doubt-{lost}")
    ada.allow("ERR_FAILED", "503")
    keys: list[str | None] = []

    async def lose_answer(route: Route) -> None:
        keys.append(route.request.headers.get("idempotency-key"))
        if len(keys) > 1:
            await route.continue_()
            return
        await route.fetch()
        if lost:
            await route.abort()
        else:
            await route.fulfill(status=503, json={"detail": "words of the inside"})

    await ada.page.goto(f"/tickets/{ticket_id}")
    await ada.page.route("**/api/orders", lose_answer)
    await ada.page.get_by_role("button", name="Reserve").click()
    told = ada.page.get_by_role("alert")
    await expect(told).to_have_text(
        "It is not known whether your seats are reserved. Press Reserve again: nothing is ordered twice."
        " Or look at My orders."
    )
    await expect(told.get_by_role("link", name="My orders")).to_have_attribute("href", "/orders")
    await ada.show(f"reserve-in-doubt-{lost}")
    await ada.page.get_by_role("button", name="Reserve").click()
    await ada.page.wait_for_url(re.compile("/orders/"))
    assert len(keys) == 2
    assert keys[0] == keys[1]
    await ada.page.get_by_role("link", name="My orders").last.click()
    await expect(ada.page.get_by_role("main").get_by_role("listitem")).to_have_count(1)


async def test_a_login_that_ended_elsewhere_is_asked_for_where_it_is_needed(enter: Enter) -> None:
    eve = await enter("eve-out")
    eve.allow("401", "WebSocket")
    await eve.page.goto("/")
    await expect(eve.page.get_by_role("link", name="eve-out")).to_be_visible()
    await eve.context.clear_cookies(name=re.compile("session|refresh"))
    await eve.page.goto("/orders")
    await eve.sees("Log in to see your orders.")
    await eve.page.get_by_label("Your name").fill("eve-again")
    await eve.page.get_by_role("button", name="Log in").last.click()
    await eve.sees("You have no orders yet")


async def test_a_server_that_is_away_is_told_and_found_again(shop: ServiceProcess, enter: Enter) -> None:
    await sell(shop, "Still here")
    ada = await enter("eve")
    ada.allow("ERR_", "503")
    await ada.page.goto("/?q=still")
    await ada.sees("5 left")
    await ada.page.wait_for_load_state("networkidle")
    await shop.kill()
    try:
        await ada.sees("Connection lost")
        await ada.page.get_by_role("link", name="My orders").click()
        await ada.sees("The server does not answer.")
        await ada.show("away")
    finally:
        await shop.start()
    await ada.sees("You have no orders yet")
    await ada.page.get_by_role("link", name="Shop", exact=True).click()
    await ada.sees("Still here")
    await expect(ada.page.get_by_text("Connection lost")).to_have_count(0)


async def test_the_first_view_is_small(shop: ServiceProcess, enter: Enter) -> None:
    await sell(shop, "Small")
    ada = await enter()
    sizes: dict[str, int] = {}
    session = await ada.context.new_cdp_session(ada.page)
    await session.send("Network.enable")
    session.on(
        "Network.loadingFinished", lambda each: sizes.update({each["requestId"]: int(each["encodedDataLength"])})
    )
    await ada.page.goto("/")
    await ada.sees("Small")
    assert 5_000 < sum(sizes.values()) <= 100_000


async def test_a_tab_acts_for_nobody_but_whom_it_shows(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "Two in one browser")
    ada = await enter("tab-ada")
    ada.allow("403", "WebSocket")  # what was on its way as the one goes out as the other
    await ada.page.goto(f"/tickets/{ticket_id}")
    await expect(ada.page.get_by_role("link", name="tab-ada")).to_be_visible()
    await ada.is_known_as("tab-bob", "buyer")  # this browser has one login for all of its tabs
    await ada.page.get_by_role("button", name="Reserve").click()
    await ada.sees("You are tab-bob now: somebody has logged in with this browser meanwhile.")
    await expect(ada.page.get_by_role("link", name="tab-bob")).to_be_visible()
    await ada.sees("5 left")
    other = await ada.context.new_page()
    await other.goto("/")
    await other.get_by_role("button", name="Log out").click()
    await expect(ada.page.get_by_role("button", name="Log in")).to_be_visible()


async def test_a_payment_whose_answer_is_lost_is_sent_again_as_the_same(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "Lost answer")
    order_id = await hold(shop, ticket_id, "ada-lost", 1, 300)
    ada = await enter("ada-lost")
    ada.allow("ERR_FAILED")
    keys: list[str | None] = []

    async def lose_answer(route: Route) -> None:
        keys.append(route.request.headers.get("idempotency-key"))
        if len(keys) == 1:
            await route.abort()
        else:
            await route.continue_()

    await ada.page.route("**/payment", lose_answer)
    await ada.page.goto(f"/orders/{order_id}")
    await ada.page.get_by_role("button", name="Pay", exact=True).click()
    await ada.sees("Whether it was done is not known")
    await ada.page.get_by_role("button", name="Pay", exact=True).click()
    await ada.sees("1 seat is yours.")
    assert len(keys) == 2
    assert keys[0] == keys[1]


async def test_orders_are_shown_as_they_are_made_and_end(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "Listed live")
    ada = await enter("ada-live")
    await ada.page.goto("/orders")
    await ada.sees("You have no orders yet")
    await hold(shop, ticket_id, "ada-live", 1, 4)
    await ada.sees("Listed live")
    await ada.sees("Not paid in time")


async def test_the_shop_forgets_a_search_that_was_left(shop: ServiceProcess, enter: Enter) -> None:
    await sell(shop, "Searched for")
    ada = await enter()
    await ada.page.goto("/?q=searched")
    await expect(ada.page.get_by_label("Search")).to_have_value("searched")
    await ada.page.get_by_role("link", name="Shop", exact=True).click()
    await expect(ada.page.get_by_label("Search")).to_have_value("")
    await ada.page.go_back()
    await expect(ada.page.get_by_label("Search")).to_have_value("searched")


@pytest.mark.parametrize("address", ["/tickets/%E0%A4%A", "/orders/xyz"])
async def test_an_address_that_cannot_be_is_told(enter: Enter, address: str) -> None:
    ada = await enter("ada")
    await ada.page.goto(address)
    await ada.sees("Nothing is here")


@pytest.mark.parametrize("address", ["/nope", "/tickets/", "/system/x"])
async def test_where_nothing_is_the_page_says_so_and_leads_to_the_shop(enter: Enter, address: str) -> None:
    ada = await enter("ada")
    ada.allow("404")
    answer = await ada.page.goto(address)
    assert answer
    assert answer.status == 404
    await ada.sees("There is nothing at this address.")
    await ada.show("nowhere")
    await ada.page.get_by_role("link", name="To the shop").click()
    await expect(ada.page.get_by_label("Search")).to_be_visible()


async def test_an_operator_comes_from_a_ticket_to_its_history(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "With a history")
    olga = await enter("olga", "operator")
    await olga.page.goto(f"/tickets/{ticket_id}")
    await olga.page.get_by_role("link", name="how it was changed").click()
    await olga.sees("Event 1 of 1: ticket created")
