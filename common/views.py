"""Read models as they were: made from the log up to a past moment, in a scratch schema beside the live one."""

import re
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime

import asyncpg
import msgspec

from common.clock import now
from common.errors import Conflict, Invalid, NotFound, Unavailable
from common.event_log import JetStreamLog
from common.postgres import POSTGRES_FAILED
from common.progress import Progress, untold
from common.projector import ReadModel, catch_up, connect, create_schema

MARK = "boxoffice scratch"
"""With what the comment of every scratch schema begins: what has another one is never dropped."""

NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}", re.ASCII)
OF_THE_SERVER = re.compile(r"pg_.*|public|information_schema")

MAY_MAKE = "select pg_try_advisory_lock(hashtextextended('boxoffice.scratch.' || $1, 0))"
COMMENT = "select coalesce(obj_description(oid, 'pg_namespace'), '') from pg_namespace where nspname = $1"
SCRATCHES = """
select nspname::text as schema, obj_description(oid, 'pg_namespace') as comment from pg_namespace
where obj_description(oid, 'pg_namespace') like $1 || '%' order by nspname
"""
TABLES = """
select relname::text as name,
       array(
           select attname::text
           from pg_index cross join unnest(indkey) with ordinality as part (number, place)
                join pg_attribute on attrelid = indrelid and attnum = number
           where indrelid = pg_class.oid and indisprimary
           order by place
       ) as key,
       array(
           select attname::text from pg_attribute
           where attrelid = pg_class.oid and attnum > 0 and not attisdropped order by attname
       ) as columns
from pg_class
where relnamespace = (select oid from pg_namespace where nspname = $1) and relkind in ('r', 'p')
  and relname <> 'checkpoint'
order by relname
"""
"""The tables of a read model, with the columns of each one's primary key, and all."""
ROWS = 'select count(*) from "{schema}"."{table}"'


class View(msgspec.Struct, frozen=True):
    """A read model as it was, in a scratch schema. `reached`: of each stream the last sequence that is in it;
    `until`: when the last event of the service's own stream that is in it was appended; `rows`: how many, by table.
    """

    schema: str
    reached: Mapping[str, int]
    until: datetime | None
    rows: Mapping[str, int]


class Scratch(msgspec.Struct, frozen=True):
    """A scratch schema that is there, and what it says of itself."""

    schema: str
    says: str


async def sequences_at(model: ReadModel, moment: datetime | int, event_log: JetStreamLog) -> dict[str, int]:
    """Of each stream the last sequence that counts at a moment: what was appended before a time, or up to a sequence.

    A sequence is one of the first of the model's streams, and of the others what was appended before that event
    counts. Raises Invalid for a moment that is still to come, NotFound, Unavailable.
    """
    own, *others = model.sources
    if isinstance(moment, datetime):
        if moment > now():
            raise Invalid(f"{moment.isoformat()} is still to come; name a time that has passed.")
        return {stream: await event_log.sequence_before(stream, moment) for stream in model.sources}
    if moment > (end := (await event_log.end(own)).sequence):
        raise Invalid(f"Stream {own} ends at {end}; name a sequence up to that, not {moment}.")
    if not moment:
        return dict.fromkeys(model.sources, 0)
    if (last := await event_log.stored(own, moment)) is None:
        raise NotFound(f"Stream {own} has no event {moment}; name the sequence of another.")
    return {own: moment} | {stream: await event_log.sequence_before(stream, last.time) for stream in others}


async def view(
    model: ReadModel,
    moment: datetime | int,
    event_log: JetStreamLog,
    database_url: str,
    *,
    into: str | None = None,
    reserved: Collection[str] = (),
    progress: Progress = untold,
) -> View:
    """Make a read model as it was at a moment (see `sequences_at`), and leave it in a scratch schema.

    It is called `into`, or after the model and the sequence; a scratch of that name is replaced, and nothing else is:
    `reserved` are the names that are never used. Raises Invalid, NotFound, Conflict, Unavailable, UndecodableEvent,
    PostgresError; there is no such schema then.
    """
    if into is not None:
        check_name(into, reserved)
    sequences = await sequences_at(model, moment, event_log)
    own = next(iter(model.sources))
    schema = into or f"{model.name}_at_{sequences[own]}"
    last = await event_log.stored(own, sequences[own]) if sequences[own] else None
    async with scratch(model, schema, event_log, database_url) as connection:
        reached = dict.fromkeys(sequences, 0)
        for stream, until in sequences.items():
            await catch_up(connection, model, stream, reached, event_log, progress, until)
        tables = [row["name"] for row in await connection.fetch(TABLES, schema)]
        rows = {table: await connection.fetchval(ROWS.format(schema=schema, table=table)) for table in tables}
        says = ", ".join(f"{stream} to {sequence}" for stream, sequence in reached.items())
        await connection.execute(f"comment on schema \"{schema}\" is '{MARK} of {model.name}: {says}'")
    return View(schema, reached, last.time if last else None, rows)


def check_name(schema: str, reserved: Collection[str]) -> None:
    """Raises Invalid for a name that a scratch schema may not have."""
    if not NAME.fullmatch(schema):
        raise Invalid(f"{schema!r} is no name for a schema: use a to z, 0 to 9 and _, 63 of them at most.")
    if schema in reserved or OF_THE_SERVER.fullmatch(schema):
        raise Invalid(f"Schema {schema} is not for this; name another.")


@asynccontextmanager
async def scratch(
    model: ReadModel, schema: str, event_log: JetStreamLog, database_url: str
) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a new scratch schema with the read model's tables, empty. What fails within takes it away.

    Nobody but its owner may look at it. One that is there, perhaps since somebody was killed, is replaced. Raises
    Conflict if another schema has that name, and Unavailable if somebody is making the same.
    """
    connection = await connect(database_url, schema)
    try:
        async with connection.transaction():
            await _drop(connection, schema)
            await create_schema(connection, model, schema, event_log, f"{MARK} of {model.name}, not finished")
        try:
            yield connection
        except BaseException:
            with suppress(*POSTGRES_FAILED):  # the next one drops it then
                await _drop(connection, schema)
            raise
    finally:
        await connection.close()


async def scratches(database_url: str) -> list[Scratch]:
    """Those that are there. Raises PostgresError."""
    connection = await connect(database_url, "")
    try:
        rows = await connection.fetch(SCRATCHES, MARK)
    finally:
        await connection.close()
    return [Scratch(row["schema"], row["comment"].removeprefix(f"{MARK} of ")) for row in rows]


async def drop(schema: str, database_url: str) -> None:
    """Drop a scratch schema. Raises NotFound, Conflict for another one, Unavailable while it is made, PostgresError."""
    connection = await connect(database_url, "")
    try:
        async with connection.transaction():
            if not await _drop(connection, schema):
                raise NotFound(f"There is no schema {schema}; `boxoffice replay projections` lists those that are.")
    finally:
        await connection.close()


async def _drop(connection: asyncpg.Connection, schema: str) -> bool:
    """Drop it, if it is there and nobody else makes it; whether it was. From here on it is for this connection."""
    if not await connection.fetchval(MAY_MAKE, schema):
        raise Unavailable(f"Schema {schema} is being made by somebody else; try again when they are done.")
    comment = await connection.fetchval(COMMENT, schema)
    if comment is None:
        return False
    if not comment.startswith(MARK):
        raise Conflict(f"Schema {schema} is not one that a replay has made; name another.")
    await connection.execute(f'drop schema "{schema}" cascade')
    return True
