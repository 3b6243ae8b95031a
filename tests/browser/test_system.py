"""What an operator does: see how the system is, and mend what was given up on."""

import re

from playwright.async_api import expect

from common.topology import CONSUMERS, SERVICES, STREAMS
from tests.browser.conftest import Enter
from tests.browser.test_shop import hold, sell
from tests.harness import ServiceProcess


async def test_an_operator_sees_how_the_system_is_and_it_moves(shop: ServiceProcess, enter: Enter) -> None:
    olga = await enter("olga", "operator")
    await olga.page.goto("/")
    await olga.page.get_by_role("link", name="System").click()
    await olga.sees("As of")
    services = olga.page.get_by_role("table", name="Services")
    await expect(services.get_by_role("rowheader")).to_have_text([*SERVICES])
    await expect(services.get_by_role("row", name=re.compile("^orders"))).to_contain_text("Up")
    streams, listeners = (olga.page.get_by_role("table", name=name) for name in ("Streams", "Listeners"))
    await expect(streams.get_by_role("rowheader")).to_have_text([stream.name for stream in STREAMS])
    await expect(listeners.get_by_role("rowheader")).to_have_text([consumer.durable for consumer in CONSUMERS])
    await olga.show("system-still")

    ticket_id = await sell(shop, "Watched by Olga")
    await hold(shop, ticket_id, "ada", 1, 4)
    orders = streams.get_by_role("row", name=re.compile("^ORDERS"))
    await expect(orders).to_contain_text(re.compile("1 . [23]"))
    await expect(listeners.get_by_role("row", name=re.compile("^orders-keep-book"))).to_contain_text("ago")
    events = olga.page.get_by_role("figure", name=re.compile("^Events"))
    await expect(events).to_have_attribute("data-points", re.compile(r"^([3-9]|\d\d)$"))
    late = olga.page.get_by_role("figure", name=re.compile("^Expirations"))
    await expect(late).not_to_have_attribute("data-points", "0")
    await expect(late).to_contain_text("at most")
    await olga.show("system")
