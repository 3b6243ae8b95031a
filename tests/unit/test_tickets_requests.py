"""Listings changed in bulk, on a log in memory: what that costs, and what a repeat does."""

from uuid import UUID

import msgspec
import pytest

from common.aggregate import Aggregate
from common.clock import new_id, now
from common.event_log import Recorded
from common.events import TicketDetails, TicketUpdated
from common.memory_log import MemoryLog
from common.requests.bulk import Chunk, Command, Done, each
from common.requests.tickets import TicketUpdate
from services.tickets.domain import TICKETS, CreateTicket, Tickets, UpdateTicket
from services.tickets.requests import BulkTickets

TICKET = UUID(int=1)
SHOW = TicketDetails("Opening night", 2500, "EUR", 100, 10)


class CountedLog(MemoryLog):
    """Counts how often it is read."""

    reads = 0

    async def read(self, subject: str, after: int = 0) -> list[Recorded]:
        self.reads += 1
        return await super().read(subject, after)


@pytest.fixture
def log() -> CountedLog:
    return CountedLog()


@pytest.fixture
async def tickets(log: CountedLog) -> Tickets:
    tickets: Tickets = Aggregate(TICKETS, log)
    await tickets.handle(TICKET, CreateTicket(TICKET, "sam", SHOW, now()))
    return tickets


def prices(count: int) -> Chunk:
    """Changes of one listing, each with another price."""
    payloads = [msgspec.json.encode(TicketUpdate(ticket_id=TICKET, price=n)) for n in range(1, count + 1)]
    return Chunk([Command(new_id(), "sam", msgspec.Raw(payload)) for payload in payloads])


async def changes(log: MemoryLog) -> list[int]:
    """The prices that the listing was changed to."""
    events = [recorded.event for recorded in await log.read(f"tickets.{TICKET}")]
    return [event.details.price for event in events if isinstance(event, TicketUpdated)]


async def test_many_changes_of_one_listing_do_not_read_its_history_each(log: CountedLog, tickets: Tickets) -> None:
    bulk, chunk = BulkTickets(tickets), prices(500)
    before = log.reads
    told = await each(chunk, TicketUpdate, bulk.update)
    again = await each(chunk, TicketUpdate, bulk.update)
    assert log.reads - before <= 2
    assert told.verdicts == again.verdicts == [Done(TICKET)] * 500
    assert await changes(log) == list(range(1, 501))


async def test_a_repeat_in_another_replica_changes_nothing_twice(log: CountedLog, tickets: Tickets) -> None:
    chunk = prices(500)
    first, rest = Chunk(chunk.commands[:200]), Chunk(chunk.commands[200:])
    await each(first, TicketUpdate, BulkTickets(tickets).update)  # and then its replica died
    other = BulkTickets(Aggregate(TICKETS, log))
    await each(chunk, TicketUpdate, other.update)
    await tickets.handle(TICKET, UpdateTicket(TICKET, "sam", {"price": 7777}, None, now()))
    for late in (first, rest, chunk):
        assert (await each(late, TicketUpdate, BulkTickets(tickets).update)).verdicts == [Done(TICKET)] * len(
            late.commands
        )
    assert await changes(log) == [*range(1, 501), 7777]
