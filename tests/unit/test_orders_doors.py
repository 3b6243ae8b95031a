"""What the orders service makes of the events it hears: its listeners, on a log in memory."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import pytest

from common.aggregate import Aggregate
from common.errors import Conflict, NotFound
from common.event_log import Draft
from common.events import (
    BookOpened,
    BookRevised,
    Event,
    ExpirationCompleted,
    OrderCancelled,
    OrderCompleted,
    OrderCreated,
    PaymentStarted,
    TicketCreated,
    TicketDetails,
    TicketUpdated,
    TicketWithdrawn,
)
from common.memory_log import MemoryLog
from services.orders.domain import ORDERS, CancelOrder, CompleteOrder, Orders, PlaceOrder, StartPayment
from services.orders.listeners import CancelExpiredOrder, KeepOrderBook

TICKET, ORDER, CARD = (UUID(int=n) for n in range(1, 4))
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
DEADLINE = NOON + timedelta(minutes=15)
SHOW = TicketDetails("Opening night", 2500, "EUR", 10, 4)
SMALL = msgspec.structs.replace(SHOW, quantity=1)

listed = TicketCreated(TICKET, "sam", SHOW, NOON, version=1)
shrunk = TicketUpdated(TICKET, "sam", SMALL, NOON, version=2)
withdrawn = TicketWithdrawn(TICKET, "sam", NOON, version=3)
time_is_over = ExpirationCompleted(ORDER, TICKET, DEADLINE, DEADLINE)
placed = PlaceOrder(ORDER, "ada", 2, DEADLINE, NOON)


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def orders(log: MemoryLog) -> Orders:
    return Aggregate(ORDERS, log)


@pytest.fixture
def books(orders: Orders, log: MemoryLog) -> KeepOrderBook:
    return KeepOrderBook(orders, log)


async def told(log: MemoryLog) -> list[type[Event]]:
    """The kinds of events in the order book."""
    return [type(recorded.event) for recorded in await log.read(f"orders.{TICKET}")]


async def tell(log: MemoryLog, *events: Event) -> None:
    """The tickets service appends these."""
    sequence = 0
    for event in events:
        sequence = await log.append(f"tickets.{TICKET}", [Draft.of(event)], expected=sequence)


async def test_a_listing_opens_a_book_and_a_change_revises_it(
    books: KeepOrderBook, orders: Orders, log: MemoryLog
) -> None:
    await books.on(listed)
    await books.on(shrunk)
    assert await told(log) == [BookOpened, BookRevised]
    assert (await orders.load(TICKET)).state.available == 1


async def test_listings_that_come_twice_and_in_the_wrong_order_leave_the_newest(
    books: KeepOrderBook, orders: Orders, log: MemoryLog
) -> None:
    for event in (shrunk, listed, shrunk, withdrawn, shrunk, listed, withdrawn):
        await books.on(event)
    assert await told(log) == [BookOpened, BookRevised]
    listing = (await orders.load(TICKET)).state.listing
    assert listing is not None
    assert (listing.version, listing.capacity, listing.on_sale) == (3, 1, False)


async def test_a_withdrawal_that_is_heard_before_its_listing_stops_selling_all_the_same(
    books: KeepOrderBook, orders: Orders, log: MemoryLog
) -> None:
    await tell(log, listed, shrunk, withdrawn)
    await books.on(withdrawn)
    await books.on(listed)
    await books.on(shrunk)
    with pytest.raises(Conflict, match="withdrawn"):
        await orders.handle(TICKET, placed)


async def test_a_book_that_is_not_open_yet_is_opened_from_the_listing_itself(
    books: KeepOrderBook, orders: Orders, log: MemoryLog
) -> None:
    await tell(log, listed, shrunk)
    await books.catch_up(TICKET)
    assert await told(log) == [BookOpened, BookRevised]
    with pytest.raises(Conflict, match="only 1 left"):
        await orders.handle(TICKET, placed)


async def test_an_open_book_is_left_as_it_is(books: KeepOrderBook, log: MemoryLog) -> None:
    await tell(log, listed, shrunk)
    await books.on(listed)
    await books.catch_up(TICKET)  # the change is for the listener
    assert await told(log) == [BookOpened]


async def test_a_ticket_that_is_not_there_opens_no_book(books: KeepOrderBook, orders: Orders, log: MemoryLog) -> None:
    with pytest.raises(NotFound, match=f"There is no ticket {TICKET}"):
        await books.catch_up(TICKET)
    with pytest.raises(NotFound):
        await orders.handle(TICKET, placed)
    assert await told(log) == []


async def test_an_open_order_is_cancelled_when_its_time_is_over(books: KeepOrderBook, orders: Orders) -> None:
    await books.on(listed)
    await orders.handle(TICKET, placed)
    await CancelExpiredOrder(orders).on(time_is_over)
    book = (await orders.load(TICKET)).state
    assert (book.order(ORDER).status, book.order(ORDER).reason, book.order(ORDER).closed_at) == (
        "cancelled",
        "expired",
        DEADLINE,
    )
    assert book.available == 10


async def test_an_expiry_that_is_heard_again_changes_nothing(
    books: KeepOrderBook, orders: Orders, log: MemoryLog
) -> None:
    await books.on(listed)
    await orders.handle(TICKET, placed)
    for _ in range(3):
        await CancelExpiredOrder(orders).on(time_is_over)
    assert await told(log) == [BookOpened, OrderCreated, OrderCancelled]


async def test_a_complete_order_is_not_cancelled_when_its_time_is_over(
    books: KeepOrderBook, orders: Orders, log: MemoryLog
) -> None:
    await books.on(listed)
    await orders.handle(TICKET, placed)
    await orders.handle(TICKET, StartPayment(ORDER, CARD, NOON))
    await orders.handle(TICKET, CompleteOrder(ORDER, CARD, NOON))
    await CancelExpiredOrder(orders).on(time_is_over)
    assert await told(log) == [BookOpened, OrderCreated, PaymentStarted, OrderCompleted]


async def test_an_order_that_its_buyer_cancelled_does_not_expire_as_well(
    books: KeepOrderBook, orders: Orders, log: MemoryLog
) -> None:
    await books.on(listed)
    await orders.handle(TICKET, placed)
    await orders.handle(TICKET, CancelOrder(ORDER, "buyer", NOON))
    await CancelExpiredOrder(orders).on(time_is_over)
    assert await told(log) == [BookOpened, OrderCreated, OrderCancelled]
    assert (await orders.load(TICKET)).state.order(ORDER).reason == "buyer"


async def test_an_expiry_of_an_order_that_is_not_there_is_an_error(books: KeepOrderBook, orders: Orders) -> None:
    await books.on(listed)
    with pytest.raises(NotFound):
        await CancelExpiredOrder(orders).on(time_is_over)


async def test_two_replicas_hear_the_same_events_and_tell_each_thing_once(log: MemoryLog) -> None:
    one, other = (Aggregate(ORDERS, log) for _ in range(2))
    for replica in (one, other):
        await KeepOrderBook(replica, log).on(listed)
    for replica in (one, other):
        await replica.handle(TICKET, placed)
    for replica in (other, one):
        await CancelExpiredOrder(replica).on(time_is_over)
    assert await told(log) == [BookOpened, OrderCreated, OrderCancelled]
