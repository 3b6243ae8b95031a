"""What people see of their logins and keys, and operators of users. Schema, projection and every query, together."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from common.errors import NotFound
from common.event_log import Recorded
from common.events import (
    KeyCreated,
    KeyRevoked,
    KeyUsed,
    LoginsEnded,
    Role,
    RoleChanged,
    SessionEnded,
    SessionOpened,
    SessionRefreshed,
    UserRegistered,
)
from common.paging import cursor_of, position_of
from common.projector import ReadModel
from services.identity.domain import DEV

TABLES = """
create table users (
    place uuid primary key, -- under which the log has them
    id text not null,
    issuer text not null,
    role text not null,
    created_at timestamptz not null
);
create unique index on users (id);
create index on users (created_at desc, place desc);
create table sessions (
    id uuid primary key,
    user_id text not null,
    provider text not null,
    opened_at timestamptz not null,
    refreshed_at timestamptz not null,
    expires_at timestamptz not null,
    ended text
);
create index on sessions (user_id, opened_at desc);
create table keys (
    id uuid primary key,
    user_id text not null,
    name text not null,
    scopes text[] not null,
    created_at timestamptz not null,
    expires_at timestamptz,
    used_at timestamptz,
    revoked_at timestamptz
);
create index on keys (user_id, created_at desc);
"""

REGISTER = """
insert into users (place, id, issuer, role, created_at)
select * from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::timestamptz[])
"""
CHANGE_ROLE = """
update users set role = new.role from unnest($1::text[], $2::text[]) as new (id, role) where users.id = new.id
"""
OPEN = """
insert into sessions (id, user_id, provider, opened_at, refreshed_at, expires_at)
select id, user_id, provider, at, at, expires_at
from unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[])
    as new (id, user_id, provider, at, expires_at)
"""
REFRESH = """
update sessions set refreshed_at = new.at from unnest($1::uuid[], $2::timestamptz[]) as new (id, at)
where sessions.id = new.id
"""
END = """
update sessions set ended = new.reason from unnest($1::uuid[], $2::text[]) as new (id, reason)
where sessions.id = new.id
"""
CREATE = """
insert into keys (id, user_id, name, scopes, created_at, expires_at)
select id, user_id, name, string_to_array(scopes, ' '), at, expires_at
from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[])
    as new (id, user_id, name, scopes, at, expires_at)
"""
USE = """
update keys set used_at = new.at from unnest($1::uuid[], $2::timestamptz[]) as new (id, at) where keys.id = new.id
"""
REVOKE = """
update keys set revoked_at = new.at from unnest($1::uuid[], $2::timestamptz[]) as new (id, at) where keys.id = new.id
"""
END_SESSIONS = """
update sessions set ended = 'ended' from unnest($1::text[], $2::timestamptz[]) as new (user_id, at)
where sessions.user_id = new.user_id and opened_at <= new.at and ended is null
"""
REVOKE_KEYS = """
update keys set revoked_at = new.at from unnest($1::text[], $2::timestamptz[]) as new (user_id, at)
where keys.user_id = new.user_id and created_at <= new.at and revoked_at is null
"""
IN_ORDER = (REGISTER, CHANGE_ROLE, OPEN, REFRESH, END, CREATE, USE, REVOKE, END_SESSIONS, REVOKE_KEYS)


async def project(connection: asyncpg.Connection, events: Sequence[Recorded]) -> None:
    """Write what became of users, sessions and keys: of each the last that was told."""
    told: dict[str, dict[object, tuple[Any, ...]]] = defaultdict(dict)
    for recorded in events:
        match recorded.event:
            case UserRegistered(user_id, issuer, _, role, at):
                place = UUID(recorded.subject.rpartition(".")[2])
                told[REGISTER][place] = (place, user_id, issuer, role, at)
            case RoleChanged(user_id, role):
                told[CHANGE_ROLE][user_id] = (user_id, role)
            case LoginsEnded(user_id=user_id, at=at):
                told[END_SESSIONS][user_id] = told[REVOKE_KEYS][user_id] = (user_id, at)
                await write(connection, told)  # it is about what there is before it, whatever comes after it here
                told.clear()
            case SessionOpened(session_id, user_id, provider, at, expires_at):
                told[OPEN][session_id] = (session_id, user_id, provider, at, expires_at)
            case SessionRefreshed(session_id=session_id, at=at):
                told[REFRESH][session_id] = (session_id, at)
            case SessionEnded(session_id=session_id, reason=reason):
                told[END][session_id] = (session_id, reason)
            case KeyCreated(key_id, user_id, name, scopes, _, at, expires_at):
                told[CREATE][key_id] = (key_id, user_id, name, " ".join(scopes), at, expires_at)
            case KeyUsed(key_id, _, at):
                told[USE][key_id] = (key_id, at)
            case KeyRevoked(key_id, _, at):
                told[REVOKE][key_id] = (key_id, at)
    await write(connection, told)


async def write(connection: asyncpg.Connection, told: Mapping[str, Mapping[object, tuple[Any, ...]]]) -> None:
    """Write what was told, by one statement of each sort."""
    for statement in IN_ORDER:
        if rows := told.get(statement):
            await connection.execute(statement, *map(list, zip(*rows.values(), strict=True)))


READ_MODEL = ReadModel("identity", TABLES, {"IDENTITY": project}, service="identity")


class SessionView(msgspec.Struct, frozen=True):
    """A login of yours. `current`: the one that you ask with."""

    id: UUID
    provider: str
    opened_at: datetime
    refreshed_at: datetime
    expires_at: datetime
    current: bool


class KeyView(msgspec.Struct, frozen=True):
    """An API key, without its secret. `used_at` is told every ten minutes at most."""

    id: UUID
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    used_at: datetime | None


class UserView(msgspec.Struct, frozen=True):
    """A user. Name and email are as the provider last told them."""

    id: str
    issuer: str
    role: Role
    name: str | None
    email: str | None
    created_at: datetime


class UserPage(msgspec.Struct, frozen=True):
    """Some users, newest first. `next_cursor` is null on the last page."""

    items: list[UserView]
    next_cursor: str | None


SESSIONS_OF_USER = """
select id, provider, opened_at, refreshed_at, expires_at from sessions
where user_id = $1 and ended is null and expires_at > $2 order by opened_at desc limit 100
"""
KEYS_OF_USER = """
select id, name, scopes, created_at, expires_at, used_at from keys
where user_id = $1 and revoked_at is null and (expires_at is null or expires_at > $2) order by created_at desc
"""
KNOWN_KEYS = "select id, revoked_at is not null as revoked from keys where id = any($1)"
USER = """
select place, users.id, issuer, role, people.name, people.email, users.created_at
from users left join identity_data.people on people.user_id = users.id
"""
OPERATORS = """
select users.id, people.email from users left join identity_data.people on people.user_id = users.id
where role = 'operator' and issuer <> $1
"""
USER_OF_ID = USER + " where users.place = $1"
USERS = (
    USER
    + """
where ($1::timestamptz is null or (users.created_at, place) < ($1, $2::uuid))
order by users.created_at desc, place desc limit $3
"""
)


async def sessions(pool: asyncpg.Pool, user_id: str, current: UUID | None, at: datetime) -> list[SessionView]:
    """The logins of a user that are not over, newest first."""
    rows = await pool.fetch(SESSIONS_OF_USER, user_id, at)
    return [SessionView(**row, current=row["id"] == current) for row in rows]


async def keys(pool: asyncpg.Pool, user_id: str, at: datetime) -> list[KeyView]:
    """The keys of a user that are good, newest first."""
    return [KeyView(*row) for row in await pool.fetch(KEYS_OF_USER, user_id, at)]


async def revoked(pool: asyncpg.Pool, keys: Collection[UUID]) -> dict[UUID, bool]:
    """Of those of these keys that were ever made, whether they were revoked."""
    return {row["id"]: row["revoked"] for row in await pool.fetch(KNOWN_KEYS, list(keys))}


async def operators(pool: asyncpg.Pool) -> list[tuple[str, str | None]]:
    """Who is an operator and has a provider: their ids and verified addresses."""
    return [(row["id"], row["email"]) for row in await pool.fetch(OPERATORS, DEV)]


async def users(pool: asyncpg.Pool, *, limit: int, cursor: str | None) -> UserPage:
    """A page of all users. Raises Invalid for a cursor that is none."""
    rows = await pool.fetch(USERS, *position_of(cursor), limit + 1)
    more = cursor_of(rows[limit - 1]["created_at"], rows[limit - 1]["place"]) if len(rows) > limit else None
    return UserPage([user_of(row) for row in rows[:limit]], more)


async def user(pool: asyncpg.Pool, place: UUID) -> UserView:
    """One user. Raises NotFound."""
    row = await pool.fetchrow(USER_OF_ID, place)
    if row is None:
        raise NotFound("There is no such user.")
    return user_of(row)


def user_of(row: asyncpg.Record) -> UserView:
    """A row of USER."""
    return UserView(row["id"], row["issuer"], row["role"], row["name"], row["email"], row["created_at"])
