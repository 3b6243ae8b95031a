"""JetStream as the clock: orders expire at their time, once, whatever stops and starts meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from common import runtime
from common.aggregate import Aggregate
from common.clock import new_id, now
from common.event_log import JetStreamLog
from common.events import BookListing, ExpirationCompleted
from common.runtime import Platform, connect, running
from common.settings import Settings
from services.cli import system
from services.cli.servers import NatsServer
from services.expiration import listeners
from services.expiration.app import create_service
from services.orders.domain import (
    ORDERS,
    CancelOrder,
    CompleteOrder,
    KeepBook,
    Orders,
    PlaceOrder,
    StartPayment,
)
from tests.harness import ServiceProcess, eventually

DURABLE = listeners.HoldOrder.durable
ACK_WAIT = 30.0  # seconds in which what a killed process had is surely delivered again


class Shop:
    """Places orders by the rules of the orders service, straight onto the log, and looks at what was told of them."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.log: JetStreamLog = platform.event_log
        self.orders: Orders = Aggregate(ORDERS, platform.event_log)
        self.ticket_id = new_id()
        self.deadlines: dict[UUID, datetime] = {}

    async def open(self) -> None:
        listing = BookListing("Opening night", 2500, "EUR", 1000, 10, True, 1)
        await self.orders.handle(self.ticket_id, KeepBook(self.ticket_id, listing, now()))

    async def place(self, hold: float) -> UUID:
        """An order that is to expire `hold` seconds from now."""
        order_id, at = new_id(), now()
        self.deadlines[order_id] = at + timedelta(seconds=hold)
        await self.orders.handle(self.ticket_id, PlaceOrder(order_id, "ada", 1, self.deadlines[order_id], at))
        return order_id

    async def complete(self, order_id: UUID) -> None:
        payment_id = new_id()
        for command in (StartPayment(order_id, payment_id, now()), CompleteOrder(order_id, payment_id, now())):
            await self.orders.handle(self.ticket_id, command)

    async def cancel(self, order_id: UUID) -> None:
        await self.orders.handle(self.ticket_id, CancelOrder(order_id, "buyer", now()))

    async def told(self, order_id: UUID) -> int:
        """How often the expiry of an order was told; that it was not early is checked here."""
        recorded = await self.log.read(f"expiration.{order_id}")
        for event in recorded:
            assert isinstance(event.event, ExpirationCompleted)
            deadline = self.deadlines[order_id]
            assert (event.event.order_id, event.event.ticket_id) == (order_id, self.ticket_id)
            assert event.event.expires_at == deadline
            assert deadline <= event.event.at <= event.time
        return len(recorded)

    async def all_told(self) -> set[int]:
        """How often expiries were told, of all orders."""
        return {await self.told(order_id) for order_id in self.deadlines}

    async def unsettled(self) -> tuple[int, int]:
        """Events that the durable consumer has not delivered yet, and those whose outcome it waits for."""
        info = await self.platform.client.jetstream().consumer_info("ORDERS", DURABLE)
        return info.num_pending or 0, info.num_ack_pending or 0

    async def deliveries(self) -> int:
        """How often the durable consumer has delivered anything."""
        info = await self.platform.client.jetstream().consumer_info("ORDERS", DURABLE)
        return info.delivered.consumer_seq if info.delivered else 0


@pytest.fixture
async def shop(platform: Platform) -> Shop:
    shop = Shop(platform)
    await shop.open()
    return shop


@asynccontextmanager
async def expiring(settings: Settings, replicas: int = 1) -> AsyncIterator[None]:
    """The expiration service, with a connection for each replica."""
    async with AsyncExitStack() as stack:
        for number in range(replicas):
            platform = await stack.enter_async_context(connect(settings, f"expiration {number}"))
            service = await stack.enter_async_context(create_service(platform, settings))
            await stack.enter_async_context(running(service.workers))
        yield


async def test_orders_expire_at_their_time_and_not_before(shop: Shop, settings: Settings) -> None:
    async with expiring(settings):
        for hold in (1.2, 0.3, 0.8, 0.0, 0.3):
            await shop.place(hold)
        await eventually(shop.all_told, {1})


async def test_what_waited_longer_than_its_deadline_expires_at_once(shop: Shop, settings: Settings) -> None:
    late = await shop.place(0.0)
    async with expiring(settings):
        await eventually(lambda: shop.told(late), 1)


async def test_an_expiry_is_told_once_however_often_the_order_is_heard(shop: Shop, settings: Settings) -> None:
    order_id = await shop.place(0.2)
    async with expiring(settings):
        await eventually(lambda: shop.told(order_id), 1)
        await eventually(shop.unsettled, (0, 0))
        js = shop.platform.client.jetstream()
        for _ in range(3):
            await js.delete_consumer("ORDERS", DURABLE)
            await system.migrate(settings, lambda _: None)
            await eventually(shop.unsettled, (0, 0))
    assert await shop.told(order_id) == 1
    assert (await shop.log.end("EXPIRATION")).sequence == 1


async def test_a_long_hold_is_put_back_until_shortly_before_its_time(
    shop: Shop, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "LEAD", 0.3)
    async with expiring(settings):
        await shop.place(1.5)
        await shop.place(0.1)
        await eventually(shop.all_told, {1})
        await eventually(shop.unsettled, (0, 0))
    events = (await shop.log.end("ORDERS")).sequence
    assert await shop.deliveries() > events


async def test_two_replicas_tell_each_expiry_once(shop: Shop, settings: Settings) -> None:
    async with expiring(settings, replicas=2):
        await asyncio.gather(*(shop.place(0.2 + 0.05 * n) for n in range(20)))
        await eventually(shop.all_told, {1})
        await eventually(shop.unsettled, (0, 0))
    assert await shop.all_told() == {1}


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("end", [Shop.complete, Shop.cancel])
async def test_an_order_that_ends_early_does_not_expire(
    shop: Shop, settings: Settings, end: Callable[[Shop, UUID], Awaitable[None]], replicas: int
) -> None:
    async with expiring(settings, replicas):
        ended = [await shop.place(3.5) for _ in range(6)]
        stays = await shop.place(3.5)
        await eventually(shop.unsettled, (0, 7))  # all are held
        for order_id in ended:
            await end(shop, order_id)
        await eventually(lambda: shop.told(stays), 1)
        await eventually(shop.unsettled, (0, 0))
    assert [await shop.told(order_id) for order_id in ended] == [0] * 6


async def test_an_order_that_ends_while_it_is_put_back_does_not_expire(
    shop: Shop, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "LEAD", 0.3)
    async with expiring(settings, replicas=2):
        ended = [await shop.place(3.0) for _ in range(6)]
        stays = await shop.place(3.0)
        await eventually(shop.unsettled, (0, 7))
        for order_id in ended[:3]:
            await shop.cancel(order_id)
        for order_id in ended[3:]:
            await shop.complete(order_id)
        await eventually(lambda: shop.told(stays), 1)
        await eventually(shop.unsettled, (0, 0))
    assert [await shop.told(order_id) for order_id in ended] == [0] * 6


async def test_an_order_that_ended_before_the_service_started_does_not_expire(shop: Shop, settings: Settings) -> None:
    completed, cancelled = await shop.place(3.5), await shop.place(0.0)
    await shop.complete(completed)
    await shop.cancel(cancelled)
    stays = await shop.place(0.0)
    async with expiring(settings, replicas=2):
        await eventually(lambda: shop.told(stays), 1)
        await eventually(shop.unsettled, (0, 0))
    assert (await shop.told(completed), await shop.told(cancelled)) == (0, 0)


async def test_an_order_that_ends_while_the_service_is_down_does_not_expire(shop: Shop, settings: Settings) -> None:
    async with expiring(settings):
        older = await shop.place(2.5)
        completed, cancelled = await shop.place(3.5), await shop.place(3.5)
        await eventually(shop.unsettled, (0, 3))
    await shop.complete(completed)
    await shop.cancel(cancelled)
    async with expiring(settings):
        await eventually(lambda: shop.told(older), 1)
        await eventually(shop.unsettled, (0, 0))
    assert (await shop.told(completed), await shop.told(cancelled)) == (0, 0)


async def test_a_killed_process_neither_loses_nor_advances_an_expiry(
    shop: Shop, settings: Settings, home: Path
) -> None:
    async with ServiceProcess("expiration", settings, home) as process:
        await shop.place(3.0)  # held in the process when it dies
        await shop.place(6.0)  # put back when it dies
        ended = await shop.place(6.0)
        await eventually(shop.unsettled, (0, 3))
        await process.kill()
        await shop.place(1.0)
        await shop.cancel(ended)
        del shop.deadlines[ended]
        await process.start()
        await eventually(shop.all_told, {1}, within=ACK_WAIT)
        await eventually(shop.unsettled, (0, 0))
    assert await shop.all_told() == {1}
    assert (await shop.log.end("EXPIRATION")).sequence == 3


async def test_every_open_order_expires_after_the_durable_consumer_was_deleted(shop: Shop, settings: Settings) -> None:
    async with expiring(settings):
        await shop.place(3.0)
        await shop.place(7.0)
        await eventually(shop.unsettled, (0, 2))
        await shop.platform.client.jetstream().delete_consumer("ORDERS", DURABLE)
        await shop.place(0.5)
        changes: list[str] = []
        assert await system.migrate(settings, changes.append) == 1
        assert changes == [f"created consumer {DURABLE} on ORDERS"]
        await shop.place(0.5)
        await eventually(shop.all_told, {1}, within=ACK_WAIT)
        await eventually(shop.unsettled, (0, 0))
    assert await shop.all_told() == {1}


async def test_what_ended_is_not_told_again_after_the_durable_consumer_was_deleted(
    shop: Shop, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "OVERDUE", 0.0)
    async with expiring(settings):
        complete, cancelled = await shop.place(1.0), await shop.place(1.0)
        await shop.complete(complete)
        await shop.cancel(cancelled)
        expired = await shop.place(0.5)
        await eventually(lambda: shop.told(expired), 1)
        await eventually(shop.unsettled, (0, 0))
        for _ in range(2):
            await shop.platform.client.jetstream().delete_consumer("ORDERS", DURABLE)
            assert await system.migrate(settings, lambda _: None) == 1
            await shop.place(0.5)
            await eventually(shop.unsettled, (0, 0), within=ACK_WAIT)
        assert [await shop.told(order) for order in (complete, cancelled, expired)] == [0, 0, 1]


async def test_a_killed_event_log_neither_loses_nor_advances_an_expiry(
    shop: Shop, settings: Settings, nats: NatsServer
) -> None:
    async with expiring(settings, replicas=2):
        await shop.place(2.0)  # held in the process
        await shop.place(3.5)  # this one as well
        await shop.place(6.0)  # put back
        await eventually(shop.unsettled, (0, 3))
        nats.kill()
        await nats.start()
        await shop.place(0.5)
        await eventually(shop.all_told, {1}, within=ACK_WAIT)
        await eventually(shop.unsettled, (0, 0))
    assert await shop.all_told() == {1}


async def test_the_service_stops_whenever_it_is_told_to(streams: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "STOP_SECONDS", 2.0)
    with capture_logs() as logs:
        for moment in range(60):  # also while it is still asking the server for something
            async with create_service(streams, streams.settings) as service, running(service.workers):
                await asyncio.sleep(moment / 10_000)
    assert [entry for entry in logs if entry["event"] == "worker_does_not_stop"] == []
