"""`boxoffice replay listener` against running services: what it shows, what it has done, and who may."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from common.aggregate import Aggregate
from common.clock import new_id, now
from common.event_log import JetStreamLog
from common.events import BookListing, Event, EventRedelivered, ExpirationCompleted, OrderCancelled
from common.publisher import Publisher
from common.runtime import Platform
from services.cli.redeliver import Redelivery
from services.cli.rehearse import Selection
from services.cli.who import Who
from services.orders.domain import ORDERS, KeepBook, PlaceOrder
from tests.facts import whole
from tests.harness import ServiceProcess, eventually, logins
from tests.nursery import ran

LISTENER = "orders-cancel-expired"


class Shop:
    """Orders whose time was told to be over, to a listener that took note and did nothing."""

    def __init__(self, platform: Platform, doors: ServiceProcess) -> None:
        self.platform = platform
        self.doors = doors
        self.log: JetStreamLog = platform.event_log
        self.orders = Aggregate(ORDERS, self.log)
        self.ticket_id = new_id()

    async def forget(self, count: int) -> list[UUID]:
        """So many orders, which stay as they are."""
        listing = BookListing("Opening night", 2500, "EUR", 1000, 10, True, 1)
        await self.orders.handle(self.ticket_id, KeepBook(self.ticket_id, listing, now()))
        orders, over = [new_id() for _ in range(count)], now() - timedelta(minutes=1)
        for order_id in orders:
            placed = PlaceOrder(order_id, "ada", 1, over, over - timedelta(minutes=15))
            await self.orders.handle(self.ticket_id, placed)
            await self.expire(order_id)
        return orders

    async def expire(self, order_id: UUID) -> None:
        at = now()
        expired = ExpirationCompleted(order_id, self.ticket_id, at - timedelta(minutes=1), at)
        await Publisher[ExpirationCompleted]("expiration", self.log).publish(order_id, expired)

    async def swallow(self) -> None:
        """What the listener was to hear is settled."""
        count = (await self.log.end("EXPIRATION")).sequence
        js = self.platform.client.jetstream()
        pulled = await js.pull_subscribe_bind(consumer=LISTENER, stream="EXPIRATION")
        for _ in range(count):
            (message,) = await pulled.fetch(1)
            await message.ack_sync()

    async def cancelled(self) -> list[UUID]:
        """The orders that are cancelled, in that order."""
        events = [recorded.event for recorded in await self.log.read(f"orders.{self.ticket_id}")]
        return [event.order_id for event in events if isinstance(event, OrderCancelled)]

    async def repairs(self) -> list[Event]:
        """What operators did."""
        return [recorded.event for recorded in await whole(self.log, "REPAIRS")]

    async def repaired(self) -> list[int]:
        """The sequences that were redelivered."""
        return [event.sequence for event in await self.repairs() if isinstance(event, EventRedelivered)]

    async def command(self, *arguments: str) -> asyncio.subprocess.Process:
        """The command, as an operator's terminal runs it."""
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.cli.main", "replay", "listener", LISTENER, "--url", self.doors.url),
            *arguments,
            env={**os.environ, **logins(self.platform.settings), "COLUMNS": "200"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *arguments: str) -> tuple[int, str]:
        """How it ends, and what it says."""
        words = ("replay", "listener", LISTENER, "--url", self.doors.url, *arguments)
        environment = {**os.environ, **logins(self.platform.settings), "COLUMNS": "200"}
        code, said, wrong = await ran(words, environment, apart=True)
        return code, (said + wrong).decode()


@pytest.fixture
async def shop(platform: Platform, home: Path) -> AsyncIterator[Shop]:
    doors = ServiceProcess("orders history", platform.settings, home)
    yield Shop(platform, doors)
    await doors.kill()


async def test_what_a_dry_run_shows_is_what_is_done_once_it_is_confirmed(shop: Shop) -> None:
    orders = await shop.forget(3)
    await shop.swallow()
    code, said = await shop.run("--dry-run", "--since", "2")
    assert (code, said.count("would append order_cancelled")) == (0, 2)
    assert "effects: 2 order_cancelled" in said
    async with shop.doors:
        assert (await shop.cancelled(), await shop.repairs()) == ([], [])
        code, said = await shop.run("--confirm", "--since", "2", "--rate", "100/s")
        assert (code, f"{LISTENER} heard 2 again: 2 done, 0 failed, 0 unknown" in said) == (0, True), said
        assert await shop.cancelled() == orders[1:]
        redelivered = await shop.repairs()
        told = [(each.listener, each.stream, each.error, each.by) for each in redelivered]  # type: ignore[attr-defined]
        assert told == [(LISTENER, "EXPIRATION", None, "operator")] * 2
        assert await shop.repaired() == [2, 3]
        code, said = await shop.run("--dry-run", "--aggregate", str(orders[2]))
        assert (code, "1  for which nothing is to do" in said) == (0, True), said
        await shop.run("--confirm", "--aggregate", str(orders[2]))
        assert (await shop.cancelled(), await shop.repaired()) == (orders[1:], [2, 3, 3])


async def test_what_fails_again_is_told_and_the_rest_is_done(shop: Shop) -> None:
    nobodys = new_id()
    await shop.forget(1)
    await shop.expire(nobodys)
    await shop.swallow()
    async with shop.doors:
        code, said = await shop.run("--confirm", "--json")
        assert code == 1
        first, second = said.splitlines()
        assert '"outcome":"done"' in first
        assert '"outcome":"failed"' in second
        assert f"NotFound: There is no order {nobodys}." in second
        code, said = await shop.run("--confirm")
        assert (code, "1 done, 1 failed, 0 unknown" in said) == (1, True), said
        assert f"{nobodys}  failed: {LISTENER} failed: NotFound: There is no order {nobodys}." in said


async def test_what_is_stopped_says_where_to_go_on(shop: Shop) -> None:
    orders = await shop.forget(30)
    await shop.swallow()
    async with shop.doors:
        process = await shop.command("--confirm", "--rate", "5/s")

        async def begun() -> bool:
            return len(await shop.repaired()) >= 2

        await eventually(begun, True)
        process.send_signal(signal.SIGINT)
        said, _ = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 130
        assert f"{LISTENER} heard ".encode() in said
        found = re.search(rb"To go on: --since (\d+)\n", said)
        assert found, said
        done = await shop.repaired()
        assert int(found[1]) in (len(done), len(done) + 1), "what was under way may be done"
        code, _ = await shop.run("--confirm", "--rate", "1000/s", "--since", found[1].decode())
        assert code == 0
        assert sorted(set(await shop.repaired())) == list(range(1, 31))
        assert await shop.cancelled() == orders


async def test_a_system_that_is_gone_ends_it_and_says_where_to_go_on(shop: Shop) -> None:
    await shop.forget(1)
    code, said = await shop.run("--confirm")
    assert code == 1
    assert f"{shop.doors.url} does not answer" in said
    assert "To go on: --since 1\n" in said


async def test_only_operators_have_events_heard_again(shop: Shop) -> None:
    await shop.forget(1)
    await shop.swallow()
    async with shop.doors:
        code, said = await shop.run("--confirm", "--user", "ada")
        assert (code, "does not let ada in" in said) == (1, True), said
        assert (await shop.cancelled(), await shop.repairs()) == ([], [])


async def test_no_more_events_are_heard_again_than_the_rate_allows(shop: Shop) -> None:
    await shop.forget(6)
    await shop.swallow()
    async with shop.doors:
        redelivery = Redelivery(shop.doors.url, Who("operator"), 5, lambda *_: None)
        begun = asyncio.get_running_loop().time()
        assert await redelivery.run(LISTENER, Selection(), shop.platform.settings, lambda *_: None)
        assert asyncio.get_running_loop().time() - begun >= 1, "five times a fifth of a second"
        assert len(await shop.repaired()) == 6
