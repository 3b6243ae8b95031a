"""What became of what was posted to webhooks. Tables, projection and every query, together."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import asyncpg
import msgspec

from common.errors import NotFound
from common.event_log import Recorded
from common.events import (
    NotificationKind,
    WebhookAttempted,
    WebhookDelivered,
    WebhookDue,
    WebhookParked,
    WebhookRedeliveryRequested,
)
from common.paging import cursor_of, position_of
from services.notification.webhooks import DeliveryStatus, ParkReason

TABLES = """
create table deliveries (
    id uuid primary key,
    webhook_id uuid not null,
    notification_id uuid not null,
    kind text not null,
    created_at timestamptz not null,
    status text not null default 'pending',
    reason text, -- why it is parked
    again_at timestamptz,
    attempts jsonb not null default '[]'
);
create index on deliveries (webhook_id, created_at desc, id desc);
"""


class Attempt(msgspec.Struct, frozen=True):
    """One post. `status`: what was answered, if anything; `error`: what was wrong with that, null if it arrived."""

    attempt: int
    at: datetime
    status: int | None
    error: str | None
    milliseconds: int


class DeliveryView(msgspec.Struct, frozen=True):
    """A notification on its way to a webhook. `id` is its header `webhook-id`; `again_at`: when it is tried next.

    `reason`: why it is parked, which is: not tried again unless you ask for it.
    """

    id: UUID
    notification_id: UUID
    kind: NotificationKind
    created_at: datetime
    status: DeliveryStatus
    reason: ParkReason | None
    again_at: datetime | None
    attempts: list[Attempt]


class DeliveryPage(msgspec.Struct, frozen=True):
    """Some of what is posted to a webhook, newest first. `next_cursor` is null on the last page."""

    items: list[DeliveryView]
    next_cursor: str | None


INSERT = """
insert into deliveries (id, webhook_id, notification_id, kind, created_at)
select id, webhook_id, notification_id, kind, created_at
from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::timestamptz[])
    as new (id, webhook_id, notification_id, kind, created_at)
"""
UPDATE = """
update deliveries set status = new.status, reason = new.reason, again_at = new.again_at,
                      attempts = deliveries.attempts || new.attempts
from unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::jsonb[])
    as new (id, status, reason, again_at, attempts)
where deliveries.id = new.id
"""

_encode = msgspec.json.Encoder().encode
_attempts = msgspec.json.Decoder(list[Attempt]).decode


class _Course(msgspec.Struct):
    """What a batch of events makes of one delivery."""

    status: DeliveryStatus = "pending"
    reason: ParkReason | None = None
    again_at: datetime | None = None
    attempts: list[Attempt] = []


async def project_deliveries(connection: asyncpg.Connection, events: Sequence[Recorded]) -> None:
    """Write what is due, and what became of it."""
    due: list[tuple[object, ...]] = []
    courses: dict[UUID, _Course] = {}
    for recorded in events:
        match recorded.event:
            case WebhookDue(delivery_id, webhook_id, _, notification_id, kind, _, at):
                due.append((delivery_id, webhook_id, notification_id, kind, at))
            case WebhookAttempted(delivery_id, _, attempt, status, error, milliseconds, at, again_at):
                course = courses.setdefault(delivery_id, _Course())
                course.attempts.append(Attempt(attempt, at, status, error, milliseconds))
                course.again_at = again_at
            case WebhookDelivered(delivery_id):
                course = courses.setdefault(delivery_id, _Course())
                course.status, course.reason, course.again_at = "delivered", None, None
            case WebhookParked(delivery_id, _, reason):
                course = courses.setdefault(delivery_id, _Course())
                course.status, course.reason, course.again_at = "parked", reason, None
            case WebhookRedeliveryRequested(delivery_id):
                course = courses.setdefault(delivery_id, _Course())
                course.status, course.reason, course.again_at = "pending", None, None
    if due:
        await connection.execute(INSERT, *zip(*due, strict=True))
    if courses:
        rows = [
            (delivery_id, course.status, course.reason, course.again_at, _encode(course.attempts).decode())
            for delivery_id, course in courses.items()
        ]
        await connection.execute(UPDATE, *zip(*rows, strict=True))


DELIVERY = """
select id, notification_id, kind, created_at, status, reason, again_at, attempts from deliveries
where webhook_id = $1 and id = $2
"""
DELIVERIES_TO_WEBHOOK = """
select id, notification_id, kind, created_at, status, reason, again_at, attempts from deliveries
where webhook_id = $1
  and ($2::text is null or status = $2)
  and ($3::timestamptz is null or (created_at, id) < ($3, $4::uuid))
order by created_at desc, id desc
limit $5
"""


async def delivery(pool: asyncpg.Pool, webhook_id: UUID, delivery_id: UUID) -> DeliveryView:
    """One of a webhook's. Raises NotFound."""
    row = await pool.fetchrow(DELIVERY, webhook_id, delivery_id)
    if row is None:
        raise NotFound("There is no such delivery to this webhook.")
    return view_of(row)


async def deliveries(
    pool: asyncpg.Pool, webhook_id: UUID, *, status: DeliveryStatus | None, limit: int, cursor: str | None
) -> DeliveryPage:
    """A page of a webhook's."""
    rows = await pool.fetch(DELIVERIES_TO_WEBHOOK, webhook_id, status, *position_of(cursor), limit + 1)
    items = [view_of(row) for row in rows[:limit]]
    return DeliveryPage(items, cursor_of(items[-1].created_at, items[-1].id) if len(rows) > limit else None)


def view_of(row: asyncpg.Record) -> DeliveryView:
    """A row of DELIVERY."""
    return DeliveryView(**{**row, "attempts": _attempts(row["attempts"])})
