"""One order, followed through every service as a collector of traces sees it."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import msgspec
import pytest

from common.runtime import Platform
from tests.collector import Collector, Seen
from tests.harness import ServiceProcess

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SELLER = {"Authorization": "Bearer dev:sam-who-sells"}
BUYER = {"Authorization": "Bearer dev:ada-who-buys", "traceparent": f"00-{TRACE}-{PARENT}-01"}
PRIVATE = "tok_secret_of_ada"
SHOW = {"title": "Opening night of a secret show", "price": 2500, "currency": "EUR", "quantity": 3}


class Shop(msgspec.Struct):
    """Processes that are traced. Tickets, expiration and notification share one."""

    collector: Collector
    orders: ServiceProcess
    others: ServiceProcess


@pytest.fixture
async def shop(platform: Platform, home: Path) -> AsyncIterator[Shop]:
    async with Collector() as collector, AsyncExitStack() as stack:
        traced = {"BOXOFFICE_OTLP_ENDPOINT": collector.url}
        both = [
            await stack.enter_async_context(ServiceProcess(names, platform.settings, home, **traced))
            for names in ("orders", "tickets expiration notification")
        ]
        yield Shop(collector, *both)


async def test_one_order_is_one_trace_through_every_service(shop: Shop) -> None:
    async with httpx.AsyncClient(timeout=10) as http:
        listed = await http.post(f"{shop.others.url}/api/tickets", json=SHOW, headers=SELLER)
        order = {"ticket_id": listed.json()["id"], "quantity": 1, "hold_seconds": 1}
        assert (await http.get(f"{shop.orders.url}/api/orders?token={PRIVATE}", headers=BUYER)).status_code == 400
        placed = await http.post(f"{shop.orders.url}/api/orders", json=order, headers=BUYER)
        assert placed.status_code == 201
    last = {  # to end, and what is a part of each ended before it
        ("POST /api/orders", None),
        ("project tickets.ORDERS", None),
        ("hear expiration-hold-orders", "order_created"),
        ("hear orders-cancel-expired", "expiration_completed"),
        ("hear notification-tell-buyers", "order_cancelled"),
    }

    def told(spans: list[Seen]) -> bool:
        trace = [span for span in spans if span.trace == TRACE]
        whole = {span.parent for span in trace} <= {span.id for span in trace} | {PARENT}
        return whole and last <= {(span.name, span.told.get("boxoffice.event")) for span in trace}

    await shop.collector.has(told)
    trace = {span.id: span for span in shop.collector.of(TRACE)}

    def one(name: str, **wanted: object) -> Seen:
        found = [
            span
            for span in trace.values()
            if span.name == name and all(span.told.get(f"boxoffice.{key}") == value for key, value in wanted.items())
        ]
        assert found, f"{name} {wanted} is not in {[(span.service, span.name, span.told) for span in trace.values()]}"
        return found[0]

    posted = one("POST /api/orders")
    assert (posted.parent, posted.kind, posted.service) == (PARENT, 2, "boxoffice-orders")
    assert posted.told["http.response.status_code"] == 201
    placed_by = one("handle PlaceOrder")
    appended = one("append ORDERS", event="order_created")
    assert (placed_by.parent, appended.parent) == (posted.id, placed_by.id)
    assert appended.kind == 4
    assert posted.began <= placed_by.began <= appended.began <= appended.ended <= placed_by.ended <= posted.ended
    assert one("wait for orders.ORDERS").parent == posted.id

    first = one("wait expiration-hold-orders", event="order_created", delivery=1)
    assert (first.parent, first.service) == (placed_by.id, "boxoffice-expiration")
    held = one("hear expiration-hold-orders", event="order_created", delivery=1)
    assert (held.parent, held.kind, held.service) == (placed_by.id, 5, "boxoffice-expiration")
    assert first.ended <= held.began
    assert one("append EXPIRATION").parent == held.id

    cancelled = one("hear orders-cancel-expired", event="expiration_completed")
    assert (cancelled.parent, cancelled.service) == (held.id, "boxoffice-orders")
    decided = one("handle CancelOrder")
    assert decided.parent == cancelled.id
    assert one("append ORDERS", event="order_cancelled").parent == decided.id

    heard = one("hear notification-tell-buyers", event="order_cancelled")
    assert (heard.parent, heard.service) == (decided.id, "boxoffice-notification")
    assert one("wait notification-tell-buyers", event="order_cancelled").parent == decided.id
    shown = one("project tickets.ORDERS")
    assert (shown.parent, shown.service) == (placed_by.id, "boxoffice-tickets")
    assert not any(span.failed for span in trace.values())
    for post in shop.collector.receiver.posts:
        assert post.line == "POST /v1/traces HTTP/1.1"
    everything = repr(shop.collector.spans)
    for private in (PRIVATE, "who-buys", "who-sells", "Opening night"):
        assert private not in everything
    assert {(span.resource["service.namespace"], span.resource["service.version"]) for span in trace.values()} == {
        ("boxoffice", "0.1.0")
    }


async def test_what_was_not_sent_yet_is_sent_when_a_process_stops(shop: Shop) -> None:
    async with httpx.AsyncClient(timeout=10) as http:
        await http.get(f"{shop.orders.url}/api/orders", headers=BUYER)
    assert await shop.orders.stop() == 0
    assert [span.name for span in shop.collector.of(TRACE)] == ["GET /api/orders"]
