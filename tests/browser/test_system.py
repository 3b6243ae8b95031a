"""What an operator does: see how the system is, and mend what was given up on."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from playwright.async_api import Browser, expect

from common.clock import new_id, now
from common.events import ExpirationCompleted, encode
from common.runtime import Platform, connect
from common.settings import Settings
from common.topology import CONSUMERS, SERVICES, STREAMS
from services.cli.servers import NatsServer
from services.cli.system import READ_MODELS
from tests.browser.conftest import Enter
from tests.browser.person import Person
from tests.browser.test_shop import hold, sell
from tests.harness import ServiceProcess, eventually, held


async def test_an_operator_sees_how_the_system_is_and_it_moves(shop: ServiceProcess, enter: Enter) -> None:
    olga = await enter("olga", "operator")
    await olga.page.goto("/")
    await olga.page.get_by_role("link", name="System").click()
    await olga.sees("As of")
    services = olga.page.get_by_role("table", name="Services")
    await expect(services.get_by_role("rowheader")).to_have_text([*SERVICES])
    await expect(services.get_by_role("row", name=re.compile("^orders"))).to_contain_text("Up")
    streams, listeners, models = (
        olga.page.get_by_role("table", name=name) for name in ("Streams", "Listeners", "Read models")
    )
    await expect(models.get_by_role("rowheader")).to_have_text(
        [model.name for model in READ_MODELS.values() for _ in model.sources]
    )
    lags = models.locator('[data-title="Lag"]')
    await expect(lags).to_have_text([re.compile(r"^\d+$")] * sum(len(each.sources) for each in READ_MODELS.values()))
    await expect(streams.get_by_role("rowheader")).to_have_text([stream.name for stream in STREAMS])
    await expect(listeners.get_by_role("rowheader")).to_have_text([consumer.durable for consumer in CONSUMERS])

    ticket_id = await sell(shop, "Watched by Olga")
    await hold(shop, ticket_id, "ada", 1, 4)
    orders = streams.get_by_role("row", name=re.compile("^ORDERS"))
    await expect(orders).to_contain_text(re.compile("1 . [23]"))
    await expect(listeners.get_by_role("row", name=re.compile("^orders-keep-book"))).to_contain_text("ago")
    events = olga.page.get_by_role("figure", name=re.compile("^Events"))
    await expect(events).to_have_attribute("data-points", re.compile(r"^([3-9]|\d\d)$"))
    await expect(events).to_contain_text(re.compile(r"at most ([1-9]|0\.[1-9])"))
    late = olga.page.get_by_role("figure", name=re.compile("^Expirations"))
    await expect(late).not_to_have_attribute("data-points", "0")
    await expect(late).to_contain_text("at most")
    await olga.show("system")


async def test_what_is_behind_is_told_and_what_nobody_knows(browser: Browser, platform: Platform, home: Path) -> None:
    running = " ".join(name for name in SERVICES if name != "notification")
    async with (
        ServiceProcess(running, platform.settings, home) as process,
        Person.enters(browser, process.url) as olga,
    ):
        olga.allow("404")  # the bell asks a service that does not run
        await olga.is_known_as("olga", "operator")
        await olga.page.goto("/system")

        async def shows(table: str, row: str, column: str, text: str | re.Pattern[str]) -> None:
            found = olga.page.get_by_role("table", name=table).get_by_role("row", name=re.compile(f"^{row}"))
            await expect(found.locator(f'[data-title="{column}"]')).to_have_text(text)

        await shows("Read models", "notifications notification NOTIFICATIONS", "Lag", "Not known")
        await shows("Services", "notification", "Lag", "0")
        await shows("Services", "web", "Lag", "\N{EN DASH}")  # it hears nothing
        await hold(process, ticket_id := await sell(process, "Slow"), "ada", 1, 3600)
        await shows("Read models", "tickets tickets ORDERS", "Up to", "2")  # the book was opened, and somebody ordered
        async with held(platform.settings.database_url, "tickets"):
            await hold(process, ticket_id, "ada", 1, 3600)
            await shows("Read models", "tickets tickets ORDERS", "Lag", "1")
            await shows("Read models", "orders orders ORDERS", "Lag", "0")
            await shows("Services", "notification", "Lag", "6")  # two of its listeners hear of orders
            await shows("Services", "orders", "Lag", "0")
            await platform.client.jetstream().publish("tickets.x", b"{", headers={"ce-type": "ticket_withdrawn"})
            await shows("Read models", "tickets tickets TICKETS", "Problem", re.compile("deploy the code that knows"))
            await olga.show("system-behind")
        await shows("Read models", "tickets tickets ORDERS", "Lag", "0")


@pytest.fixture
async def log(shop: ServiceProcess) -> AsyncIterator[Platform]:
    """The servers of the shop, as whoever may do everything there."""
    async with connect(Settings(nats_url=shop.nats_url), "test") as platform:
        yield platform


async def test_an_operator_mends_a_dead_letter_by_editing_it(shop: ServiceProcess, enter: Enter, log: Platform) -> None:
    order_id = await hold(shop, ticket_id := await sell(shop, "Never expired"), "dora", 1, 3600)
    told = {"type": "expiration_completed", "order_id": order_id, "ticket_id": ticket_id}
    await publish(log, told | {"expires_at": "2040-01-01T00:00:00Z", "at": "yesterday"})
    dora, olga = await enter("dora"), await enter("olga", "operator")
    olga.allow("422")  # what she gives is refused
    await dora.page.goto(f"/orders/{order_id}")
    await dora.sees("left to pay")
    await olga.page.goto("/system/dead")
    await olga.page.get_by_role("link", name="orders-cancel-expired").click()
    await expect(olga.page.get_by_role("heading", name="orders-cancel-expired")).to_be_focused()
    await olga.show("dead-group")
    await olga.page.get_by_role("link", name=re.compile("^Letter")).first.click()
    await olga.sees("yesterday")
    await expect(olga.page.get_by_role("link", name="What led to it")).to_have_attribute("href", "/time/trace/a-click")
    await olga.show("dead-letter")
    await olga.page.get_by_role("button", name="Retry", exact=True).click()
    await expect(olga.page.get_by_role("alert")).to_contain_text("cannot be decoded")

    await olga.page.get_by_role("button", name="Edit and retry").click()
    payload = olga.page.get_by_label("Payload, as it should be")
    await expect(payload).to_be_focused()
    before = await payload.input_value()
    assert '"at": "yesterday"' in before
    await payload.fill(before.replace('"yesterday"', '"yesterday'))
    await olga.page.get_by_role("button", name="Save and retry").click()
    await olga.sees("This is not JSON")
    await payload.fill(before.replace('"at"', '"it"'))
    await olga.page.get_by_role("button", name="Save and retry").click()
    await expect(olga.page.locator(".editor .trouble")).to_contain_text("at")
    await olga.show("dead-edit")
    await payload.fill(before.replace('"yesterday"', '"2040-01-01T00:00:00Z"'))
    await olga.page.get_by_role("button", name="Save and retry").click()
    await olga.sees("has heard it as you corrected it")
    await expect(olga.page.get_by_role("status").filter(has_text="Mended")).to_be_focused()
    await olga.sees("olga corrected it.")
    await olga.show("dead-mended")

    async def status() -> str:
        return str((await (await dora.context.request.get(f"/api/orders/{order_id}")).json())["status"])

    await eventually(status, "cancelled")
    await dora.page.goto(f"/orders/{order_id}")
    await dora.sees("Not paid in time.")
    await olga.page.goto("/system/dead?state=done")
    await olga.sees("orders-cancel-expired")


async def test_an_operator_retries_a_group_and_drops_what_cannot_be_mended(
    shop: ServiceProcess, enter: Enter, log: Platform
) -> None:
    ticket_id, late = UUID(await sell(shop, "Broken")), datetime(2040, 1, 1, tzinfo=UTC)
    for number in range(3):
        headers = {"ce-id": str(new_id()), "ce-type": "expiration_completed", "correlation-id": "c"}
        headers |= {"dead-listener": "orders-cancel-expired", "dead-subject": "expiration.x"}
        headers |= {
            "dead-stream": "EXPIRATION",
            "dead-sequence": str(number + 1),
            "dead-error": "Boom: it <b>broke</b>",
        }
        body = b"not json"
        if number < 2:
            order_id = UUID(await hold(shop, str(ticket_id), "dora", 1, 3600))
            body = encode(ExpirationCompleted(order_id, ticket_id, late, late))
        await log.client.jetstream().publish("dead.orders-cancel-expired", body, headers=headers)
    olga = await enter("olga", "operator")
    olga.allow("422")
    await olga.page.goto("/system/dead?listener=orders-cancel-expired")
    await olga.page.get_by_role("link", name="Boom: it <b>broke</b>").click()
    letters = olga.page.get_by_role("link", name=re.compile("^Letter"))
    await expect(letters).to_have_count(3)
    await olga.page.get_by_role("button", name="Retry all").click()
    await olga.sees("2 letters mended, 1 not.")
    await expect(letters).to_have_count(1)
    await letters.click()
    await olga.sees("not json")
    await olga.page.get_by_role("button", name="Drop").click()
    await olga.show("dead-drop")
    await olga.page.get_by_role("button", name="Keep it").click()
    await olga.page.get_by_role("button", name="Drop").click()
    await olga.page.get_by_role("button", name="Drop it for good").click()
    await olga.sees("Dropped: nothing more is done about it.")
    await expect(olga.page.get_by_role("button", name="Retry")).to_have_count(0)


CUT = """
[...document.querySelectorAll(".flow .node")]
    .map((node) => [node.querySelector("text").textContent, node.querySelector("title")?.textContent ?? ""])
    .filter(([shown]) => shown.endsWith("…"))
    .map(([shown, whole]) => [shown.slice(0, -1), whole])
"""
"""Names that are cut in the drawing: what is shown, and the whole one."""


async def test_the_flow_has_every_stream_and_listener_on_a_phone_and_a_desk(enter: Enter) -> None:
    olga = await enter("olga", "operator")
    cut = 0
    for width in (360, 1200):
        await olga.page.set_viewport_size({"width": width, "height": 800})
        await olga.page.goto("/system")
        await expect(olga.page.locator("[data-stream]")).to_have_text([re.compile(f"^{each.name}") for each in STREAMS])
        shown = olga.page.locator("[data-consumer]")
        await expect(shown).to_have_count(len(CONSUMERS))
        assert {await each.get_attribute("data-consumer") for each in await shown.all()} == {
            each.durable for each in CONSUMERS
        }
        for shown, whole in await olga.page.evaluate(CUT):
            assert whole.startswith(shown), (shown, whole)
            cut += 1
    assert cut
    await olga.page.get_by_text("The same as a table").click()
    table = olga.page.get_by_role("table", name="Who publishes, and who listens")
    for stream in STREAMS:
        row = table.get_by_role("row", name=re.compile(f"^{stream.name}"))
        for name in (*stream.writers, *stream.readers, *(c.durable for c in CONSUMERS if c.stream == stream.name)):
            await expect(row).to_contain_text(name)


async def test_nothing_is_asked_while_nobody_looks_and_it_goes_on_after(enter: Enter) -> None:
    olga = await enter("olga", "operator")
    asked: list[str] = []
    olga.page.on("request", lambda request: asked.append(request.url) if "/api/system" in request.url else None)
    await olga.page.clock.install()
    await olga.page.goto("/system")
    points = olga.page.get_by_role("figure", name=re.compile("^Waiting"))
    await expect(points).to_have_attribute("data-points", "1")
    seen = 'Object.defineProperty(document, "visibilityState", {configurable: true, value: "%s"});'
    seen += 'document.dispatchEvent(new Event("visibilitychange"))'
    async with olga.page.expect_response("**/api/system"):
        await olga.page.clock.run_for(2_500)  # who looks asks again
    await olga.page.evaluate(seen % "hidden")
    before = len(asked)
    await olga.page.clock.run_for(30_000)
    assert len(asked) == before
    async with olga.page.expect_response("**/api/system"):
        await olga.page.evaluate(seen % "visible")
    assert len(asked) == before + 1


async def test_others_are_told_whom_it_is_for(enter: Enter) -> None:
    for who, path in (("bea", "/system"), ("bob", "/system/dead")):
        person = await enter(who)
        await person.page.goto(path)
        await person.sees("This is for operators")
        await expect(person.page.get_by_role("navigation").get_by_role("link", name="System")).to_have_count(0)
        await person.show(f"system-refused-{who}")
    nobody = await enter()
    await nobody.page.goto("/system")
    await nobody.sees("Log in as an operator")


async def test_that_the_server_is_away_is_told_and_passes(shop: ServiceProcess, enter: Enter) -> None:
    olga = await enter("olga", "operator")
    olga.allow("503", "ERR_")
    await olga.page.goto("/system")
    await olga.sees("As of")
    await shop.kill()
    try:
        await olga.sees("nothing newer is known")
        await olga.sees("The server does not answer.")
    finally:
        await shop.start()
    await expect(olga.page.get_by_role("alert")).to_have_count(0)


async def test_that_nats_is_away_is_told_with_what_was_last_known(
    browser: Browser, nats: NatsServer, platform: Platform, home: Path
) -> None:
    async with (
        ServiceProcess(" ".join(SERVICES), platform.settings, home) as process,
        Person.enters(browser, process.url) as olga,
    ):
        olga.allow("503")
        await olga.is_known_as("olga", "operator")
        await olga.page.goto("/system")
        await olga.sees("As of")
        await nats.stop()
        await expect(olga.page.get_by_role("alert")).to_contain_text("NATS does not answer")
        await olga.sees("nothing newer is known")
        await expect(olga.page.get_by_role("table", name="Streams")).to_be_visible()
        await olga.show("system-nats-away")
        await nats.start()
        await expect(olga.page.get_by_role("alert")).to_have_count(0)


async def publish(platform: Platform, body: object) -> None:
    """What newer or broken code may tell of an expiration."""
    event_id = str(new_id())
    headers = {"ce-id": event_id, "ce-type": "expiration_completed", "ce-source": "/expiration"}
    headers |= {"ce-time": now().isoformat(), "correlation-id": "a-click", "causation-id": "c"}
    await platform.client.jetstream().publish(f"expiration.{event_id}", msgspec.json.encode(body), headers=headers)
