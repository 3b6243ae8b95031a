"""What the orders service tells: the order book of each ticket, with every order for it, and keys that were used."""

from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec

from common.events.base import Event, Person


class BookListing(msgspec.Struct, frozen=True):
    """What the order book needs to know of a listing, as of `version` of it."""

    title: str
    price: int
    currency: str
    capacity: int
    max_per_order: int
    on_sale: bool
    version: int


class BookOpened(Event, frozen=True, tag="book_opened"):
    """The orders service knows a listing and takes orders for it."""

    ticket_id: UUID
    listing: BookListing
    at: datetime


class BookRevised(Event, frozen=True, tag="book_revised"):
    """The listing changed. Fewer seats than are reserved sells nothing more and takes nothing away."""

    ticket_id: UUID
    listing: BookListing
    at: datetime


class OrderCreated(Event, frozen=True, tag="order_created"):
    """A buyer holds `quantity` seats until `expires_at`. `price` is of one, in minor units.

    `request_id` names the buyer's Idempotency-Key, if there was one.
    """

    order_id: UUID
    ticket_id: UUID
    buyer_id: Person
    title: str
    quantity: int
    price: int
    currency: str
    expires_at: datetime
    at: datetime
    request_id: UUID | None = None


class PaymentStarted(Event, frozen=True, tag="payment_started"):
    """The gateway is about to be asked. Told before it is, so that a crash leaves no payment that nobody knows of."""

    order_id: UUID
    ticket_id: UUID
    payment_id: UUID
    at: datetime


class PaymentRefused(Event, frozen=True, tag="payment_refused"):
    """The gateway said no; the order may be paid another way while it lasts."""

    order_id: UUID
    ticket_id: UUID
    payment_id: UUID
    at: datetime


class OrderCompleted(Event, frozen=True, tag="order_completed"):
    """A sale. `payment_id` is to be captured, and the `unused_payments` that were also started to be voided."""

    order_id: UUID
    ticket_id: UUID
    buyer_id: Person
    quantity: int
    payment_id: UUID
    amount: int
    currency: str
    at: datetime
    unused_payments: tuple[UUID, ...] = ()


class OrderCancelled(Event, frozen=True, tag="order_cancelled"):
    """A reservation ended without a sale. `unused_payments` were started and are to be voided."""

    order_id: UUID
    ticket_id: UUID
    buyer_id: Person
    quantity: int
    reason: Literal["expired", "buyer", "seller"]
    at: datetime
    unused_payments: tuple[UUID, ...] = ()


class OrderRequested(Event, frozen=True, tag="order_requested"):
    """A buyer used an Idempotency-Key for this order to be, also if it is refused: the first fact on its own subject.

    `request_id` names buyer and key; `hold_seconds` is what was asked for, if anything was.
    """

    request_id: UUID
    buyer_id: Person
    ticket_id: UUID
    quantity: int
    hold_seconds: int | None
    at: datetime


class BookSoldOut(Event, frozen=True, tag="book_sold_out"):
    """All of a ticket is paid for: told with the sale of the last of its `capacity` seats."""

    ticket_id: UUID
    title: str
    capacity: int
    at: datetime


BookEvent = (
    BookOpened
    | BookRevised
    | OrderCreated
    | PaymentStarted
    | PaymentRefused
    | OrderCompleted
    | OrderCancelled
    | BookSoldOut
)
OrderEvent = BookEvent | OrderRequested
