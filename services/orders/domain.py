"""What an order may do and become.

All orders for one ticket are one aggregate, its order book: a reservation has to see every other one. An order that is
asked for with an Idempotency-Key has one more, of its own: which key was used for which order.
"""

from datetime import datetime
from typing import Literal, assert_never
from uuid import UUID

import msgspec
from rpds import HashTrieMap

from common.aggregate import Aggregate, Decider
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

Status = Literal["created", "awaiting_payment", "complete", "cancelled"]
Reason = Literal["expired", "buyer", "seller"]


class Order(msgspec.Struct, frozen=True):
    """One order in a book. `price` is of one; `payments` were started, and not refused.

    It is `awaiting_payment` from the first payment started until it is over. `first_version` is that of its creation.
    """

    id: UUID
    ticket_id: UUID
    buyer_id: str
    title: str
    quantity: int
    price: int
    currency: str
    expires_at: datetime
    created_at: datetime
    first_version: int
    status: Status = "created"
    version: int = 0
    closed_at: datetime | None = None
    reason: Reason | None = None
    payment_id: UUID | None = None
    payments: tuple[UUID, ...] = ()

    @property
    def is_over(self) -> bool:
        return self.closed_at is not None

    @property
    def total(self) -> int:
        return self.price * self.quantity

    @property
    def as_placed(self) -> "Order":
        """The order as it was before anything happened to it."""
        return msgspec.structs.replace(
            self,
            status="created",
            version=self.first_version,
            closed_at=None,
            reason=None,
            payment_id=None,
            payments=(),
        )


class Book(msgspec.Struct, frozen=True):
    """All orders for one ticket. `taken` counts the seats reserved or sold, `sold` those that are paid."""

    ticket_id: UUID | None = None
    listing: BookListing | None = None
    taken: int = 0
    sold: int = 0
    orders: "HashTrieMap[UUID, Order]" = HashTrieMap()  # persistent: a state that was left behind is still whole

    @property
    def available(self) -> int:
        """Seats that can be reserved now; none when capacity was lowered below what is taken."""
        return max(0, self.listing.capacity - self.taken) if self.listing and self.listing.on_sale else 0

    def order(self, order_id: UUID) -> Order:
        """Raises NotFound."""
        if (order := self.orders.get(order_id)) is None:
            raise NotFound(f"There is no order {order_id}.")
        return order


class KeepBook(msgspec.Struct, frozen=True):
    """Decide by this listing from now on, unless a newer one is known."""

    ticket_id: UUID
    listing: BookListing
    at: datetime


class StopSelling(msgspec.Struct, frozen=True):
    """The listing was withdrawn, by its event `listing_version`."""

    listing_version: int
    at: datetime


class PlaceOrder(msgspec.Struct, frozen=True):
    """Reserve seats until `expires_at`. The same `order_id` again is the same order."""

    order_id: UUID
    buyer_id: str
    quantity: int
    expires_at: datetime
    at: datetime
    request_id: UUID | None = None


class StartPayment(msgspec.Struct, frozen=True):
    """The gateway is about to be asked to authorise `payment_id`."""

    order_id: UUID
    payment_id: UUID
    at: datetime


class RefusePayment(msgspec.Struct, frozen=True):
    """The gateway said no."""

    order_id: UUID
    payment_id: UUID
    at: datetime


class CompleteOrder(msgspec.Struct, frozen=True):
    """The gateway authorised `payment_id`: the seats are sold, if the order still holds them."""

    order_id: UUID
    payment_id: UUID
    at: datetime


class CancelOrder(msgspec.Struct, frozen=True):
    """Give the seats back, because time is up or somebody wants it."""

    order_id: UUID
    reason: Reason
    at: datetime


OrderCommand = KeepBook | StopSelling | PlaceOrder | StartPayment | RefusePayment | CompleteOrder | CancelOrder


def decide(command: OrderCommand, book: Book) -> list[BookEvent]:
    match command:
        case KeepBook(ticket_id, listing, at):
            if book.listing is None:
                return [BookOpened(ticket_id, listing, at)]
            return [BookRevised(ticket_id, listing, at)] if listing.version > book.listing.version else []
        case StopSelling(version, at):
            if book.ticket_id is None or book.listing is None:
                raise NotFound("The book is not open yet.")  # its listing is still on the way: the event comes again
            if version <= book.listing.version:
                return []
            withdrawn = msgspec.structs.replace(book.listing, on_sale=False, version=version)
            return [BookRevised(book.ticket_id, withdrawn, at)]
        case PlaceOrder(order_id, buyer_id, quantity, expires_at, at, request_id):
            if order_id in book.orders:
                return []
            ticket_id, listing = may_reserve(book, quantity)
            price = (listing.price, listing.currency)
            return [
                OrderCreated(order_id, ticket_id, buyer_id, listing.title, quantity, *price, expires_at, at, request_id)
            ]
        case StartPayment(order_id, payment_id, at):
            order = book.order(order_id)
            if (payment_id in order.payments and not order.is_over) or payment_id == order.payment_id:
                return []
            refuse_if_over(order)
            if at >= order.expires_at:
                raise Conflict("The time to pay this order is over.", expires_at=order.expires_at)
            return [PaymentStarted(order_id, order.ticket_id, payment_id, at)]
        case RefusePayment(order_id, payment_id, at):
            order = book.order(order_id)
            if order.is_over or payment_id not in order.payments:
                return []
            return [PaymentRefused(order_id, order.ticket_id, payment_id, at)]
        case CompleteOrder(order_id, payment_id, at):
            order = book.order(order_id)
            if payment_id == order.payment_id:
                return []
            refuse_if_over(order)
            unused = tuple(payment for payment in order.payments if payment != payment_id)
            sold = (order_id, order.ticket_id, order.buyer_id, order.quantity)
            completed = OrderCompleted(*sold, payment_id, order.total, order.currency, at, unused)
            return [completed, *sold_out(book, order.quantity, at)]
        case CancelOrder(order_id, reason, at):
            order = book.order(order_id)
            if order.status == "complete" and reason == "buyer":
                raise Conflict("The order is complete; what is sold cannot be cancelled.", order_status=order.status)
            if order.is_over:
                return []  # a redelivered cancel changes nothing
            if reason == "expired" and at < order.expires_at:
                raise Conflict(f"Order {order_id} may be held until {order.expires_at}.")
            freed = (order_id, order.ticket_id, order.buyer_id, order.quantity)
            return [OrderCancelled(*freed, reason, at, order.payments)]
        case _:
            assert_never(command)


def may_reserve(book: Book, quantity: int) -> tuple[UUID, BookListing]:
    """The ticket and its listing, if `quantity` of it may be reserved. Raises NotFound, Conflict."""
    if book.ticket_id is None or book.listing is None:
        raise NotFound("There is no such ticket.")
    listing = book.listing
    if not listing.on_sale:
        raise Conflict(f"{listing.title}: withdrawn from sale.", available=0)
    if quantity > listing.max_per_order:
        raise Conflict(
            f"quantity: at most {listing.max_per_order} in one order, got {quantity}.",
            max_per_order=listing.max_per_order,
            available=book.available,
        )
    if quantity > book.available:
        left = f"only {book.available} left" if book.available else "sold out"
        raise Conflict(f"{listing.title}: {left}.", available=book.available)
    return book.ticket_id, listing


def sold_out(book: Book, quantity: int, at: datetime) -> list[BookEvent]:
    """That nothing is left, if the sale of `quantity` more is the one that makes it so."""
    listing = book.listing
    if book.ticket_id is None or listing is None or not listing.on_sale:
        return []
    if book.sold < listing.capacity <= book.sold + quantity:
        return [BookSoldOut(book.ticket_id, listing.title, listing.capacity, at)]
    return []


def refuse_if_over(order: Order) -> None:
    """Raises Conflict when nothing can happen to the order any more."""
    if order.is_over:
        ended = "complete" if order.status == "complete" else f"cancelled ({order.reason})"
        raise Conflict(f"The order is {ended}.", order_status=order.status)


def evolve(book: Book, event: BookEvent) -> Book:
    match event:
        case BookOpened() | BookRevised():
            return msgspec.structs.replace(book, ticket_id=event.ticket_id, listing=event.listing)
        case BookSoldOut():
            return book
        case OrderCreated(order_id, ticket_id, buyer_id, title, quantity, price, currency, expires_at, at):
            held = (order_id, ticket_id, buyer_id, title, quantity, price, currency, expires_at, at)
            order = Order(*held, first_version=event.version)
            return after(book, order, event, taken=quantity)
        case PaymentStarted():
            order = book.orders[event.order_id]
            payments = (*order.payments, event.payment_id)
            return after(book, order, event, status="awaiting_payment", payments=payments)
        case PaymentRefused():
            order = book.orders[event.order_id]
            payments = tuple(payment for payment in order.payments if payment != event.payment_id)
            return after(book, order, event, payments=payments)
        case OrderCompleted():
            order = book.orders[event.order_id]
            book = msgspec.structs.replace(book, sold=book.sold + event.quantity)
            return after(book, order, event, status="complete", closed_at=event.at, payment_id=event.payment_id)
        case OrderCancelled():
            order = book.orders[event.order_id]
            seats = -order.quantity
            return after(book, order, event, taken=seats, status="cancelled", closed_at=event.at, reason=event.reason)
        case _:
            assert_never(event)


def after(book: Book, order: Order, event: BookEvent, taken: int = 0, **changes: object) -> Book:
    """The book after an event of one of its orders, which changed `changes` of it and took `taken` more seats."""
    order = msgspec.structs.replace(order, version=event.version, **changes)
    return msgspec.structs.replace(book, taken=book.taken + taken, orders=book.orders.insert(order.id, order))


def asks(event: BookEvent) -> OrderCommand | None:
    """The command that leads to an event."""
    match event:
        case BookOpened(ticket_id, listing, at):
            return KeepBook(ticket_id, listing, at)
        case BookRevised(ticket_id, listing, at):
            return KeepBook(ticket_id, listing, at) if listing.on_sale else StopSelling(listing.version, at)
        case OrderCreated(order_id, _, buyer_id, _, quantity, _, _, expires_at, at, request_id):
            return PlaceOrder(order_id, buyer_id, quantity, expires_at, at, request_id)
        case PaymentStarted(order_id, _, payment_id, at):
            return StartPayment(order_id, payment_id, at)
        case PaymentRefused(order_id, _, payment_id, at):
            return RefusePayment(order_id, payment_id, at)
        case OrderCompleted(order_id=order_id, payment_id=payment_id, at=at):
            return CompleteOrder(order_id, payment_id, at)
        case OrderCancelled(order_id=order_id, reason=reason, at=at):
            return CancelOrder(order_id, reason, at)
        case BookSoldOut():
            return None  # it comes with the sale of the last seat
        case _:
            assert_never(event)


ORDERS = Decider("orders", BookEvent, decide, evolve, initial=Book(), asks=asks)
Orders = Aggregate[OrderCommand, Book, BookEvent]


class RequestOrder(msgspec.Struct, frozen=True):
    """Use an Idempotency-Key for this order to be. The same again is a repeat."""

    request_id: UUID
    buyer_id: str
    ticket_id: UUID
    quantity: int
    hold_seconds: int | None
    at: datetime


def decide_request(command: RequestOrder, before: OrderRequested | None) -> list[OrderRequested]:
    wanted = (command.ticket_id, command.quantity, command.hold_seconds)
    if before is None:
        return [OrderRequested(command.request_id, command.buyer_id, *wanted, command.at)]
    if wanted != (before.ticket_id, before.quantity, before.hold_seconds):
        raise Invalid("Idempotency-Key: Used for another order; take a new one", field="Idempotency-Key")
    return []


def evolve_request(_: OrderRequested | None, event: OrderRequested) -> OrderRequested:
    return event


def asks_request(event: OrderRequested) -> RequestOrder:
    """The command that leads to an event."""
    wanted = (event.ticket_id, event.quantity, event.hold_seconds)
    return RequestOrder(event.request_id, event.buyer_id, *wanted, event.at)


ORDER_REQUESTS = Decider("orders", OrderRequested, decide_request, evolve_request, initial=None, asks=asks_request)
OrderRequests = Aggregate[RequestOrder, OrderRequested | None, OrderRequested]
