"""Operations in bulk, from the batch service's kinds to the log of who owns what they are about."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from common.aggregate import Aggregate
from common.clock import new_id, now
from common.errors import Unavailable
from common.events import BookListing, TicketCreated, TicketUpdated
from common.requests import Requester, bulk
from common.requests.bulk import COMMANDS_LIMIT, SIZE_LIMIT, Chunk, Command, each
from common.requests.orders import OrderCancellation
from common.requests.tickets import NewTicket, TicketUpdate
from common.runtime import Platform, running
from common.settings import Settings
from common.telemetry import current_cause
from services.batch.kinds import Done, Refused, Task, TryAgain, Work
from services.batch.kinds_remote import CancelOrders, CreateTickets, UpdateTickets, answer
from services.orders import app as orders_app
from services.orders.domain import ORDERS, CompleteOrder, KeepBook, Orders, PlaceOrder, StartPayment
from services.orders.settings import OrdersSettings
from services.tickets import app as tickets_app
from services.tickets.domain import TICKETS, CreateTicket, Tickets, UpdateTicket
from services.tickets.requests import BulkTickets
from tests.facts import whole
from tests.harness import ServiceProcess, eventually

SHOW = NewTicket("Opening night", 2500, "EUR", 100)
CREATE, UPDATE, CANCEL = CreateTickets(), UpdateTickets(), CancelOrders()


@pytest.fixture
async def work(platform: Platform, settings: Settings) -> AsyncIterator[Work]:
    """What kinds work with, while the tickets and the orders service run."""
    ours = OrdersSettings(nats_url=settings.nats_url, database_url=settings.database_url)
    async with AsyncExitStack() as stack:
        tickets = await stack.enter_async_context(tickets_app.create_service(platform, settings))
        orders = await stack.enter_async_context(orders_app.create_service(platform, ours))
        await stack.enter_async_context(running([*tickets.workers, *orders.workers]))
        yield Work(requests=Requester(platform.client))


@pytest.fixture
def tickets(platform: Platform) -> Tickets:
    """Listings, as another replica has them."""
    return Aggregate(TICKETS, platform.event_log)


@pytest.fixture
def orders(platform: Platform) -> Orders:
    """Order books, as another replica has them."""
    return Aggregate(ORDERS, platform.event_log)


def listings(count: int) -> list[Task[NewTicket]]:
    """Operations that list tickets of Sam's."""
    return [Task(new_id(), "sam", msgspec.structs.replace(SHOW, title=f"Night {n}")) for n in range(1, count + 1)]


def change(user_id: str = "sam", **what: object) -> Task[TicketUpdate]:
    """An operation that changes a listing."""
    return Task(new_id(), user_id, TicketUpdate(**what))  # type: ignore[arg-type]  # fields by name


async def create(work: Work, operations: Sequence[Task[NewTicket]]) -> list[UUID]:
    """The ids of the tickets that operations made."""
    made: list[UUID] = []
    for start in range(0, len(operations), CREATE.limit):
        for told in await CREATE.execute_many(work, operations[start : start + CREATE.limit]):
            assert isinstance(told, Done)
            made.append(UUID(told.output))
    return made


async def test_2000_tickets_are_on_the_log_once_each_and_repeating_them_makes_nothing_new(
    work: Work, platform: Platform
) -> None:
    operations = listings(2000)
    made = await create(work, operations)

    recorded = await whole(platform.event_log, "TICKETS")
    created = {event.event.ticket_id: event for event in recorded if isinstance(event.event, TicketCreated)}
    assert len(recorded) == len(created) == 2000
    assert [(created[ticket].event.seller_id, created[ticket].event.details.title) for ticket in made] == [  # type: ignore[attr-defined]
        ("sam", f"Night {n}") for n in range(1, 2001)
    ]
    assert [created[ticket].cause.causation_id for ticket in made] == [str(task.id) for task in operations]

    assert await create(work, operations) == made
    assert (await platform.event_log.end("TICKETS")).sequence == 2000


async def test_the_same_operation_twice_at_the_same_time_makes_one_ticket(work: Work, platform: Platform) -> None:
    operations = listings(50)
    once, again = await asyncio.gather(create(work, operations), create(work, operations))
    assert once == again
    assert (await platform.event_log.end("TICKETS")).sequence == 50


async def test_an_operation_that_makes_no_sense_is_refused_and_the_others_are_done(
    work: Work, platform: Platform
) -> None:
    early = datetime.max.replace(tzinfo=UTC) - timedelta(hours=1)
    impossible = early.replace(tzinfo=datetime.fromisoformat("2000-01-01T00:00:00-12:00").tzinfo)
    bad = Task(new_id(), "sam", msgspec.structs.replace(SHOW, starts_at=impossible))
    costly = Task(new_id(), "sam", msgspec.structs.replace(SHOW, price=0))
    one, two = listings(2)

    told = await CREATE.execute_many(work, [one, bad, costly, two])

    assert [type(each) for each in told] == [Done, Refused, Refused, Done]
    assert "starts_at: Expected a time in the years 1 to 9999" in told[1].error  # type: ignore[union-attr]
    assert told[2] == Refused("price: Expected a whole number of at least 1")
    assert (await platform.event_log.end("TICKETS")).sequence == 2


async def test_changing_somebody_elses_listing_is_refused_and_the_others_are_done(work: Work, tickets: Tickets) -> None:
    one, two, three = await create(work, listings(3))
    unknown = new_id()

    told = await UPDATE.execute_many(
        work,
        [
            change(ticket_id=one, price=100, venue="Town hall"),
            change("eve", ticket_id=two, price=100),
            change(ticket_id=unknown, price=100),
            change(ticket_id=three, quantity=5, version=1),
        ],
    )

    assert list(told) == [
        Done(str(one)),
        Refused(f"You have no ticket {two} on sale."),
        Refused(f"You have no ticket {unknown} on sale."),
        Done(str(three)),
    ]
    details = [(await tickets.load(ticket)).state.details for ticket in (one, two, three)]
    assert [(d.price, d.venue, d.quantity) for d in details if d] == [
        (100, "Town hall", 100),
        (2500, None, 100),
        (2500, None, 5),
    ]


async def test_a_change_of_what_changed_meanwhile_is_refused(work: Work, tickets: Tickets) -> None:
    [ticket] = await create(work, listings(1))
    await tickets.handle(ticket, UpdateTicket(ticket, "sam", {"price": 1}, None, now()))

    [told] = await UPDATE.execute_many(work, [change(ticket_id=ticket, price=2, version=1)])

    assert told == Refused("The ticket has changed since you looked: it is at version 2, you saw 1.")


@pytest.mark.parametrize("version", [1, None])
async def test_a_repeated_change_does_not_undo_what_its_seller_changed_since(
    work: Work, tickets: Tickets, version: int | None
) -> None:
    [ticket] = await create(work, listings(1))
    operation = change(ticket_id=ticket, price=2, version=version)
    assert await UPDATE.execute_many(work, [operation]) == [Done(str(ticket))]
    await tickets.handle(ticket, UpdateTicket(ticket, "sam", {"price": 3}, None, now()))

    assert await UPDATE.execute_many(work, [operation]) == [Done(str(ticket))]

    listing = await tickets.load(ticket, fresh=True)
    assert (listing.version, listing.state.details and listing.state.details.price) == (3, 3)


async def test_a_change_to_what_the_listing_already_reads_is_done_whatever_version_was_seen(
    work: Work, tickets: Tickets
) -> None:
    [ticket] = await create(work, listings(1))
    operation = change(ticket_id=ticket, quantity=100, version=1)
    assert await UPDATE.execute_many(work, [operation]) == [Done(str(ticket))]  # and no event says so
    await tickets.handle(ticket, UpdateTicket(ticket, "sam", {"price": 3}, None, now()))

    assert await UPDATE.execute_many(work, [operation]) == [Done(str(ticket))]
    assert (await tickets.load(ticket, fresh=True)).version == 2


async def test_many_changes_of_one_listing_are_made_in_their_order(work: Work, platform: Platform) -> None:
    [ticket] = await create(work, listings(1))
    prices = [100 + n for n in range(200)]

    told = await UPDATE.execute_many(work, [change(ticket_id=ticket, price=price) for price in prices])

    assert set(told) == {Done(str(ticket))}
    events = [recorded.event for recorded in await platform.event_log.read(f"tickets.{ticket}")]
    assert [event.details.price for event in events if isinstance(event, TicketUpdated)] == prices


async def test_two_replicas_that_make_the_same_changes_at_the_same_time_make_each_once(
    platform: Platform, tickets: Tickets
) -> None:
    ticket, other = new_id(), Aggregate(TICKETS, platform.event_log)
    await tickets.handle(ticket, CreateTicket(ticket, "sam", SHOW.details(), now()))
    prices = list(range(1, 301))
    payloads = [msgspec.json.encode(TicketUpdate(ticket_id=ticket, price=price)) for price in prices]
    chunk = Chunk([Command(new_id(), "sam", msgspec.Raw(payload)) for payload in payloads])

    told = await asyncio.gather(*(each(chunk, TicketUpdate, BulkTickets(one).update) for one in (tickets, other) * 2))

    assert [verdicts.verdicts for verdicts in told] == [[bulk.Done(ticket)] * 300] * 4
    events = [recorded.event for recorded in await platform.event_log.read(f"tickets.{ticket}")]
    assert [event.details.price for event in events if isinstance(event, TicketUpdated)] == prices


async def book(orders: Orders, *buyers: str) -> tuple[UUID, list[UUID]]:
    """A ticket with an order of each buyer."""
    ticket = new_id()
    listing = BookListing("Opening night", 2500, "EUR", 100, 10, on_sale=True, version=1)
    await orders.handle(ticket, KeepBook(ticket, listing, now()))
    placed = [new_id() for _ in buyers]
    for order, buyer in zip(placed, buyers, strict=True):
        await orders.handle(ticket, PlaceOrder(order, buyer, 1, now() + timedelta(minutes=15), now()))
    return ticket, placed


def cancellation(buyer: str, ticket: UUID, order: UUID) -> Task[OrderCancellation]:
    return Task(new_id(), buyer, OrderCancellation(ticket, order))


async def test_buyers_cancel_their_own_orders_and_nobody_elses(work: Work, orders: Orders) -> None:
    ticket, (ada, bob) = await book(orders, "ada", "bob")
    elsewhere, [late] = await book(orders, "ada")
    unknown = new_id()
    operations = [
        cancellation("ada", ticket, ada),
        cancellation("ada", ticket, bob),
        cancellation("ada", ticket, unknown),
        cancellation("ada", unknown, ada),
        cancellation("ada", elsewhere, late),
    ]

    told = await CANCEL.execute_many(work, operations)

    assert list(told) == [
        Done(str(ada)),
        Refused(f"You have no order {bob} for ticket {ticket}."),
        Refused(f"You have no order {unknown} for ticket {ticket}."),
        Refused(f"You have no order {ada} for ticket {unknown}."),
        Done(str(late)),
    ]
    state = (await orders.load(ticket, fresh=True)).state
    assert [(state.order(order).status, state.order(order).reason) for order in (ada, bob)] == [
        ("cancelled", "buyer"),
        ("created", None),
    ]

    before = (await orders.load(ticket, fresh=True)).version
    assert await CANCEL.execute_many(work, operations) == told
    assert (await orders.load(ticket, fresh=True)).version == before


async def test_what_is_sold_is_not_cancelled(work: Work, orders: Orders) -> None:
    ticket, [order] = await book(orders, "ada")
    payment = new_id()
    await orders.handle(ticket, StartPayment(order, payment, now()))
    await orders.handle(ticket, CompleteOrder(order, payment, now()))

    [told] = await CANCEL.execute_many(work, [cancellation("ada", ticket, order)])

    assert told == Refused("The order is complete; what is sold cannot be cancelled.")


async def test_orders_placed_by_another_replica_since_the_book_was_read_can_be_cancelled(
    work: Work, orders: Orders
) -> None:
    ticket, [first] = await book(orders, "ada")
    assert await CANCEL.execute_many(work, [cancellation("ada", ticket, first)]) == [Done(str(first))]
    placed = [new_id() for _ in range(50)]
    for order in placed:
        await orders.handle(ticket, PlaceOrder(order, "ada", 1, now() + timedelta(minutes=15), now()))

    told = await CANCEL.execute_many(work, [cancellation("ada", ticket, order) for order in placed])

    assert list(told) == [Done(str(order)) for order in placed]
    assert (await orders.load(ticket, fresh=True)).state.taken == 0


class Note(msgspec.Struct, forbid_unknown_fields=True):
    """Something to be noted."""

    text: str


async def test_a_refusal_and_a_mistake_concern_one_command_of_a_chunk() -> None:
    good = b'{"text": "a"}'
    commands = [
        Command(new_id(), "sam", msgspec.Raw(payload))
        for payload in (b'{"texts": "a"}', good, b'{"text": ', good, good)
    ]

    async def do(command: Command, _: Note) -> UUID:
        assert current_cause().causation_id == str(command.operation_id)
        if command is commands[1]:
            raise Unavailable("Not now.")
        if command is commands[3]:
            raise RuntimeError("the password is swordfish")
        return command.operation_id

    told = await each(Chunk(commands), Note, do)

    assert told.verdicts == [
        bulk.Refused("texts: Unknown; there are text"),
        bulk.TryAgain("Not now."),
        bulk.Refused("the payload: Not JSON (Input data was truncated)"),
        bulk.TryAgain("This is our mistake; it was logged under the operation's id."),
        bulk.Done(commands[4].operation_id),
    ]
    assert [type(answer(verdict)) for verdict in told.verdicts] == [Refused, TryAgain, Refused, TryAgain, Done]


def test_chunks_are_small_enough_for_nats_and_leave_nothing_out() -> None:
    sizes = [10] * 1200 + [200_000, 200_000, 200_000, 600_000, 10]
    commands = [Command(new_id(), "sam", msgspec.Raw(b'"' + b"x" * (size - 2) + b'"')) for size in sizes]

    made = list(bulk.chunks(commands))

    assert [command for chunk in made for command in chunk.commands] == commands
    assert max(len(chunk.commands) for chunk in made) == COMMANDS_LIMIT
    large = [chunk for chunk in made if sum(len(command.payload) for command in chunk.commands) > SIZE_LIMIT]
    assert [len(chunk.commands) for chunk in large] == [1]
    assert all(len(msgspec.json.encode(chunk)) < 1_000_000 for chunk in made)


async def test_without_the_owning_service_operations_are_unavailable(platform: Platform) -> None:
    class Impatient(CreateTickets):
        timeout = 0.4

    with pytest.raises(Unavailable, match="Nobody answers for tickets"):
        await Impatient().execute_many(Work(requests=Requester(platform.client)), listings(1))


async def test_a_replica_that_is_stopped_in_the_middle_of_requests_loses_none(
    platform: Platform, home: Path, settings: Settings
) -> None:
    operations = listings(2000)
    parts = [operations[start : start + 50] for start in range(0, len(operations), 50)]
    work = Work(requests=Requester(platform.client))
    (home / "staying").mkdir()
    async with (
        ServiceProcess("tickets", settings, home) as stopping,
        ServiceProcess("tickets", settings, home / "staying"),
    ):
        working = [asyncio.create_task(create(work, part)) for part in parts]
        await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
        assert await stopping.stop() == 0
        made = [ticket for part in await asyncio.gather(*working) for ticket in part]
    assert len(set(made)) == 2000
    assert (await platform.event_log.end("TICKETS")).sequence == 2000


async def test_after_a_kill_in_the_middle_of_requests_the_same_operations_make_each_ticket_once(
    platform: Platform, home: Path, settings: Settings
) -> None:
    class Impatient(CreateTickets):
        timeout = 2

    operations = listings(2000)
    parts = [operations[start : start + 500] for start in range(0, len(operations), 500)]
    work = Work(requests=Requester(platform.client))

    async def something_is_there() -> bool:
        return (await platform.event_log.end("TICKETS")).sequence > 0

    async with ServiceProcess("tickets", settings, home) as service:
        working = [asyncio.create_task(Impatient().execute_many(work, part)) for part in parts]
        await eventually(something_is_there, wanted=True)
        await service.kill()
        told = await asyncio.gather(*working, return_exceptions=True)
        assert any(isinstance(each, Unavailable) for each in told)

        await service.start()
        made = [ticket for part in parts for ticket in await create(work, part)]

    recorded = await whole(platform.event_log, "TICKETS")
    assert Counter(event.event.ticket_id for event in recorded) == Counter(made)  # type: ignore[attr-defined]
    assert len(set(made)) == 2000
