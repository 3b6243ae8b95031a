"""HTTP -> command -> response."""

from typing import Annotated
from uuid import UUID

import asyncpg
import msgspec
from litestar import Controller, Response, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.response import Stream

from common.auth import RequiresUser, UserRequest
from common.clock import new_id, now
from common.etag import ETAG_HEADER, IfMatch, etag_of, version_in
from common.events import TicketEvent
from common.http import LINE, LOCATION_HEADER, TEXT
from common.limits import Limited
from common.live import event_stream
from common.paging import Cursor
from common.problems import problems
from common.projector import ReadYourWrites
from common.requests.tickets import NewTicket, TicketChanges
from services.tickets import read_model
from services.tickets.domain import (
    CreateTicket,
    Listing,
    TicketCommand,
    UpdateTicket,
    WithdrawTicket,
)
from services.tickets.live import Availability
from services.tickets.read_model import TicketPage, TicketView

FOR_SELLERS = (RequiresUser("tickets", "seller"), Limited("changes"))
"""What stands before what is for sellers."""

VisibleTickets = ReadYourWrites[TicketCommand, Listing, TicketEvent]


class TicketDesk(msgspec.Struct, frozen=True):
    """What these doors need."""

    tickets: VisibleTickets
    pool: asyncpg.Pool
    availability: Availability


Shown = Annotated[list[UUID] | None, QueryParameter(name="id", max_items=100, description="Up to 100 ids of tickets")]


class TicketController(Controller):
    """Listings: everybody reads, sellers write."""

    path = "/api/tickets"
    tags = ("tickets",)

    @get("/", responses=problems(400, 503))
    async def list(
        self,
        desk: NamedDependency[TicketDesk],
        limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
        cursor: Cursor = None,
        q: Annotated[
            str | None, QueryParameter(min_length=1, max_length=200, pattern=TEXT, description=LINE.description)
        ] = None,
    ) -> TicketPage:
        """What is on sale, newest first; with `q`, what has it in its title."""
        return await read_model.tickets(desk.pool, limit=limit, cursor=cursor, q=q)

    @get("/mine", middleware=FOR_SELLERS, responses=problems(400, 503))
    async def mine(
        self,
        request: UserRequest,
        desk: NamedDependency[TicketDesk],
        limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
        cursor: Cursor = None,
    ) -> TicketPage:
        """All that you have put on sale, newest first, also what you have withdrawn."""
        return await read_model.tickets_of_seller(desk.pool, request.user.id, limit=limit, cursor=cursor)

    @get("/stream", media_type="text/event-stream", responses=problems(400, 503))
    async def stream(
        self,
        desk: NamedDependency[TicketDesk],
        shown: Shown = None,
    ) -> Stream:
        """Server-sent events: a `ticket` whenever one has changed, a few times a second at most for each.

        With `id`, only of these, which are told at once as they are now: who connects again has missed nothing.
        """
        return await event_stream(desk.availability.events(shown or []))

    @get("/{ticket_id:str}", responses=problems(400, 404, 503), response_headers=[ETAG_HEADER])
    async def read(self, desk: NamedDependency[TicketDesk], ticket_id: FromPath[UUID]) -> Response[TicketView]:
        """One ticket, also when it is withdrawn."""
        return shown(await desk.tickets.find(lambda: read_model.ticket(desk.pool, ticket_id)))

    @post(
        "/",
        middleware=FOR_SELLERS,
        responses=problems(400, 413, 415, 422, 503),
        response_headers=[ETAG_HEADER, LOCATION_HEADER],
    )
    async def create(
        self,
        data: JSONBody[NewTicket],
        request: UserRequest,
        desk: NamedDependency[TicketDesk],
    ) -> Response[TicketView]:
        """Put tickets on sale."""
        ticket_id = new_id()
        handled = await desk.tickets.handle(ticket_id, CreateTicket(ticket_id, request.user.id, data.details(), now()))
        created = shown(TicketView.of(handled.state), status=201)
        created.headers["Location"] = f"/api/tickets/{ticket_id}"
        return created

    @patch(
        "/{ticket_id:str}",
        middleware=FOR_SELLERS,
        responses=problems(400, 404, 409, 412, 413, 415, 422, 428, 503),
        response_headers=[ETAG_HEADER],
    )
    async def update(
        self,
        data: JSONBody[TicketChanges],
        ticket_id: FromPath[UUID],
        request: UserRequest,
        desk: NamedDependency[TicketDesk],
        if_match: IfMatch,
    ) -> Response[TicketView]:
        """Change your listing, if nobody else did since you looked. Sold and reserved seats stay sold and reserved."""
        seen = version_in(if_match)
        taken = await read_model.taken(desk.pool, ticket_id)
        handled = await desk.tickets.handle(
            ticket_id, UpdateTicket(ticket_id, request.user.id, data.changes(), seen, now())
        )
        return shown(TicketView.of(handled.state, taken))

    @delete(
        "/{ticket_id:str}",
        middleware=FOR_SELLERS,
        status_code=200,
        responses=problems(400, 404, 503),
        response_headers=[ETAG_HEADER],
    )
    async def withdraw(
        self,
        ticket_id: FromPath[UUID],
        request: UserRequest,
        desk: NamedDependency[TicketDesk],
    ) -> Response[TicketView]:
        """Sell no more of it. Open reservations may still be paid."""
        taken = await read_model.taken(desk.pool, ticket_id)
        handled = await desk.tickets.handle(ticket_id, WithdrawTicket(ticket_id, request.user.id, now()))
        return shown(TicketView.of(handled.state, taken))


def shown(ticket: TicketView, status: int = 200) -> Response[TicketView]:
    """The response that shows a ticket, with its ETag."""
    return Response(ticket, status_code=status, headers={"ETag": etag_of(ticket.version)})
