"""What has to be true of the log and of what was made from it, whatever was killed on the way.

It reads the servers only, one message at a time, and folds the log by itself: nothing here is shared with the services
but the shape of their events.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
import msgspec

from common.clock import now
from common.events import (
    BookOpened,
    BookRevised,
    Event,
    ExpirationCompleted,
    OrderCancelled,
    OrderCompleted,
    OrderCreated,
    OrderRequested,
    PaymentRefused,
    PaymentStarted,
    TicketCreated,
    TicketUpdated,
    TicketWithdrawn,
    decode,
)
from common.runtime import connect
from common.settings import Settings

STREAMS = ("TICKETS", "ORDERS", "EXPIRATION")
PROJECTIONS = (("tickets", "TICKETS"), ("tickets", "ORDERS"), ("orders", "ORDERS"))
READ_AT_ONCE = 200

T = TypeVar("T")
Row = tuple[object, ...]


class Fact(msgspec.Struct, frozen=True):
    """An event in the log, and when the server stored it."""

    subject: str
    sequence: int
    id: str
    event: Event
    stored: datetime


class Tables(msgspec.Struct):
    """The read models: rows by their id."""

    orders: dict[UUID, Row]
    tickets: dict[UUID, Row]
    taken: dict[UUID, int]


class Evidence(msgspec.Struct):
    """All that there is to look at, as of `at`."""

    at: datetime
    streams: Mapping[str, Sequence[Fact]]
    dead: Sequence[str]
    tables: Tables
    checkpoints: Mapping[tuple[str, str], tuple[int, str]]
    payments: Mapping[UUID, tuple[str, int, str]]
    """What the gateway has of each payment: status, amount, currency."""

    def facts(self, stream: str, *kinds: type[Event]) -> Iterator[tuple[Fact, Any]]:
        """The facts of these kinds, in order."""
        for fact in self.streams[stream]:
            if isinstance(fact.event, kinds):
                yield fact, fact.event

    def events(self, stream: str, *kinds: type[Event]) -> Iterator[Any]:
        """The events of these kinds, in order."""
        return (event for _, event in self.facts(stream, *kinds))


class Promises(msgspec.Struct):
    """What clients were answered: orders placed (ticket, buyer, quantity), paid and given back."""

    placed: dict[UUID, tuple[UUID, str, int]] = {}
    paid: set[UUID] = set()
    given_back: set[UUID] = set()


Rule = Callable[[Evidence, Promises, timedelta], Iterable[str]]


def check(evidence: Evidence, promises: Promises, grace: timedelta) -> list[str]:
    """Every violation, as `<rule>: <what is wrong>`. `grace`: how long past its deadline an order may still be open."""
    return [f"{rule.__name__}: {wrong}" for rule in RULES for wrong in rule(evidence, promises, grace)]


# The rules


def events_are_stored_once(evidence: Evidence, _: Promises, __: timedelta) -> Iterator[str]:
    """No hole in a stream, no event id twice."""
    for stream, facts in evidence.streams.items():
        if [fact.sequence for fact in facts] != list(range(1, len(facts) + 1)):
            yield f"stream {stream} has holes"
        yield from (
            f"event {event_id} is {times} times in {stream}" for event_id, times in twice(fact.id for fact in facts)
        )


def versions_count_up(evidence: Evidence, _: Promises, __: timedelta) -> Iterator[str]:
    """The events of each aggregate have versions 1, 2, 3..., and are on its subject."""
    for stream in ("TICKETS", "ORDERS"):
        versions: Counter[str] = Counter()
        for fact in evidence.streams[stream]:
            versions[fact.subject] += 1
            if fact.event.version != versions[fact.subject]:
                yield f"{fact.subject} has version {fact.event.version} in place {versions[fact.subject]}"
            event: Any = fact.event
            owner = event.request_id if isinstance(event, OrderRequested) else event.ticket_id
            if fact.subject != f"{stream.lower()}.{owner}":
                yield f"{fact.subject} holds an event of another ticket or request at {fact.sequence}"


def acknowledged_orders_exist_once(evidence: Evidence, promises: Promises, _: timedelta) -> Iterator[str]:
    """Every order that a client was told of was created as told, once, and became what the client was told."""
    created = defaultdict(list)
    for event in evidence.events("ORDERS", OrderCreated):
        created[event.order_id].append((event.ticket_id, event.buyer_id, event.quantity))
    for order_id, order in promises.placed.items():
        if created[order_id] != [order]:
            yield f"order {order_id} was acknowledged as {order}, the log has {created[order_id]}"
    complete = {event.order_id for event in evidence.events("ORDERS", OrderCompleted)}
    cancelled = {event.order_id for event in evidence.events("ORDERS", OrderCancelled)}
    yield from (f"order {order_id} was paid and is not complete" for order_id in promises.paid - complete)
    yield from (f"order {order_id} was given back and is not cancelled" for order_id in promises.given_back - cancelled)


def orders_are_created_once(evidence: Evidence, _: Promises, __: timedelta) -> Iterator[str]:
    """One creation for an order, one order for a request, and that which was asked for."""
    created = list(evidence.events("ORDERS", OrderCreated))
    yield from (
        f"order {order_id} was created {times} times" for order_id, times in twice(event.order_id for event in created)
    )
    requests = (event.request_id for event in created if event.request_id)
    yield from (f"request {request} made {times} orders" for request, times in twice(requests))
    asked = {e.request_id: (e.buyer_id, e.ticket_id, e.quantity) for e in evidence.events("ORDERS", OrderRequested)}
    for event in created:
        if event.request_id and asked.get(event.request_id) != (event.buyer_id, event.ticket_id, event.quantity):
            yield f"order {event.order_id} is not what request {event.request_id} asked for"


def nothing_is_oversold(evidence: Evidence, _: Promises, __: timedelta) -> Iterator[str]:
    """At every prefix of the log: no seat was reserved that capacity did not allow then."""
    capacity: dict[UUID, int] = {}
    taken: Counter[UUID] = Counter()
    for fact, event in evidence.facts("ORDERS", BookOpened, BookRevised, OrderCreated, OrderCancelled):
        match event:
            case BookOpened(ticket_id, listing) | BookRevised(ticket_id, listing):
                capacity[ticket_id] = listing.capacity if listing.on_sale else 0
            case OrderCreated():
                taken[event.ticket_id] += event.quantity
                if (held := taken[event.ticket_id]) > (most := capacity.get(event.ticket_id, 0)):
                    yield f"ticket {event.ticket_id} has {held} of {most} seats taken at {fact.sequence}"
            case OrderCancelled():
                taken[event.ticket_id] -= event.quantity


def books_follow_the_listings(evidence: Evidence, _: Promises, __: timedelta) -> Iterator[str]:
    """What a book decides by is what the seller said in that version of the listing, and in the end the newest."""
    said: dict[tuple[UUID, int], tuple[object, ...]] = {}
    newest: dict[UUID, int] = {}
    for listing in evidence.events("TICKETS", TicketCreated, TicketUpdated, TicketWithdrawn):
        key = (listing.ticket_id, listing.version)
        newest[listing.ticket_id] = listing.version
        if isinstance(listing, TicketWithdrawn):
            said[key] = (False,)
        else:
            d = listing.details
            said[key] = (True, d.title, d.price, d.currency, d.quantity, d.max_per_order)
    known: dict[UUID, int] = {}
    for event in evidence.events("ORDERS", BookOpened, BookRevised):
        b = event.listing
        decides_by = (True, b.title, b.price, b.currency, b.capacity, b.max_per_order) if b.on_sale else (False,)
        if said.get((event.ticket_id, b.version)) != decides_by:
            yield f"the book of {event.ticket_id} decides by {b}, which nobody said"
        known[event.ticket_id] = b.version
    yield from (
        f"the book of {ticket_id} knows version {known.get(ticket_id)} of the listing, which is at {version}"
        for ticket_id, version in newest.items()
        if known.get(ticket_id) != version
    )


def orders_end_once_or_are_held(evidence: Evidence, _: Promises, grace: timedelta) -> Iterator[str]:
    """Each order ends once, nothing happens to it before it begins or after its end, and none is held too long."""
    open_until: dict[UUID, datetime] = {}
    ended: set[UUID] = set()
    kinds = (OrderCreated, PaymentStarted, PaymentRefused, OrderCompleted, OrderCancelled)
    for fact, event in evidence.facts("ORDERS", *kinds):
        if isinstance(event, OrderCreated):
            open_until[event.order_id] = event.expires_at
        elif event.order_id in ended:
            yield f"order {event.order_id} is over, and {type(event).__name__} follows at {fact.sequence}"
        elif event.order_id not in open_until:
            yield f"order {event.order_id} does not exist, and {type(event).__name__} is at {fact.sequence}"
        if isinstance(event, OrderCompleted | OrderCancelled):
            ended.add(event.order_id)
    for order_id in open_until.keys() - ended:
        if evidence.at > open_until[order_id] + grace:
            yield f"order {order_id} is still held, {evidence.at - open_until[order_id]} after its deadline"


def nothing_expires_early(evidence: Evidence, _: Promises, __: timedelta) -> Iterator[str]:
    """Neither by the time in the event nor by the server's clock."""
    deadlines = {event.order_id: event.expires_at for event in evidence.events("ORDERS", OrderCreated)}
    told = evidence.facts("EXPIRATION", ExpirationCompleted)
    expired = (pair for pair in evidence.facts("ORDERS", OrderCancelled) if pair[1].reason == "expired")
    for fact, event in (*told, *expired):
        deadline = deadlines.get(event.order_id)
        if deadline is not None and min(event.at, fact.stored) < deadline:
            yield f"{type(event).__name__} of order {event.order_id} is {deadline - event.at} early"


def expiries_are_told_once(evidence: Evidence, _: Promises, __: timedelta) -> Iterator[str]:
    """One at most for an order, on its own subject, as its deadline was; and none expires without."""
    orders = {event.order_id: (event.ticket_id, event.expires_at) for event in evidence.events("ORDERS", OrderCreated)}
    told = list(evidence.facts("EXPIRATION", ExpirationCompleted))
    times = twice(event.order_id for _, event in told)
    yield from (f"the expiry of order {order_id} was told {count} times" for order_id, count in times)
    for fact, event in told:
        if fact.subject != f"expiration.{event.order_id}":
            yield f"the expiry of order {event.order_id} is on {fact.subject}"
        if orders.get(event.order_id) != (event.ticket_id, event.expires_at):
            yield f"the expiry of order {event.order_id} is not as the order was: {orders.get(event.order_id)}"
    heard = {event.order_id for _, event in told}
    for cancelled in evidence.events("ORDERS", OrderCancelled):
        if cancelled.reason == "expired" and cancelled.order_id not in heard:
            yield f"order {cancelled.order_id} expired, and nobody told"


def payments_match_sales(evidence: Evidence, _: Promises, __: timedelta) -> Iterator[str]:
    """Captured is what was sold, with its amount; what was started for an ended order and bought nothing is voided."""
    started = {event.payment_id: event.order_id for event in evidence.events("ORDERS", PaymentStarted)}
    sales = {event.payment_id: event for event in evidence.events("ORDERS", OrderCompleted)}
    ended = {event.order_id for event in evidence.events("ORDERS", OrderCompleted, OrderCancelled)}
    for payment_id, sale in sales.items():
        wanted = ("captured", sale.amount, sale.currency)
        if (found := evidence.payments.get(payment_id)) != wanted:
            yield f"order {sale.order_id} is complete, its payment {payment_id} is {found}, not {wanted}"
    for payment_id, (status, _amount, _currency) in evidence.payments.items():
        order_id = started.get(payment_id)
        if order_id is None:
            yield f"payment {payment_id} is {status}, and the log does not know it"
        elif status == "captured" and payment_id not in sales:
            yield f"payment {payment_id} of order {order_id} is captured, and bought nothing"
        elif status == "authorised" and order_id in ended:
            yield f"payment {payment_id} of order {order_id}, which is over, is still set aside"


def nothing_is_dead(evidence: Evidence, _: Promises, __: timedelta) -> Iterable[str]:
    """No listener gave up on an event."""
    return evidence.dead


def read_models_equal_the_log(evidence: Evidence, _: Promises, __: timedelta) -> Iterator[str]:
    """Row by row."""
    wanted, found = tables_of(evidence.streams), evidence.tables
    yield from differences("order", wanted.orders, found.orders)
    yield from differences("ticket", wanted.tickets, found.tickets)
    yield from differences("taken of ticket", wanted.taken, found.taken)


def checkpoints_are_at_the_end(evidence: Evidence, _: Promises, __: timedelta) -> Iterator[str]:
    """Every projection has come to the last event of its stream."""
    for schema, stream in PROJECTIONS:
        facts = evidence.streams[stream]
        wanted = (facts[-1].sequence, facts[-1].id) if facts else (0, "")
        if (found := evidence.checkpoints.get((schema, stream))) != wanted:
            yield f"{schema} has read {stream} up to {found}, it ends at {wanted}"


RULES: Sequence[Rule] = (
    events_are_stored_once,
    versions_count_up,
    acknowledged_orders_exist_once,
    orders_are_created_once,
    nothing_is_oversold,
    books_follow_the_listings,
    orders_end_once_or_are_held,
    nothing_expires_early,
    expiries_are_told_once,
    payments_match_sales,
    nothing_is_dead,
    read_models_equal_the_log,
    checkpoints_are_at_the_end,
)


def twice(ids: Iterable[T]) -> list[tuple[T, int]]:
    """What occurs more than once, and how often."""
    return [(each, times) for each, times in Counter(ids).items() if times > 1]


def differences(what: str, wanted: Mapping[UUID, object], found: Mapping[UUID, object]) -> Iterator[str]:
    """What the log says against what the tables say."""
    for row in wanted.keys() | found.keys():
        if wanted.get(row) != found.get(row):
            yield f"{what} {row} is {found.get(row)}, the log says {wanted.get(row)}"


# What the tables should say


def tables_of(streams: Mapping[str, Sequence[Fact]]) -> Tables:
    """The read models, folded from the log one event after the other."""
    tables = Tables({}, {}, {})
    for fact in streams["TICKETS"]:
        project_ticket(tables, fact.event)
    for fact in streams["ORDERS"]:
        project_order(tables, fact.event)
    return tables


def project_ticket(tables: Tables, event: Event) -> None:
    """(seller, title, price, currency, quantity, max_per_order, venue, starts_at, status, version, created_at)"""
    match event:
        case TicketCreated(ticket_id, seller, d, at) | TicketUpdated(ticket_id, seller, d, at):
            created_at = tables.tickets[ticket_id][-1] if ticket_id in tables.tickets else at
            listing = (seller, d.title, d.price, d.currency, d.quantity, d.max_per_order, d.venue, d.starts_at)
            tables.tickets[ticket_id] = (*listing, "on_sale", event.version, created_at)
        case TicketWithdrawn(ticket_id):
            row = tables.tickets[ticket_id]
            tables.tickets[ticket_id] = (*row[:-3], "withdrawn", event.version, row[-1])


def project_order(tables: Tables, event: Event) -> None:
    """(ticket, buyer, title, quantity, price, currency, expires_at, created_at, status, version, closed_at, reason)"""
    match event:
        case OrderCreated() as e:
            held = (e.ticket_id, e.buyer_id, e.title, e.quantity, e.price, e.currency, e.expires_at, e.at)
            tables.orders[e.order_id] = (*held, "created", e.version, None, None)
            tables.taken[e.ticket_id] = tables.taken.get(e.ticket_id, 0) + e.quantity
        case PaymentStarted() | PaymentRefused() as e:
            tables.orders[e.order_id] = (*tables.orders[e.order_id][:-4], "awaiting_payment", e.version, None, None)
        case OrderCompleted() as e:
            tables.orders[e.order_id] = (*tables.orders[e.order_id][:-4], "complete", e.version, e.at, None)
        case OrderCancelled() as e:
            tables.orders[e.order_id] = (*tables.orders[e.order_id][:-4], "cancelled", e.version, e.at, e.reason)
            tables.taken[e.ticket_id] -= e.quantity


# Collecting

SELECT_ORDERS = """
select id, ticket_id, buyer_id, title, quantity, price, currency, expires_at, created_at, status, version, closed_at,
       reason
from orders.orders
"""
SELECT_TICKETS = """
select id, seller_id, title, price, currency, quantity, max_per_order, venue, starts_at, status, version, created_at
from tickets.tickets
"""
SELECT_TAKEN = "select ticket_id, quantity from tickets.taken"
SELECT_PAYMENTS = "select id, status, amount, currency from fake_gateway.payments"
SELECT_CHECKPOINTS = """
select 'orders', stream, sequence, event_id from orders.checkpoint
union all
select 'tickets', stream, sequence, event_id from tickets.checkpoint
"""


async def collect(settings: Settings) -> Evidence:
    """Read it all from the servers."""
    async with connect(settings, "checker") as platform:
        js = platform.client.jetstream()

        async def fact(stream: str, sequence: int) -> Fact:
            message = await js.get_msg(stream, seq=sequence)
            headers = message.headers or {}
            event = decode(headers["ce-type"], message.data or b"")
            assert message.subject
            return Fact(message.subject, sequence, headers["ce-id"], event, msgspec.convert(message.time, datetime))

        async def letter(sequence: int) -> str:
            headers = (await js.get_msg("DEAD", seq=sequence)).headers or {}
            return f"{headers.get('dead-listener')} gave up on {headers.get('dead-subject')}: {headers['dead-error']}"

        streams: dict[str, list[Fact]] = {}
        for stream in STREAMS:
            facts = streams[stream] = []
            last = (await js.stream_info(stream)).state.last_seq
            for first in range(1, last + 1, READ_AT_ONCE):
                page = range(first, min(first + READ_AT_ONCE, last + 1))
                facts += await asyncio.gather(*(fact(stream, sequence) for sequence in page))
        dead = [await letter(n) for n in range(1, (await js.stream_info("DEAD")).state.last_seq + 1)]
    connection = await asyncpg.connect(settings.database_url)
    try:
        orders = {row[0]: tuple(row)[1:] for row in await connection.fetch(SELECT_ORDERS)}
        tickets = {row[0]: tuple(row)[1:] for row in await connection.fetch(SELECT_TICKETS)}
        taken = {row[0]: row[1] for row in await connection.fetch(SELECT_TAKEN)}
        payments = {row[0]: (row[1], row[2], row[3]) for row in await connection.fetch(SELECT_PAYMENTS)}
        checkpoints = {(row[0], row[1]): (row[2], row[3]) for row in await connection.fetch(SELECT_CHECKPOINTS)}
    finally:
        await connection.close()
    return Evidence(now(), streams, dead, Tables(orders, tickets, taken), checkpoints, payments)
