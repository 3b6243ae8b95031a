"""What buyers look at: the listings, and how much of each is left. Schema, projection and every query, together."""

import re
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Literal, Self
from uuid import UUID

import asyncpg
import msgspec

from common.errors import NotFound
from common.event_log import Recorded
from common.events import OrderCancelled, OrderCreated, TicketCreated, TicketUpdated, TicketWithdrawn
from common.paging import cursor_of, position_of
from common.projector import ReadModel
from services.tickets.domain import Listing

TABLES = """
create table tickets (
    id uuid primary key,
    seller_id text not null,
    title text not null,
    price bigint not null,
    currency text not null,
    quantity bigint not null,
    max_per_order bigint not null,
    venue text,
    starts_at timestamptz,
    status text not null,
    version bigint not null,
    created_at timestamptz not null
);
create index on tickets (created_at desc, id desc);
create index on tickets (seller_id, created_at desc, id desc);

-- From the orders stream, which may tell of a ticket before the tickets stream does: a table of its own.
create table taken (
    ticket_id uuid primary key,
    quantity bigint not null
);
"""


class TicketView(msgspec.Struct, frozen=True):
    """A ticket on sale, as everybody sees it. `price` is in minor units; `version` is that of the listing.

    `taken` are reserved or sold, which may be more than there are, when there are fewer now than there were.
    """

    id: UUID
    seller_id: str
    title: str
    price: int
    currency: str
    quantity: int
    available: int
    taken: int
    max_per_order: int
    venue: str | None
    starts_at: datetime | None
    status: Literal["on_sale", "withdrawn"]
    version: int
    created_at: datetime

    @classmethod
    def of(cls, listing: Listing, taken: int = 0) -> Self:
        """The view of a listing that was just decided on, of which `taken` are reserved or sold."""
        assert listing.ticket_id is not None
        assert listing.details is not None
        assert listing.created_at is not None
        d = listing.details
        return cls(
            listing.ticket_id,
            listing.seller_id,
            d.title,
            d.price,
            d.currency,
            d.quantity,
            max(0, d.quantity - taken) if listing.on_sale else 0,
            taken,
            d.max_per_order,
            d.venue,
            d.starts_at,
            "on_sale" if listing.on_sale else "withdrawn",
            listing.version,
            listing.created_at,
        )


INSERT_TICKETS = """
insert into tickets (id, seller_id, title, price, currency, quantity, max_per_order, venue, starts_at, status, version,
                    created_at)
select id, seller_id, title, price, currency, quantity, max_per_order, venue, starts_at, 'on_sale', version, created_at
from unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::bigint[], $7::bigint[], $8::text[],
            $9::timestamptz[], $10::bigint[], $11::timestamptz[])
    as new (id, seller_id, title, price, currency, quantity, max_per_order, venue, starts_at, version, created_at)
"""

UPDATE_TICKETS = """
update tickets set title = new.title, price = new.price, quantity = new.quantity, max_per_order = new.max_per_order,
                  venue = new.venue, starts_at = new.starts_at, version = new.version
from unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[], $7::timestamptz[],
            $8::bigint[])
    as new (id, title, price, quantity, max_per_order, venue, starts_at, version)
where tickets.id = new.id
"""

WITHDRAW_TICKETS = """
update tickets set status = 'withdrawn', version = new.version
from unnest($1::uuid[], $2::bigint[]) as new (id, version)
where tickets.id = new.id
"""


async def project_tickets(connection: asyncpg.Connection, events: Sequence[Recorded]) -> None:
    """Write listings: new ones, then the last change of each, then what was withdrawn."""
    created: list[tuple[object, ...]] = []
    updated: dict[UUID, tuple[object, ...]] = {}
    withdrawn: dict[UUID, int] = {}
    for recorded in events:
        match recorded.event:
            case TicketCreated(ticket_id, seller_id, d, at) as e:
                listing = (ticket_id, seller_id, d.title, d.price, d.currency, d.quantity, d.max_per_order)
                created.append((*listing, d.venue, d.starts_at, e.version, at))
            case TicketUpdated(ticket_id, _, d) as e:
                changes = (d.title, d.price, d.quantity, d.max_per_order, d.venue, d.starts_at)
                updated[ticket_id] = (ticket_id, *changes, e.version)
            case TicketWithdrawn() as e:
                withdrawn[e.ticket_id] = e.version
    if created:
        await connection.execute(INSERT_TICKETS, *zip(*created, strict=True))
    if updated:
        await connection.execute(UPDATE_TICKETS, *zip(*updated.values(), strict=True))
    if withdrawn:
        await connection.execute(WITHDRAW_TICKETS, list(withdrawn), list(withdrawn.values()))


TAKE = """
insert into taken (ticket_id, quantity)
select ticket_id, quantity from unnest($1::uuid[], $2::bigint[]) as new (ticket_id, quantity)
on conflict (ticket_id) do update set quantity = taken.quantity + excluded.quantity
"""


async def project_orders(connection: asyncpg.Connection, events: Sequence[Recorded]) -> None:
    """Count what is reserved or sold of each ticket."""
    taken: dict[UUID, int] = defaultdict(int)
    for recorded in events:
        match recorded.event:
            case OrderCreated() as e:
                taken[e.ticket_id] += e.quantity
            case OrderCancelled() as e:
                taken[e.ticket_id] -= e.quantity
    if taken:
        await connection.execute(TAKE, list(taken), list(taken.values()))


READ_MODEL = ReadModel("tickets", TABLES, {"TICKETS": project_tickets, "ORDERS": project_orders}, service="tickets")

SELECT_TICKET = """
select id, seller_id, title, price, currency, tickets.quantity,
       case status when 'on_sale' then greatest(0, tickets.quantity - coalesce(taken.quantity, 0)) else 0 end
           as available,
       coalesce(taken.quantity, 0) as taken, max_per_order, venue, starts_at, status, version, created_at
from tickets left join taken on taken.ticket_id = tickets.id
"""

TICKET_BY_ID = SELECT_TICKET + "where id = $1"

TICKETS_BY_ID = SELECT_TICKET + "where id = any($1::uuid[])"

TAKEN = "select quantity from taken where ticket_id = $1"

TICKETS_ON_SALE = (
    SELECT_TICKET
    + """
where status = 'on_sale'
  and ($1::timestamptz is null or (created_at, id) < ($1, $2::uuid))
  and ($3::text is null or title ilike '%' || $3 || '%')
order by created_at desc, id desc
limit $4
"""
)

TICKETS_OF_SELLER = (
    SELECT_TICKET
    + """
where seller_id = $1
  and ($2::timestamptz is null or (created_at, id) < ($2, $3::uuid))
order by created_at desc, id desc
limit $4
"""
)


class TicketPage(msgspec.Struct, frozen=True):
    """Some tickets, newest first. `next_cursor` is null on the last page."""

    items: list[TicketView]
    next_cursor: str | None


async def ticket(pool: asyncpg.Pool, ticket_id: UUID) -> TicketView:
    """Raises NotFound."""
    row = await pool.fetchrow(TICKET_BY_ID, ticket_id)
    if row is None:
        raise NotFound(f"There is no ticket {ticket_id}.", field="ticket_id", got=ticket_id)
    return TicketView(**row)


async def tickets_of(pool: asyncpg.Pool, ticket_ids: Sequence[UUID]) -> list[TicketView]:
    """Those of these tickets that there are."""
    return [TicketView(**row) for row in await pool.fetch(TICKETS_BY_ID, ticket_ids)] if ticket_ids else []


async def taken(pool: asyncpg.Pool, ticket_id: UUID) -> int:
    """How many of a ticket are reserved or sold."""
    return await pool.fetchval(TAKEN, ticket_id) or 0


async def tickets(pool: asyncpg.Pool, *, limit: int, cursor: str | None, q: str | None) -> TicketPage:
    """What is on sale and has `q` in its title."""
    before, before_id = position_of(cursor)
    pattern = q and LIKE_SPECIAL.sub(r"\\\g<0>", q)
    return page_of(await pool.fetch(TICKETS_ON_SALE, before, before_id, pattern, limit + 1), limit)


async def tickets_of_seller(pool: asyncpg.Pool, seller_id: str, *, limit: int, cursor: str | None) -> TicketPage:
    """All that a seller has listed, also what is withdrawn."""
    return page_of(await pool.fetch(TICKETS_OF_SELLER, seller_id, *position_of(cursor), limit + 1), limit)


def page_of(rows: Sequence[asyncpg.Record], limit: int) -> TicketPage:
    """The page of these rows, of which one more than `limit` was asked for."""
    items = [TicketView(**row) for row in rows[:limit]]
    return TicketPage(items, cursor_of(items[-1].created_at, items[-1].id) if len(rows) > limit else None)


LIKE_SPECIAL = re.compile(r"[\\%_]")
