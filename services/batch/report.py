"""The report of a batch: a CSV with a line for each row and run that came to an end, in parts that are written once."""

import csv
import io
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime
from uuid import UUID

import asyncpg
import msgspec

from common.event_log import Recorded
from common.events import BatchCompleted, OperationsAdded, OperationsExecuted, RowsRefused
from common.projector import ReadModel
from services.batch.domain import Ended, ends_of, never_run, operation_id_of

HEADER = "row,run,status,error,output,operation_id,at\r\n"

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that a spreadsheet would execute (OWASP, CSV injection)."""


def harmless(cell: object) -> object:
    """A cell that no spreadsheet takes for a formula: such a text, which somebody else wrote, after an apostrophe."""
    return "'" + cell if isinstance(cell, str) and cell.startswith(FORMULA) else cell


TABLES = """
create table parts (
    batch_id uuid not null,
    sequence bigint not null,
    work bigint not null, -- -1: rows that are no operations
    ended bigint not null, -- operations of that piece of work that have come to an end by then
    failed bigint not null, -- of these: a later run takes them back
    run bigint not null,
    at timestamptz not null,
    ends bytea not null, -- JSON: what became of which rows
    primary key (batch_id, sequence)
);
"""

INSERT_PARTS = """
insert into parts (batch_id, sequence, work, ended, failed, run, at, ends)
select batch_id, sequence, work, ended, failed, run, at, ends
from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::timestamptz[],
            $8::bytea[])
    as new (batch_id, sequence, work, ended, failed, run, at, ends)
"""

HAS_RUN = "select exists(select from parts where batch_id = $1 and work >= 0)"
REFUSED = "select ends from parts where batch_id = $1 and work < 0"

NEXT_PART = """
select sequence, run, at, ends from batch_report.parts where batch_id = $1 and sequence > $2 order by sequence limit 1
"""

Part = tuple[UUID, int, int, int, int, int, datetime, bytes]
encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(list[Ended]).decode


async def project(connection: asyncpg.Connection, events: Sequence[Recorded]) -> None:
    """Add what each event tells; its place in the log is the part's, so that none is there twice."""
    parts: list[Part] = []
    for recorded in events:
        match recorded.event:
            case OperationsExecuted(batch_id=UUID() as batch_id) as e:
                ended = e.succeeded + e.failed + e.cancelled
                parts.append((batch_id, recorded.sequence, e.work, ended, e.failed, e.run, e.at, encode(ends_of(e))))
            case RowsRefused(batch_id, refused, at):
                rows = [Ended(r.number, r.number, "refused", reason(r.column, r.reason)) for r in refused]
                parts.append((batch_id, recorded.sequence, -1, 0, 0, 1, at, encode(rows)))
            case BatchCompleted(status="CANCELLED") as e:
                await write(connection, parts)
                parts.clear()
                if not await connection.fetchval(HAS_RUN, e.batch_id):
                    told = await connection.fetch(REFUSED, e.batch_id)
                    ends = never_run(
                        e.cancelled + e.refused, (ended.first for (some,) in told for ended in decode(some))
                    )
                    parts.append((e.batch_id, recorded.sequence, 0, e.cancelled, 0, 1, e.at, encode(ends)))
    await write(connection, parts)


async def write(connection: asyncpg.Connection, parts: Sequence[Part]) -> None:
    if parts:
        await connection.execute(INSERT_PARTS, *zip(*parts, strict=True))


def reason(column: str | None, text: str) -> str:
    """Why a row is no operation."""
    return f"{column}: {text}" if column else text


def cells(batch_id: UUID, run: int, at: datetime, number: int, ended: Ended) -> tuple[object, ...]:
    """What the line of a row holds, in the order of HEADER."""
    operation_id = operation_id_of(batch_id, number) if ended.status != "refused" else None
    return number, run, ended.status, ended.error, ended.output, operation_id, at.isoformat()


def lines_of(rows: Iterable[tuple[object, ...]]) -> str:
    """Rows as CSV."""
    text = io.StringIO()
    csv.writer(text).writerows([harmless(cell) for cell in row] for row in rows)
    return text.getvalue()


READ_MODEL = ReadModel(
    "batch_report", TABLES, {"BATCH": project}, linger=0.02, skips=(OperationsAdded,), service="batch"
)


async def report(pool: asyncpg.Pool, batch_id: UUID) -> AsyncIterator[bytes]:
    """The report so far, part by part."""
    yield HEADER.encode()
    sequence = 0
    while (part := await pool.fetchrow(NEXT_PART, batch_id, sequence)) is not None:
        sequence = part["sequence"]
        rows = (
            cells(batch_id, part["run"], part["at"], number, ended)
            for ended in decode(part["ends"])
            for number in range(ended.first, ended.last + 1)
        )
        yield lines_of(rows).encode()
