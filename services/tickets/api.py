"""HTTP -> command -> response."""

import re
from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID

import asyncpg
import msgspec
from litestar import Controller, Response, delete, get, patch, post
from litestar.datastructures import ResponseHeader
from litestar.di import NamedDependency
from litestar.params import FromPath, HeaderParameter, JSONBody, QueryParameter
from msgspec import UNSET, Meta, UnsetType

from common.auth import RequiresUser, UserRequest
from common.clock import new_id, now
from common.errors import Invalid, PreconditionRequired
from common.events import TicketDetails, TicketEvent
from common.http import BEARER, LINE, LOCATION_HEADER, TEXT
from common.problems import problems
from common.projector import ReadYourWrites
from services.tickets import read_model
from services.tickets.domain import (
    CreateTicket,
    Listing,
    TicketCommand,
    UpdateTicket,
    WithdrawTicket,
)
from services.tickets.read_model import TicketPage, TicketView

Code = Literal[
    "AED", "AFN", "ALL", "AMD", "AOA", "ARS", "AUD", "AWG", "AZN", "BAM", "BBD", "BDT", "BGN", "BHD", "BIF", "BMD",
    "BND", "BOB", "BRL", "BSD", "BTN", "BWP", "BYN", "BZD", "CAD", "CDF", "CHF", "CLP", "CNY", "COP", "CRC", "CUP",
    "CVE", "CZK", "DJF", "DKK", "DOP", "DZD", "EGP", "ERN", "ETB", "EUR", "FJD", "FKP", "GBP", "GEL", "GHS", "GIP",
    "GMD", "GNF", "GTQ", "GYD", "HKD", "HNL", "HTG", "HUF", "IDR", "ILS", "INR", "IQD", "IRR", "ISK", "JMD", "JOD",
    "JPY", "KES", "KGS", "KHR", "KMF", "KPW", "KRW", "KWD", "KYD", "KZT", "LAK", "LBP", "LKR", "LRD", "LSL", "LYD",
    "MAD", "MDL", "MGA", "MKD", "MMK", "MNT", "MOP", "MRU", "MUR", "MVR", "MWK", "MXN", "MYR", "MZN", "NAD", "NGN",
    "NIO", "NOK", "NPR", "NZD", "OMR", "PAB", "PEN", "PGK", "PHP", "PKR", "PLN", "PYG", "QAR", "RON", "RSD", "RUB",
    "RWF", "SAR", "SBD", "SCR", "SDG", "SEK", "SGD", "SHP", "SLE", "SOS", "SRD", "SSP", "STN", "SVC", "SYP", "SZL",
    "THB", "TJS", "TMT", "TND", "TOP", "TRY", "TTD", "TWD", "TZS", "UAH", "UGX", "USD", "UYU", "UZS", "VED", "VES",
    "VND", "VUV", "WST", "XAF", "XCD", "XOF", "XPF", "YER", "ZAR", "ZMW", "ZWG",
]  # fmt: skip
"""Active codes of ISO 4217 that people pay with."""

Currency = Annotated[Code, Meta(description="A code of ISO 4217 that people pay with, such as EUR", examples=["EUR"])]
Title = Annotated[str, LINE, Meta(examples=["Opening night"])]
Venue = Annotated[str, LINE, Meta(examples=["Town hall"])]
Price = Annotated[int, Meta(ge=1, le=100_000_000, examples=[2500])]
Quantity = Annotated[int, Meta(ge=1, le=1_000_000, examples=[100])]
PerOrder = Annotated[int, Meta(ge=1, le=1_000)]
StartsAt = Annotated[datetime, Meta(tz=True, examples=["2030-12-31T20:00:00Z"])]


class NewTicket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A listing to be. `price` is in minor units of `currency`."""

    title: Title
    price: Price
    currency: Currency
    quantity: Quantity
    max_per_order: PerOrder = 10
    venue: Venue | None = None
    starts_at: StartsAt | None = None

    def details(self) -> TicketDetails:
        """Raises Invalid."""
        details = msgspec.convert(self, TicketDetails, from_attributes=True)
        return msgspec.structs.replace(details, starts_at=in_utc(self.starts_at))


class TicketChanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to change; what is left out stays."""

    title: Title | UnsetType = UNSET
    price: Price | UnsetType = UNSET
    quantity: Quantity | UnsetType = UNSET
    max_per_order: PerOrder | UnsetType = UNSET
    venue: Venue | UnsetType | None = UNSET
    starts_at: StartsAt | UnsetType | None = UNSET

    def changes(self) -> dict[str, object]:
        """Raises Invalid."""
        changes = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not UNSET}
        if self.starts_at is not UNSET:
            changes["starts_at"] = in_utc(self.starts_at)
        return changes


def in_utc(starts_at: datetime | None) -> datetime | None:
    """Raises Invalid for a time that its offset takes out of the calendar: no read model could keep it."""
    try:
        return starts_at and starts_at.astimezone(UTC)
    except OverflowError:
        detail = f"starts_at: Expected a time in the years 1 to 9999 in UTC, got {starts_at}"
        raise Invalid(detail, field="starts_at") from None


VisibleTickets = ReadYourWrites[TicketCommand, Listing, TicketEvent]
ETAG_HEADER = ResponseHeader(name="ETag", description="The version of the listing", documentation_only=True)
ETAG = re.compile(r'(?:W/)?"([0-9]{1,18})"')
IfMatch = Annotated[
    str | None,
    HeaderParameter(
        name="If-Match",
        max_length=100,
        description='The ETag that GET gave you, such as "3", or * for any; a change without it is refused',
    ),
]


def version_in(if_match: str | None) -> int | None:
    """The version that an If-Match header asks for; None for any. Raises PreconditionRequired, Invalid."""
    if if_match is None:
        raise PreconditionRequired("If-Match: Required; say which version you have seen, by the ETag of your GET.")
    if if_match == "*":
        return None
    if not (etag := ETAG.fullmatch(if_match)):
        raise Invalid(f'If-Match: Expected an ETag that GET gave you, such as "3", got {if_match}', field="If-Match")
    return int(etag[1])


class TicketDesk(msgspec.Struct, frozen=True):
    """What these doors need."""

    tickets: VisibleTickets
    pool: asyncpg.Pool


class TicketController(Controller):
    """Listings: everybody reads, sellers write."""

    path = "/api/tickets"
    tags = ("tickets",)

    @get("/", responses=problems(400, 422, 503))
    async def list(
        self,
        desk: NamedDependency[TicketDesk],
        limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
        cursor: Annotated[str | None, QueryParameter(max_length=200)] = None,
        q: Annotated[
            str | None, QueryParameter(min_length=1, max_length=200, pattern=TEXT, description=LINE.description)
        ] = None,
    ) -> TicketPage:
        """What is on sale, newest first; with `q`, what has it in its title."""
        return await read_model.tickets(desk.pool, limit=limit, cursor=cursor, q=q)

    @get("/{ticket_id:str}", responses=problems(400, 404, 503), response_headers=[ETAG_HEADER])
    async def read(self, desk: NamedDependency[TicketDesk], ticket_id: FromPath[UUID]) -> Response[TicketView]:
        """One ticket, also when it is withdrawn."""
        return shown(await desk.tickets.find(lambda: read_model.ticket(desk.pool, ticket_id)))

    @post(
        "/",
        middleware=[RequiresUser()],
        security=BEARER,
        responses=problems(400, 401, 413, 415, 422, 503),
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
        middleware=[RequiresUser()],
        security=BEARER,
        responses=problems(400, 401, 403, 404, 409, 412, 413, 415, 422, 428, 503),
        response_headers=[ETAG_HEADER],
    )
    async def update(
        self,
        data: JSONBody[TicketChanges],
        ticket_id: FromPath[UUID],
        request: UserRequest,
        desk: NamedDependency[TicketDesk],
        if_match: IfMatch = None,
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
        middleware=[RequiresUser()],
        security=BEARER,
        status_code=200,
        responses=problems(400, 401, 403, 404, 503),
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
    return Response(ticket, status_code=status, headers={"ETag": f'"{ticket.version}"'})
