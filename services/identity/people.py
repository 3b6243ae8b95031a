"""What providers say of people: their names, and the sealed token by which we ask again.

Tables of its own, which no rebuild touches: the log forgets nothing, and this is to be forgotten if somebody wants it.
"""

from datetime import datetime, timedelta

import asyncpg
import msgspec

from services.identity.oauth import Identity

CREATE = """
create schema if not exists identity_data;
create table if not exists identity_data.people (
    user_id text primary key,
    provider text not null,
    subject text not null,
    name text,
    email text,
    sealed text, -- the provider's refresh token
    checked_at timestamptz not null
);
"""
KEEP = """
insert into identity_data.people as known (user_id, provider, subject, name, email, sealed, checked_at)
values ($1, $2, $3, $4, $5, $6, $7)
on conflict (user_id) do update set
    name = coalesce(excluded.name, known.name), email = coalesce(excluded.email, known.email),
    sealed = coalesce(excluded.sealed, known.sealed), checked_at = excluded.checked_at
"""
# One of those who come at the same time; the others go on meanwhile.
TO_BE_CHECKED = """
update identity_data.people set checked_at = $2
where user_id = $1 and checked_at < $3 and sealed is not null
returning provider, subject, sealed
"""
VOUCHED = "select provider, subject, sealed from identity_data.people where user_id = $1 and sealed is not null"
SEALED = "select user_id, sealed from identity_data.people where sealed is not null"
NAME = "select name from identity_data.people where user_id = $1"
RENEW = "update identity_data.people set sealed = $3 where user_id = $1 and sealed = $2"
FORGET = "update identity_data.people set sealed = null where user_id = $1"


class Vouched(msgspec.Struct, frozen=True):
    """Who vouches for somebody, as whom, and the sealed token to ask with."""

    provider: str
    subject: str
    sealed: str


async def keep(
    pool: asyncpg.Pool, user_id: str, provider: str, identity: Identity, sealed: str | None, at: datetime
) -> None:
    """Keep what a provider said. What it did not say this time stays as it was."""
    email = identity.email if identity.email_verified else None
    await pool.execute(KEEP, user_id, provider, identity.subject, identity.name, email, sealed, at)


async def to_be_checked(pool: asyncpg.Pool, user_id: str, at: datetime, after: timedelta) -> Vouched | None:
    """Whom to ask whether they still vouch for somebody, if nobody has done so for a while."""
    row = await pool.fetchrow(TO_BE_CHECKED, user_id, at, at - after)
    return Vouched(*row) if row else None


async def vouched(pool: asyncpg.Pool, user_id: str) -> Vouched | None:
    """Who vouches for somebody, if they gave us a token."""
    row = await pool.fetchrow(VOUCHED, user_id)
    return Vouched(*row) if row else None


async def name_of(pool: asyncpg.Pool, user_id: str) -> str | None:
    """What somebody is called, if their provider says so."""
    name: str | None = await pool.fetchval(NAME, user_id)
    return name


async def sealed(pool: asyncpg.Pool) -> list[tuple[str, str]]:
    """Of whom a token is kept, and the token."""
    return [(row["user_id"], row["sealed"]) for row in await pool.fetch(SEALED)]


async def renew(pool: asyncpg.Pool, user_id: str, before: str, sealed: str) -> None:
    """Keep the token by which another was replaced."""
    await pool.execute(RENEW, user_id, before, sealed)


async def forget_token(pool: asyncpg.Pool, user_id: str) -> None:
    """Keep none."""
    await pool.execute(FORGET, user_id)
