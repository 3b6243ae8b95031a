"""What an operator does: find what happened, go through it event by event, see what a click caused, and watch."""

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
from playwright.async_api import expect

from tests.browser.conftest import Enter
from tests.browser.person import Person
from tests.browser.test_shop import hold, sell
from tests.harness import ServiceProcess, eventually

OLGA = {"Authorization": "Bearer dev:olga:operator"}


async def told(shop: ServiceProcess, path: str, **parameters: object) -> Any:
    """What the API says to an operator."""
    async with httpx.AsyncClient(base_url=shop.url, headers=OLGA) as http:
        answer = await http.get(f"/api/events/{path}", params=parameters)  # type: ignore[arg-type]  # httpx wants literals
    assert answer.status_code == 200, answer.text
    return answer.json()


async def pay(shop: ServiceProcess, order_id: str, who: str) -> None:
    async with httpx.AsyncClient(base_url=shop.url, headers={"Authorization": f"Bearer dev:{who}:buyer"}) as http:
        paid = await http.post(f"/api/orders/{order_id}/payment", json={"token": "tok_ok"})
    assert paid.status_code == 200, paid.text


async def expired(shop: ServiceProcess, order_id: str) -> Any:
    """The trace of an order, once its buyer was told that it is over."""

    async def types() -> list[str]:
        (trace,) = await told(shop, f"trace/{order_id}")
        return re.findall(r'"type": "order_cancelled".*"type": "(notification_raised)"', json.dumps(trace))

    await eventually(types, ["notification_raised"], within=30)
    return (await told(shop, f"trace/{order_id}"))[0]


def leaves(state: Any, path: str = "") -> dict[str, str]:
    """Each value of a state by its path, as the page writes it."""
    if not isinstance(state, dict | list):
        return {path: "none" if state is None and not path else json.dumps(state, ensure_ascii=False)}
    if not state:
        return {path: "empty"}
    parts = state.items() if isinstance(state, dict) else enumerate(state)
    return {
        at: value for name, part in parts for at, value in leaves(part, f"{path}.{name}" if path else str(name)).items()
    }


async def state_shown(person: Person, sequence: int) -> dict[str, str]:
    """The state on the page, once it is the one after this event."""
    await expect(person.page.locator(f'[data-at="{sequence}"][aria-busy="false"]')).to_be_visible()
    return await values_shown(person)


async def values_shown(person: Person) -> dict[str, str]:
    """Each value by its path, once all parts are open."""
    closed = person.page.locator("details:not([open])")
    while await closed.count():
        await closed.first.locator("summary").click()
    shown = await person.page.eval_on_selector_all(
        "[data-path]", "all => all.map((each) => [each.dataset.path, each.innerText])"
    )
    return dict(shown)


async def changes_shown(person: Person) -> list[tuple[str, str]]:
    """What the page says that an event changed: in which way, and which part."""
    shown = await person.page.eval_on_selector_all(
        ".changes li", "all => all.map((each) => [each.className, each.querySelector('code').title])"
    )
    return [(kind, path) for kind, path in shown]


def check(changes: list[tuple[str, str]], before: dict[str, str], after: dict[str, str]) -> None:
    """That these changes are all that differs between two states, and nothing else."""
    differing = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}

    def parts(of: str, among: set[str]) -> set[str]:
        return {path for path in among if path == of or path.startswith(f"{of}.")}

    empty = {path for path in differing if "empty" in (before.get(path), after.get(path))}  # it has got its first part
    assert set().union(*(parts(path, differing) for _, path in changes)) >= differing - empty - {""}
    for kind, path in changes:
        assert parts(path, differing), path
        there = (bool(parts(path, set(before))), bool(parts(path, set(after))))
        assert kind == {(False, True): "added", (True, False): "removed", (True, True): "changed"}[there]


async def test_an_order_book_event_by_event(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "Looked at later", quantity=3)
    paid = await hold(shop, ticket_id, "tm-ada", 2, 600)
    await pay(shop, paid, "tm-ada")
    lost = await hold(shop, ticket_id, "tm-bob", 1, 1)
    await expired(shop, lost)
    olga = await enter("olga", "operator")
    await olga.page.goto("/")
    await olga.page.get_by_role("link", name="Time machine").click()
    await olga.page.get_by_label("Id", exact=True).fill(f" {lost.upper()} ")
    await olga.page.get_by_role("button", name="Find").click()
    await olga.page.wait_for_url(f"**/time/orders/{lost}")
    await olga.sees("Event 2 of 2: order cancelled")
    await olga.sees("of tm-bob")
    await olga.page.goto(f"/time/orders/{ticket_id}")
    path = f"history/orders/{ticket_id}"
    steps = (await told(shop, path))["steps"]
    assert [each["type"] for each in steps] == [
        *("book_opened", "order_created", "payment_started", "order_completed", "order_created", "order_cancelled")
    ]
    slider = olga.page.get_by_role("slider", name="Moment")
    await expect(slider).to_have_attribute("aria-valuetext", re.compile("Event 6 of 6: order cancelled, "))
    await olga.show("history")
    await slider.focus()
    await olga.page.keyboard.press("Home")
    before: dict[str, str] = {}
    for number, step in enumerate(steps, start=1):
        where = f"Event {number} of 6: {step['type'].replace('_', ' ')}"
        await expect(slider).to_have_attribute("aria-valuetext", re.compile(where))
        await expect(olga.page).to_have_url(re.compile(rf"at={step['sequence']}$"))
        after = leaves((await told(shop, path, at=step["sequence"]))["state"])
        assert await state_shown(olga, step["sequence"]) == after
        changes = await changes_shown(olga)
        assert len(changes) == len(step["changes"]) > 0
        if number > 1:
            check(changes, before, after)
        before = after
        await slider.focus()  # it was left to open parts of the state
        await olga.page.keyboard.press("ArrowRight")
    await olga.page.reload()  # the address has the moment
    await expect(slider).to_have_attribute("aria-valuetext", re.compile("Event 6 of 6"))
    await olga.page.get_by_role("button", name="Before").click()
    await expect(slider).to_have_attribute("aria-valuetext", re.compile("Event 5 of 6: order created"))
    await olga.page.get_by_role("link", name="Trace of order created", exact=True).click()
    await olga.sees("notification raised")
    assert olga.page.url.endswith(f"/time/trace/{steps[4]['correlation_id']}")


async def test_the_forms_of_a_history_by_keyboard(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "In three forms", quantity=3)
    order_id = await hold(shop, ticket_id, "tm-cy", 2, 1)
    await expired(shop, order_id)
    steps = (await told(shop, f"history/orders/{ticket_id}"))["steps"]
    olga = await enter("olga", "operator")
    await olga.page.goto(f"/time/orders/{ticket_id}?at={steps[0]['sequence']}")
    tab = olga.page.get_by_role("tab", selected=True)
    await expect(tab).to_have_text("List")
    await tab.focus()
    await olga.page.keyboard.press("ArrowRight")
    await expect(tab).to_have_text("Timeline")
    await expect(tab).to_be_focused()
    await expect(olga.page).to_have_url(re.compile("as=timeline"))
    assert await olga.page.locator(".timeline .gap").count() == 2
    heights = await olga.page.eval_on_selector_all(".gap", "gaps => gaps.map((each) => each.offsetHeight)")
    assert (heights[0] < heights[1]) == (steps[1]["waited"] < steps[2]["waited"])
    await olga.show("history-timeline")
    await olga.page.keyboard.press("End")
    await expect(tab).to_have_text("Raw JSON")
    raw = olga.page.get_by_role("tabpanel", name="Raw JSON").locator("pre")
    assert json.loads(await raw.inner_text()) == steps
    await olga.show("history-raw")
    await olga.page.reload()
    await expect(tab).to_have_text("Raw JSON")
    await tab.focus()
    await olga.page.keyboard.press("ArrowRight")  # from the last to the first
    await expect(tab).to_have_text("List")
    await olga.page.keyboard.press("Tab")
    await olga.page.keyboard.press("Tab")
    await olga.page.keyboard.press("Tab")
    await olga.page.keyboard.press("Tab")
    await expect(olga.page.get_by_role("button", name="order created")).to_be_focused()
    await olga.page.keyboard.press("Enter")
    await olga.sees("Event 2 of 3: order created")


def types_in(caused: list[dict[str, Any]]) -> list[Any]:
    """A trace as nested lists of what is shown of it."""
    return [[each["type"].replace("_", " "), *types_in(each["caused"])] for each in caused]


TREE = """(function tree(list) {
  return [...(list?.children ?? [])].map((item) =>
    [item.querySelector("strong").innerText, ...tree(item.querySelector(":scope > ol"))]);
})(document.querySelector(".trace > li > ol"))"""


async def test_the_trace_of_a_click_is_the_whole_chain(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "Traced", quantity=3)
    order_id = await hold(shop, ticket_id, "tm-dan", 1, 1)
    trace = await expired(shop, order_id)
    olga = await enter("olga", "operator")
    await olga.page.goto("/time")
    await olga.page.get_by_label("Id", exact=True).fill(trace["correlation_id"])
    await olga.page.keyboard.press("Enter")
    await olga.page.wait_for_url(f"**/time/trace/{trace['correlation_id']}")
    await olga.sees("5 events in 3 services, over 1")
    chain = ["expiration completed", ["order cancelled", ["notification raised"]]]
    assert await olga.page.evaluate(TREE) == types_in(trace["roots"][0]["caused"])
    placed = next(each for each in await olga.page.evaluate(TREE) if each[0] == "order created")
    assert chain in placed
    await olga.sees("through orders-cancel-expired")
    over = olga.page.get_by_role("listitem").filter(has_text="expiration completed").last
    assert re.search(r"^(\d{3} ms|\d+(\.\d)? s) later$", await over.locator(".waited").first.inner_text())
    await olga.show("trace")
    await olga.page.get_by_role("link", name=re.compile("^orders")).last.click()
    await olga.sees("order cancelled")
    assert f"/time/orders/{ticket_id}?at=" in olga.page.url
    letter = next(each for each in (await told(shop, f"history/orders/{ticket_id}"))["steps"] if each["sequence"])
    await olga.page.goto("/time")
    await olga.page.get_by_label("Id", exact=True).fill(letter["event_id"])  # an event leads to itself
    await olga.page.keyboard.press("Enter")
    await olga.page.wait_for_url(f"**/time/orders/{ticket_id}?at={letter['sequence']}")


async def test_a_ticket_is_found_in_both_services_that_know_it(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "In two places")
    await hold(shop, ticket_id, "tm-eve", 1, 600)
    olga = await enter("olga", "operator")
    await olga.page.goto("/time")
    await olga.page.get_by_label("Id", exact=True).fill(ticket_id)
    await olga.page.keyboard.press("Enter")
    await olga.sees("It is in 2 places.")
    await olga.show("time-found")
    await olga.page.get_by_role("link", name="Its order book").click()
    await olga.sees("order created")
    await olga.page.go_back()
    await olga.page.get_by_label("Id", exact=True).fill(f"tickets.{ticket_id}")
    await olga.page.keyboard.press("Enter")
    await olga.page.wait_for_url(f"**/time/tickets/{ticket_id}")
    await olga.sees("Event 1 of 1: ticket created")


async def test_what_happens_is_shown_and_waits_while_it_is_paused(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "Watched", quantity=20)
    olga = await enter("olga", "operator")
    olga.allow("404")
    hears = olga.page.expect_response("**/api/events/stream*")
    async with hears:
        await olga.page.goto("/time?service=orders&user=tm-fay")
    await olga.sees("None of the last events is like this")
    await olga.show("time-empty")
    rows = olga.page.locator(".tail li")
    await hold(shop, ticket_id, "tm-gus", 1, 600)
    await hold(shop, ticket_id, "tm-fay", 1, 600)
    await expect(rows).to_have_count(1)
    await expect(rows).to_contain_text("of tm-fay")
    assert "tm-gus" not in await olga.page.locator("#page").inner_text()
    await olga.page.get_by_role("button", name="Pause").click()
    await hold(shop, ticket_id, "tm-fay", 2, 600)
    await hold(shop, ticket_id, "tm-fay", 3, 600)
    await olga.sees("2 events came since")
    await expect(rows).to_have_count(1)
    await olga.page.get_by_role("button", name="Go on").click()
    await expect(rows).to_have_count(3)
    for row, quantity in enumerate((3, 2, 1)):
        await expect(rows.nth(row)).to_contain_text(f"quantity {quantity}")
    await olga.show("time")
    await olga.page.evaluate(HIDE)
    await hold(shop, ticket_id, "tm-fay", 4, 600)
    async with olga.page.expect_response("**/api/events/stream*"):
        await olga.page.evaluate(SHOW)
    await expect(rows).to_have_count(4)  # nothing is lost, and nothing is there twice
    await hold(shop, ticket_id, "tm-fay", 5, 600)
    await expect(rows.first).to_contain_text("quantity 5")
    await expect(rows).to_have_count(5)
    await olga.page.goto("/time")
    await olga.page.get_by_label("Id", exact=True).fill("tm-fay")  # a name is no id
    await olga.page.keyboard.press("Enter")
    await olga.page.get_by_role("link", name="name the user tm-fay").click()
    await expect(olga.page.get_by_label("User")).to_have_value("tm-fay")
    await olga.page.get_by_label("Service").select_option("orders")
    await expect(rows).to_have_count(5)  # those of before are there at once, the last first
    await expect(rows.first).to_contain_text("quantity 5")
    await olga.page.get_by_label("Event", exact=True).select_option("order cancelled")
    await expect(olga.page).to_have_url(re.compile("type=order_cancelled"))
    await olga.sees("None of the last events is like this")
    await olga.page.get_by_label("Event", exact=True).select_option("All")
    await olga.page.get_by_label("User").fill("")
    async with olga.page.expect_response("**/api/events/stream?service=orders&last=*"):
        pass
    await hold(shop, ticket_id, "tm-hal", 1, 600)
    await expect(rows.first).to_contain_text("of tm-hal")
    await rows.first.get_by_role("link", name="Trace").click()
    await olga.sees("order created")


async def test_a_ticket_and_an_order_as_they_were(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "As it was", quantity=5)
    order_id = await hold(shop, ticket_id, "tm-ida", 2, 600)
    await pay(shop, order_id, "tm-ida")
    await hold(shop, ticket_id, "tm-jon", 1, 600)
    steps = (await told(shop, f"history/orders/{ticket_id}"))["steps"]
    placed = next(each for each in steps if each["type"] == "order_created")
    then = datetime.fromisoformat(placed["time"]) + timedelta(milliseconds=1)
    then = then.replace(microsecond=then.microsecond // 1000 * 1000)  # as exactly as a field has it
    state = (await told(shop, f"history/orders/{ticket_id}", at_time=then.isoformat()))["state"]
    listing = (await told(shop, f"history/tickets/{ticket_id}", at_time=then.isoformat()))["state"]
    assert (state["taken"], state["sold"]) == (2, 0)
    olga = await enter("olga", "operator", timezone_id="America/New_York")
    olga.allow("422", "404")
    await olga.page.goto("/time")
    await olga.page.get_by_role("link", name="How was it at a past moment?").click()
    await olga.page.get_by_label("Id", exact=True).fill(ticket_id)
    there = then.astimezone(ZoneInfo("America/New_York"))
    await olga.page.get_by_label("When", exact=True).fill(there.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3])
    await olga.page.get_by_role("button", name="Show").click()
    await olga.sees("The last event before was order created")
    await olga.sees("The last event before was ticket created")
    assert await values_shown(olga) == leaves(state) | leaves(listing)
    await olga.show("past")
    await olga.page.goto(f"/time/past?id={order_id}&at={then.strftime('%Y-%m-%dT%H:%M:%S.%f')[:-3]}Z")
    await olga.sees("The last event before was order created")
    shown = await values_shown(olga)
    assert (shown["status"], shown["buyer_id"]) == ('"created"', '"tm-ida"')
    assert "tm-jon" not in str(shown)
    await olga.page.goto(f"/time/past?id={order_id}&at=2020-01-01T00:00:00Z")
    await expect(olga.page.get_by_role("alert")).to_contain_text(
        re.compile(r"^It begins on .+; choose a later moment\.$")
    )
    await olga.page.goto(f"/time/past?id={order_id}&at=yesterday")
    await olga.sees("The address has no moment.")
    await olga.page.goto("/time/past?id=nothing&at=2020-01-01T00:00:00Z")
    await expect(olga.page.get_by_role("alert")).to_contain_text("caused by nothing")


HIDE, SHOW = (
    f"""Object.defineProperty(document, "visibilityState", {{ value: "{state}", configurable: true }});
    document.dispatchEvent(new Event("visibilitychange"))"""
    for state in ("hidden", "visible")
)


async def test_a_long_history_comes_in_pages(shop: ServiceProcess, enter: Enter) -> None:
    ticket_id = await sell(shop, "Changed often")
    async with httpx.AsyncClient(base_url=shop.url, headers={"Authorization": "Bearer dev:sam:seller"}) as http:
        path, whatever = f"/api/tickets/{ticket_id}", {"If-Match": "*"}
        for first_price in range(1, 1_051, 50):  # what comes together is decided together
            prices = range(first_price, first_price + 50)
            changes = [http.patch(path, json={"price": price}, headers=whatever) for price in prices]
            assert {changed.status_code for changed in await asyncio.gather(*changes)} == {200}
    olga = await enter("olga", "operator")
    await olga.page.goto(f"/time/tickets/{ticket_id}")
    await olga.sees("Event 1,000 of 1,000: ticket updated")
    assert await olga.page.locator(".steps li").count() == 100
    slider = olga.page.get_by_role("slider", name="Moment")
    await slider.focus()
    for _ in range(30):
        await olga.page.keyboard.press("PageUp")
        await olga.page.keyboard.press("PageDown")
    await olga.page.keyboard.press("Home")
    await olga.sees("Event 1 of 1,000")
    await olga.sees("1 to 100 of 1,000")
    first = (await told(shop, f"history/tickets/{ticket_id}"))["steps"][0]
    shown = await state_shown(olga, first["sequence"])
    assert shown["details.price"] == str(first["event"]["details"]["price"])
    await olga.show("history-long")
    await olga.page.get_by_role("button", name="Later").click()
    await olga.sees("Event 101 of 1,000")
    await olga.page.get_by_role("button", name="Show earlier events (51)").click()
    await olga.sees("Event 51 of 51")
    await slider.focus()
    await olga.page.keyboard.press("Home")
    await olga.sees("Event 1 of 51: ticket created")
    await expect(olga.page).to_have_url(re.compile(r"[?&]at="))
    await olga.page.reload()  # an address in a part that is not the newest
    await olga.sees("Event 1 of 51: ticket created")
    await olga.page.get_by_role("button", name="Show the newest events").click()
    await olga.sees("Event 1,000 of 1,000")
    await olga.page.goto(f"/time/tickets/{ticket_id}?at={first['sequence'] - 1}")  # as a link from a trace
    await olga.sees("Event 51 of 51")


async def test_what_is_not_there_is_told(enter: Enter) -> None:
    olga = await enter("olga", "operator")
    olga.allow("404", "422")
    nobodys = "01920c3c-7a3e-7cc4-8a3e-3d1f0c5b9a10"
    await olga.page.goto("/time")
    await olga.page.get_by_label("Id", exact=True).fill(nobodys)
    await olga.page.keyboard.press("Enter")
    await olga.sees(f"Nothing in the log is, names or was caused by {nobodys}")
    await olga.show("time-unknown")
    for path, says in (
        (f"/time/orders/{nobodys}", "is or names 01920c3c"),
        ("/time/orders/nonsense", "This is no id."),
        (f"/time/nowhere/{nobodys}", "There is no 'nowhere' with a history"),
        (f"/time/trace/{nobodys}", f"Nothing in the log belongs to {nobodys}"),
    ):
        await olga.page.goto(path)
        await expect(olga.page.get_by_role("alert")).to_contain_text(says)
        await expect(olga.page.get_by_role("button", name="Try again")).to_have_count(0)
    await olga.show("trace-unknown")


@pytest.mark.parametrize("within", ["abc", "-5", "0", ""])
async def test_a_trace_within_what_is_no_time_is_of_a_day(shop: ServiceProcess, enter: Enter, within: str) -> None:
    ticket_id = await sell(shop, "Within a day")
    olga = await enter("olga", "operator")
    await olga.page.goto(f"/time/trace/{ticket_id}?within={within}")
    await olga.sees("ticket created")
    choice = olga.page.get_by_label("What happened within")
    await expect(choice).to_have_value("")
    await expect(choice.get_by_role("option")).to_have_text(["a day", "a week", "30 days"])


@pytest.mark.parametrize(
    ("locale", "hour", "shown"),
    [
        ("en-GB", 3, r"\d\d/\d\d/\d{4} 0\d:\d\d:\d\d\.\d{3}"),
        ("en-GB", 15, r"\d\d/\d\d/\d{4} 1\d:\d\d:\d\d\.\d{3}"),
        ("en-US", 3, r"\d{1,2}/\d{1,2}/\d{4} \d:\d\d:\d\d\.\d{3}\sAM"),
    ],
)
async def test_a_moment_to_the_millisecond_reads_as_where_one_lives(
    shop: ServiceProcess, enter: Enter, locale: str, hour: int, shown: str
) -> None:
    east = (hour - datetime.now(UTC).hour + 12) % 24 - 12
    ticket_id = await sell(shop, "To the millisecond")
    olga = await enter("olga", "operator", locale=locale, timezone_id=f"Etc/GMT{-east:+}")
    await olga.page.goto(f"/time/trace/{ticket_id}")
    time = olga.page.locator("time", has_text=re.compile(rf"^{shown}$")).first
    await expect(time).to_be_visible()
    at = await time.evaluate("(time) => [time.dateTime, time.textContent.match(/\\.(\\d+)/)[1]]")
    assert datetime.fromisoformat(at[0]).microsecond // 1000 == int(at[1])


@pytest.mark.parametrize("role", ["buyer", "seller"])
async def test_only_operators_look(shop: ServiceProcess, enter: Enter, role: str) -> None:
    ticket_id = await sell(shop, "Not for everybody")
    ada = await enter(f"tm-ada-{role}", role)
    await ada.page.goto("/time")
    await ada.sees("This is for operators")
    await expect(ada.page.get_by_role("link", name="Time machine")).to_have_count(0)
    for path in (f"/time/tickets/{ticket_id}", f"/time/trace/{ticket_id}"):
        await ada.page.goto(path)
        await ada.sees("This is for operators")
        assert "ticket created" not in await ada.page.locator("#page").inner_text()
    await ada.show("time-refused")
    for path in (f"find/{ticket_id}", "types", f"history/tickets/{ticket_id}"):
        assert (await ada.context.request.get(f"/api/events/{path}")).status == 403
    nobody = await enter()
    await nobody.page.goto("/time")
    await nobody.sees("Log in to look at what happened.")
