"""Request -> command -> verdict: many listings at once, for other services."""

from uuid import UUID, uuid5

import msgspec

from common.clock import now
from common.errors import Stale
from common.requests import Answering
from common.requests.bulk import Chunk, Command, Verdicts, each
from common.requests.tickets import CREATE_TICKETS, UPDATE_TICKETS, NewTicket, TicketUpdate
from services.tickets.domain import CreateTicket, Tickets, UpdateTicket


def ticket_id_of(operation_id: UUID) -> UUID:
    """The id of the ticket that an operation makes; the same operation again finds it made."""
    return uuid5(operation_id, "ticket")


class BulkTickets:
    """Listings of many sellers, made and changed side by side."""

    def __init__(self, tickets: Tickets) -> None:
        self._tickets = tickets

    @property
    def answering(self) -> list[Answering[Chunk, Verdicts]]:
        """What this service answers."""
        return [
            Answering(CREATE_TICKETS, lambda chunk: each(chunk, NewTicket, self.create)),
            Answering(UPDATE_TICKETS, lambda chunk: each(chunk, TicketUpdate, self.update)),
        ]

    async def create(self, command: Command, new: NewTicket) -> UUID:
        """Put tickets on sale; the id of the listing."""
        ticket_id = ticket_id_of(command.operation_id)
        create = CreateTicket(ticket_id, command.user_id, new.details(), now())
        await self._tickets.handle(ticket_id, create, new=True)
        return ticket_id

    async def update(self, command: Command, wanted: TicketUpdate) -> UUID:
        """Change a listing, once: a repeat must not undo what its seller changed since. Raises what `decide` does."""
        changes, ticket_id = wanted.changes(), wanted.ticket_id
        update = UpdateTicket(ticket_id, command.user_id, changes, wanted.version, now(), command.operation_id)
        try:
            await self._tickets.handle(ticket_id, update)
        except Stale:
            if not await self._reads(ticket_id, changes):
                raise
        return ticket_id

    async def _reads(self, ticket_id: UUID, changes: dict[str, object]) -> bool:
        """Whether the listing reads as wanted already: nothing was to be changed, then or now."""
        details = (await self._tickets.load(ticket_id)).state.details
        return details is not None and msgspec.structs.replace(details, **changes) == details
