"""What a listing may do and become, as sentences."""

from datetime import UTC, datetime
from uuid import UUID

import msgspec
import pytest
from rpds import HashTrieSet

from common.errors import Conflict, NotFound, Stale
from common.events import TicketCreated, TicketDetails, TicketEvent, TicketUpdated, TicketWithdrawn
from services.tickets.domain import TICKETS, CreateTicket, Listing, TicketCommand, UpdateTicket, WithdrawTicket
from tests.given import Given

TICKET = UUID(int=1)
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
SHOW = TicketDetails("Opening night", 2500, "EUR", 10, 4, venue="Main hall")
CHEAPER = msgspec.structs.replace(SHOW, price=1900)

created = TicketCreated(TICKET, "sam", SHOW, NOON)
cheaper = TicketUpdated(TICKET, "sam", CHEAPER, NOON)
withdrawn = TicketWithdrawn(TICKET, "sam", NOON)


def given(*events: TicketEvent) -> Given[TicketCommand, Listing, TicketEvent]:
    return Given(TICKETS, *events)


def update(seen: int | None = None, seller: str = "sam", **changes: object) -> UpdateTicket:
    return UpdateTicket(TICKET, seller, changes, seen, NOON)


def test_a_seller_puts_tickets_on_sale() -> None:
    given().when(CreateTicket(TICKET, "sam", SHOW, NOON)).then(created)


@pytest.mark.parametrize("since", [(), (cheaper,), (withdrawn,)])
def test_the_same_listing_again_changes_nothing(since: tuple[TicketEvent, ...]) -> None:
    given(created, *since).when(CreateTicket(TICKET, "sam", SHOW, NOON)).then()


def test_a_change_tells_the_whole_listing() -> None:
    given(created).when(update(price=1900)).then(cheaper)


def test_a_change_may_take_an_optional_detail_away() -> None:
    nowhere = msgspec.structs.replace(SHOW, venue=None)
    given(created).when(update(venue=None)).then(TicketUpdated(TICKET, "sam", nowhere, NOON))


@pytest.mark.parametrize("changes", [{}, {"price": 2500}, {"price": 2500, "venue": "Main hall"}])
def test_a_change_that_changes_nothing_is_no_event(changes: dict[str, object]) -> None:
    given(created).when(UpdateTicket(TICKET, "sam", changes, None, NOON)).then()


def test_a_change_builds_on_the_one_before() -> None:
    bigger = msgspec.structs.replace(CHEAPER, quantity=20)
    given(created, cheaper).when(update(seen=2, quantity=20)).then(TicketUpdated(TICKET, "sam", bigger, NOON))


@pytest.mark.parametrize("seen", [None, 1])
@pytest.mark.parametrize("since", [(), (TicketUpdated(TICKET, "sam", SHOW, NOON),), (withdrawn,)])
def test_an_operation_that_comes_again_changes_nothing_whatever_happened_since(
    since: tuple[TicketEvent, ...], seen: int | None
) -> None:
    operation, other = UUID(int=2), UUID(int=3)
    done = msgspec.structs.replace(cheaper, operation_id=operation)
    again = UpdateTicket(TICKET, "sam", {"price": 1900}, seen, NOON, operation)
    given(created).when(again).then(done)
    given(created, done, *since).when(again).then()
    assert given(created, done, *since).state.done == HashTrieSet([operation])
    another = msgspec.structs.replace(again, changes={"price": 5}, seen=None, operation_id=other)
    fifth = TicketUpdated(TICKET, "sam", msgspec.structs.replace(SHOW, price=5), NOON, other)
    given(created, done).when(another).then(fifth)


def test_quantity_may_be_lowered_to_anything() -> None:
    small = msgspec.structs.replace(SHOW, quantity=1)
    given(created).when(update(quantity=1)).then(TicketUpdated(TICKET, "sam", small, NOON))


def test_who_saw_the_newest_version_may_change_it() -> None:
    given(created).when(update(seen=1, price=1900)).then(cheaper)


@pytest.mark.parametrize("seen", [1, 3])
def test_who_saw_another_version_may_not_change_it(seen: int) -> None:
    given(created, cheaper).when(update(seen=seen, price=1)).refused(Stale, f"version 2, you saw {seen}", version=2)


def test_a_withdrawn_listing_does_not_change_any_more() -> None:
    given(created, withdrawn).when(update(price=1900)).refused(Conflict, "withdrawn")


def test_who_saw_it_before_it_was_withdrawn_is_told_so() -> None:
    given(created, withdrawn).when(update(seen=1, price=1900)).refused(Stale, "version 2, you saw 1", version=2)


def test_a_seller_withdraws_a_listing() -> None:
    given(created).when(WithdrawTicket(TICKET, "sam", NOON)).then(withdrawn)


def test_a_listing_is_withdrawn_once() -> None:
    given(created, withdrawn).when(WithdrawTicket(TICKET, "sam", NOON)).then()


@pytest.mark.parametrize("command", [update(seller="eve", price=1), WithdrawTicket(TICKET, "eve", NOON)])
@pytest.mark.parametrize("events", [(created,), (created, withdrawn)])
def test_for_others_a_listing_is_as_if_it_were_not_there(
    command: TicketCommand, events: tuple[TicketEvent, ...]
) -> None:
    given(*events).when(command).refused(NotFound, f"You have no ticket {TICKET}", field="ticket_id", got=TICKET)


@pytest.mark.parametrize("command", [update(price=1), WithdrawTicket(TICKET, "sam", NOON)])
def test_nothing_can_be_done_with_a_listing_that_is_not_there(command: TicketCommand) -> None:
    given().when(command).refused(NotFound, f"You have no ticket {TICKET}", field="ticket_id", got=TICKET)


def test_a_listing_is_what_its_events_leave() -> None:
    assert given(created, cheaper).state == Listing(TICKET, "sam", CHEAPER, True, 2, created_at=NOON)
    assert given(created, cheaper, withdrawn).state == Listing(TICKET, "sam", CHEAPER, False, 3, created_at=NOON)
