"""What an order may do and become, as sentences."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest

from common.errors import Conflict, Invalid, NotFound
from common.events import (
    BookEvent,
    BookListing,
    BookOpened,
    BookRevised,
    BookSoldOut,
    OrderCancelled,
    OrderCompleted,
    OrderCreated,
    OrderRequested,
    PaymentRefused,
    PaymentStarted,
)
from services.orders.domain import (
    ORDER_REQUESTS,
    ORDERS,
    Book,
    CancelOrder,
    CompleteOrder,
    KeepBook,
    OrderCommand,
    PlaceOrder,
    Reason,
    RefusePayment,
    RequestOrder,
    StartPayment,
    StopSelling,
)
from tests.given import Given

TICKET, ORDER, OTHER, CARD, SECOND_CARD = (UUID(int=n) for n in range(1, 6))
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
SOON = NOON + timedelta(minutes=1)
DEADLINE = NOON + timedelta(minutes=15)
LATER = NOON + timedelta(hours=1)


def given(*events: BookEvent) -> Given[OrderCommand, Book, BookEvent]:
    return Given(ORDERS, *events)


def listing(capacity: int, version: int = 1, *, on_sale: bool = True) -> BookListing:
    return BookListing("Opening night", 2500, "EUR", capacity, max_per_order=4, on_sale=on_sale, version=version)


def opened(capacity: int) -> BookOpened:
    return BookOpened(TICKET, listing(capacity), NOON)


def revised(capacity: int, version: int = 2) -> BookRevised:
    return BookRevised(TICKET, listing(capacity, version), NOON)


def created_with(order_id: UUID, quantity: int, request_id: UUID | None = None) -> OrderCreated:
    sold_as = ("Opening night", quantity, 2500, "EUR")
    return OrderCreated(order_id, TICKET, "ada", *sold_as, DEADLINE, NOON, request_id)


def place(quantity: int, order_id: UUID = ORDER, request_id: UUID | None = None) -> PlaceOrder:
    return PlaceOrder(order_id, "ada", quantity, DEADLINE, NOON, request_id)


def sold_out(capacity: int) -> BookSoldOut:
    return BookSoldOut(TICKET, "Opening night", capacity, SOON)


def ask(**changes: Any) -> RequestOrder:
    return msgspec.structs.replace(RequestOrder(OTHER, "ada", TICKET, 2, 60, NOON), **changes)


def cancelled_for(reason: Reason, at: datetime = SOON, unused: tuple[UUID, ...] = ()) -> OrderCancelled:
    return OrderCancelled(ORDER, TICKET, "ada", 2, reason, at, unused)


def completed_with(payment_id: UUID, unused: tuple[UUID, ...] = ()) -> OrderCompleted:
    return OrderCompleted(ORDER, TICKET, "ada", 2, payment_id, 5000, "EUR", SOON, unused)


requested = OrderRequested(OTHER, "ada", TICKET, 2, 60, NOON)
withdrawn = BookRevised(TICKET, listing(10, 2, on_sale=False), NOON)
created = created_with(ORDER, 2)
paying = PaymentStarted(ORDER, TICKET, CARD, NOON)
paying_twice = PaymentStarted(ORDER, TICKET, SECOND_CARD, NOON)
refused = PaymentRefused(ORDER, TICKET, CARD, NOON)
completed = completed_with(CARD)
cancelled = cancelled_for("buyer")
expired = cancelled_for("expired", LATER)


# The listing of a book


def test_the_first_listing_opens_the_book() -> None:
    given().when(KeepBook(TICKET, listing(10), NOON)).then(opened(10))


def test_a_newer_listing_revises_the_book() -> None:
    given(opened(10)).when(KeepBook(TICKET, listing(8, 2), NOON)).then(revised(8))


def test_a_newer_listing_may_skip_versions() -> None:
    given(opened(10)).when(KeepBook(TICKET, listing(8, 7), NOON)).then(revised(8, 7))


@pytest.mark.parametrize("version", [1, 2])
def test_a_listing_that_is_not_newer_is_ignored(version: int) -> None:
    given(opened(10), revised(8)).when(KeepBook(TICKET, listing(10, version), LATER)).then()


def test_a_withdrawn_listing_stops_selling() -> None:
    given(opened(10)).when(StopSelling(2, NOON)).then(withdrawn)


def test_a_withdrawal_that_comes_again_changes_nothing() -> None:
    given(opened(10), withdrawn).when(StopSelling(2, LATER)).then()


def test_a_withdrawal_older_than_the_listing_is_ignored() -> None:
    given(opened(10), revised(8, 3)).when(StopSelling(2, NOON)).then()


def test_a_withdrawal_that_overtakes_the_listing_has_to_come_again() -> None:
    given().when(StopSelling(2, NOON)).refused(NotFound, "not open")


def test_a_change_that_comes_after_the_withdrawal_it_preceded_is_ignored() -> None:
    given(opened(10), BookRevised(TICKET, listing(10, 3, on_sale=False), NOON)).when(
        KeepBook(TICKET, listing(8, 2), NOON)
    ).then()


# Placing


def test_an_order_holds_seats_at_the_price_of_the_listing() -> None:
    given(opened(10)).when(place(2)).then(created)


def test_an_order_names_the_request_it_answers() -> None:
    given(opened(10)).when(place(2, request_id=OTHER)).then(created_with(ORDER, 2, request_id=OTHER))


def test_the_last_seats_can_be_reserved() -> None:
    given(opened(4), created).when(place(2, OTHER)).then(created_with(OTHER, 2))


def test_sold_out_tells_that_nothing_is_available() -> None:
    given(opened(2), created).when(place(1, OTHER)).refused(Conflict, "sold out", available=0)


def test_too_few_left_tells_how_many() -> None:
    given(opened(3), created).when(place(2, OTHER)).refused(Conflict, "only 1 left", available=1)


def test_nobody_reserves_more_than_one_order_may_have() -> None:
    given(opened(10)).when(place(5)).refused(Conflict, "at most 4 .* got 5", max_per_order=4, available=10)


def test_a_withdrawn_ticket_sells_nothing() -> None:
    given(opened(10), withdrawn).when(place(1)).refused(Conflict, "withdrawn", available=0)


def test_an_unknown_ticket_sells_nothing() -> None:
    given().when(place(1)).refused(NotFound, "no such ticket")


def test_capacity_below_what_is_taken_sells_nothing_more() -> None:
    given(opened(10), created, revised(1)).when(place(1, OTHER)).refused(Conflict, "sold out", available=0)


def test_capacity_below_what_is_taken_takes_nothing_away() -> None:
    given(opened(10), created, paying, revised(1)).when(CompleteOrder(ORDER, CARD, SOON)).then(completed, sold_out(1))


def test_seats_over_a_lowered_capacity_do_not_come_back_when_one_order_is_cancelled() -> None:
    other = created_with(OTHER, 2)
    given(opened(10), created, other, revised(2), cancelled).when(place(1, UUID(int=9))).refused(
        Conflict, "sold out", available=0
    )


def test_raised_capacity_sells_again() -> None:
    given(opened(2), created, revised(4)).when(place(2, OTHER)).then(created_with(OTHER, 2))


@pytest.mark.parametrize("ending", [cancelled, expired])
def test_a_cancelled_order_gives_its_seats_back(ending: OrderCancelled) -> None:
    given(opened(2), created, ending).when(place(2, OTHER)).then(created_with(OTHER, 2))


def test_a_complete_order_keeps_its_seats() -> None:
    given(opened(2), created, paying, completed).when(place(1, OTHER)).refused(Conflict, "sold out", available=0)


def test_an_order_keeps_the_price_it_was_placed_at() -> None:
    dearer = BookListing("Opening night", 9900, "EUR", 10, 4, True, 2)
    given(opened(10), created, BookRevised(TICKET, dearer, NOON), paying).when(CompleteOrder(ORDER, CARD, SOON)).then(
        completed
    )


@pytest.mark.parametrize("since", [(), (paying,), (paying, completed), (cancelled,), (revised(1),), (withdrawn,)])
def test_the_same_order_again_changes_nothing_whatever_became_of_it(since: tuple[BookEvent, ...]) -> None:
    given(opened(10), created, *since).when(place(2)).then()


def test_the_same_order_may_be_asked_for_again_later() -> None:
    minute = timedelta(minutes=1)
    given(opened(10), created).when(PlaceOrder(ORDER, "ada", 2, DEADLINE + minute, NOON + minute)).then()


def test_a_ticket_is_sold_out_when_the_last_of_it_is_paid_and_not_when_it_is_held() -> None:
    pay = CompleteOrder(ORDER, CARD, SOON)
    given(opened(4), created).when(place(2, OTHER)).then(created_with(OTHER, 2))
    given(opened(4), created, created_with(OTHER, 2), paying).when(pay).then(completed)
    given(opened(2), created, paying).when(pay).then(completed, sold_out(2))
    given(opened(10), created, paying, withdrawn).when(pay).then(completed)


def test_what_was_sold_out_is_so_again_when_more_was_offered_and_is_paid() -> None:
    more = BookRevised(TICKET, listing(4, 2), NOON)
    second = OrderCompleted(OTHER, TICKET, "ada", 2, SECOND_CARD, 5000, "EUR", SOON)
    before = (opened(2), created, paying, completed, sold_out(2), more, created_with(OTHER, 2))
    started = PaymentStarted(OTHER, TICKET, SECOND_CARD, SOON)
    given(*before, started).when(CompleteOrder(OTHER, SECOND_CARD, SOON)).then(second, sold_out(4))


def test_a_key_is_used_for_the_first_order_asked_for() -> None:
    Given(ORDER_REQUESTS).when(ask()).then(requested)


def test_the_same_request_again_is_a_repeat_whenever_it_comes() -> None:
    Given(ORDER_REQUESTS, requested).when(ask(at=LATER)).then()


@pytest.mark.parametrize("another", [{"ticket_id": OTHER}, {"quantity": 3}, {"hold_seconds": None}])
def test_a_key_that_was_used_is_not_for_another_order(another: dict[str, Any]) -> None:
    Given(ORDER_REQUESTS, requested).when(ask(**another)).refused(Invalid, "another order", field="Idempotency-Key")


@pytest.mark.parametrize("since", [(), (paying,), (paying, completed), (cancelled,)])
def test_an_order_can_be_told_as_it_was_placed(since: tuple[BookEvent, ...]) -> None:
    placed, now = given(opened(10), created).state, given(opened(10), created, *since).state
    assert now.order(ORDER).as_placed == placed.order(ORDER)


# Paying


def test_a_payment_is_told_before_it_is_authorised() -> None:
    given(opened(10), created).when(StartPayment(ORDER, CARD, NOON)).then(paying)


def test_a_payment_that_starts_again_changes_nothing() -> None:
    given(opened(10), created, paying).when(StartPayment(ORDER, CARD, SOON)).then()


def test_a_payment_that_bought_the_order_may_be_asked_for_again() -> None:
    given(opened(10), created, paying, completed).when(StartPayment(ORDER, CARD, LATER)).then()


def test_a_refused_payment_may_start_again() -> None:
    given(opened(10), created, paying, refused).when(StartPayment(ORDER, CARD, NOON)).then(paying)


def test_another_payment_may_start_beside_the_first() -> None:
    given(opened(10), created, paying).when(StartPayment(ORDER, SECOND_CARD, NOON)).then(paying_twice)


@pytest.mark.parametrize("at", [DEADLINE, LATER])
def test_no_payment_starts_once_the_time_is_over(at: datetime) -> None:
    given(opened(10), created).when(StartPayment(ORDER, CARD, at)).refused(
        Conflict, "time to pay .* over", expires_at=DEADLINE
    )


def test_no_payment_starts_for_a_cancelled_order() -> None:
    given(opened(10), created, expired).when(StartPayment(ORDER, CARD, NOON)).refused(
        Conflict, r"cancelled \(expired\)", order_status="cancelled"
    )


def test_no_second_payment_starts_for_a_complete_order() -> None:
    given(opened(10), created, paying, completed).when(StartPayment(ORDER, SECOND_CARD, NOON)).refused(
        Conflict, "complete", order_status="complete"
    )


def test_a_payment_that_had_started_does_not_start_again_once_the_order_is_over() -> None:
    given(opened(10), created, paying, cancelled).when(StartPayment(ORDER, CARD, NOON)).refused(
        Conflict, r"cancelled \(buyer\)", order_status="cancelled"
    )


def test_a_refusal_of_a_payment_is_told() -> None:
    given(opened(10), created, paying).when(RefusePayment(ORDER, CARD, NOON)).then(refused)


def test_a_refusal_that_comes_again_changes_nothing() -> None:
    given(opened(10), created, paying, refused).when(RefusePayment(ORDER, CARD, LATER)).then()


def test_a_refusal_of_a_payment_that_never_started_changes_nothing() -> None:
    given(opened(10), created).when(RefusePayment(ORDER, CARD, NOON)).then()


@pytest.mark.parametrize("ending", [completed_with(SECOND_CARD, (CARD,)), cancelled_for("buyer", SOON, (CARD,))])
def test_a_refusal_after_the_end_changes_nothing(ending: BookEvent) -> None:
    given(opened(10), created, paying, ending).when(RefusePayment(ORDER, CARD, LATER)).then()


def test_an_authorised_payment_buys_the_order() -> None:
    given(opened(10), created, paying).when(CompleteOrder(ORDER, CARD, SOON)).then(completed)


def test_completing_again_with_the_same_payment_changes_nothing() -> None:
    given(opened(10), created, paying, completed).when(CompleteOrder(ORDER, CARD, LATER)).then()


def test_completing_with_another_payment_is_refused_once_complete() -> None:
    given(opened(10), created, paying, paying_twice, completed).when(CompleteOrder(ORDER, SECOND_CARD, SOON)).refused(
        Conflict, "complete", order_status="complete"
    )


def test_a_sale_lists_the_other_payments_as_unused() -> None:
    given(opened(10), created, paying, paying_twice).when(CompleteOrder(ORDER, CARD, SOON)).then(
        completed_with(CARD, (SECOND_CARD,))
    )


def test_a_refused_payment_is_not_listed_as_unused() -> None:
    given(opened(10), created, paying, refused, paying_twice).when(CompleteOrder(ORDER, SECOND_CARD, SOON)).then(
        completed_with(SECOND_CARD)
    )


def test_who_pays_before_the_expiry_is_heard_has_bought() -> None:
    late = OrderCompleted(ORDER, TICKET, "ada", 2, CARD, 5000, "EUR", LATER)
    given(opened(10), created, paying).when(CompleteOrder(ORDER, CARD, LATER)).then(late)


def test_who_pays_after_the_expiry_is_heard_has_not_bought() -> None:
    given(opened(10), created, paying, cancelled_for("expired", LATER, (CARD,))).when(
        CompleteOrder(ORDER, CARD, LATER)
    ).refused(Conflict, r"cancelled \(expired\)", order_status="cancelled")


def test_a_withdrawn_ticket_may_still_be_paid() -> None:
    given(opened(10), created, paying, withdrawn).when(CompleteOrder(ORDER, CARD, SOON)).then(completed)


# Cancelling


@pytest.mark.parametrize("reason", ["buyer", "seller"])
def test_an_open_order_may_be_cancelled_at_any_time(reason: Reason) -> None:
    given(opened(10), created).when(CancelOrder(ORDER, reason, SOON)).then(cancelled_for(reason))


@pytest.mark.parametrize("at", [DEADLINE, LATER])
def test_an_open_order_expires_from_its_deadline_on(at: datetime) -> None:
    given(opened(10), created).when(CancelOrder(ORDER, "expired", at)).then(cancelled_for("expired", at))


def test_an_order_does_not_expire_early() -> None:
    early = DEADLINE - timedelta(microseconds=1)
    given(opened(10), created).when(CancelOrder(ORDER, "expired", early)).refused(Conflict, "may be held until")


def test_an_order_expires_while_it_is_being_paid_and_lists_what_was_started() -> None:
    given(opened(10), created, paying, paying_twice).when(CancelOrder(ORDER, "expired", LATER)).then(
        cancelled_for("expired", LATER, (CARD, SECOND_CARD))
    )


def test_a_cancelled_order_does_not_list_a_refused_payment() -> None:
    given(opened(10), created, paying, refused).when(CancelOrder(ORDER, "buyer", SOON)).then(cancelled)


def test_a_complete_order_does_not_expire() -> None:
    given(opened(10), created, paying, completed).when(CancelOrder(ORDER, "expired", LATER)).then()


def test_a_buyer_cannot_cancel_what_is_sold() -> None:
    given(opened(10), created, paying, completed).when(CancelOrder(ORDER, "buyer", SOON)).refused(
        Conflict, "cannot be cancelled", order_status="complete"
    )


@pytest.mark.parametrize("reason", ["buyer", "seller", "expired"])
@pytest.mark.parametrize("ending", [cancelled, expired])
def test_a_cancelled_order_is_not_cancelled_again(ending: OrderCancelled, reason: Reason) -> None:
    given(opened(10), created, ending).when(CancelOrder(ORDER, reason, LATER)).then()


@pytest.mark.parametrize(
    "command",
    [
        StartPayment(ORDER, CARD, NOON),
        RefusePayment(ORDER, CARD, NOON),
        CompleteOrder(ORDER, CARD, NOON),
        CancelOrder(ORDER, "buyer", NOON),
        CancelOrder(ORDER, "expired", LATER),
    ],
)
def test_nothing_can_be_done_with_an_order_that_is_not_there(command: OrderCommand) -> None:
    given(opened(10)).when(command).refused(NotFound, str(ORDER))


# What becomes of an order


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ((created,), "created"),
        ((created, paying), "awaiting_payment"),
        ((created, paying, refused), "awaiting_payment"),
        ((created, paying, completed), "complete"),
        ((created, paying, cancelled), "cancelled"),
        ((created, expired), "cancelled"),
    ],
)
def test_an_order_has_the_status_of_its_last_event(events: tuple[BookEvent, ...], status: str) -> None:
    assert given(opened(10), *events).state.order(ORDER).status == status


def test_an_order_carries_the_version_of_its_last_event_and_when_it_ended() -> None:
    book = given(opened(10), created, created_with(OTHER, 1), paying, completed, revised(8)).state
    assert (book.order(ORDER).version, book.order(OTHER).version) == (5, 3)
    assert (book.order(ORDER).closed_at, book.order(OTHER).closed_at) == (SOON, None)


def test_available_is_never_negative_and_nothing_when_withdrawn() -> None:
    assert given(opened(10), created).state.available == 8
    assert given(opened(10), created, revised(1)).state.available == 0
    assert given(opened(10), created, withdrawn).state.available == 0
    assert given().state.available == 0
