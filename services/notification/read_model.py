"""What is in people's inboxes. Schema, projection and every query, together."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import asyncpg
import msgspec
from asyncpg.pool import PoolConnectionProxy

from common.event_log import Recorded
from common.events import (
    Channel,
    DeliveryGivenUp,
    DeliveryRepeated,
    NotificationKind,
    NotificationRaised,
    NotificationRead,
    NotificationsAcknowledged,
    NotificationsRead,
    PreferencesChanged,
)
from common.projector import ReadModel
from services.notification import deliveries

TABLES = """
create table notifications (
    cursor bigint primary key, -- its sequence in the stream
    id uuid not null unique,
    user_id text not null,
    kind text not null,
    about uuid not null,
    text text not null,
    facts jsonb not null,
    at timestamptz not null,
    read boolean not null default false,
    given_up boolean not null default false,
    attempts jsonb not null default '{}' -- by channel, where there was more than one
);
create index on notifications (user_id, cursor);
create table inboxes (
    user_id text primary key,
    acknowledged bigint not null default 0,
    read_to bigint not null default 0,
    muted jsonb not null default '{}'
);
"""

INSERT = """
insert into notifications (cursor, id, user_id, kind, about, text, facts, at)
select cursor, id, user_id, kind, about, text, facts, at
from unnest($1::bigint[], $2::uuid[], $3::text[], $4::text[], $5::uuid[], $6::text[], $7::jsonb[], $8::timestamptz[])
    as new (cursor, id, user_id, kind, about, text, facts, at)
"""
ACKNOWLEDGE = """
insert into inboxes (user_id, acknowledged) select * from unnest($1::text[], $2::bigint[])
on conflict (user_id) do update set acknowledged = greatest(inboxes.acknowledged, excluded.acknowledged)
"""
READ_ONE = "update notifications set read = true where id = any($1::uuid[])"
READ_ALL = """
insert into inboxes (user_id, read_to) select * from unnest($1::text[], $2::bigint[])
on conflict (user_id) do update set read_to = excluded.read_to
"""
REPEAT = """
update notifications set attempts = notifications.attempts || new.attempts, given_up = given_up or new.gave_up
from unnest($1::uuid[], $2::jsonb[], $3::boolean[]) as new (id, attempts, gave_up)
where notifications.id = new.id
"""
PREFER = """
insert into inboxes (user_id, muted) select * from unnest($1::text[], $2::jsonb[])
on conflict (user_id) do update set muted = excluded.muted
"""

_encode = msgspec.json.Encoder().encode


def json(value: object) -> str:
    """As asyncpg takes JSON."""
    return _encode(value).decode()


class _News:
    """What a batch of events makes of the tables, until it is written by one statement of each sort."""

    def __init__(self) -> None:
        self.raised: list[tuple[object, ...]] = []
        self.acknowledged: dict[str, int] = {}
        self.read: list[UUID] = []
        self.read_to: dict[str, int] = {}
        self.attempts: dict[UUID, dict[Channel, int]] = {}
        self.given_up: set[UUID] = set()
        self.muted: dict[str, str] = {}

    def add(self, recorded: Recorded) -> None:
        match recorded.event:
            case NotificationRaised(notification_id, user_id, kind, about, text, facts, at):
                told = (notification_id, user_id, kind, about, text, json(facts), at)
                self.raised.append((recorded.sequence, *told))
            case NotificationsAcknowledged(user_id, cursor):
                self.acknowledged[user_id] = max(cursor, self.acknowledged.get(user_id, 0))
            case NotificationRead(notification_id=notification_id):
                self.read.append(notification_id)
            case NotificationsRead(user_id, cursor):
                self.read_to[user_id] = cursor
            case DeliveryRepeated(_, channel, notification_ids, attempt):
                for notification_id in notification_ids:
                    self.attempts.setdefault(notification_id, {})[channel] = attempt
            case DeliveryGivenUp(_, channel, notification_ids, attempts):
                for notification_id in notification_ids:
                    self.attempts.setdefault(notification_id, {})[channel] = attempts
                self.given_up.update(notification_ids)
            case PreferencesChanged(user_id, muted):
                self.muted[user_id] = json(muted)

    async def write(self, connection: asyncpg.Connection) -> None:
        if self.raised:
            await connection.execute(INSERT, *zip(*self.raised, strict=True))
        for statement, told in ((ACKNOWLEDGE, self.acknowledged), (READ_ALL, self.read_to), (PREFER, self.muted)):
            if told:
                await connection.execute(statement, list(told), list(told.values()))
        if self.read:
            await connection.execute(READ_ONE, self.read)
        if self.attempts:
            columns = [(each, json(attempts), each in self.given_up) for each, attempts in self.attempts.items()]
            await connection.execute(REPEAT, *zip(*columns, strict=True))


async def project(connection: asyncpg.Connection, events: Sequence[Recorded]) -> None:
    """Write what was raised, and how far people have come with it."""
    news = _News()
    for recorded in events:
        news.add(recorded)
    await news.write(connection)
    await deliveries.project_deliveries(connection, events)


READ_MODEL = ReadModel(
    "notifications", TABLES + deliveries.TABLES, {"NOTIFICATIONS": project}, linger=0.02, service="notification"
)


class Notification(msgspec.Struct, frozen=True):
    """What somebody is told. `cursor`: its place; `about`: the id of the order, batch or ticket."""

    cursor: int
    id: UUID
    kind: NotificationKind
    about: UUID
    text: str
    facts: dict[str, str | int]
    at: datetime

    @classmethod
    def of(cls, cursor: int, event: NotificationRaised) -> "Notification":
        """What was raised at a place of the stream."""
        told = (event.kind, event.about, event.text, event.facts, event.at)
        return cls(cursor, event.notification_id, *told)

    @classmethod
    def of_row(cls, row: asyncpg.Record) -> "Notification":
        """A row of `notifications`."""
        facts = msgspec.json.decode(row["facts"], type=dict[str, str | int])
        return cls(row["cursor"], row["id"], row["kind"], row["about"], row["text"], facts, row["at"])


class InboxItem(msgspec.Struct, frozen=True):
    """A notification and what became of it. `attempts`: how often it was sent, by channel, where more than once;
    `undelivered`: it was sent as often as it may be, and nobody acknowledged it.
    """

    notification: Notification
    read: bool
    acknowledged: bool
    undelivered: bool
    attempts: dict[Channel, int]


class InboxPage(msgspec.Struct, frozen=True):
    """Some of an inbox, newest first. `next_cursor` is null on the last page."""

    items: list[InboxItem]
    unread: int
    next_cursor: str | None


class Standing(msgspec.Struct, frozen=True):
    """How far a user has come, and what they do not want on which channel."""

    acknowledged: int = 0
    read_to: int = 0
    muted: dict[Channel, list[NotificationKind]] = {}


Reader = asyncpg.Pool | PoolConnectionProxy

NEWER = """
select cursor, id, kind, about, text, facts, at from notifications
where user_id = $1 and cursor > $2 and cursor <= $3 order by cursor limit $4
"""
STANDING = "select acknowledged, read_to, muted from inboxes where user_id = $1"
PAGE = """
select cursor, id, kind, about, text, facts, at, read, given_up, attempts from notifications
where user_id = $1 and ($2::bigint is null or cursor < $2) order by cursor desc limit $3
"""
UNREAD = "select count(*) from notifications where user_id = $1 and cursor > $2 and not read"


async def newer(pool: Reader, user_id: str, after: int, to: int, limit: int) -> list[Notification]:
    """A user's notifications past `after`, up to `to`, oldest first."""
    return [Notification.of_row(row) for row in await pool.fetch(NEWER, user_id, after, to, limit)]


async def standing(pool: Reader, user_id: str) -> Standing:
    """How far a user has come."""
    row = await pool.fetchrow(STANDING, user_id)
    if row is None:
        return Standing()
    muted = msgspec.json.decode(row["muted"], type=dict[Channel, list[NotificationKind]])
    return Standing(row["acknowledged"], row["read_to"], muted)


async def inbox(pool: asyncpg.Pool, user_id: str, *, limit: int, before: int | None) -> InboxPage:
    """A page of a user's inbox, and how many of all are unread at that very moment: what comes later is added to it."""
    async with pool.acquire() as reader, reader.transaction(isolation="repeatable_read", readonly=True):
        now = await standing(reader, user_id)
        rows = await reader.fetch(PAGE, user_id, before, limit + 1)
        unread = await reader.fetchval(UNREAD, user_id, now.read_to)
    items = [item_of_row(row, now) for row in rows[:limit]]
    return InboxPage(items, unread, str(items[-1].notification.cursor) if len(rows) > limit else None)


def item_of_row(row: asyncpg.Record, now: Standing) -> InboxItem:
    """A row of PAGE."""
    attempts = msgspec.json.decode(row["attempts"], type=dict[Channel, int])
    acknowledged = row["cursor"] <= now.acknowledged
    read = row["read"] or row["cursor"] <= now.read_to
    return InboxItem(Notification.of_row(row), read, acknowledged, row["given_up"] and not acknowledged, attempts)
