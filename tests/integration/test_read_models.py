"""Read models equal the fold of the log, whatever the history and however it is cut into batches."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from uuid import UUID

import pytest

from common.aggregate import Aggregate
from common.clock import new_id, now
from common.errors import DomainError
from common.events import ExpirationCompleted, TicketDetails
from common.projector import Projector
from common.runtime import Platform, running
from services.cli import system
from services.orders.domain import (
    ORDERS,
    CancelOrder,
    CompleteOrder,
    OrderCommand,
    PlaceOrder,
    Reason,
    RefusePayment,
    StartPayment,
)
from services.orders.listeners import CancelExpiredOrder, KeepOrderBook
from services.orders.read_model import orders as orders_of
from services.tickets.domain import TICKETS, CreateTicket, UpdateTicket, WithdrawTicket
from services.tickets.read_model import ticket as ticket_view
from tests.harness import eventually
from tests.system.checker import Evidence, Promises, checkpoints_are_at_the_end, collect, read_models_equal_the_log

STEPS = 400
NOTHING = (Promises(), timedelta(0))


class History:
    """Random things that happen to a few tickets."""

    def __init__(self, platform: Platform, seed: int) -> None:
        log = platform.event_log
        self.random = random.Random(seed)  # noqa: S311 (a history, no secret)
        self.tickets = Aggregate(TICKETS, log)
        self.orders = Aggregate(ORDERS, log)
        self.books = KeepOrderBook(self.orders, log)
        self.expiries = CancelExpiredOrder(self.orders)
        self.listed: list[UUID] = []
        self.placed: list[tuple[UUID, UUID]] = []
        self.payments: list[tuple[UUID, UUID, UUID]] = []

    async def happen(self, steps: int) -> None:
        await self.list_ticket()
        for _ in range(steps):
            step = self.random.choices(
                [self.list_ticket, self.change_ticket, self.withdraw_ticket, self.place, self.pay, self.end],
                weights=[2, 6, 1, 40, 25, 25],
            )[0]
            with suppress(DomainError):  # refused: nothing happened
                await step()

    async def list_ticket(self) -> None:
        ticket_id = new_id()
        venue = self.random.choice([None, "Main hall"])
        details = TicketDetails("Opening night", 2500, "EUR", self.random.randint(5, 40), 6, venue)
        await self.tickets.handle(ticket_id, CreateTicket(ticket_id, "sam", details, now()))
        await self.books.catch_up(ticket_id)
        self.listed.append(ticket_id)

    async def change_ticket(self) -> None:
        ticket_id = self.random.choice(self.listed)
        possible: list[dict[str, object]] = [
            {"quantity": self.random.randint(1, 40)},
            {"price": self.random.randint(1, 9000)},
            {"venue": None},
        ]
        changes = self.random.choice(possible)
        changed = await self.tickets.handle(ticket_id, UpdateTicket(ticket_id, "sam", changes, None, now()))
        for event in changed.events:
            await self.books.on(event)

    async def withdraw_ticket(self) -> None:
        ticket_id = self.random.choice(self.listed)
        for event in (await self.tickets.handle(ticket_id, WithdrawTicket(ticket_id, "sam", now()))).events:
            await self.books.on(event)

    async def place(self) -> None:
        ticket_id, order_id, at = self.random.choice(self.listed), new_id(), now()
        buyer = self.random.choice(["ada", "bob", "cleo"])
        request = self.random.choice([None, new_id()])
        hold = timedelta(seconds=self.random.randint(0, 900))
        command = PlaceOrder(order_id, buyer, self.random.randint(1, 6), at + hold, at, request)
        await self.orders.handle(ticket_id, command)
        self.placed.append((ticket_id, order_id))

    async def pay(self) -> None:
        ticket_id, order_id = self.random.choice(self.placed or [(self.listed[0], new_id())])
        payment_id = new_id()
        answer = self.random.choice([CompleteOrder, RefusePayment, None])
        commands: list[OrderCommand] = [StartPayment(order_id, payment_id, now())]
        if answer:
            commands.append(answer(order_id, payment_id, now()))
        for command in commands:
            await self.orders.handle(ticket_id, command)

    async def end(self) -> None:
        ticket_id, order_id = self.random.choice(self.placed or [(self.listed[0], new_id())])
        if self.random.random() < 0.5:
            order = (await self.orders.load(ticket_id)).state.order(order_id)
            at = order.expires_at
            await self.expiries.on(ExpirationCompleted(order_id, ticket_id, at, at))
        else:
            reason: Reason = self.random.choice(["buyer", "seller"])
            await self.orders.handle(ticket_id, CancelOrder(order_id, reason, now()))


@pytest.fixture(params=range(3))
def seed() -> int:
    """A new one each time; printed when the test fails."""
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"{seed=}")  # noqa: T201 (whoever reads a failure needs it)
    return seed


@asynccontextmanager
async def projecting(platform: Platform) -> AsyncIterator[None]:
    """Every projector runs."""
    url = platform.settings.database_url
    models = system.READ_MODELS.values()
    async with running(
        [Projector(model, stream, platform.event_log, url) for model in models for stream in model.sources]
    ):
        yield


async def caught_up(platform: Platform) -> Evidence:
    """What there is once the projectors have come to the end of the log."""

    async def behind() -> bool:
        return any(checkpoints_are_at_the_end(await collect(platform.settings), *NOTHING))

    await eventually(behind, False)
    return await collect(platform.settings)


async def test_they_equal_the_log_when_they_follow_it(platform: Platform, seed: int) -> None:
    async with projecting(platform):
        await History(platform, seed).happen(STEPS)
        evidence = await caught_up(platform)
    assert list(read_models_equal_the_log(evidence, *NOTHING)) == []
    assert len(evidence.tables.orders) > 5


async def test_they_equal_the_log_when_they_read_it_in_one_piece(platform: Platform, seed: int) -> None:
    await History(platform, seed).happen(STEPS)
    async with projecting(platform):
        evidence = await caught_up(platform)
    assert list(read_models_equal_the_log(evidence, *NOTHING)) == []
    assert len(evidence.tables.orders) > 5


async def test_they_equal_the_log_after_a_rebuild_while_it_grows(platform: Platform, seed: int) -> None:
    history = History(platform, seed)
    await history.happen(STEPS // 2)
    async with projecting(platform):
        going_on = asyncio.create_task(history.happen(STEPS // 2))
        for name in system.READ_MODELS:
            await system.rebuild(name, platform.settings, lambda _stream, _done, _total: None)
        await going_on
        evidence = await caught_up(platform)
    assert list(read_models_equal_the_log(evidence, *NOTHING)) == []


async def test_what_is_available_is_what_the_book_says(platform: Platform, seed: int) -> None:
    history = History(platform, seed)
    async with projecting(platform), platform.pool("tickets") as pool:
        await history.happen(STEPS)
        await caught_up(platform)
        for ticket_id in history.listed:
            view = await ticket_view(pool, ticket_id)
            book = (await history.orders.load(ticket_id)).state
            assert view.available == book.available


async def test_buyers_see_the_orders_of_the_book(platform: Platform, seed: int) -> None:
    history = History(platform, seed)
    async with projecting(platform), platform.pool("orders") as pool:
        await history.happen(STEPS)
        await caught_up(platform)
        books = [(await history.orders.load(ticket_id)).state for ticket_id in history.listed]
        for buyer in ("ada", "bob", "cleo"):
            mine = {order.id: order for book in books for order in book.orders.values() if order.buyer_id == buyer}
            seen = []
            page = await orders_of(pool, buyer, status=None, limit=7, cursor=None)
            while True:
                seen += page.items
                if page.next_cursor is None:
                    break
                page = await orders_of(pool, buyer, status=None, limit=7, cursor=page.next_cursor)
            assert [view.id for view in seen] == sorted(
                mine, key=lambda order_id: (mine[order_id].created_at, order_id), reverse=True
            )
            for view in seen:
                order = mine[view.id]
                assert (view.status, view.paying, view.total, view.version, view.closed_at) == (
                    order.status,
                    bool(order.payments) and not order.is_over,
                    order.total,
                    order.version,
                    order.closed_at,
                )
