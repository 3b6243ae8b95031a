"""The checker is only worth something if it turns red: every kind of violation, planted once."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import pytest

from common.aggregate import Aggregate
from common.clock import new_id, now
from common.errors import Conflict
from common.event_log import Draft
from common.events import (
    BookListing,
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
    TicketDetails,
    TicketUpdated,
    TicketWithdrawn,
    encode,
)
from common.projector import Projector
from common.runtime import Platform, running
from common.settings import Settings
from services.cli.system import READ_MODELS
from services.orders.domain import ORDERS, CancelOrder, PlaceOrder
from services.orders.listeners import KeepOrderBook
from services.tickets.domain import TICKETS, CreateTicket
from tests.harness import eventually
from tests.system.checker import Evidence, Fact, Promises, check, collect, tables_of

TICKET, ELSEWHERE = UUID(int=1), UUID(int=2)
SOLD, BACK, LATE, HELD = (UUID(int=n) for n in range(10, 14))
CARD, UNUSED, REFUSED, VOIDED = (UUID(int=n) for n in range(20, 24))
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
DEADLINE = NOON + timedelta(minutes=15)
AFTER = NOON + timedelta(minutes=16)
NO_GRACE = timedelta(0)

SHOW = TicketDetails("Opening night", 2500, "EUR", 6, 4)
LISTING = BookListing("Opening night", 2500, "EUR", 6, 4, True, 1)
SMALL = msgspec.structs.replace(SHOW, quantity=5)
SMALL_LISTING = msgspec.structs.replace(LISTING, capacity=5, version=2)


def created(order_id: UUID, quantity: int = 1, expires_at: datetime = DEADLINE, request: int = 0) -> OrderCreated:
    request_id = UUID(int=request) if request else None
    sold_as = ("Opening night", quantity, 2500, "EUR")
    return OrderCreated(order_id, TICKET, "ada", *sold_as, expires_at, NOON, request_id)


def requested(request: int, quantity: int) -> OrderRequested:
    return OrderRequested(UUID(int=request), "ada", TICKET, quantity, None, NOON)


def started(order_id: UUID, payment_id: UUID) -> PaymentStarted:
    return PaymentStarted(order_id, TICKET, payment_id, NOON)


class Story:
    """A good log: one order is sold, one given back, one expired, one is held; and all that follows from it."""

    def __init__(self) -> None:
        self.tickets: list[Event] = [
            TicketCreated(TICKET, "sam", SHOW, NOON),
            TicketUpdated(TICKET, "sam", SMALL, NOON),
            TicketCreated(ELSEWHERE, "sam", SHOW, NOON),
            TicketWithdrawn(ELSEWHERE, "sam", NOON),
        ]
        self.orders: list[Event] = [
            BookOpened(TICKET, LISTING, NOON),
            BookOpened(ELSEWHERE, LISTING, NOON),
            requested(30, 2),
            created(SOLD, 2, request=30),
            created(BACK, 2),
            requested(31, 1),
            created(LATE, request=31),
            BookRevised(TICKET, SMALL_LISTING, NOON),
            BookRevised(ELSEWHERE, msgspec.structs.replace(LISTING, on_sale=False, version=2), NOON),
            started(SOLD, UNUSED),
            started(SOLD, CARD),
            OrderCompleted(SOLD, TICKET, "ada", 2, CARD, 5000, "EUR", NOON, (UNUSED,)),
            started(BACK, REFUSED),
            PaymentRefused(BACK, TICKET, REFUSED, NOON),
            OrderCancelled(BACK, TICKET, "ada", 2, "buyer", NOON),
            created(HELD, 2, AFTER),
            started(LATE, VOIDED),
            OrderCancelled(LATE, TICKET, "ada", 1, "expired", DEADLINE, (VOIDED,)),
        ]
        self.expirations: list[Event] = [ExpirationCompleted(LATE, TICKET, DEADLINE, DEADLINE)]
        self.payments = {
            CARD: ("captured", 5000, "EUR"),
            UNUSED: ("voided", 5000, "EUR"),
            REFUSED: ("declined", 5000, "EUR"),
            VOIDED: ("voided", 2500, "EUR"),
        }
        self.promises = Promises(
            {SOLD: (TICKET, "ada", 2), BACK: (TICKET, "ada", 2), HELD: (TICKET, "ada", 2)}, {SOLD}, {BACK}
        )

    def evidence(self) -> Evidence:
        """The log, with versions where none is said, and what honest services would have made of it."""
        streams = {
            "TICKETS": facts("tickets", self.tickets),
            "ORDERS": facts("orders", self.orders),
            "EXPIRATION": facts("expiration", self.expirations),
        }
        ends = {name: (len(stream), stream[-1].id) for name, stream in streams.items()}
        checkpoints = {
            ("tickets", "TICKETS"): ends["TICKETS"],
            ("tickets", "ORDERS"): ends["ORDERS"],
            ("orders", "ORDERS"): ends["ORDERS"],
        }
        return Evidence(AFTER, streams, [], tables_of(streams), checkpoints, self.payments)


def facts(service: str, events: Sequence[Event]) -> list[Fact]:
    """Events as a stream has them."""
    versions: Counter[str] = Counter()
    stream: list[Fact] = []
    for sequence, event in enumerate(events, start=1):
        match event:
            case ExpirationCompleted():
                subject = f"{service}.{event.order_id}"
            case OrderRequested():
                subject = f"{service}.{event.request_id}"
            case _:
                subject = f"{service}.{event.ticket_id}"  # type: ignore[attr-defined]
        versions[subject] += 1
        if service != "expiration" and event.version == 0:
            event = msgspec.structs.replace(event, version=versions[subject])
        stream.append(Fact(subject, sequence, f"{service} {sequence}", event, event.at))  # type: ignore[attr-defined]
    return stream


def broken(evidence: Evidence, promises: Promises, grace: timedelta = NO_GRACE) -> set[str]:
    """The rules that the checker finds broken."""
    return {violation.partition(":")[0] for violation in check(evidence, promises, grace)}


def test_a_good_log_is_green() -> None:
    story = Story()
    assert check(story.evidence(), story.promises, NO_GRACE) == []


# In the log


def an_acknowledged_order_is_missing(story: Story) -> None:
    story.promises.placed[UUID(int=99)] = (TICKET, "ada", 1)


def an_acknowledged_order_has_another_quantity(story: Story) -> None:
    story.promises.placed[SOLD] = (TICKET, "ada", 1)


def an_order_that_was_paid_is_not_complete(story: Story) -> None:
    story.promises.paid.add(HELD)


def an_order_that_was_given_back_is_still_held(story: Story) -> None:
    story.promises.given_back.add(HELD)


def an_order_is_created_twice(story: Story) -> None:
    story.orders.append(created(HELD, 1, AFTER))


def a_request_makes_two_orders(story: Story) -> None:
    story.orders.append(created(UUID(int=98), 1, AFTER, request=31))


def an_order_is_not_what_its_request_asked_for(story: Story) -> None:
    story.orders[2] = requested(30, 1)


def a_key_is_used_twice(story: Story) -> None:
    story.orders.append(msgspec.structs.replace(requested(31, 1), version=1))


def a_seat_is_sold_twice(story: Story) -> None:
    story.orders.append(created(UUID(int=98), 2, AFTER))


def a_seat_is_sold_before_another_is_given_back(story: Story) -> None:
    story.orders.insert(7, created(UUID(int=98), 2, AFTER))
    story.orders.append(OrderCancelled(UUID(int=98), TICKET, "ada", 2, "buyer", NOON))


def a_withdrawn_ticket_is_sold(story: Story) -> None:
    story.orders.append(msgspec.structs.replace(created(UUID(int=98), 1, AFTER), ticket_id=ELSEWHERE))


def a_book_decides_by_a_capacity_that_nobody_said(story: Story) -> None:
    story.orders[7] = BookRevised(TICKET, msgspec.structs.replace(SMALL_LISTING, capacity=600), NOON)


def a_book_misses_a_withdrawal(story: Story) -> None:
    del story.orders[8]


def an_order_ends_twice(story: Story) -> None:
    story.orders.append(OrderCancelled(BACK, TICKET, "ada", 0, "buyer", NOON))


def a_complete_order_is_cancelled(story: Story) -> None:
    story.orders.append(OrderCancelled(SOLD, TICKET, "ada", 2, "seller", NOON))


def something_happens_after_the_end(story: Story) -> None:
    story.orders.append(started(LATE, UUID(int=97)))


def an_order_is_held_too_long(story: Story) -> None:
    story.orders[15] = created(HELD, 2, AFTER - timedelta(microseconds=1))


def an_order_expires_early(story: Story) -> None:
    story.orders[-1] = OrderCancelled(LATE, TICKET, "ada", 1, "expired", DEADLINE - timedelta(microseconds=1))


def an_expiry_is_told_early(story: Story) -> None:
    story.expirations[0] = ExpirationCompleted(LATE, TICKET, DEADLINE, DEADLINE - timedelta(microseconds=1))


def an_expiry_is_told_twice(story: Story) -> None:
    story.expirations.append(ExpirationCompleted(LATE, TICKET, DEADLINE, AFTER))


def an_expiry_has_another_deadline(story: Story) -> None:
    story.expirations[0] = ExpirationCompleted(LATE, TICKET, AFTER, AFTER)


def an_order_expires_that_nobody_told(story: Story) -> None:
    story.expirations[0] = ExpirationCompleted(HELD, TICKET, AFTER, AFTER)


def a_version_is_given_twice(story: Story) -> None:
    story.orders[4] = msgspec.structs.replace(story.orders[4], version=2)


def a_sale_is_not_captured(story: Story) -> None:
    story.payments[CARD] = ("authorised", 5000, "EUR")


def a_sale_has_no_payment(story: Story) -> None:
    del story.payments[CARD]


def another_amount_is_captured(story: Story) -> None:
    story.payments[CARD] = ("captured", 2500, "EUR")


def a_payment_of_a_cancelled_order_is_captured(story: Story) -> None:
    story.payments[VOIDED] = ("captured", 2500, "EUR")


def a_second_payment_of_a_sale_is_captured(story: Story) -> None:
    story.payments[UNUSED] = ("captured", 5000, "EUR")


def a_payment_of_a_cancelled_order_is_still_set_aside(story: Story) -> None:
    story.payments[VOIDED] = ("authorised", 2500, "EUR")


def a_payment_is_not_in_the_log(story: Story) -> None:
    story.payments[UUID(int=96)] = ("authorised", 2500, "EUR")


@pytest.mark.parametrize(
    ("plant", "rules"),
    [
        (an_acknowledged_order_is_missing, {"acknowledged_orders_exist_once"}),
        (an_acknowledged_order_has_another_quantity, {"acknowledged_orders_exist_once"}),
        (an_order_that_was_paid_is_not_complete, {"acknowledged_orders_exist_once"}),
        (an_order_that_was_given_back_is_still_held, {"acknowledged_orders_exist_once"}),
        (an_order_is_created_twice, {"acknowledged_orders_exist_once", "orders_are_created_once"}),
        (a_request_makes_two_orders, {"orders_are_created_once"}),
        (an_order_is_not_what_its_request_asked_for, {"orders_are_created_once"}),
        (a_key_is_used_twice, {"versions_count_up"}),
        (a_seat_is_sold_twice, {"nothing_is_oversold"}),
        (a_seat_is_sold_before_another_is_given_back, {"nothing_is_oversold"}),
        (a_withdrawn_ticket_is_sold, {"nothing_is_oversold"}),
        (a_book_decides_by_a_capacity_that_nobody_said, {"books_follow_the_listings"}),
        (a_book_misses_a_withdrawal, {"books_follow_the_listings"}),
        (an_order_ends_twice, {"orders_end_once_or_are_held"}),
        (a_complete_order_is_cancelled, {"orders_end_once_or_are_held"}),
        (something_happens_after_the_end, {"orders_end_once_or_are_held"}),
        (an_order_is_held_too_long, {"orders_end_once_or_are_held"}),
        (an_order_expires_early, {"nothing_expires_early"}),
        (an_expiry_is_told_early, {"nothing_expires_early"}),
        (an_expiry_is_told_twice, {"expiries_are_told_once"}),
        (an_expiry_has_another_deadline, {"expiries_are_told_once"}),
        (an_order_expires_that_nobody_told, {"expiries_are_told_once"}),
        (a_version_is_given_twice, {"versions_count_up"}),
        (a_sale_is_not_captured, {"payments_match_sales"}),
        (a_sale_has_no_payment, {"payments_match_sales"}),
        (another_amount_is_captured, {"payments_match_sales"}),
        (a_payment_of_a_cancelled_order_is_captured, {"payments_match_sales"}),
        (a_second_payment_of_a_sale_is_captured, {"payments_match_sales"}),
        (a_payment_of_a_cancelled_order_is_still_set_aside, {"payments_match_sales"}),
        (a_payment_is_not_in_the_log, {"payments_match_sales"}),
    ],
)
def test_what_is_wrong_in_the_log_is_found(plant: Callable[[Story], None], rules: set[str]) -> None:
    story = Story()
    plant(story)
    assert broken(story.evidence(), story.promises) == rules


def test_grace_lets_an_order_be_held_a_little_longer() -> None:
    story = Story()
    an_order_is_held_too_long(story)
    assert broken(story.evidence(), story.promises, timedelta(seconds=1)) == set()


# Around the log


def a_row_is_stale(evidence: Evidence) -> None:
    evidence.tables.orders[SOLD] = (*evidence.tables.orders[SOLD][:-4], "awaiting_payment", 7, None, None)


def a_row_is_missing(evidence: Evidence) -> None:
    del evidence.tables.orders[HELD]


def a_row_is_of_no_order(evidence: Evidence) -> None:
    evidence.tables.orders[UUID(int=99)] = evidence.tables.orders[HELD]


def a_listing_is_stale(evidence: Evidence) -> None:
    evidence.tables.tickets[TICKET] = evidence.tables.tickets[ELSEWHERE]


def seats_are_counted_twice(evidence: Evidence) -> None:
    evidence.tables.taken[TICKET] += 1


def a_projection_is_behind(evidence: Evidence) -> None:
    evidence.checkpoints = {**evidence.checkpoints, ("orders", "ORDERS"): (1, "orders 1")}


def a_listener_gave_up(evidence: Evidence) -> None:
    evidence.dead = ["orders-keep-book gave up on tickets.1: KeyError: 1"]


def an_event_is_stored_twice(evidence: Evidence) -> None:
    told = evidence.streams["TICKETS"]
    evidence.streams = {**evidence.streams, "TICKETS": [msgspec.structs.replace(told[0], id=told[1].id), *told[1:]]}


def a_stream_has_a_hole(evidence: Evidence) -> None:
    told = evidence.streams["EXPIRATION"]
    evidence.streams = {**evidence.streams, "EXPIRATION": [msgspec.structs.replace(told[0], sequence=2)]}


def an_event_is_on_the_subject_of_another(evidence: Evidence) -> None:
    told = evidence.streams["TICKETS"]
    strayed = msgspec.structs.replace(told[2], subject=f"tickets.{UUID(int=3)}")
    back = msgspec.structs.replace(told[3], subject=strayed.subject)
    evidence.streams = {**evidence.streams, "TICKETS": [*told[:2], strayed, back]}


def the_server_stored_an_expiry_too_soon(evidence: Evidence) -> None:
    (told,) = evidence.streams["EXPIRATION"]
    early = msgspec.structs.replace(told, stored=DEADLINE - timedelta(seconds=1))
    evidence.streams = {**evidence.streams, "EXPIRATION": [early]}


@pytest.mark.parametrize(
    ("plant", "rule"),
    [
        (a_row_is_stale, "read_models_equal_the_log"),
        (a_row_is_missing, "read_models_equal_the_log"),
        (a_row_is_of_no_order, "read_models_equal_the_log"),
        (a_listing_is_stale, "read_models_equal_the_log"),
        (seats_are_counted_twice, "read_models_equal_the_log"),
        (a_projection_is_behind, "checkpoints_are_at_the_end"),
        (a_listener_gave_up, "nothing_is_dead"),
        (an_event_is_stored_twice, "events_are_stored_once"),
        (a_stream_has_a_hole, "events_are_stored_once"),
        (an_event_is_on_the_subject_of_another, "versions_count_up"),
        (the_server_stored_an_expiry_too_soon, "nothing_expires_early"),
    ],
)
def test_what_is_wrong_around_the_log_is_found(plant: Callable[[Evidence], None], rule: str) -> None:
    story = Story()
    evidence = story.evidence()
    plant(evidence)
    assert broken(evidence, story.promises) == {rule}


# On the real servers


@asynccontextmanager
async def projecting(platform: Platform) -> AsyncIterator[None]:
    """Run every projector; on leaving, wait until all have come to the end of their streams."""
    projectors = [
        Projector(model, stream, platform.event_log, platform.settings.database_url)
        for model in READ_MODELS.values()
        for stream in model.sources
    ]
    async with running(projectors):
        yield

        async def behind() -> bool:
            return "checkpoints_are_at_the_end" in broken(await collect(platform.settings), Promises())

        await eventually(behind, False)


async def one_seat(platform: Platform) -> UUID:
    """A ticket with one seat, and its open book."""
    ticket_id = new_id()
    details = TicketDetails("Opening night", 2500, "EUR", 1, 1)
    await Aggregate(TICKETS, platform.event_log).handle(ticket_id, CreateTicket(ticket_id, "sam", details, now()))
    await KeepOrderBook(Aggregate(ORDERS, platform.event_log), platform.event_log).catch_up(ticket_id)
    return ticket_id


def reserve() -> PlaceOrder:
    at = now()
    return PlaceOrder(new_id(), "ada", 1, at + timedelta(minutes=15), at)


async def test_two_guarded_writers_on_the_last_seat_are_green(platform: Platform, settings: Settings) -> None:
    async with projecting(platform):
        ticket_id = await one_seat(platform)
        writers = [Aggregate(ORDERS, platform.event_log) for _ in range(2)]
        for writer in writers:
            await writer.load(ticket_id)
        commands = [reserve() for _ in writers]
        outcomes = await asyncio.gather(
            *(writer.handle(ticket_id, command) for writer, command in zip(writers, commands, strict=True)),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 1
    promises = Promises(
        {
            command.order_id: (ticket_id, "ada", 1)
            for command, outcome in zip(commands, outcomes, strict=True)
            if not isinstance(outcome, BaseException)
        }
    )
    assert check(await collect(settings), promises, NO_GRACE) == []


async def test_two_writers_without_the_guard_turn_it_red(platform: Platform, settings: Settings) -> None:
    async with projecting(platform):
        ticket_id = await one_seat(platform)
        books = [await Aggregate(ORDERS, platform.event_log).load(ticket_id) for _ in range(2)]
        for book in books:
            (event,) = ORDERS.decide(reserve(), book.state)
            draft = Draft.of(msgspec.structs.replace(event, version=book.version + 1))
            subject = f"orders.{ticket_id}"
            await platform.client.jetstream().publish(subject, encode(draft.event), headers=draft.headers(subject))
    assert broken(await collect(settings), Promises()) == {"nothing_is_oversold", "versions_count_up"}


async def test_a_row_changed_behind_the_projector_turns_it_red(platform: Platform, settings: Settings) -> None:
    async with projecting(platform), platform.pool("orders") as pool:
        ticket_id = await one_seat(platform)
        orders, command = Aggregate(ORDERS, platform.event_log), reserve()
        await orders.handle(ticket_id, command)
        await orders.handle(ticket_id, CancelOrder(command.order_id, "buyer", now()))
        await orders.handle(ticket_id, reserve())
        await eventually(lambda: pool.fetchval("select count(*) from orders"), 2)
        await pool.execute("update orders set status = 'complete' where id = $1", command.order_id)
    assert broken(await collect(settings), Promises()) == {"read_models_equal_the_log"}


async def test_a_dead_letter_turns_it_red(platform: Platform, settings: Settings) -> None:
    headers = {"dead-listener": "orders-keep-book", "dead-subject": "tickets.1", "dead-error": "KeyError: 1"}
    await platform.client.jetstream().publish("dead.orders-keep-book", b"{}", headers=headers)
    assert check(await collect(settings), Promises(), NO_GRACE) == [
        "nothing_is_dead: orders-keep-book gave up on tickets.1: KeyError: 1"
    ]
