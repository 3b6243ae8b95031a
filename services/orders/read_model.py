"""What buyers see of their orders. Schema, projection and every query, together."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Self
from uuid import UUID

import asyncpg
import msgspec
from msgspec import UNSET, Meta, UnsetType

from common.errors import NotFound
from common.event_log import Recorded
from common.events import OrderCancelled, OrderCompleted, OrderCreated, PaymentRefused, PaymentStarted
from common.paging import cursor_of, position_of
from common.projector import ReadModel
from services.orders.domain import Order, Reason, Status

TABLES = """
create table orders (
    id uuid primary key,
    ticket_id uuid not null,
    buyer_id text not null,
    title text not null,
    quantity bigint not null,
    price bigint not null,
    currency text not null,
    expires_at timestamptz not null,
    created_at timestamptz not null,
    status text not null,
    version bigint not null,
    closed_at timestamptz,
    reason text,
    payments bigint not null -- under way
);
create index on orders (buyer_id, created_at desc, id desc);
"""


class OrderView(msgspec.Struct, frozen=True):
    """An order, as its buyer sees it. Money is in minor units; `reason` is there when it is cancelled.

    Where it is `paying`, the end of a payment is not known yet.
    """

    id: UUID
    ticket_id: UUID
    title: str
    quantity: int
    price: int
    total: int
    currency: str
    status: Status
    paying: bool
    expires_at: datetime
    closed_at: datetime | None
    version: Annotated[int, Meta(description="Of its ticket's order book: other orders of that ticket move it, too")]
    created_at: datetime
    reason: Reason | UnsetType = UNSET

    @classmethod
    def of(cls, order: Order) -> Self:
        """The view of an order that was just decided on."""
        return cls(
            order.id,
            order.ticket_id,
            order.title,
            order.quantity,
            order.price,
            order.total,
            order.currency,
            order.status,
            bool(order.payments) and not order.is_over,
            order.expires_at,
            order.closed_at,
            order.version,
            order.created_at,
            order.reason or UNSET,
        )

    @classmethod
    def of_row(cls, row: asyncpg.Record) -> Self:
        """The view of a row of SELECT_ORDER."""
        columns = dict(row)
        reason = columns.pop("reason") or UNSET
        return cls(**columns, reason=reason)


INSERT_ORDERS = """
insert into orders (id, ticket_id, buyer_id, title, quantity, price, currency, expires_at, created_at,
                    status, version, closed_at, reason, payments)
select id, ticket_id, buyer_id, title, quantity, price, currency, expires_at, created_at,
       status, version, closed_at, reason, payments
from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::text[], $8::timestamptz[],
            $9::timestamptz[], $10::text[], $11::bigint[], $12::timestamptz[], $13::text[], $14::bigint[])
    as new (id, ticket_id, buyer_id, title, quantity, price, currency, expires_at, created_at,
            status, version, closed_at, reason, payments)
"""

CHANGE_ORDERS = """
update orders set status = new.status, version = new.version, closed_at = new.closed_at, reason = new.reason,
                  payments = orders.payments + new.payments
from unnest($1::uuid[], $2::text[], $3::bigint[], $4::timestamptz[], $5::text[], $6::bigint[])
    as new (id, status, version, closed_at, reason, payments)
where orders.id = new.id
"""

Change = tuple[Status, int, datetime | None, Reason | None]


async def project(connection: asyncpg.Connection, events: Sequence[Recorded]) -> None:
    """Write new orders as the batch leaves them, and how it leaves older ones."""
    created: dict[UUID, tuple[object, ...]] = {}
    changes: dict[UUID, Change] = {}
    payments: Counter[UUID] = Counter()  # more or fewer that are under way
    for recorded in events:
        match recorded.event:
            case OrderCreated(order_id, ticket_id, buyer_id, title, quantity, price, currency) as e:
                held = (order_id, ticket_id, buyer_id, title, quantity, price, currency, e.expires_at, e.at)
                created[order_id] = held
                changes[order_id] = ("created", e.version, None, None)
            case PaymentStarted() | PaymentRefused() as e:
                changes[e.order_id] = ("awaiting_payment", e.version, None, None)
                payments[e.order_id] += 1 if isinstance(e, PaymentStarted) else -1
            case OrderCompleted() as e:
                changes[e.order_id] = ("complete", e.version, e.at, None)
            case OrderCancelled() as e:
                changes[e.order_id] = ("cancelled", e.version, e.at, e.reason)
    if created:
        rows = [(*row, *changes.pop(order_id), payments[order_id]) for order_id, row in created.items()]
        await connection.execute(INSERT_ORDERS, *zip(*rows, strict=True))
    if changes:
        rows = [(order_id, *change, payments[order_id]) for order_id, change in changes.items()]
        await connection.execute(CHANGE_ORDERS, *zip(*rows, strict=True))


READ_MODEL = ReadModel("orders", TABLES, {"ORDERS": project}, service="orders")

SELECT_ORDER = """
select id, ticket_id, title, quantity, price, price * quantity as total, currency, status,
       payments > 0 and closed_at is null as paying, expires_at, closed_at, version, created_at, reason
from orders
"""

ORDER_OF_BUYER = SELECT_ORDER + "where id = $1 and buyer_id = $2"

ORDERS_OF_BUYER = (
    SELECT_ORDER
    + """
where buyer_id = $1
  and ($2::text is null or status = $2)
  and ($3::timestamptz is null or (created_at, id) < ($3, $4::uuid))
order by created_at desc, id desc
limit $5
"""
)


class OrderPage(msgspec.Struct, frozen=True):
    """Some orders of a buyer, newest first. `next_cursor` is null on the last page."""

    items: list[OrderView]
    next_cursor: str | None


async def order(pool: asyncpg.Pool, order_id: UUID, buyer_id: str) -> OrderView:
    """Raises NotFound, also for somebody else's."""
    row = await pool.fetchrow(ORDER_OF_BUYER, order_id, buyer_id)
    if row is None:
        raise NotFound(f"You have no order {order_id}.")
    return OrderView.of_row(row)


async def orders(
    pool: asyncpg.Pool, buyer_id: str, *, status: Status | None, limit: int, cursor: str | None
) -> OrderPage:
    """A buyer's orders."""
    rows = await pool.fetch(ORDERS_OF_BUYER, buyer_id, status, *position_of(cursor), limit + 1)
    items = [OrderView.of_row(row) for row in rows[:limit]]
    return OrderPage(items, cursor_of(items[-1].created_at, items[-1].id) if len(rows) > limit else None)
