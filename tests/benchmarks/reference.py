"""What the rows on orders are measured against: the usual way to build it, with care.

The same web stack, guard, validation and answers. An order is one Postgres transaction that locks the ticket's row,
checks, and inserts the order and its event into an outbox. A relay publishes the outbox to JetStream and marks it.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import uvloop
from litestar import Controller, Response, Router, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from nats.js.api import StreamConfig

from common.auth import RequiresUser, UserRequest
from common.clock import new_id, now
from common.errors import NotFound
from common.event_log import Draft
from common.events import BookListing, OrderCreated, encode
from common.http import create_app, given
from common.runtime import Platform, Service, collect_garbage_rarely, connect
from common.settings import Settings, load
from common.telemetry import configure_logging
from services.cli.system import listen, server_of
from services.orders import read_model
from services.orders.api import NewOrder
from services.orders.domain import Book, Order, may_reserve
from services.orders.read_model import OrderView

STREAM = "REFERENCE"
POOL = 16
"""Connections; 8 and 32 sold no more."""
RELAY_BATCH = 500
HOLD = timedelta(minutes=15)

TABLES = (
    read_model.TABLES
    + """
create table tickets (
    id uuid primary key,
    title text not null,
    price bigint not null,
    currency text not null,
    capacity bigint not null,
    taken bigint not null default 0,
    max_per_order bigint not null,
    on_sale boolean not null,
    version bigint not null default 1
);
create table outbox (
    id bigint generated always as identity primary key,
    subject text not null,
    headers text not null,
    body bytea not null,
    published_at timestamptz
);
create index on outbox (id) where published_at is null;
"""
)

INSERT_TICKETS = """
insert into tickets (id, title, price, currency, capacity, max_per_order, on_sale)
select id, 'Opening night', 2500, 'EUR', $2, 10, true from unnest($1::uuid[]) as new (id)
"""

LOCK_TICKET = """
select title, price, currency, capacity, max_per_order, on_sale, version, taken from tickets where id = $1 for update
"""

# Three writes in one statement, so that the ticket stays locked for one round trip less than twice.
PLACE = """
with reserved as (
    update tickets set taken = taken + $5, version = $11 where id = $2
), placed as (
    insert into orders (id, ticket_id, buyer_id, title, quantity, price, currency, expires_at, created_at, status,
                        version, payments)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 0)
)
insert into outbox (subject, headers, body) values ($12, $13, $14)
"""

UNPUBLISHED = "select id, subject, headers, body from outbox where published_at is null order by id limit $1"
MARK_PUBLISHED = "update outbox set published_at = now() where id = any($1::bigint[])"


class OrderController(Controller):
    """The doors of the orders service, as far as they are measured."""

    path = "/api/orders"
    middleware = (RequiresUser("orders"),)

    @post("/")
    async def place(
        self, data: JSONBody[NewOrder], request: UserRequest, pool: NamedDependency[asyncpg.Pool]
    ) -> Response[OrderView]:
        """Reserve seats for a while."""
        placed = await place(pool, data.ticket_id, request.user.id, data.quantity)
        return Response(OrderView.of(placed), status_code=201, headers={"Location": f"/api/orders/{placed.id}"})

    @get("/{order_id:uuid}")
    async def read(
        self, order_id: FromPath[UUID], request: UserRequest, pool: NamedDependency[asyncpg.Pool]
    ) -> OrderView:
        """One of your orders."""
        return await read_model.order(pool, order_id, request.user.id)


async def place(pool: asyncpg.Pool, ticket_id: UUID, buyer_id: str, quantity: int) -> Order:
    """One order, one transaction."""
    order_id, at = new_id(), now()
    async with pool.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(LOCK_TICKET, ticket_id)
        if row is None:
            raise NotFound("There is no such ticket.")
        *listed, taken = row
        listing = BookListing(*listed)
        may_reserve(Book(ticket_id, listing, taken), quantity)
        version = listing.version + 1
        order = Order(
            order_id,
            ticket_id,
            buyer_id,
            listing.title,
            quantity,
            listing.price,
            listing.currency,
            at + HOLD,
            at,
            version,
            version=version,
        )
        event = OrderCreated(
            order_id,
            ticket_id,
            buyer_id,
            order.title,
            quantity,
            order.price,
            order.currency,
            order.expires_at,
            at,
            version=version,
        )
        subject = f"reference.{ticket_id}"
        await connection.execute(
            PLACE,
            order_id,
            ticket_id,
            buyer_id,
            order.title,
            quantity,
            order.price,
            order.currency,
            order.expires_at,
            at,
            order.status,
            version,
            subject,
            msgspec.json.encode(Draft.of(event).headers("/" + subject)).decode(),
            encode(event),
        )
    return order


class Relay:
    """Outbox -> JetStream. A crash publishes again what was not marked yet; the stream knows the ids."""

    name = "reference.relay"
    problem: str | None = None

    def __init__(self, pool: asyncpg.Pool, platform: Platform) -> None:
        self._pool = pool
        self._js = platform.client.jetstream()

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            rows = await self._pool.fetch(UNPUBLISHED, RELAY_BATCH)
            await asyncio.gather(*(self._publish(row) for row in rows))
            if rows:
                await self._pool.execute(MARK_PUBLISHED, [row["id"] for row in rows])
            if len(rows) < RELAY_BATCH:
                await asyncio.sleep(0.01)

    async def _publish(self, row: asyncpg.Record) -> None:
        await self._js.publish(row["subject"], row["body"], headers=msgspec.json.decode(row["headers"]))


async def migrate(platform: Platform, pool: asyncpg.Pool) -> None:
    """Make the tables and the stream."""
    await pool.execute(TABLES)
    await platform.client.jetstream().add_stream(
        StreamConfig(name=STREAM, subjects=["reference.*"], duplicate_window=120)
    )


@contextlib.asynccontextmanager
async def connections(settings: Settings) -> AsyncIterator[asyncpg.Pool]:
    """As many as there is use for. They commit as Postgres does by default: on disk before it answers."""
    async with asyncpg.create_pool(settings.database_url, min_size=POOL, max_size=POOL) as pool:
        yield pool


async def serve(environment: Mapping[str, str]) -> None:
    """Run until SIGTERM, as `boxoffice serve` does."""
    settings = load(Settings, environment)
    async with connect(settings, "reference") as platform, connections(settings) as pool:
        router = Router("/", route_handlers=[OrderController], dependencies=given(pool=pool))
        workers: list[Any] = [Relay(pool, platform)]
        app = create_app([Service("reference", [router], workers)], settings)
        server = server_of(app)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, setattr, server, "should_exit", True)
        with contextlib.closing(listen(settings.host, settings.port)) as door:
            await server.serve(sockets=[door])


if __name__ == "__main__":
    configure_logging("warning")
    collect_garbage_rarely()
    sys.exit(uvloop.run(serve(os.environ)))
