"""A live read model compared with the log: made anew beside it, and every row of the two held against each other."""

from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg
import msgspec

from common.errors import Conflict, Unavailable
from common.event_log import JetStreamLog
from common.progress import Progress, untold
from common.projector import (
    HOLD_WRITERS,
    LET_WRITERS_GO,
    MAY_REBUILD,
    CheckpointMismatch,
    ReadModel,
    catch_up,
    connect,
    fingerprint_of,
    verify_checkpoint,
)
from common.views import ROWS, TABLES, scratch

SHOWN = 20
"""Of how many rows that differ it is told in what, for each table."""

HELD_AT_MOST = "set idle_session_timeout = '10s'"
"""A process that stands still does not keep the live projector waiting: Postgres ends its connection."""

DIFFERING_BY_KEY = """
select count(*) over () as total, to_json(live.*)::text as live, to_json(rebuilt.*)::text as rebuilt
from "{model}"."{table}" as live full join "{beside}"."{table}" as rebuilt using ({key})
where to_jsonb(live.*) is distinct from to_jsonb(rebuilt.*)
order by {key}
limit {shown}
"""
DIFFERING_WITHOUT_KEY = """
with live as materialized (select to_jsonb(each.*) as content from "{model}"."{table}" as each),
     rebuilt as materialized (select to_jsonb(each.*) as content from "{beside}"."{table}" as each)
select count(*) over () as total, live, rebuilt
from (
    select content::text as live, null::text as rebuilt
    from (select content from live except all select content from rebuilt) as surplus
    union all
    select null, content::text from (select content from rebuilt except all select content from live) as missing
) as differing
limit {shown}
"""

Row = Mapping[str, Any]
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Difference(msgspec.Struct, frozen=True):
    """A row that is not in both as the same: as it is, and as the log has it. None: it is not there."""

    live: Row | None
    rebuilt: Row | None


class Compared(msgspec.Struct, frozen=True):
    """A table: the columns of its primary key, how many rows it has, how many differ, and up to 20 of these."""

    table: str
    key: Sequence[str]
    rows: int
    differing: int
    differences: Sequence[Difference]


async def verify(
    model: ReadModel, event_log: JetStreamLog, database_url: str, progress: Progress = untold
) -> list[Compared]:
    """Make a read model anew beside the live one, up to exactly where that one is, and compare every row.

    The live projector goes on: it waits only while the last events are read. Raises Conflict if the tables or the log
    are others than those of the live one, Unavailable, UndecodableEvent, PostgresError. Nothing is left behind.
    """
    live = await connect(database_url, model.name)
    try:
        if not await live.fetchval(MAY_REBUILD, model.name):  # a swap would leave us with neither
            raise Unavailable(f"Read model {model.name} is being rebuilt or verified by somebody else.")
        if await fingerprint_of(live, model.name) != model.fingerprint:
            raise Conflict(f"Read model {model.name} has other tables than this code; run `boxoffice migrate`.")
        beside = f"{model.name}_verify"
        async with scratch(model, beside, event_log, database_url) as connection:
            reached = dict.fromkeys(model.sources, 0)
            for hold in (False, False, True):  # what came while the first read is little, and then next to nothing
                if hold:
                    await live.execute(HELD_AT_MOST)
                    await live.execute(HOLD_WRITERS, model.name)
                for stream in model.sources:
                    until = await _checkpoint(live, model, stream, event_log)
                    await catch_up(connection, model, stream, reached, event_log, progress, until)
            async with live.transaction(isolation="repeatable_read", readonly=True):
                tables = await live.fetch(TABLES, beside)  # the first query: from here on both stay as they are
                await live.execute(LET_WRITERS_GO, model.name)
                await live.execute("reset idle_session_timeout")
                if await live.fetch(TABLES, model.name) != tables:
                    raise Conflict(f"Somebody has changed the tables of read model {model.name}; rebuild it.")
                compared = [await _compare(live, model.name, beside, row["name"], row["key"]) for row in tables]
            await connection.execute(f'drop schema "{beside}" cascade')
        return compared
    finally:
        await live.close()


async def _checkpoint(live: asyncpg.Connection, model: ReadModel, stream: str, event_log: JetStreamLog) -> int:
    """Where the live one is."""
    try:
        return await verify_checkpoint(live, stream, event_log)
    except CheckpointMismatch as error:
        raise Conflict(f"{error}; run `boxoffice projections rebuild {model.name}`.") from error


async def _compare(live: asyncpg.Connection, model: str, beside: str, table: str, key: Sequence[str]) -> Compared:
    names = {"model": model, "beside": beside, "table": table, "shown": SHOWN}
    if key:
        quoted = ", ".join(f'"{column}"' for column in key)
        found = await live.fetch(DIFFERING_BY_KEY.format(key=quoted, **names))
    else:
        found = await live.fetch(DIFFERING_WITHOUT_KEY.format(**names))
    rows = await live.fetchval(ROWS.format(schema=model, table=table))
    differences = [Difference(*(told and _decode(told) for told in (row["live"], row["rebuilt"]))) for row in found]
    return Compared(table, key, rows, found[0]["total"] if found else 0, differences)
