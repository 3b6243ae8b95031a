"""What a seller does: put tickets on sale, change them while others do, withdraw them."""

import re
from typing import Any, get_args
from uuid import uuid4

import httpx
import pytest
from playwright.async_api import expect

from common.requests.tickets import Code
from tests.browser.conftest import Enter
from tests.browser.person import Person
from tests.harness import ServiceProcess, eventually


def somebody() -> str:
    """A seller nobody else is."""
    return f"seller-{uuid4().hex[:8]}"


async def listed(shop: ServiceProcess, seller: str, title: str, **more: object) -> dict[str, Any]:
    """Put a ticket on sale, without the page; the ticket."""
    what = {"title": title, "price": 2500, "currency": "EUR", "quantity": 5, **more}
    async with httpx.AsyncClient(base_url=shop.url) as http:
        made = await http.post("/api/tickets", json=what, headers={"Authorization": f"Bearer dev:{seller}:seller"})
    assert made.status_code == 201, made.text
    ticket: dict[str, Any] = made.json()
    return ticket


async def ticket_of(shop: ServiceProcess, ticket_id: str) -> dict[str, Any]:
    """A ticket, as everybody sees it."""
    async with httpx.AsyncClient(base_url=shop.url) as http:
        ticket: dict[str, Any] = (await http.get(f"/api/tickets/{ticket_id}")).json()
    return ticket


async def fill(person: Person, **fields: str) -> None:
    """Write into the fields of the form, by the beginning of their labels."""
    for label, text in fields.items():
        await person.page.get_by_label(re.compile(f"^{label.replace('_', ' ')}")).fill(text)


async def press(person: Person, name: str) -> None:
    await person.page.get_by_role("button", name=name, exact=True).click()


async def test_what_a_seller_puts_on_sale_is_in_the_shop_and_its_sales_are_seen(
    shop: ServiceProcess, enter: Enter
) -> None:
    sam, ada = await enter(somebody(), "seller", timezone_id="Asia/Tokyo"), await enter("ada")
    await sam.page.goto("/")
    await sam.page.get_by_role("link", name="Sell", exact=True).click()
    await sam.sees("You sell nothing yet")
    await sam.show("sell-nothing")
    await sam.page.get_by_role("link", name="Put a ticket on sale").click()
    await expect(sam.page.get_by_role("heading", name="Put a ticket on sale")).to_be_visible()
    await fill(sam, Title="Spring gala", Venue="Opera", When="2031-03-04T20:15", Price="12,5", How_many="7")
    await sam.sees("A seat costs €12.50")
    await sam.sees("In your time, Asia/Tokyo")
    await sam.show("sell-new")
    await ada.page.goto("/?q=spring")
    await ada.sees("Nothing has “spring” in its title")
    await press(sam, "Put it on sale")
    await sam.sees("It is on sale.")
    ticket = await ticket_of(shop, re.sub(r".*/|\?.*", "", sam.page.url))
    assert {name: ticket[name] for name in ("title", "venue", "starts_at", "price", "currency", "quantity")} == {
        "title": "Spring gala",
        "venue": "Opera",
        "starts_at": "2031-03-04T11:15:00Z",
        "price": 1250,
        "currency": "EUR",
        "quantity": 7,
    }
    await expect(sam.page.get_by_label("When")).to_have_value("2031-03-04T20:15")
    await ada.page.goto("/?q=spring gala")
    await ada.page.get_by_role("link", name="Spring gala").click()
    await sam.page.get_by_role("link", name="What you sell").click()
    await sam.sees("7 left")
    await ada.page.get_by_label("How many?").fill("2")
    await press(ada, "Reserve")
    await sam.sees("5 left")
    await sam.sees("2 of 7 sold or reserved")
    await sam.show("sell")
    await sam.page.get_by_role("link", name="Spring gala").click()
    quantity = sam.page.get_by_label("How many")
    await expect(quantity).to_have_accessible_description("Seats in all, sold ones included")
    await quantity.fill("1")
    await expect(quantity).to_have_accessible_description("2 seats are sold or reserved already: nothing more is sold.")
    await press(sam, "Save")
    await sam.sees("Sold out")


@pytest.mark.parametrize(
    ("currency", "written", "minor", "shown", "wrong"),
    [
        ("EUR", "19.99", 1999, "19.99", "1.001"),
        ("EUR", "0.29", 29, "0.29", "29,-"),
        ("JPY", "1500", 1500, "1500", "1500.5"),
        ("KWD", "1.005", 1005, "1.005", "1.0005"),
        ("IQD", "999999999.99", None, "", "1e3"),
    ],
)
async def test_a_price_is_taken_to_the_last_digit_of_its_currency(
    shop: ServiceProcess, enter: Enter, currency: str, written: str, minor: int | None, shown: str, wrong: str
) -> None:
    sam = await enter(somebody(), "seller")
    await sam.page.goto("/sell/new")
    await sam.page.get_by_label("Currency").select_option(currency)
    await fill(sam, Title=f"In {currency}", Price=wrong, How_many="1")
    await press(sam, "Put it on sale")
    price = sam.page.get_by_label(f"Price in {currency}")
    await expect(price).to_be_focused()
    await expect(price).to_have_attribute("aria-invalid", "true")
    await price.fill(written)
    await press(sam, "Put it on sale")
    if minor is None:
        await sam.sees("From ")
        return
    await sam.sees("It is on sale.")
    assert (await ticket_of(shop, re.sub(r".*/|\?.*", "", sam.page.url)))["price"] == minor
    await sam.page.reload()
    await expect(price).to_have_value(shown)


async def test_every_currency_that_is_taken_can_be_chosen(enter: Enter) -> None:
    sam = await enter(somebody(), "seller")
    await sam.page.goto("/sell/new")
    options = sam.page.get_by_label("Currency").locator("option")
    await expect(options).to_have_count(len(get_args(Code)))
    codes = await options.evaluate_all("options => options.map(option => option.value)")
    assert codes == list(get_args(Code))


async def test_what_is_wrong_is_told_at_its_field_and_nothing_is_lost(enter: Enter) -> None:
    sam = await enter(somebody(), "seller")
    sam.allow("400")
    await sam.page.goto("/sell/new")
    await press(sam, "Put it on sale")
    title, quantity = sam.page.get_by_label("Title"), sam.page.get_by_label("How many")
    await expect(title).to_be_focused()
    await expect(title).to_have_accessible_description("Say what it is for.")
    await expect(quantity).to_have_accessible_description(re.compile("A whole number is needed"))
    await sam.show("sell-wrong")
    await fill(sam, Title="x" * 201, Price="5", How_many="3")
    await press(sam, "Put it on sale")
    await expect(title).to_have_accessible_description(re.compile("200"))  # as the server has it
    await expect(title).to_be_focused()
    await fill(sam, Title="Short", How_many="0")
    await press(sam, "Put it on sale")
    await expect(quantity).to_have_accessible_description(re.compile("whole number of at least 1|from 1 to 1000000"))
    await expect(quantity).to_be_focused()
    await expect(title).to_have_value("Short")
    await fill(sam, How_many="3")
    when = sam.page.get_by_label("When")
    await when.focus()
    await sam.page.keyboard.type("12")  # and no month
    await press(sam, "Put it on sale")
    await expect(when).to_have_accessible_description(re.compile("whole day and time"))
    await when.fill("2031-01-01T10:00")
    await press(sam, "Put it on sale")
    await sam.sees("It is on sale.")


async def test_of_two_who_change_a_ticket_the_later_sees_what_differs(shop: ServiceProcess, enter: Enter) -> None:
    name = somebody()
    ticket = await listed(shop, name, "Both of us", venue="Hall", max_per_order=4)
    one, two = await enter(name, "seller"), await enter(name, "seller")
    for person in (one, two):
        await person.page.goto(f"/sell/{ticket['id']}")
        await expect(person.page.get_by_label("Title")).to_have_value("Both of us")
    two.allow("412")
    await fill(two, Title="Two's title", Most_in_one_order="3")
    await fill(one, Title="One's title", Price="30", Venue="")
    await press(one, "Save")
    await one.sees("Saved.")
    await two.sees("Somebody else has changed this ticket since you opened it.")
    await two.show("sell-changed-meanwhile")
    await press(two, "Save")
    conflict = two.page.get_by_role("region", name="Somebody else changed it meanwhile")
    await expect(conflict).to_be_focused()
    await expect(conflict).to_contain_text("One's title")
    await expect(conflict).to_contain_text("Two's title")
    await expect(conflict).to_contain_text("30.00 EUR")
    await two.show("sell-conflict")
    await expect(two.page.get_by_label("Title")).to_have_value("Two's title")
    await expect(two.page.get_by_label("Price")).to_have_value("30.00")  # which two had not touched
    assert (await ticket_of(shop, ticket["id"]))["title"] == "One's title"
    await press(two, "Save yours on top")
    await two.sees("Saved.")
    await expect(conflict).to_have_count(0)
    now = await ticket_of(shop, ticket["id"])
    assert (now["title"], now["price"], now["venue"], now["max_per_order"]) == ("Two's title", 3000, None, 3)
    await expect(one.page.get_by_label("Title")).to_have_value("Two's title")  # who wrote nothing sees it at once


async def test_who_meets_a_conflict_can_keep_what_the_other_wrote(shop: ServiceProcess, enter: Enter) -> None:
    name = somebody()
    ticket = await listed(shop, name, "Keep theirs")
    two = await enter(name, "seller")
    two.allow("412", "ERR_FAILED")
    await two.page.route("**/api/tickets/stream*", lambda route: route.abort())  # it does not hear of it
    await two.page.goto(f"/sell/{ticket['id']}")
    await fill(two, Title="Mine")
    async with httpx.AsyncClient(base_url=shop.url, headers={"Authorization": f"Bearer dev:{name}:seller"}) as http:
        path = f"/api/tickets/{ticket['id']}"
        assert (await http.patch(path, json={"title": "Theirs"}, headers={"If-Match": '"1"'})).status_code == 200
    await press(two, "Save")
    await press(two, "Keep theirs")
    await two.sees("Theirs is kept.")
    await expect(two.page.get_by_label("Title")).to_have_value("Theirs")
    assert (await ticket_of(shop, ticket["id"]))["version"] == 2


async def test_a_ticket_is_withdrawn_after_a_question(shop: ServiceProcess, enter: Enter) -> None:
    name = somebody()
    ticket = await listed(shop, name, "Not any more")
    sam, ada = await enter(name, "seller"), await enter()
    await ada.page.goto(f"/tickets/{ticket['id']}")
    await ada.sees("5 left")
    await sam.page.goto(f"/sell/{ticket['id']}")
    withdraw = sam.page.get_by_role("button", name="Withdraw…")
    await withdraw.click()
    await expect(sam.page.get_by_role("heading", name="Withdraw this ticket?")).to_be_focused()
    await sam.show("sell-withdraw")
    await press(sam, "Keep it on sale")
    await expect(withdraw).to_be_focused()
    assert (await ticket_of(shop, ticket["id"]))["status"] == "on_sale"
    await withdraw.click()
    await press(sam, "Withdraw it")
    await sam.sees("Nobody can reserve it any more")
    await sam.show("sell-withdrawn")
    await ada.sees("Not on sale any more")
    await sam.page.get_by_role("link", name="What you sell").click()
    await sam.sees("Withdrawn")


async def test_a_ticket_that_was_withdrawn_while_it_was_written_on_loses_nothing(
    shop: ServiceProcess, enter: Enter
) -> None:
    name = somebody()
    ticket = await listed(shop, name, "Going")
    sam = await enter(name, "seller")
    await sam.page.goto(f"/sell/{ticket['id']}")
    await fill(sam, Venue="A better hall")
    async with httpx.AsyncClient(base_url=shop.url, headers={"Authorization": f"Bearer dev:{name}:seller"}) as http:
        assert (await http.delete(f"/api/tickets/{ticket['id']}")).status_code == 200
    await sam.sees("Nobody can reserve it any more")
    await sam.sees("What you wrote was not saved")
    await sam.sees("A better hall")


async def test_somebody_elses_ticket_and_none_at_all_are_answered_clearly(shop: ServiceProcess, enter: Enter) -> None:
    ticket = await listed(shop, somebody(), "Not yours")
    sam, ada, eve = await enter(somebody(), "seller"), await enter("ada"), await enter()
    sam.allow("404")
    await sam.page.goto(f"/sell/{ticket['id']}")
    await sam.sees("Somebody else sells this ticket: only they can change it.")
    await expect(sam.page.get_by_role("textbox")).to_have_count(0)
    await sam.show("sell-foreign")
    await sam.page.goto("/sell/01920c3c-7a3e-7cc4-8a3e-3d1f0c5b9a10")
    await sam.sees("There is no ticket 01920c3c")
    await ada.page.goto("/sell")
    await ada.sees("This is for sellers")
    await ada.show("sell-buyer")
    await expect(ada.page.get_by_role("link", name="Sell", exact=True)).to_have_count(0)
    await eve.page.goto("/sell")
    await eve.sees("Log in as a seller")


async def test_a_buyer_becomes_a_seller_where_it_is_needed(enter: Enter) -> None:
    name = somebody()
    ada = await enter(name)
    await ada.page.goto("/sell/upload?kind=nope")
    await ada.sees(f"You are logged in as {name}, a buyer. An operator can make you a seller.")
    await expect(ada.page.get_by_label("You are")).to_have_value("seller")
    await ada.page.get_by_label("Your name").fill(f"{name}-too")
    await ada.page.get_by_role("region", name="Log in").get_by_role("button", name="Log in").click()
    await expect(ada.page.get_by_label("What is to be done?")).to_have_value("tickets.create")
    await expect(ada.page.get_by_role("link", name=f"{name}-too")).to_be_visible()
    await expect(ada.page.get_by_text("has logged in with this browser")).to_have_count(0)  # that was themselves
    await expect(ada.page.get_by_role("link", name="Sell", exact=True)).to_be_visible()
    await expect(ada.page).to_have_url(re.compile(r"/sell/upload\?kind=nope$"))


async def test_the_list_is_live_for_a_ticket_that_somebody_changes(shop: ServiceProcess, enter: Enter) -> None:
    name = somebody()
    ticket = await listed(shop, name, "Old name")
    sam = await enter(name, "seller")
    await sam.page.goto("/sell")
    await sam.sees("Old name")

    async def renamed() -> int:
        headers = {"Authorization": f"Bearer dev:{name}:seller", "If-Match": "*"}
        async with httpx.AsyncClient(base_url=shop.url, headers=headers) as http:
            return (await http.patch(f"/api/tickets/{ticket['id']}", json={"title": "New name"})).status_code

    await eventually(renamed, 200)
    await sam.sees("New name")


@pytest.mark.parametrize("fresh", [True, False])
async def test_what_was_typed_is_still_there_after_a_login_that_ended(
    shop: ServiceProcess, enter: Enter, fresh: bool
) -> None:
    name = somebody()
    sam = await enter(name, "seller")
    sam.allow("401", "WebSocket")  # which may be opening as the login ends
    await sam.page.goto("/sell/new" if fresh else f"/sell/{(await listed(shop, name, 'Before'))['id']}")
    await fill(sam, Title="Typed at length", Venue="Opera", Price="7", How_many="3")
    for cookie in ("session", "refresh"):
        await sam.context.clear_cookies(name=f"boxoffice-{cookie}")
    save = "Put it on sale" if fresh else "Save"
    await press(sam, save)
    await sam.sees("Log in as a seller")
    await sam.page.get_by_label("Your name").fill(name)
    await sam.page.get_by_label("You are").select_option("seller")
    await sam.page.get_by_role("button", name="Log in").last.click()
    await expect(sam.page.get_by_label("Title")).to_have_value("Typed at length")
    await expect(sam.page.get_by_label("Venue")).to_have_value("Opera")
    await press(sam, save)
    await sam.sees("It is on sale." if fresh else "Saved.")
    await sam.page.reload()
    await expect(sam.page.get_by_label("Title")).to_have_value("Typed at length")


AGAIN = "What you wrote before is here again."


async def changed(shop: ServiceProcess, seller: str, ticket_id: str, title: str, **more: object) -> None:
    """Change a ticket, without the page, and wait until everybody reads it so."""
    headers = {"Authorization": f"Bearer dev:{seller}:seller", "If-Match": "*"}
    async with httpx.AsyncClient(base_url=shop.url, headers=headers) as http:
        assert (await http.patch(f"/api/tickets/{ticket_id}", json={"title": title, **more})).status_code == 200

    async def read() -> str:
        return str((await ticket_of(shop, ticket_id))["title"])

    await eventually(read, title)


async def finds(person: Person, title: str, *, again: bool) -> None:
    """Wait for the form with this title in it: what was written before, or what is loaded."""
    await expect(person.page.get_by_label("Title")).to_have_value(title)
    await expect(person.page.get_by_text(AGAIN)).to_have_count(1 if again else 0)


@pytest.mark.parametrize("fresh", [True, False])
async def test_what_was_typed_is_found_again_until_it_is_started_afresh(
    shop: ServiceProcess, enter: Enter, fresh: bool
) -> None:
    name = somebody()
    ticket = await listed(shop, name, "Before")
    sam = await enter(name, "seller")
    await sam.page.goto("/sell")
    way = sam.page.get_by_role("link", name="Put a ticket on sale" if fresh else "Before")
    before = "" if fresh else "Before"
    await way.click()
    await finds(sam, before, again=False)
    await fill(sam, Title="Typed at length", Venue="Opera", How_many="3")
    await sam.page.reload()
    await finds(sam, "Typed at length", again=True)
    await sam.page.get_by_role("link", name="What you sell").click()
    await sam.sees("5 left")
    await sam.page.go_back()
    await finds(sam, "Typed at length", again=True)
    await sam.page.goto("/")
    await sam.sees("Before")
    await sam.page.go_back()
    await finds(sam, "Typed at length", again=True)
    await sam.page.get_by_role("link", name="What you sell").click()
    await way.click()
    await finds(sam, "Typed at length", again=True)
    await expect(sam.page.get_by_label("Venue")).to_have_value("Opera")
    await sam.show("sell-new-again" if fresh else "sell-again")
    await press(sam, "Start afresh")
    await finds(sam, before, again=False)
    await expect(sam.page.get_by_label("Title")).to_be_focused()
    await expect(sam.page.get_by_label("Venue")).to_have_value("")
    await expect(sam.page.get_by_label("How many")).to_have_value("" if fresh else "5")
    await sam.page.reload()
    await finds(sam, before, again=False)
    assert (await ticket_of(shop, ticket["id"]))["version"] == 1


async def test_what_was_saved_or_taken_back_is_not_found_again(shop: ServiceProcess, enter: Enter) -> None:
    name = somebody()
    sam = await enter(name, "seller")
    await sam.page.goto("/sell/new")
    await fill(sam, Title="First", Price="7", How_many="3")
    await press(sam, "Put it on sale")
    await sam.sees("It is on sale.")
    await sam.page.go_back()
    await finds(sam, "", again=False)
    await sam.page.go_forward()
    await finds(sam, "First", again=False)
    await fill(sam, Title="Second")
    await press(sam, "Save")
    await sam.sees("Saved.")
    await sam.page.reload()
    await finds(sam, "Second", again=False)
    await fill(sam, Title="Third")
    await sam.page.reload()
    await finds(sam, "Third", again=True)
    await fill(sam, Title="Second")
    await finds(sam, "Second", again=False)
    await sam.page.reload()
    await finds(sam, "Second", again=False)
    await fill(sam, Title="Fourth")
    await changed(shop, name, re.sub(r".*/|\?.*", "", sam.page.url), title="Fourth")  # as if an answer had been lost
    await sam.page.reload()
    await finds(sam, "Fourth", again=False)


async def test_what_is_found_again_meets_what_somebody_else_changed_meanwhile(
    shop: ServiceProcess, enter: Enter
) -> None:
    name = somebody()
    ticket = await listed(shop, name, "Before")
    sam = await enter(name, "seller")
    sam.allow("412")
    await sam.page.goto(f"/sell/{ticket['id']}")
    await fill(sam, Title="Mine")
    await sam.page.goto("/sell")
    await sam.sees("Before")
    await changed(shop, name, ticket["id"], title="Theirs", venue="Their hall")
    await sam.page.go_back()
    await finds(sam, "Mine", again=True)
    await sam.sees("Somebody else has changed this ticket since you opened it.")
    await press(sam, "Save")
    conflict = sam.page.get_by_role("region", name="Somebody else changed it meanwhile")
    await expect(conflict).to_contain_text("Theirs")
    await sam.page.reload()
    await expect(conflict).to_contain_text("Their hall")
    await finds(sam, "Mine", again=True)
    now = await ticket_of(shop, ticket["id"])
    assert (now["title"], now["version"]) == ("Theirs", 2)
    await press(sam, "Save yours on top")
    await sam.sees("Saved.")
    await finds(sam, "Mine", again=False)
    now = await ticket_of(shop, ticket["id"])
    assert (now["title"], now["venue"], now["version"]) == ("Mine", "Their hall", 3)


async def test_what_is_started_afresh_is_what_somebody_else_saved_meanwhile(shop: ServiceProcess, enter: Enter) -> None:
    name = somebody()
    ticket = await listed(shop, name, "Before")
    sam = await enter(name, "seller")
    await sam.page.goto(f"/sell/{ticket['id']}")
    await fill(sam, Title="Mine")
    await sam.page.reload()
    await finds(sam, "Mine", again=True)
    await changed(shop, name, ticket["id"], title="Theirs")
    await sam.sees("Somebody else has changed this ticket since you opened it.")
    await press(sam, "Start afresh")
    await finds(sam, "Theirs", again=False)
    await fill(sam, Venue="My hall")
    await press(sam, "Save")
    await sam.sees("Saved.")


async def test_what_was_typed_is_for_whoever_typed_it(enter: Enter) -> None:
    name, other = somebody(), somebody()
    sam = await enter(name, "seller")
    await sam.page.goto("/sell/new")
    await fill(sam, Title="For Sam alone")
    await sam.is_known_as(other, "seller")
    async with sam.page.expect_popup() as popup:  # which begins with what this tab keeps
        await sam.page.evaluate("void open('/sell/new')")
    tab = await popup.value
    await expect(tab.locator("header")).to_contain_text(other)
    await expect(tab.get_by_label("Title")).to_have_value("")
    await sam.page.reload()
    await expect(sam.page.locator("header")).to_contain_text(other)
    await finds(sam, "", again=False)
    await sam.is_known_as(name, "seller")
    await sam.page.reload()
    await finds(sam, "For Sam alone", again=True)
    await tab.close()


@pytest.mark.parametrize("where", ["here", "in another tab", "where one logs in"])
async def test_a_logout_forgets_what_was_typed(enter: Enter, where: str) -> None:
    name = somebody()
    sam = await enter(name, "seller")
    sam.allow("401", "WebSocket")  # of what was under way
    await sam.page.goto("/sell/new")
    await fill(sam, Title="Not for others")
    await sam.page.reload()
    await finds(sam, "Not for others", again=True)
    if where == "where one logs in":
        await sam.page.goto("/login")
        await sam.page.get_by_role("button", name="Log out", exact=True).click()
        await expect(sam.page.get_by_text("be whoever you like")).to_be_visible()
    else:
        tab = sam.page if where == "here" else await sam.context.new_page()
        if where != "here":
            await tab.goto("/")
        await tab.get_by_role("button", name="Log out", exact=True).click()
        await sam.sees("Log in as a seller")
    assert await sam.page.evaluate("sessionStorage.length") == 0
    await sam.is_known_as(name, "seller")
    await sam.page.goto("/sell/new")
    await finds(sam, "", again=False)


async def test_what_was_typed_on_a_ticket_that_is_withdrawn_meanwhile_is_shown_once_more(
    shop: ServiceProcess, enter: Enter
) -> None:
    name = somebody()
    ticket = await listed(shop, name, "Going")
    sam = await enter(name, "seller")
    await sam.page.goto(f"/sell/{ticket['id']}")
    await fill(sam, Venue="A better hall")
    await sam.page.goto("/sell")
    await sam.sees("Going")
    async with httpx.AsyncClient(base_url=shop.url, headers={"Authorization": f"Bearer dev:{name}:seller"}) as http:
        assert (await http.delete(f"/api/tickets/{ticket['id']}")).status_code == 200
    await sam.page.go_back()
    await sam.sees("What you wrote was not saved")
    await sam.sees("A better hall")
    await sam.page.reload()
    await sam.sees("Nobody can reserve it any more")
    await expect(sam.page.get_by_text("A better hall")).to_have_count(0)


@pytest.mark.parametrize(
    "found",
    [
        "no JSON",
        "null",
        "7",
        '{"title": "Of a page before this one"}',
        '{"base": {}, "form": {"title": 7}, "theirs": null}',
        '{"base": null, "form": null, "theirs": null}',
    ],
)
async def test_what_another_version_of_the_page_kept_is_dropped(enter: Enter, found: str) -> None:
    sam = await enter(somebody(), "seller")
    await sam.page.goto("/sell/new")
    await fill(sam, Title="Typed")
    replaced = "found => Object.keys(sessionStorage).map((name) => (sessionStorage[name] = found))"
    assert await sam.page.evaluate(replaced, found) == [found]
    await sam.page.reload()
    await finds(sam, "", again=False)
    assert await sam.page.evaluate("sessionStorage.length") == 0
    await fill(sam, Title="Typed again")
    await sam.page.reload()
    await finds(sam, "Typed again", again=True)


@pytest.mark.parametrize(
    "browser_that",
    [
        "Object.defineProperty(globalThis, 'sessionStorage', { get() { throw new Error('denied') } })",
        "Storage.prototype.setItem = () => { throw new Error('full') }",
    ],
    ids=["denies it", "is full"],
)
async def test_a_browser_that_keeps_nothing_has_the_form_all_the_same(enter: Enter, browser_that: str) -> None:
    sam = await enter(somebody(), "seller")
    await sam.context.add_init_script(browser_that)
    await sam.page.goto("/sell/new")
    await fill(sam, Title="Not kept", Price="7", How_many="3")
    await sam.page.reload()
    await finds(sam, "", again=False)
    await fill(sam, Title="Put on sale", Price="7", How_many="3")
    await press(sam, "Put it on sale")
    await sam.sees("It is on sale.")
    await press(sam, "Log out")
    await sam.sees("Log in as a seller")
