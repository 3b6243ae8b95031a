"""What the tickets service tells: listings. Each event carries the whole listing; a follower needs only the newest."""

from datetime import datetime
from uuid import UUID

import msgspec

from common.events.base import Event, Person


class TicketDetails(msgspec.Struct, frozen=True):
    """What a seller says about a ticket. `price` is in minor units of `currency`."""

    title: str
    price: int
    currency: str
    quantity: int
    max_per_order: int
    venue: str | None = None
    starts_at: datetime | None = None


class TicketCreated(Event, frozen=True, tag="ticket_created"):
    """A seller put tickets on sale."""

    ticket_id: UUID
    seller_id: Person
    details: TicketDetails
    at: datetime


class TicketUpdated(Event, frozen=True, tag="ticket_updated"):
    """The seller changed the listing; this is how it reads now. `operation_id`: of the bulk operation that did it."""

    ticket_id: UUID
    seller_id: Person
    details: TicketDetails
    at: datetime
    operation_id: UUID | None = None


class TicketWithdrawn(Event, frozen=True, tag="ticket_withdrawn"):
    """The seller sells no more of these. What is reserved or sold stays."""

    ticket_id: UUID
    seller_id: Person
    at: datetime


TicketEvent = TicketCreated | TicketUpdated | TicketWithdrawn
