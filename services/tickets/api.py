"""HTTP -> command -> response."""

import re
from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import asyncpg
import msgspec
from litestar import Controller, Response, delete, get, patch, post
from litestar.datastructures import ResponseHeader
from litestar.di import NamedDependency
from litestar.params import FromPath, HeaderParameter, JSONBody, QueryParameter
from msgspec import UNSET, Meta, UnsetType

from common.auth import User, requires_user
from common.clock import new_id, now
from common.errors import Invalid, PreconditionRequired
from common.events import TicketDetails, TicketEvent
from common.http import BEARER, LOCATION_HEADER, TEXT, problems
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

Currency = Literal[
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

Title = Annotated[str, Meta(min_length=1, max_length=200, pattern=TEXT)]
Venue = Annotated[str, Meta(min_length=1, max_length=200, pattern=TEXT)]
Price = Annotated[int, Meta(ge=1, le=100_000_000)]
Quantity = Annotated[int, Meta(ge=1, le=1_000_000)]
PerOrder = Annotated[int, Meta(ge=1, le=1_000)]
StartsAt = Annotated[datetime, Meta(tz=True)]


class NewTicket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A listing to be. `price` is in minor units of `currency`."""

    title: Title
    price: Price
    currency: Currency
    quantity: Quantity
    max_per_order: PerOrder = 10
    venue: Venue | None = None
    starts_at: StartsAt | None = None


class TicketChanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to change; what is left out stays."""

    title: Title | UnsetType = UNSET
    price: Price | UnsetType = UNSET
    quantity: Quantity | UnsetType = UNSET
    max_per_order: PerOrder | UnsetType = UNSET
    venue: Venue | UnsetType | None = UNSET
    starts_at: StartsAt | UnsetType | None = UNSET


VisibleTickets = ReadYourWrites[TicketCommand, Listing, TicketEvent]
ETAG = re.compile(r'(?:W/)?"(\d{1,18})"')
ETAG_HEADER = ResponseHeader(name="ETag", description="The version of the listing", documentation_only=True)


def version_in(if_match: str | None) -> int | None:
    """The version that an If-Match header asks for; None for any. Raises PreconditionRequired, Invalid."""
    if if_match is None:
        raise PreconditionRequired("Say in If-Match which version you have seen: the ETag of your GET.")
    if if_match.strip() == "*":
        return None
    if not (etag := ETAG.fullmatch(if_match.strip())):
        raise Invalid('If-Match has to be an ETag that GET gave you, such as "3".', field="If-Match")
    return int(etag[1])


class TicketController(Controller):
    """Listings: everybody reads, sellers write."""

    path = "/api/tickets"
    tags = ("tickets",)

    @get("/", responses=problems(400, 422, 503))
    async def list(
        self,
        tickets_pool: NamedDependency[asyncpg.Pool],
        limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
        cursor: Annotated[str | None, QueryParameter(max_length=200)] = None,
        q: Annotated[str | None, QueryParameter(min_length=1, max_length=200, pattern=TEXT)] = None,
    ) -> TicketPage:
        """What is on sale, newest first; with `q`, what has it in its title."""
        return await read_model.tickets(tickets_pool, limit=limit, cursor=cursor, q=q)

    @get("/{ticket_id:uuid}", responses=problems(404, 503), response_headers=[ETAG_HEADER])
    async def read(
        self, tickets_pool: NamedDependency[asyncpg.Pool], ticket_id: FromPath[UUID]
    ) -> Response[TicketView]:
        """One ticket, also when it is withdrawn."""
        return shown(await read_model.ticket(tickets_pool, ticket_id))

    @post(
        "/",
        guards=[requires_user],
        security=BEARER,
        responses=problems(400, 401, 413, 503),
        response_headers=[ETAG_HEADER, LOCATION_HEADER],
    )
    async def create(
        self,
        data: JSONBody[NewTicket],
        user: NamedDependency[User],
        tickets: NamedDependency[VisibleTickets],
        tickets_pool: NamedDependency[asyncpg.Pool],
    ) -> Response[TicketView]:
        """Put tickets on sale."""
        ticket_id = new_id()
        details = msgspec.convert(data, TicketDetails, from_attributes=True)
        await tickets.handle(ticket_id, CreateTicket(ticket_id, user.id, details, now()))
        created = shown(await read_model.ticket(tickets_pool, ticket_id), status=201)
        created.headers["Location"] = f"/api/tickets/{ticket_id}"
        return created

    @patch(
        "/{ticket_id:uuid}",
        guards=[requires_user],
        security=BEARER,
        responses=problems(400, 401, 404, 409, 412, 413, 422, 428, 503),
        response_headers=[ETAG_HEADER],
    )
    async def update(
        self,
        data: JSONBody[TicketChanges],
        ticket_id: FromPath[UUID],
        user: NamedDependency[User],
        tickets: NamedDependency[VisibleTickets],
        tickets_pool: NamedDependency[asyncpg.Pool],
        if_match: Annotated[str | None, HeaderParameter(name="If-Match", max_length=100)] = None,
    ) -> Response[TicketView]:
        """Change your listing, if nobody else did since you looked. Sold and reserved seats stay sold and reserved."""
        seen = version_in(if_match)
        changes = {name: value for name, value in msgspec.structs.asdict(data).items() if value is not UNSET}
        await tickets.handle(ticket_id, UpdateTicket(ticket_id, user.id, changes, seen, now()))
        return shown(await read_model.ticket(tickets_pool, ticket_id))

    @delete(
        "/{ticket_id:uuid}", guards=[requires_user], security=BEARER, status_code=200, responses=problems(401, 404, 503)
    )
    async def withdraw(
        self,
        ticket_id: FromPath[UUID],
        user: NamedDependency[User],
        tickets: NamedDependency[VisibleTickets],
        tickets_pool: NamedDependency[asyncpg.Pool],
    ) -> Response[TicketView]:
        """Sell no more of it. Open reservations may still be paid."""
        await tickets.handle(ticket_id, WithdrawTicket(ticket_id, user.id, now()))
        return shown(await read_model.ticket(tickets_pool, ticket_id))


def shown(ticket: TicketView, status: int = 200) -> Response[TicketView]:
    """The response that shows a ticket, with its ETag."""
    return Response(ticket, status_code=status, headers={"ETag": f'"{ticket.version}"'})
