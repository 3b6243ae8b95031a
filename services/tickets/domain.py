"""What a listing may do and become."""

from datetime import datetime
from typing import assert_never
from uuid import UUID

import msgspec
from rpds import HashTrieSet

from common.aggregate import Aggregate, Decider
from common.errors import Conflict, NotFound, Stale
from common.events import TicketCreated, TicketDetails, TicketEvent, TicketUpdated, TicketWithdrawn


class Listing(msgspec.Struct, frozen=True):
    """A listing as its events leave it; without details before the first one.

    `done`: the bulk operations that changed it.
    """

    ticket_id: UUID | None = None
    seller_id: str = ""
    details: TicketDetails | None = None
    on_sale: bool = False
    version: int = 0
    created_at: datetime | None = None
    done: "HashTrieSet[UUID]" = HashTrieSet()  # persistent, as the orders of a book are

    def owned_by(self, seller_id: str, ticket_id: UUID) -> TicketDetails:
        """The details, if it is this seller's. Raises NotFound."""
        if self.details is None or self.seller_id != seller_id:
            raise NotFound(f"You have no ticket {ticket_id} on sale.", field="ticket_id", got=ticket_id)
        return self.details


class CreateTicket(msgspec.Struct, frozen=True):
    ticket_id: UUID
    seller_id: str
    details: TicketDetails
    at: datetime


class UpdateTicket(msgspec.Struct, frozen=True):
    """Change what `changes` names of TicketDetails, if the listing is still at version `seen` (None: at any).

    The same `operation_id` again changes nothing, whatever happened since.
    """

    ticket_id: UUID
    seller_id: str
    changes: dict[str, object]
    seen: int | None
    at: datetime
    operation_id: UUID | None = None


class WithdrawTicket(msgspec.Struct, frozen=True):
    ticket_id: UUID
    seller_id: str
    at: datetime


TicketCommand = CreateTicket | UpdateTicket | WithdrawTicket


def decide(command: TicketCommand, listing: Listing) -> list[TicketEvent]:
    match command:
        case CreateTicket(ticket_id, seller_id, details, at):
            if listing.details is not None:
                return []  # the same id again
            return [TicketCreated(ticket_id, seller_id, details, at)]
        case UpdateTicket(ticket_id, seller_id, changes, seen, at, operation_id):
            details = listing.owned_by(seller_id, ticket_id)
            if operation_id in listing.done:
                return []
            if seen is not None and seen != listing.version:
                raise Stale(
                    f"The ticket has changed since you looked: it is at version {listing.version}, you saw {seen}.",
                    version=listing.version,
                )
            if not listing.on_sale:
                raise Conflict("The ticket is withdrawn and does not change any more.")
            changed = msgspec.structs.replace(details, **changes)
            if changed == details:
                return []
            return [TicketUpdated(ticket_id, seller_id, changed, at, operation_id)]
        case WithdrawTicket(ticket_id, seller_id, at):
            listing.owned_by(seller_id, ticket_id)
            return [TicketWithdrawn(ticket_id, seller_id, at)] if listing.on_sale else []
        case _:
            assert_never(command)


def evolve(listing: Listing, event: TicketEvent) -> Listing:
    match event:
        case TicketCreated(ticket_id, seller_id, details, at):
            return Listing(ticket_id, seller_id, details, True, event.version, at)
        case TicketUpdated(details=details, operation_id=operation_id):
            done = listing.done.insert(operation_id) if operation_id else listing.done
            return msgspec.structs.replace(listing, details=details, version=event.version, done=done)
        case TicketWithdrawn():
            return msgspec.structs.replace(listing, on_sale=False, version=event.version)
        case _:
            assert_never(event)


def asks(event: TicketEvent) -> TicketCommand:
    """The command that leads to an event."""
    match event:
        case TicketCreated(ticket_id, seller_id, details, at):
            return CreateTicket(ticket_id, seller_id, details, at)
        case TicketUpdated(ticket_id, seller_id, details, at, operation_id):
            return UpdateTicket(ticket_id, seller_id, msgspec.structs.asdict(details), None, at, operation_id)
        case TicketWithdrawn(ticket_id, seller_id, at):
            return WithdrawTicket(ticket_id, seller_id, at)
        case _:
            assert_never(event)


TICKETS = Decider("tickets", TicketEvent, decide, evolve, initial=Listing(), asks=asks)
Tickets = Aggregate[TicketCommand, Listing, TicketEvent]
