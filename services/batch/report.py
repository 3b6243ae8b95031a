"""The report of a batch: a CSV with a line for each row and run that came to an end, in parts that are written once."""

import csv
import io
from collections.abc import AsyncIterator, Sequence
from uuid import UUID

import asyncpg

from common.event_log import Recorded
from common.events import OperationsExecuted, RowsRefused
from common.projector import ReadModel
from services.batch.domain import operation_id_of

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
    lines text not null,
    primary key (batch_id, sequence)
);
"""

INSERT_PARTS = """
insert into parts (batch_id, sequence, work, ended, lines)
select batch_id, sequence, work, ended, lines
from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[])
    as new (batch_id, sequence, work, ended, lines)
"""

NEXT_PART = """
select sequence, lines from batch_report.parts where batch_id = $1 and sequence > $2 order by sequence limit 1
"""


async def project(connection: asyncpg.Connection, events: Sequence[Recorded]) -> None:
    """Add the lines of each event; its place in the log is the part's, so that none is there twice."""
    parts: list[tuple[UUID, int, int, int, str]] = []
    for recorded in events:
        match recorded.event:
            case OperationsExecuted(batch_id=UUID() as batch_id) as e:
                moment = e.at.isoformat()
                rows: list[tuple[object, ...]] = [
                    (r.number, e.run, r.outcome, r.error, r.output, operation_id_of(batch_id, r.number), moment)
                    for r in e.results
                ]
                ended = e.succeeded + e.failed + e.cancelled
                parts.append((batch_id, recorded.sequence, e.work, ended, lines_of(rows)))
            case RowsRefused(batch_id, refused, at):
                moment = at.isoformat()
                rows = [(r.number, 1, "refused", reason(r.column, r.reason), None, None, moment) for r in refused]
                parts.append((batch_id, recorded.sequence, -1, 0, lines_of(rows)))
    if parts:
        await connection.execute(INSERT_PARTS, *zip(*parts, strict=True))


def reason(column: str | None, text: str) -> str:
    """Why a row is no operation."""
    return f"{column}: {text}" if column else text


def lines_of(rows: Sequence[tuple[object, ...]]) -> str:
    """Rows as CSV."""
    text = io.StringIO()
    csv.writer(text).writerows([harmless(cell) for cell in row] for row in rows)
    return text.getvalue()


READ_MODEL = ReadModel("batch_report", TABLES, {"BATCH": project})


async def report(pool: asyncpg.Pool, batch_id: UUID) -> AsyncIterator[bytes]:
    """The report so far, part by part."""
    yield HEADER.encode()
    sequence = 0
    while (part := await pool.fetchrow(NEXT_PART, batch_id, sequence)) is not None:
        sequence = part["sequence"]
        yield part["lines"].encode()
