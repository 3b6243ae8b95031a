"""An order book under any commands in any order, each delivered any number of times: what always holds."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from common.errors import DomainError
from common.events import (
    BookEvent,
    BookListing,
    BookOpened,
    BookRevised,
    BookSoldOut,
    OrderCancelled,
    OrderCompleted,
    OrderCreated,
    PaymentStarted,
)
from services.orders.domain import (
    ORDERS,
    Book,
    CancelOrder,
    CompleteOrder,
    KeepBook,
    OrderCommand,
    PlaceOrder,
    Reason,
    RefusePayment,
    StartPayment,
    StopSelling,
)
from tests.given import fold, recorded

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
HOLD = timedelta(minutes=15)
TICKET = UUID(int=1)


def decided_again(made: Sequence[BookEvent], book: Book) -> list[BookEvent]:
    """What the command that the first of these events tells of leads to."""
    assert ORDERS.asks
    command, *others = map(ORDERS.asks, made)
    assert others == [None] * len(others), "they only follow"
    return recorded(list(ORDERS.decide(command, book)), after=made[0].version - 1)


# Few of each, so that commands meet.
order_ids = st.builds(UUID, int=st.integers(100, 105))
payment_ids = st.builds(UUID, int=st.integers(200, 201))
moments = st.sampled_from([0, 5, 15, 20, 35]).map(lambda minutes: NOON + timedelta(minutes=minutes))
versions = st.integers(2, 6)
reasons: st.SearchStrategy[Reason] = st.sampled_from(["buyer", "seller", "expired"])
at_once = st.sampled_from([True, True, True, False])


class OrderBook(RuleBasedStateMachine):
    """Commands are made, and delivered then, later, again, or never; what they make is recorded."""

    commands = Bundle("commands")

    def __init__(self) -> None:
        super().__init__()
        self.book = ORDERS.initial
        self.events: list[BookEvent] = []
        self.effective: list[OrderCommand] = []

    @initialize(target=commands, capacity=st.integers(1, 8))
    def open(self, capacity: int) -> OrderCommand:
        listing = BookListing("Opening night", 100, "EUR", capacity, 4, True, 1)
        return self.now_or_later(KeepBook(TICKET, listing, NOON), at_once=True)

    def deliver(self, command: OrderCommand) -> None:
        before, capacity = self.book, self.capacity
        try:
            made = recorded(list(ORDERS.decide(command, before)), after=len(self.events))
        except DomainError:
            return  # nothing happened; the invariants look at what did
        assert not made or decided_again(made, before) == made
        self.events += made
        for event in made:
            self.book = ORDERS.evolve(self.book, event)
        if self.book.taken > before.taken:
            assert self.book.taken <= capacity
        if made:
            if not isinstance(command, StartPayment | RefusePayment):  # a refused payment may start again
                assert command not in self.effective, "a command had an effect twice"
            self.effective.append(command)
        assert list(ORDERS.decide(command, self.book)) == [], "a repeat made events"

    @property
    def orders(self) -> list[UUID]:
        """Orders in the book, the oldest first."""
        return [event.order_id for event in self.events if isinstance(event, OrderCreated)]

    @property
    def capacity(self) -> int:
        """Seats that may be taken, by the last listing recorded."""
        listings = [event.listing for event in self.events if isinstance(event, BookOpened | BookRevised)]
        return listings[-1].capacity if listings and listings[-1].on_sale else 0

    def now_or_later(self, command: OrderCommand, at_once: bool) -> OrderCommand:
        if at_once:
            self.deliver(command)
        return command

    @rule(target=commands, version=versions, capacity=st.integers(1, 12), most=st.integers(1, 6), at_once=at_once)
    def revise_capacity(self, version: int, capacity: int, most: int, at_once: bool) -> OrderCommand:
        listing = BookListing("Opening night", 100 * version, "EUR", capacity, most, True, version)
        return self.now_or_later(KeepBook(TICKET, listing, NOON), at_once)

    @rule(target=commands, version=versions, at_once=at_once)
    def withdraw(self, version: int, at_once: bool) -> OrderCommand:
        return self.now_or_later(StopSelling(version, NOON), at_once)

    @rule(
        target=commands,
        order_id=order_ids,
        buyer=st.sampled_from(["ada", "bob"]),
        quantity=st.integers(1, 6),
        at=moments,
        at_once=at_once,
    )
    def place(self, order_id: UUID, buyer: str, quantity: int, at: datetime, at_once: bool) -> OrderCommand:
        return self.now_or_later(PlaceOrder(order_id, buyer, quantity, at + HOLD, at), at_once)

    @precondition(lambda self: self.orders)
    @rule(target=commands, data=st.data(), payment_id=payment_ids, at=moments, at_once=at_once)
    def start_payment(self, data: st.DataObject, payment_id: UUID, at: datetime, at_once: bool) -> OrderCommand:
        return self.now_or_later(StartPayment(data.draw(st.sampled_from(self.orders)), payment_id, at), at_once)

    @precondition(lambda self: self.started())
    @rule(target=commands, data=st.data(), authorised=st.booleans(), at=moments, at_once=at_once)
    def hear_from_the_gateway(self, data: st.DataObject, authorised: bool, at: datetime, at_once: bool) -> OrderCommand:
        order_id, payment_id = data.draw(st.sampled_from(self.started()))
        answer = CompleteOrder if authorised else RefusePayment
        return self.now_or_later(answer(order_id, payment_id, at), at_once)

    @precondition(lambda self: self.orders)
    @rule(target=commands, data=st.data(), reason=reasons, at=moments, at_once=at_once)
    def cancel(self, data: st.DataObject, reason: Reason, at: datetime, at_once: bool) -> OrderCommand:
        return self.now_or_later(CancelOrder(data.draw(st.sampled_from(self.orders)), reason, at), at_once)

    @rule(command=commands)
    def deliver_again(self, command: OrderCommand) -> None:
        self.deliver(command)

    def started(self) -> list[tuple[UUID, UUID]]:
        """Orders and payments of which the gateway was told."""
        return [(event.order_id, event.payment_id) for event in self.events if isinstance(event, PaymentStarted)]

    @invariant()
    def taken_is_what_orders_that_are_not_cancelled_have(self) -> None:
        taken = sum(event.quantity for event in self.events if isinstance(event, OrderCreated))
        freed = sum(event.quantity for event in self.events if isinstance(event, OrderCancelled))
        assert self.book.taken == taken - freed
        assert self.book.taken == sum(o.quantity for o in self.book.orders.values() if o.status != "cancelled")

    @invariant()
    def every_order_begins_and_ends_at_most_once(self) -> None:
        begun = Counter(event.order_id for event in self.events if isinstance(event, OrderCreated))
        ended = Counter(event.order_id for event in self.events if isinstance(event, OrderCompleted | OrderCancelled))
        assert all(times == 1 for times in ended.values())
        assert all(times == 1 for times in begun.values())
        assert ended.keys() <= begun.keys()
        assert {order.id for order in self.book.orders.values() if order.is_over} == ended.keys()

    @invariant()
    def nothing_happens_to_an_order_after_its_end(self) -> None:
        ended: set[UUID] = set()
        for event in self.events:
            if isinstance(event, BookOpened | BookRevised | BookSoldOut):
                continue
            assert event.order_id not in ended
            if isinstance(event, OrderCompleted | OrderCancelled):
                ended.add(event.order_id)

    @invariant()
    def nothing_expires_early(self) -> None:
        for event in self.events:
            if isinstance(event, OrderCancelled) and event.reason == "expired":
                assert event.at >= self.book.order(event.order_id).expires_at

    @invariant()
    def every_payment_is_refused_bought_something_or_is_listed_for_voiding(self) -> None:
        for order in self.book.orders.values():
            started = {payment for order_id, payment in self.started() if order_id == order.id}
            assert set(order.payments) <= started
            for event in self.events:
                if isinstance(event, OrderCompleted | OrderCancelled) and event.order_id == order.id:
                    bought = {event.payment_id} if isinstance(event, OrderCompleted) else set()
                    assert set(event.unused_payments) | bought >= set(order.payments)
                    assert bought.isdisjoint(event.unused_payments)

    @invariant()
    def listings_only_become_newer(self) -> None:
        seen = [event.listing.version for event in self.events if isinstance(event, BookOpened | BookRevised)]
        assert seen == sorted(set(seen))

    @invariant()
    def the_recorded_events_make_the_same_book(self) -> None:
        assert fold(ORDERS, self.events) == self.book


TestOrderBook = OrderBook.TestCase
TestOrderBook.settings = settings(max_examples=300, stateful_step_count=50, deadline=None, print_blob=True)
