"""An older backup is restored while every service runs: they stop, say why, and recover; nothing is sold twice."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import httpx
import msgspec
import pytest

from common.runtime import Platform
from common.settings import Settings
from services.cli.servers import NatsServer
from services.cli.system import READ_MODELS
from tests.harness import Proxy, ServiceProcess, command, eventually, operator
from tests.nursery import ran
from tests.system.checker import Promises, check, collect
from tests.system.test_tail import tail

SAM, ADA, BOB = ({"Authorization": f"Bearer dev:{name}"} for name in ("sam", "ada", "bob"))
SHOW = {"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": 10, "max_per_order": 10}
LARGE = {"title": "Closing night", "price": 2500, "currency": "EUR", "quantity": 1000}
NOTHING: list[str] = []


class Town(msgspec.Struct, frozen=True):
    """Every service; orders twice, so that what one sells the other has not seen."""

    settings: Settings
    shop: ServiceProcess
    orders: ServiceProcess
    teller: ServiceProcess
    http: httpx.AsyncClient

    async def sell(self, what: dict[str, object]) -> str:
        """Put a ticket up for sale; its id."""
        listed = await self.http.post(f"{self.shop.url}/api/tickets", json=what, headers=SAM)
        assert listed.status_code == 201, listed.text
        ticket_id: str = listed.json()["id"]
        return ticket_id

    async def order(self, ticket_id: str, *, at: ServiceProcess | None = None, **more: int) -> httpx.Response:
        """One seat for Ada, or what they say instead."""
        wanted = {"ticket_id": ticket_id, "quantity": 1, **more}
        return await self.http.post(f"{(at or self.shop).url}/api/orders", json=wanted, headers=ADA)

    async def placed(self, ticket_id: str, *, at: ServiceProcess | None = None, **more: int) -> str:
        """The same, which is to succeed; the id of the order."""
        placed = await self.order(ticket_id, at=at, **more)
        assert placed.status_code == 201, placed.text
        order_id: str = placed.json()["id"]
        return order_id

    async def status(self, order_id: str) -> str:
        """What became of an order, or why that is not known."""
        found = await self.http.get(f"{self.shop.url}/api/orders/{order_id}", headers=ADA)
        return str(found.json()["status"])

    async def problems(self) -> list[str]:
        """Why they are not ready."""
        services = (self.shop, self.orders, self.teller)
        answers = [(await self.http.get(f"{each.url}/health/ready")).json()["problems"] for each in services]
        return [problem for problems in answers for problem in problems.values()]

    async def told_to_rebuild(self) -> set[str]:
        """The read models that are told to be of another log."""
        said = [problem for problem in await self.problems() if "was created anew on" in problem]
        return {
            name for name in READ_MODELS for problem in said if f"`boxoffice projections rebuild {name}`" in problem
        }

    async def do(self, *words: str) -> str:
        """Run a command, which is to succeed; what it says."""
        code, said, _ = await ran(words, operator(self.settings), within=120)
        assert code == 0, said.decode()
        return said.decode()


@pytest.fixture
async def town(platform: Platform, home: Path) -> AsyncIterator[Town]:
    async with AsyncExitStack() as stack:
        names = ("tickets orders expiration", "orders", "notification")
        running = [await stack.enter_async_context(ServiceProcess(each, platform.settings, home)) for each in names]
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=30))
        yield Town(platform.settings, running[0], running[1], running[2], http)
        for each in running:
            print(each.tail())  # noqa: T201 (shown when the test failed)


async def test_services_stop_say_why_and_recover_by_rebuild(town: Town, nats: NatsServer, home: Path) -> None:
    folder = str(home / "backup")
    ticket_id, large = await town.sell(SHOW), await town.sell(LARGE)
    paid = await town.placed(ticket_id)
    payment = await town.http.post(f"{town.shop.url}/api/orders/{paid}/payment", json={"token": "tok_ok"}, headers=ADA)
    assert payment.json()["status"] == "complete"
    ended = await town.placed(large, hold_seconds=30)
    kept = [await town.placed(large, at=at) for at in (town.shop, town.orders)]
    assert "the log as it was on" in await town.do("backup", folder)

    # Both replicas know more now than the log will: that it is sold out, and that an order is over.
    lost = [await town.placed(ticket_id, at=at) for at in (town.shop, town.orders)]
    assert (await town.order(ticket_id, quantity=7)).status_code == 201
    assert (await town.http.delete(f"{town.orders.url}/api/orders/{ended}", headers=ADA)).status_code == 200
    assert (await town.order(ticket_id, at=town.orders)).status_code == 409
    assert (await town.order(ticket_id)).status_code == 409
    lost += [await town.placed(large) for _ in range(20)]
    late = await town.sell(LARGE)

    # One that is killed when orders are back, and tickets are not: what was sold now would be lost in the next one.
    async with Proxy(nats) as proxy:
        orders_are_back = proxy.lose(b"$JS.API.STREAM.RESTORE.TICKETS")
        through = msgspec.structs.replace(town.settings, nats_url=proxy.url)
        killed = await command(through, "restore", folder, "--replace", "--yes")
        await asyncio.wait_for(orders_are_back.wait(), 60)
        killed.kill()
        await killed.communicate()
    finish = f"run `boxoffice restore {folder}` again"
    for at in (town.shop, town.orders):
        refused = await town.order(large, at=at)
        assert (refused.status_code, finish in refused.json()["detail"]) == (503, True), refused.text

    async def told_to_finish() -> bool:
        return any(finish in problem for problem in await town.problems())

    await eventually(told_to_finish, True)

    assert "stand still" in await town.do("restore", folder, "--replace", "--yes", "--no-rebuild")
    await eventually(town.told_to_rebuild, {"tickets", "orders", "notifications"})

    # What they decide by is the log, also now: 9 of 10 seats are free again.
    everywhere = [town.order(ticket_id, at=at) for at in (town.shop, town.orders) for _ in range(12)]
    answers = await asyncio.gather(*everywhere)
    assert Counter(answer.status_code for answer in answers) == {201: 9, 409: 15}
    assert (await town.order(late)).status_code == 404

    for name in READ_MODELS:
        await town.do("projections", "rebuild", name)
    await eventually(town.problems, NOTHING)
    assert [await town.status(order_id) for order_id in (paid, *kept)] == ["complete", "created", "created"]
    assert {await town.status(order_id) for order_id in lost} == {"404"}
    found = (await town.http.get(f"{town.shop.url}/api/tickets/{ticket_id}")).json()
    assert found["available"] == 0
    assert (await town.http.get(f"{town.shop.url}/api/tickets/{late}")).status_code == 404
    await eventually(lambda: town.status(ended), "cancelled", within=60)  # it ended in the old log, and again in this
    await is_all_well(town)


async def test_one_command_brings_a_running_system_back(town: Town, home: Path) -> None:
    folder = str(home / "backup")
    async with tail(town.teller.url + "/") as ada:
        large = await town.sell(LARGE)
        kept = await town.placed(large)
        assert await ada.line() == "what ada is told; Ctrl-C ends it"
        assert await ada.told() == "You hold 1 of Closing night"
        await town.do("backup", folder)
        lost = await town.placed(large, quantity=2)
        assert await ada.told() == "You hold 2 of Closing night"

        await town.do("restore", folder, "--replace", "--yes")
        await eventually(town.problems, NOTHING)
        assert [await town.status(order_id) for order_id in (kept, lost)] == ["created", "404"]
        while "connect" in (line := await ada.line()):
            pass
        assert line == "The log was replaced: what the new one has had until now is in the inbox."
        new = await town.placed(large, quantity=3)
        assert await town.status(new) == "created"
        assert await ada.told() == "You hold 3 of Closing night"
    await is_all_well(town)


async def is_all_well(town: Town) -> None:
    """Read models equal the fold of the log, nothing is oversold, nobody gave up on an event."""

    async def wrong() -> list[str]:
        return check(await collect(town.settings), Promises(), timedelta(seconds=10))

    await eventually(wrong, NOTHING)
