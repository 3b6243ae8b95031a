"""What can be asked about batches and operations: the tables, how the log fills them, and every query."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from heapq import merge
from itertools import islice
from typing import Literal
from uuid import UUID

import asyncpg
import msgspec

from common.errors import NotFound
from common.event_log import Recorded
from common.events import (
    BatchCompleted,
    BatchFailed,
    BatchOpened,
    BatchRetried,
    BatchStarted,
    BatchSubmitted,
    KindPaused,
    KindResumed,
    OperationsAdded,
    OperationsExecuted,
    Outcome,
    Priority,
    RowsRefused,
)
from common.paging import cursor_of, position_of
from common.projector import ReadModel
from services.batch import templates
from services.batch.domain import Batch, Ended, OnInvalid, Status, ends_of, never_run, operation_id_of

TABLES = """
create table batches (
    id uuid primary key,
    user_id text not null,
    kind text not null,
    priority text not null,
    on_invalid text not null,
    run_at timestamptz,
    status text not null,
    detail text,
    operations bigint not null,
    refused bigint not null,
    created_at timestamptz not null,
    submitted_at timestamptz,
    started_at timestamptz,
    completed_at timestamptz,
    run bigint not null default 1, -- the latest
    run_started_at timestamptz,
    ended_before bigint not null default 0 -- operations that came to their end in earlier runs
);
create index on batches (user_id, created_at desc, id desc);
create table paused_kinds (
    kind text primary key
);
create table refused (
    id uuid primary key, -- what would be the operation's id, if the row were one
    "column" text, -- that is at fault, if it is a single one
    reason text not null
);
create table pieces (
    batch_id uuid not null,
    work bigint not null,
    succeeded bigint not null,
    failed bigint not null,
    cancelled bigint not null,
    primary key (batch_id, work)
);
create table troubles ( -- the pieces of which something is to be tried again
    batch_id uuid not null,
    work bigint not null,
    attempts bigint not null,
    rows int8multirange not null,
    operations bigint not null, -- in `rows`
    error text not null, -- why that is so of one of them
    at timestamptz not null,
    primary key (batch_id, work)
);
create table operations ( -- a row for those that follow each other and came to the same end
    owner_id uuid not null, -- their batch, or the piece of work that is a single one
    first bigint not null,
    last bigint not null,
    user_id text not null,
    kind text not null,
    status text not null,
    error text,
    output text,
    at timestamptz not null,
    primary key (owner_id, last)
);
create index on operations (owner_id, last) where status <> 'succeeded';
"""

INSERT_BATCH = """
insert into batches (id, user_id, kind, priority, on_invalid, run_at, status, operations, refused, created_at)
values ($1, $2, $3, $4, $5, $6, 'PENDING', 0, 0, $7)
"""

SUBMIT_BATCH = "update batches set operations = $2, submitted_at = $3 where id = $1"
REFUSE_ROWS = """
with new as (
    insert into refused (id, "column", reason) select * from unnest($2::uuid[], $3::text[], $4::text[]) returning id
)
update batches set refused = refused + (select count(*) from new) where id = $1
"""
REFUSED = "select id from refused where id between $1 and $2"
IS_REFUSED = "select exists(select from refused where id = $1)"
START_BATCH = "update batches set status = 'RUNNING', started_at = $2, run_started_at = $2 where id = $1"
RETRY_BATCH = """
update batches
set status = 'RUNNING', completed_at = null, run = $3, run_started_at = $2,
    ended_before = (select coalesce(sum(succeeded + cancelled), 0) from pieces where batch_id = $1)
where id = $1
"""
RETRY_PIECES = "update pieces set failed = 0 where batch_id = $1 and failed > 0"
RETRY_OPERATIONS = "delete from operations where owner_id = $1 and status = 'failed'"
ROWS_NEVER_RUN = "select operations + refused from batches where id = $1 and started_at is null"
PAUSE_KIND = "insert into paused_kinds (kind) values ($1) on conflict do nothing"
RESUME_KIND = "delete from paused_kinds where kind = $1"
END_BATCH = "update batches set status = $2, detail = $3, completed_at = $4 where id = $1"

WRITE_PIECES = """
insert into pieces (batch_id, work, succeeded, failed, cancelled)
select batch_id, work, succeeded, failed, cancelled
from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
    as new (batch_id, work, succeeded, failed, cancelled)
on conflict (batch_id, work) do update
    set succeeded = excluded.succeeded, failed = excluded.failed, cancelled = excluded.cancelled
"""

FORGET_TROUBLES = """
delete from troubles using unnest($1::uuid[], $2::bigint[]) as told (batch_id, work)
where (troubles.batch_id, troubles.work) = (told.batch_id, told.work)
"""
WRITE_TROUBLES = """
insert into troubles (batch_id, work, attempts, rows, operations, error, at)
select batch_id, work, attempts, rows::int8multirange, operations, error, at
from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[], $6::text[], $7::timestamptz[])
    as new (batch_id, work, attempts, rows, operations, error, at)
"""

WRITE_OPERATIONS = """
insert into operations (owner_id, first, last, user_id, kind, status, error, output, at)
select owner_id, first, last, user_id, kind, status, error, output, at
from unnest(
    $1::uuid[], $2::bigint[], $3::bigint[],
    $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::timestamptz[]
) as new (owner_id, first, last, user_id, kind, status, error, output, at)
on conflict do nothing -- before requests were claimed, one could be two, with two priorities
"""


class Ends:
    """What became of operations, until it is written: as a few statements, however many events told it."""

    def __init__(self) -> None:
        self._troubles: dict[tuple[UUID, int], tuple[object, ...]] = {}  # of each piece the latest; (): none any more
        self._pieces: dict[tuple[UUID, int], tuple[int, int, int]] = {}
        self._operations: list[tuple[object, ...]] = []

    def add(self, owner_id: UUID, event: OperationsExecuted | BatchCompleted, ends: Iterable[Ended]) -> None:
        """Take what an event tells of operations."""
        e = event
        for ended in ends:
            told = (e.user_id, e.kind, ended.status, ended.error, ended.output, e.at)
            self._operations.append((owner_id, ended.first, ended.last, *told))
        if e.batch_id:
            work = e.work if isinstance(e, OperationsExecuted) else 0
            self._pieces[e.batch_id, work] = (e.succeeded, e.failed, e.cancelled)
            if isinstance(e, OperationsExecuted) and (e.left or e.attempt > 1):
                self._troubles[e.batch_id, work] = trouble_of(e)

    async def write(self, connection: asyncpg.Connection) -> None:
        """Write what was taken since the last time."""
        if self._operations:
            await connection.execute(WRITE_OPERATIONS, *zip(*self._operations, strict=True))
        if self._pieces:
            counts = [(*key, *ends) for key, ends in self._pieces.items()]
            await connection.execute(WRITE_PIECES, *zip(*counts, strict=True))
        if self._troubles:
            await connection.execute(FORGET_TROUBLES, *zip(*self._troubles, strict=True))
            if troubles := [(*key, *trouble) for key, trouble in self._troubles.items() if trouble]:
                await connection.execute(WRITE_TROUBLES, *zip(*troubles, strict=True))
        self._pieces, self._operations, self._troubles = {}, [], {}


def trouble_of(event: OperationsExecuted) -> tuple[object, ...]:
    """What WRITE_TROUBLES writes of a piece, after its id; empty if nothing of it is to be tried again."""
    if event.again is None:
        return ()
    rows = ",".join(f"[{first},{last}]" for first, last in event.again.rows)
    return event.attempt, f"{{{rows}}}", event.left, event.again.error, event.at


async def project(connection: asyncpg.Connection, events: Sequence[Recorded]) -> None:
    """Write what happened to batches one by one, and what became of operations together."""
    await templates.project_templates(connection, events)
    ends = Ends()
    for recorded in events:
        match recorded.event:
            case OperationsExecuted() as executed:
                ends.add(executed.batch_id or executed.work_id, executed, ends_of(executed))
            case BatchOpened(batch_id, kind, user_id, priority, on_invalid, run_at, at):
                await connection.execute(INSERT_BATCH, batch_id, user_id, kind, priority, on_invalid, run_at, at)
            case RowsRefused(batch_id, rows):
                told = [(operation_id_of(batch_id, row.number), row.column, row.reason) for row in rows]
                await connection.execute(REFUSE_ROWS, batch_id, *zip(*told, strict=True))
            case BatchSubmitted(batch_id, total, at=at):
                await connection.execute(SUBMIT_BATCH, batch_id, total, at)
            case BatchStarted(batch_id, at):
                await connection.execute(START_BATCH, batch_id, at)
            case BatchRetried(batch_id, run=run, at=at):
                await ends.write(connection)  # what failed of it is pending from here on
                await connection.execute(RETRY_OPERATIONS, batch_id)
                await connection.execute(RETRY_PIECES, batch_id)
                await connection.execute(RETRY_BATCH, batch_id, at, run)
            case KindPaused(kind):
                await connection.execute(PAUSE_KIND, kind)
            case KindResumed(kind):
                await connection.execute(RESUME_KIND, kind)
            case BatchFailed(batch_id, detail=detail, at=at):
                await connection.execute(END_BATCH, batch_id, "FAILED", detail, at)
            case BatchCompleted(batch_id, status=status, at=at) as over:
                await connection.execute(END_BATCH, batch_id, status, None, at)
                if total := status == "CANCELLED" and await connection.fetchval(ROWS_NEVER_RUN, batch_id):
                    refused = await connection.fetch(REFUSED, batch_id, operation_id_of(batch_id, total))
                    ends.add(batch_id, over, never_run(total, (row["id"].int - batch_id.int for row in refused)))
    await ends.write(connection)


READ_MODEL = ReadModel(
    "batch", TABLES + templates.TABLES, {"BATCH": project}, linger=0.02, skips=(OperationsAdded,), service="batch"
)


class BatchCounts(msgspec.Struct, frozen=True):
    """Rows of a batch: those that are operations and what became of them, and those that are none."""

    operations: int
    refused: int
    pending: int
    succeeded: int
    failed: int
    cancelled: int


class Trouble(msgspec.Struct, frozen=True):
    """Operations of a batch that are to be tried again: how many, how often the worst of them was tried, and the latest
    reason for one of them.
    """

    operations: int
    attempts: int
    error: str


class BatchView(msgspec.Struct, frozen=True):
    """A batch, as who handed it in sees it. `paused`: nothing more of it begins until somebody resumes its kind.

    `trouble`: what of it waits to be tried again, and why; null while nothing does.

    `progress` is the share of its operations that came to an end; a retry takes back those that failed. `rate`: how
    many a second did since its latest run began. `written`: how far each of the two takers of results has come, in
    operations.
    """

    id: UUID
    kind: str
    status: Status
    paused: bool
    detail: str | None
    trouble: Trouble | None
    priority: Priority
    on_invalid: OnInvalid
    run_at: datetime | None
    counts: BatchCounts
    progress: float
    rate: float | None
    created_at: datetime
    submitted_at: datetime | None
    started_at: datetime | None
    completed_at: datetime | None
    written: dict[str, int]
    report: str

    @classmethod
    def of_state(cls, batch: Batch, *, paused: bool) -> "BatchView":
        """The view of a batch that the read model does not have yet."""
        assert batch.id, "it was opened"
        assert batch.created_at, "it was opened"
        ends = batch.ends
        ended = ends.succeeded + ends.failed + ends.cancelled
        return cls(
            batch.id,
            batch.kind,
            batch.status,
            paused and not batch.is_over,
            batch.detail,
            None,
            batch.priority,
            batch.on_invalid,
            batch.run_at,
            BatchCounts(
                batch.operations, batch.refused, batch.operations - ended, ends.succeeded, ends.failed, ends.cancelled
            ),
            round(ended / batch.operations, 4) if batch.operations else 0.0,
            None,
            batch.created_at,
            batch.submitted_at,
            batch.started_at,
            batch.completed_at,
            {"operations": 0, "report": 0},
            f"/api/batches/{batch.id}/report.csv",
        )

    @classmethod
    def of_row(cls, row: asyncpg.Record, at: datetime) -> "BatchView":
        """The view of a row of SELECT_BATCH."""
        ended = row["succeeded"] + row["failed"] + row["cancelled"]
        total = row["operations"]
        begin = row["run_started_at"]
        seconds = ((row["completed_at"] or at) - begin).total_seconds() if begin else 0
        return cls(
            row["id"],
            row["kind"],
            row["status"],
            row["paused"],
            row["detail"],
            Trouble(row["again"], row["attempts"], row["error"]) if row["again"] else None,
            row["priority"],
            row["on_invalid"],
            row["run_at"],
            BatchCounts(total, row["refused"], total - ended, row["succeeded"], row["failed"], row["cancelled"]),
            round(ended / total, 4) if total else 0.0,
            round((ended - row["ended_before"]) / seconds, 1) if seconds > 0 else None,
            row["created_at"],
            row["submitted_at"],
            row["started_at"],
            row["completed_at"],
            {"operations": ended, "report": row["reported"]},
            f"/api/batches/{row['id']}/report.csv",
        )


SELECT_BATCH = """
select id, kind, status, completed_at is null and exists(
           select from paused_kinds where paused_kinds.kind = batches.kind
       ) as paused, detail, priority, on_invalid, run_at, operations, refused, created_at, submitted_at,
       started_at, completed_at, run_started_at, ended_before, coalesce(done.succeeded, 0)::bigint as succeeded,
       coalesce(done.failed, 0)::bigint as failed, coalesce(done.cancelled, 0)::bigint as cancelled,
       coalesce((
           select sum(case when latest.run < batches.run then ended - failed else ended end) from (
               select distinct on (work) run, ended, failed from batch_report.parts
               where batch_id = batches.id order by work, sequence desc
           ) as latest
       ), 0)::bigint as reported, trouble.again, trouble.attempts, trouble.error
from batches
left join lateral (
    select sum(succeeded) as succeeded, sum(failed) as failed, sum(cancelled) as cancelled
    from pieces where batch_id = batches.id
) as done on true
left join lateral (
    select sum(operations)::bigint as again, max(attempts) as attempts,
           (array_agg(error order by at desc, work))[1] as error
    from troubles where batch_id = batches.id and batches.completed_at is null
) as trouble on true
"""

BATCH_OF_USER = SELECT_BATCH + "where id = $1 and user_id = $2"

BATCHES_OF_USER = (
    SELECT_BATCH
    + """
where user_id = $1
  and ($2::text is null or status = $2)
  and ($3::timestamptz is null or (created_at, id) < ($3, $4::uuid))
order by created_at desc, id desc
limit $5
"""
)


class BatchPage(msgspec.Struct, frozen=True):
    """Some batches of a user, newest first. `next_cursor` is null on the last page."""

    items: list[BatchView]
    next_cursor: str | None


async def batch(pool: asyncpg.Pool, batch_id: UUID, user_id: str, at: datetime) -> BatchView:
    """Raises NotFound, also for somebody else's."""
    row = await pool.fetchrow(BATCH_OF_USER, batch_id, user_id)
    if row is None:
        raise NotFound(f"You have no batch {batch_id}.")
    return BatchView.of_row(row, at)


async def batches(
    pool: asyncpg.Pool, user_id: str, at: datetime, *, status: Status | None, limit: int, cursor: str | None
) -> BatchPage:
    """A user's batches."""
    rows = await pool.fetch(BATCHES_OF_USER, user_id, status, *position_of(cursor), limit + 1)
    items = [BatchView.of_row(row, at) for row in rows[:limit]]
    return BatchPage(items, cursor_of(items[-1].created_at, items[-1].id) if len(rows) > limit else None)


class OperationView(msgspec.Struct, frozen=True):
    """An operation and what became of it. `row` is its row in its batch; for one that belongs to none, 1.

    Of one that is pending, `attempts` is how often it was tried, and `error` why it is to be tried again, or another is
    that was tried with it; once it has come to its end `attempts` is null, and `error` why it failed.
    """

    id: UUID
    batch_id: UUID | None
    row: int
    kind: str
    status: Outcome | Literal["pending"]
    error: str | None = None
    output: str | None = None
    at: datetime | None = None
    attempts: int | None = None


class OperationPage(msgspec.Struct, frozen=True):
    """Some operations of a batch that came to an end, by row. `next_cursor` is null on the last page."""

    items: list[OperationView]
    next_cursor: str | None


OPERATIONS_OF_BATCH = """
select row, kind, status, error, output, at
from (
    select first, last, kind, status, error, output, at
    from operations
    where owner_id = $1 and last > $2 and ($3::text is null or status = $3)
    order by last
    limit $4
) as ended, generate_series(greatest(first, $2 + 1), last) as row
order by row
limit $4
"""


class RowError(msgspec.Struct, frozen=True):
    """What is wrong with a row of a batch. `refused`: it is no operation; `column` is whose value is at fault, if it is
    that of a single one. `failed`: it was executed, and may be tried again.
    """

    row: int
    status: Literal["refused", "failed"]
    column: str | None
    error: str


class RowErrorPage(msgspec.Struct, frozen=True):
    """Some rows of a batch that went wrong so far, by row. `next_cursor` is null on the last page."""

    items: list[RowError]
    next_cursor: str | None


REFUSED_OF_BATCH = 'select id, "column", reason from refused where id > $1 and id <= $2 order by id limit $3'
MOST_ROWS = 10_000_000
"""More than a batch ever has."""


# The ids of a batch's operations follow its own.
BATCH_AROUND = """
select id, kind, operations + refused as rows, completed_at
from batches
where id < $1 and user_id = $2
order by id desc
limit 1
"""

OPERATION_OF_USER = """
select kind, status, error, output, at
from operations
where owner_id = $1 and last >= $2 and first <= $2 and user_id = $3
order by last
limit 1
"""


TROUBLE = "select attempts, error from troubles where batch_id = $1 and rows @> $2::bigint"


async def operations(
    pool: asyncpg.Pool, batch_id: UUID, *, status: Outcome | None, limit: int, after: int
) -> OperationPage:
    """Operations of a batch that came to an end, from the row after `after`."""
    rows = await pool.fetch(OPERATIONS_OF_BATCH, batch_id, after, status, limit + 1)
    items = [OperationView(operation_id_of(batch_id, row["row"]), batch_id, **row) for row in rows[:limit]]
    return OperationPage(items, str(items[-1].row) if len(rows) > limit else None)


async def errors(pool: asyncpg.Pool, batch_id: UUID, *, limit: int, after: int) -> RowErrorPage:
    """Rows of a batch that were refused or have failed, from the row after `after`."""
    first, last = operation_id_of(batch_id, after), operation_id_of(batch_id, MOST_ROWS)
    refused = [
        RowError(row["id"].int - batch_id.int, "refused", row["column"], row["reason"])
        for row in await pool.fetch(REFUSED_OF_BATCH, first, last, limit + 1)
    ]
    failed = [
        RowError(row["row"], "failed", None, row["error"] or "")
        for row in await pool.fetch(OPERATIONS_OF_BATCH, batch_id, after, "failed", limit + 1)
    ]
    items = list(islice(merge(refused, failed, key=lambda error: error.row), limit + 1))
    return RowErrorPage(items[:limit], str(items[limit - 1].row) if len(items) > limit else None)


async def operation(pool: asyncpg.Pool, operation_id: UUID, user_id: str) -> OperationView:
    """An operation; of a batch also one that has not come to an end yet. Raises NotFound."""
    batch = await pool.fetchrow(BATCH_AROUND, operation_id, user_id)
    place = operation_id.int - batch["id"].int if batch else 0
    if batch is None or place > batch["rows"]:
        batch, place = None, 1
    owner_id = batch["id"] if batch else UUID(int=max(operation_id.int - 1, 0))
    row = await pool.fetchrow(OPERATION_OF_USER, owner_id, place, user_id)
    if row is not None:
        return OperationView(operation_id, batch["id"] if batch else None, place, **row)
    if batch is None or batch["completed_at"] is not None:
        raise NotFound(f"You have no operation {operation_id}.")
    if await pool.fetchval(IS_REFUSED, operation_id):
        raise NotFound(f"Row {place} of batch {batch['id']} was refused, so it is no operation; the report says why.")
    trouble = await pool.fetchrow(TROUBLE, batch["id"], place)
    attempts, error = trouble or (0, None)
    return OperationView(operation_id, batch["id"], place, batch["kind"], "pending", error, attempts=attempts)
