"""Nobody is charged for a cancelled order, and every sale is: the gateway, and payments against time and crashes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

from common.aggregate import Aggregate
from common.clock import new_id, now
from common.errors import Conflict, Invalid, PaymentDeclined, Unavailable
from common.events import BookEvent, OrderCancelled, OrderCompleted, PaymentRefused, PaymentStarted, TicketDetails
from common.runtime import Platform
from services.cli.servers import NatsServer
from services.orders.payments import FakeGateway
from services.tickets.domain import TICKETS, CreateTicket
from tests.harness import ServiceProcess, eventually

ADA = {"Authorization": "Bearer dev:ada"}


# The gateway


@pytest.fixture
async def pool(platform: Platform) -> AsyncIterator[asyncpg.Pool]:
    async with platform.pool("orders") as pool:
        yield pool


@pytest.fixture
def gateway(pool: asyncpg.Pool) -> FakeGateway:
    return FakeGateway(pool)


async def books_of(pool: asyncpg.Pool) -> dict[UUID, tuple[str, int, str]]:
    """The gateway's own books: what became of each payment, its amount and currency."""
    rows = await pool.fetch("select id, status, amount, currency from fake_gateway.payments")
    return {row["id"]: (row["status"], row["amount"], row["currency"]) for row in rows}


async def test_money_is_set_aside_then_taken_once(gateway: FakeGateway, pool: asyncpg.Pool) -> None:
    payment = uuid4()
    for _ in range(2):
        await gateway.authorise(payment, "tok_ok", 5000, "EUR")
    assert await books_of(pool) == {payment: ("authorised", 5000, "EUR")}
    for _ in range(2):
        await gateway.capture(payment)
    await gateway.authorise(payment, "tok_ok", 5000, "EUR")
    assert await books_of(pool) == {payment: ("captured", 5000, "EUR")}


async def test_a_slow_token_pays_as_well(
    gateway: FakeGateway, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeGateway, "SLOW_SECONDS", 0.01)
    payment = uuid4()
    await gateway.authorise(payment, "tok_slow", 5000, "EUR")
    assert await books_of(pool) == {payment: ("authorised", 5000, "EUR")}


async def test_a_declined_payment_stays_declined(gateway: FakeGateway, pool: asyncpg.Pool) -> None:
    payment = uuid4()
    for token in ("tok_declined", "tok_declined", "tok_ok"):
        with pytest.raises(PaymentDeclined):
            await gateway.authorise(payment, token, 5000, "EUR")
    with pytest.raises(Conflict):
        await gateway.capture(payment)
    assert await books_of(pool) == {payment: ("declined", 5000, "EUR")}


async def test_an_unknown_token_leaves_no_trace(gateway: FakeGateway, pool: asyncpg.Pool) -> None:
    with pytest.raises(Invalid, match="tok_ok"):
        await gateway.authorise(uuid4(), "tok_gold", 5000, "EUR")
    assert await books_of(pool) == {}


async def test_a_voided_payment_is_never_captured(gateway: FakeGateway, pool: asyncpg.Pool) -> None:
    payment = uuid4()
    await gateway.authorise(payment, "tok_ok", 5000, "EUR")
    for _ in range(2):
        await gateway.void(payment)
    with pytest.raises(Conflict):
        await gateway.capture(payment)
    assert (await books_of(pool))[payment][0] == "voided"


async def test_a_payment_voided_before_it_was_authorised_is_declined(gateway: FakeGateway, pool: asyncpg.Pool) -> None:
    payment = uuid4()
    await gateway.void(payment)
    with pytest.raises(PaymentDeclined):
        await gateway.authorise(payment, "tok_ok", 5000, "EUR")
    assert (await books_of(pool))[payment][0] == "voided"


async def test_what_was_captured_is_not_voided(gateway: FakeGateway, pool: asyncpg.Pool) -> None:
    payment = uuid4()
    await gateway.authorise(payment, "tok_ok", 5000, "EUR")
    await gateway.capture(payment)
    with pytest.raises(Conflict):
        await gateway.void(payment)
    assert (await books_of(pool))[payment][0] == "captured"


async def test_what_was_never_authorised_is_not_captured(gateway: FakeGateway) -> None:
    with pytest.raises(Conflict):
        await gateway.capture(uuid4())


async def test_a_gateway_that_does_not_answer_is_asked_again(home: Path) -> None:
    async with asyncpg.create_pool(f"postgresql:///postgres?host={home}", min_size=0) as nobody:
        gateway = FakeGateway(nobody)
        for asking in (gateway.authorise(uuid4(), "tok_ok", 1, "EUR"), gateway.capture(uuid4()), gateway.void(uuid4())):
            with pytest.raises(Unavailable):
                await asking


# Payments through the running services


class Till:
    """A buyer at the running orders service, and a look behind it."""

    def __init__(self, platform: Platform, pool: asyncpg.Pool, orders: ServiceProcess, ticket_id: UUID) -> None:
        self.orders = orders
        self._log = platform.event_log
        self._pool = pool
        self._ticket_id = ticket_id
        self._http = httpx.AsyncClient(base_url=orders.url, headers=ADA, timeout=20)

    async def place(self, hold: int) -> UUID:
        body = {"ticket_id": str(self._ticket_id), "quantity": 2, "hold_seconds": hold}
        placed = await self._http.post("/api/orders", json=body)
        assert placed.status_code == 201, placed.text
        return UUID(placed.json()["id"])

    async def pay(self, order_id: UUID, token: str, key: str | None = None) -> int:
        headers = {"Idempotency-Key": key} if key else {}
        paid = await self._http.post(f"/api/orders/{order_id}/payment", json={"token": token}, headers=headers)
        return paid.status_code

    async def cancel(self, order_id: UUID) -> int:
        return (await self._http.delete(f"/api/orders/{order_id}")).status_code

    async def events(self) -> list[BookEvent]:
        return [recorded.event for recorded in await self._log.read(f"orders.{self._ticket_id}")]  # type: ignore[misc]

    async def count(self, kind: type[BookEvent]) -> int:
        """How many events of this kind the order book has."""
        return sum(isinstance(event, kind) for event in await self.events())

    async def payments(self) -> list[str]:
        """What became of the payments that the gateway knows."""
        return sorted(status for status, _, _ in (await books_of(self._pool)).values())

    async def close(self) -> None:
        await self._http.aclose()


@pytest.fixture
async def till(platform: Platform, pool: asyncpg.Pool, home: Path) -> AsyncIterator[Till]:
    ticket_id = new_id()
    details = TicketDetails("Opening night", 2500, "EUR", 10, 10)
    await Aggregate(TICKETS, platform.event_log).handle(ticket_id, CreateTicket(ticket_id, "sam", details, now()))
    async with (
        ServiceProcess("expiration", platform.settings, home),
        ServiceProcess("orders", platform.settings, home) as orders,
    ):
        till = Till(platform, pool, orders, ticket_id)
        yield till
        await till.close()


async def test_a_sale_is_captured(till: Till, pool: asyncpg.Pool) -> None:
    order_id = await till.place(60)
    assert await till.pay(order_id, "tok_ok") == 200
    await eventually(till.payments, ["captured"])
    (payment,) = (await books_of(pool)).values()
    assert payment == ("captured", 5000, "EUR")


async def test_the_same_payment_again_answers_the_same_and_charges_once(till: Till) -> None:
    order_id = await till.place(60)
    answers = await asyncio.gather(*(till.pay(order_id, "tok_ok", key="k") for _ in range(4)))
    assert [*answers, await till.pay(order_id, "tok_ok", key="k")] == [200] * 5
    await eventually(till.payments, ["captured"])
    assert await till.count(OrderCompleted) == 1


async def test_after_a_declined_payment_another_may_pay(till: Till) -> None:
    order_id = await till.place(60)
    assert await till.pay(order_id, "tok_declined") == 402
    assert await till.pay(order_id, "tok_ok") == 200
    await eventually(till.payments, ["captured", "declined"])
    assert await till.count(PaymentRefused) == 1


async def test_a_payment_that_outlasts_the_reservation_is_voided(till: Till) -> None:
    order_id = await till.place(1)
    assert await till.pay(order_id, "tok_slow") == 409
    await eventually(till.payments, ["voided"])
    assert (await till.count(OrderCancelled), await till.count(OrderCompleted)) == (1, 0)


async def test_a_payment_of_an_order_that_its_buyer_cancels_meanwhile_is_voided(till: Till) -> None:
    order_id = await till.place(60)
    paying = asyncio.create_task(till.pay(order_id, "tok_slow"))
    await eventually(lambda: till.count(PaymentStarted), 1)
    assert await till.cancel(order_id) == 200
    assert await paying == 409
    await eventually(till.payments, ["voided"])


async def test_of_two_payments_at_the_same_time_one_is_captured_and_the_other_voided(till: Till) -> None:
    order_id = await till.place(60)
    answers = await asyncio.gather(*(till.pay(order_id, "tok_slow") for _ in range(2)))
    assert sorted(answers) == [200, 409]
    await eventually(till.payments, ["captured", "voided"])


async def test_a_payment_overtaken_by_a_faster_one_is_voided(till: Till) -> None:
    order_id = await till.place(60)
    slow = asyncio.create_task(till.pay(order_id, "tok_slow"))
    await eventually(lambda: till.count(PaymentStarted), 1)
    assert await till.pay(order_id, "tok_ok") == 200
    assert await slow == 409
    await eventually(till.payments, ["captured", "voided"])


async def test_the_same_key_with_another_token_leaves_no_payment_behind(till: Till) -> None:
    order_id = await till.place(60)
    slow = asyncio.create_task(till.pay(order_id, "tok_slow", key="k"))
    await eventually(lambda: till.count(PaymentStarted), 1)
    assert await till.pay(order_id, "tok_gold", key="k") == 422
    assert await till.cancel(order_id) == 200
    assert await slow == 409
    await eventually(till.payments, ["voided"])


async def test_a_crash_between_authorising_and_selling_leaves_nothing_charged(till: Till, nats: NatsServer) -> None:
    order_id = await till.place(8)
    paying = asyncio.create_task(till.pay(order_id, "tok_slow"))
    await eventually(lambda: till.count(PaymentStarted), 1)
    nats.kill()  # so that the sale cannot be appended once the payment is authorised
    await eventually(till.payments, ["authorised"])
    await till.orders.kill()
    with pytest.raises(httpx.TransportError):
        await paying
    await nats.start()
    await till.orders.start()
    await eventually(till.payments, ["voided"], within=60)
    assert (await till.count(OrderCancelled), await till.count(OrderCompleted)) == (1, 0)


async def test_a_crash_before_authorising_leaves_nothing_to_authorise(till: Till) -> None:
    order_id = await till.place(3)
    paying = asyncio.create_task(till.pay(order_id, "tok_slow", key="k"))
    await eventually(lambda: till.count(PaymentStarted), 1)
    await till.orders.kill()
    with pytest.raises(httpx.TransportError):
        await paying
    await till.orders.start()
    await eventually(till.payments, ["voided"], within=60)
    assert await till.pay(order_id, "tok_ok", key="k") == 409
    assert await till.payments() == ["voided"]
