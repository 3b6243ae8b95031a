"""`records.insert`: rows into a table of the batch service. To use, and to copy."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import asyncpg
import msgspec
from msgspec import Meta

from services.batch.kinds import Answer, Done, Kind, Refused, Task, Work

TABLES = """
create schema if not exists batch_data;
create table if not exists batch_data.records (
    owner text not null,
    key text not null,
    value text not null,
    operation_id uuid not null,
    at timestamptz not null default now(),
    primary key (owner, key)
);
"""
INSERT = """
insert into batch_data.records (owner, key, value, operation_id)
select * from unnest($1::text[], $2::text[], $3::text[], $4::uuid[])
"""
INSERT_NEW = INSERT + "on conflict (owner, key) do nothing returning operation_id"


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text and the key that its owner finds it by."""

    key: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=200,
            pattern=r"\A[^\x00-\x1f\x7f]+\Z",
            description="Up to 200 characters without control characters",
        ),
    ]
    value: Annotated[str, Meta(max_length=10_000)]


class InsertRecords(Kind[Record]):
    """A record for each operation. One whose key its owner has used before is refused.

    Nothing is faster than the plain insert. Where it finds a key that is there, which is what a file that is handed in
    again is full of, a second statement inserts the others; no halving could be as quick.
    """

    name = "records.insert"
    operation: ClassVar[type[msgspec.Struct]] = Record
    tables = TABLES

    async def execute_many(self, work: Work, operations: Sequence[Task[Record]]) -> Sequence[Answer]:
        columns = (
            [task.user_id for task in operations],
            [task.what.key for task in operations],
            [task.what.value for task in operations],
            [task.id for task in operations],
        )
        try:
            async with work.connection.transaction():  # a savepoint
                await work.connection.execute(INSERT, *columns)
        except asyncpg.UniqueViolationError:
            new = {row["operation_id"] for row in await work.connection.fetch(INSERT_NEW, *columns)}
            return [Done() if task.id in new else there_is(task.what.key) for task in operations]
        return [Done()] * len(operations)


def there_is(key: str) -> Refused:
    return Refused(f"There is a record {key!r} already.")
