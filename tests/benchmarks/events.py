"""Events to measure with: orders, and the story of a sale."""

import random
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import islice
from uuid import UUID

import msgspec
from nats.aio.client import Client

from common.clock import new_id, now
from common.event_log import Draft
from common.events import (
    BookListing,
    BookOpened,
    Event,
    OrderCancelled,
    OrderCompleted,
    OrderCreated,
    OrderEvent,
    PaymentStarted,
    TicketCreated,
    TicketDetails,
    encode,
)
from common.group_commit import BATCH_LIMIT

SEED = 7
SEATS = 1_000_000_000
HOLD = timedelta(minutes=15)


def order(ticket_id: UUID, version: int = 1) -> OrderCreated:
    """An order for two seats."""
    at = now()
    return OrderCreated(new_id(), ticket_id, "buyer-1", "Opening night", 2, 2500, "EUR", at + HOLD, at, version=version)


def listed(ticket_id: UUID) -> TicketCreated:
    """A ticket with seats for everybody."""
    return TicketCreated(ticket_id, "sam", TicketDetails("Opening night", 2500, "EUR", SEATS, 10), now(), version=1)


def sale(events: int, tickets: int) -> Iterator[tuple[UUID, OrderEvent]]:
    """What orders tells while it sells: of ten orders six are paid, three expire, and one is still open at the end.

    Orders end in the order of their creation, when 5,000 others have come after them.
    """
    choose = random.Random(SEED)  # noqa: S311 (no secret)
    ids = [new_id() for _ in range(tickets)]
    versions = dict.fromkeys(ids, 1)

    def story() -> Iterator[OrderEvent]:
        for ticket_id in ids:
            yield BookOpened(ticket_id, BookListing("Opening night", 2500, "EUR", SEATS, 10, True, 1), now())
        created: deque[OrderCreated] = deque()
        while True:
            yield (new := order(choose.choice(ids)))
            created.append(new)
            if len(created) > 5_000:
                o = created.popleft()
                payment_id, end = new_id(), choose.random()
                if end < 0.6:
                    yield PaymentStarted(o.order_id, o.ticket_id, payment_id, now())
                    sold = (o.order_id, o.ticket_id, o.buyer_id, o.quantity)
                    yield OrderCompleted(*sold, payment_id, o.price * o.quantity, o.currency, now())
                elif end < 0.9:
                    yield OrderCancelled(o.order_id, o.ticket_id, o.buyer_id, o.quantity, "expired", o.expires_at)

    for event in islice(story(), events):
        yield event.ticket_id, msgspec.structs.replace(event, version=versions[event.ticket_id])
        versions[event.ticket_id] += 1


async def fill(client: Client, service: str, events: Iterable[tuple[UUID, Event]]) -> int:
    """Append events to a service's stream by atomic batches of 1,000; returns how many."""
    source = iter(events)
    count = 0
    while batch := list(islice(source, BATCH_LIMIT)):
        batch_id = str(new_id())
        for place, (aggregate_id, event) in enumerate(batch, start=1):
            subject = f"{service}.{aggregate_id}"
            headers = Draft.of(event).headers("/" + subject)
            headers |= {"Nats-Batch-Id": batch_id, "Nats-Batch-Sequence": str(place)}
            if place < len(batch):
                await client.publish(subject, encode(event), headers=headers)
        headers["Nats-Batch-Commit"] = "1"
        reply = await client.request(subject, encode(event), timeout=30, headers=headers)
        if b'"error"' in reply.data:
            raise RuntimeError(f"the log refused a batch: {reply.data.decode()}")
        count += len(batch)
    return count
