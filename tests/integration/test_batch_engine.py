"""Executing on a real Postgres: exactly the good ones, exactly once, whatever dies in between."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import ClassVar
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from common.errors import Invalid, Unavailable
from common.events import Result
from services.batch import engine
from services.batch.domain import Postponed
from services.batch.engine import Declined, Due, decline, execute, forget, sweep
from services.batch.kinds import Answer, Done, Kind, Refused, Task, TryAgain, Work
from services.batch.kinds_records import InsertRecords, Record
from tests.harness import eventually

SEATS = """
create table rows (row text primary key);
create table seats (
    row text not null references rows deferrable initially deferred,
    number int not null constraint seats_are_numbered_from_one check (number > 0),
    operation_id uuid not null
);
insert into rows values ('A'), ('B');
"""


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(database_url, min_size=0) as pool:
        await pool.execute(engine.CREATE + InsertRecords.tables + SEATS)
        yield pool


class Seat(msgspec.Struct, frozen=True):
    row: str
    number: int


class ReserveSeats(Kind[Seat]):
    """A kind that leaves it to Postgres to say what is wrong."""

    name = "seats.reserve"
    operation: ClassVar[type[msgspec.Struct]] = Seat

    def __init__(self) -> None:
        self.calls = 0

    async def execute_many(self, work: Work, operations: Sequence[Task[Seat]]) -> Sequence[Answer]:
        self.calls += 1
        await work.connection.execute(
            "insert into seats (row, number, operation_id) select * from unnest($1::text[], $2::int[], $3::uuid[])",
            [task.what.row for task in operations],
            [task.what.number for task in operations],
            [task.id for task in operations],
        )
        return [Done(f"{task.what.row}{task.what.number}") for task in operations]


class Gate(ReserveSeats):
    """Reserves, tells that it has, and waits for `opened` before it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()
        self.backend = 0

    async def execute_many(self, work: Work, operations: Sequence[Task[Seat]]) -> Sequence[Answer]:
        answers = await super().execute_many(work, operations)
        self.backend = await work.connection.fetchval("select pg_backend_pid()")
        self.reached.set()
        await self.opened.wait()
        await work.connection.execute("select 1")
        return answers


def seats(*numbers: int, row: str = "A", work_id: UUID | None = None, run: int = 1, attempt: int = 1) -> Due:
    tasks = [Task(uuid4(), "ada", Seat(row, number)) for number in numbers]
    return Due(work_id or uuid4(), run, attempt, range(1, len(tasks) + 1), tasks)


def again(piece: Due, *, run: int = 1, attempt: int = 1) -> Due:
    return msgspec.structs.replace(piece, run=run, attempt=attempt)


def declined(piece: Due, instead: list[Result]) -> Declined:
    return Declined(piece.work_id, piece.run, piece.attempt, instead)


def records(user_id: str, *pairs: tuple[str, str]) -> Due:
    tasks = [Task(uuid4(), user_id, Record(key, value)) for key, value in pairs]
    return Due(uuid4(), 1, 1, range(1, len(tasks) + 1), tasks)


async def reserved(pool: asyncpg.Pool) -> list[int]:
    return [row["number"] for row in await pool.fetch("select number from seats order by number")]


async def remembered(pool: asyncpg.Pool) -> int:
    return int(await pool.fetchval("select count(*) from batch_data.executed"))


def succeeded(*numbers: int, row: str = "A") -> list[Result]:
    return [Result(n, output=f"{row}{number}") for n, number in enumerate(numbers, 1)]


async def test_pieces_of_several_works_are_executed_as_one_statement(pool: asyncpg.Pool) -> None:
    kind = ReserveSeats()
    results = await execute(pool, kind, [seats(1, 2), seats(3), seats(4, 5)])
    assert results == [succeeded(1, 2), succeeded(3), succeeded(4, 5)]
    assert (kind.calls, await reserved(pool), await remembered(pool)) == (1, [1, 2, 3, 4, 5], 3)


async def test_more_than_a_kind_takes_at_a_time_are_several_statements(pool: asyncpg.Pool) -> None:
    class Few(ReserveSeats):
        limit = 4

    kind = Few()
    results = await execute(pool, kind, [seats(1, 2, 3), seats(4, 5, 6), seats(7, 8, 9)])
    assert results == [succeeded(1, 2, 3), succeeded(4, 5, 6), succeeded(7, 8, 9)]
    assert (kind.calls, await reserved(pool)) == (3, list(range(1, 10)))


async def test_bad_ones_are_told_what_is_wrong_with_them_and_the_others_are_applied(pool: asyncpg.Pool) -> None:
    good = list(range(1, 301))
    (results,) = await execute(pool, ReserveSeats(), [seats(*good[:100], -5, *good[100:200], 2**40, *good[200:])])
    assert await reserved(pool) == good
    bad = {result.number: result.error for result in results if result.outcome == "failed"}
    assert list(bad) == [101, 202]
    assert "seats_are_numbered_from_one" in (bad[101] or "")
    assert str(2**40) in (bad[202] or "")
    assert "insert into" not in str(bad)


async def test_a_deferred_constraint_fails_only_its_operation(pool: asyncpg.Pool) -> None:
    results = await execute(pool, ReserveSeats(), [seats(1, 2), seats(3, row="Z"), seats(4)])
    assert results[0] + results[2] == succeeded(1, 2) + succeeded(4)
    assert "Key (row)=(Z) is not present" in (results[1][0].error or "")
    assert await reserved(pool) == [1, 2, 4]


async def test_an_error_that_a_kind_swallowed_is_still_undone_and_told(pool: asyncpg.Pool) -> None:
    class Swallows(ReserveSeats):
        async def execute_many(self, work: Work, operations: Sequence[Task[Seat]]) -> Sequence[Answer]:
            try:
                return await super().execute_many(work, operations)
            except asyncpg.CheckViolationError:
                return [Done()] * len(operations)

    (results,) = await execute(pool, Swallows(), [seats(1, 2, -1, 3)])
    assert [result.outcome for result in results] == ["succeeded", "succeeded", "failed", "succeeded"]
    assert await reserved(pool) == [1, 2, 3]


class Hasty(ReserveSeats):
    """Reserves first, and then says that 2 is not to be had and 3 not yet; 4 it raises for."""

    async def execute_many(self, work: Work, operations: Sequence[Task[Seat]]) -> Sequence[Answer]:
        answers = list(await super().execute_many(work, operations))
        for place, task in enumerate(operations):
            match task.what.number:
                case 2:
                    answers[place] = Refused("It is not to be had.")
                case 3:
                    answers[place] = TryAgain("Not yet.")
                case 4:
                    raise Invalid("There is no such seat.")
        return answers


async def test_what_a_kind_wrote_for_what_it_refuses_stays_unless_it_raises(pool: asyncpg.Pool) -> None:
    piece = seats(1, 2, 3, 4)
    (results,) = await execute(pool, Hasty(), [piece])
    assert [(result.number, result.error) for result in results] == [
        (1, None),
        (2, "It is not to be had."),
        (3, "Not yet."),
        (4, "There is no such seat."),
    ]
    assert await reserved(pool) == [1, 2, 3]


async def test_a_kind_may_use_transactions_of_its_own_inside(pool: asyncpg.Pool) -> None:
    class Nested(ReserveSeats):
        async def execute_many(self, work: Work, operations: Sequence[Task[Seat]]) -> Sequence[Answer]:
            async with work.connection.transaction():
                return await super().execute_many(work, operations)

    (results,) = await execute(pool, Nested(), [seats(1, -1, 2)])
    assert [result.outcome for result in results] == ["succeeded", "failed", "succeeded"]
    assert await reserved(pool) == [1, 2]


async def test_what_is_to_be_tried_again_is_postponed_before_the_last_attempt(pool: asyncpg.Pool) -> None:
    class Later(ReserveSeats):
        attempts = 3

        async def execute_many(self, _: Work, operations: Sequence[Task[Seat]]) -> Sequence[Answer]:
            return [TryAgain("busy") if task.what.number == 2 else Done() for task in operations]

    for attempt, told in ((1, Postponed), (2, Postponed), (3, Result)):
        piece = seats(1, 2, 3, attempt=attempt)
        assert await execute(pool, Later(), [piece]) == [[Result(1), told(2, "failed", "busy"), Result(3)]]
        ended = [Result(1), Result(3)] if told is Postponed else [Result(1), Result(2, "failed", "busy"), Result(3)]
        assert await execute(pool, Later(), [piece]) == [ended]  # why it is postponed is not kept


# Once


async def test_a_crash_between_commit_and_append_changes_nothing_more_and_tells_the_same(pool: asyncpg.Pool) -> None:
    kind, piece = ReserveSeats(), seats(1, -1, 2)
    first = await execute(pool, kind, [piece])
    calls = kind.calls
    assert await execute(pool, kind, [piece]) == first
    assert (kind.calls, await reserved(pool)) == (calls, [1, 2])


async def test_what_was_done_before_is_not_done_again_beside_what_is_new(pool: asyncpg.Pool) -> None:
    old, new = seats(1), seats(2)
    await execute(pool, ReserveSeats(), [old])
    assert await execute(pool, ReserveSeats(), [new, old]) == [succeeded(2), succeeded(1)]
    assert await reserved(pool) == [1, 2]


async def test_a_piece_that_was_delivered_twice_is_executed_once(pool: asyncpg.Pool) -> None:
    piece = seats(1, 2)
    assert await execute(pool, ReserveSeats(), [piece, seats(3), piece]) == [
        succeeded(1, 2),
        succeeded(3),
        succeeded(1, 2),
    ]
    assert await reserved(pool) == [1, 2, 3]


async def test_of_two_workers_with_the_same_piece_one_executes_it_and_both_tell_the_same(pool: asyncpg.Pool) -> None:
    first, second, piece = Gate(), ReserveSeats(), seats(1, 2)
    one = asyncio.create_task(execute(pool, first, [piece]))
    await first.reached.wait()
    other = asyncio.create_task(execute(pool, second, [seats(3), piece]))

    async def waiting() -> int:
        return int(await pool.fetchval("select count(*) from pg_locks where locktype = 'advisory' and not granted"))

    await eventually(waiting, 1)
    first.opened.set()
    assert (await one, await other) == ([succeeded(1, 2)], [succeeded(3), succeeded(1, 2)])
    assert await reserved(pool) == [1, 2, 3]


async def test_a_worker_does_not_wait_for_another_for_ever(pool: asyncpg.Pool) -> None:
    class Hasty(ReserveSeats):
        timeout = 0.1

    first, piece = Gate(), seats(1, 2)
    one = asyncio.create_task(execute(pool, first, [piece]))
    await first.reached.wait()
    with pytest.raises(Unavailable):
        await execute(pool, Hasty(), [piece])
    first.opened.set()
    assert await one == [succeeded(1, 2)]
    assert await reserved(pool) == [1, 2]


async def test_many_workers_with_the_same_pieces_in_any_order_execute_each_once(pool: asyncpg.Pool) -> None:
    pieces = [seats(number) for number in range(1, 21)]
    orders = [pieces[n:] + pieces[:n] for n in range(0, 20, 3)]
    told = await asyncio.gather(*(execute(pool, ReserveSeats(), order) for order in orders))
    assert await reserved(pool) == list(range(1, 21))
    for order, results in zip(orders, told, strict=True):
        assert results == [succeeded(piece.tasks[0].what.number) for piece in order]


async def test_the_next_attempt_and_the_next_run_are_executed(pool: asyncpg.Pool) -> None:
    piece = seats(1)
    assert await execute(pool, ReserveSeats(), [piece]) == [succeeded(1)]
    assert await execute(pool, ReserveSeats(), [seats(2, work_id=piece.work_id, attempt=2)]) == [succeeded(2)]
    assert await execute(pool, ReserveSeats(), [seats(3, work_id=piece.work_id, run=2, attempt=1)]) == [succeeded(3)]
    assert (await reserved(pool), await remembered(pool)) == ([1, 2, 3], 1)


async def test_who_comes_late_executes_nothing(pool: asyncpg.Pool) -> None:
    """A worker that was stopped after it had looked at the log goes on when others have done and told it all."""
    piece = seats(1)
    await execute(pool, ReserveSeats(), [piece])
    await forget(pool, [piece])
    await sweep(pool)
    assert await execute(pool, ReserveSeats(), [piece]) == [[]]
    await execute(pool, ReserveSeats(), [again(piece, attempt=2)])
    assert await execute(pool, ReserveSeats(), [piece]) == [[]]
    assert await reserved(pool) == [1, 1]


async def test_what_is_not_on_the_log_yet_is_not_forgotten(pool: asyncpg.Pool) -> None:
    told, untold = seats(1), seats(2)
    await execute(pool, ReserveSeats(), [told, untold])
    await forget(pool, [told, again(untold, attempt=2)])
    await pool.execute("update batch_data.executed set at = now() - interval '2 days'")
    await sweep(pool)
    assert await remembered(pool) == 1
    assert await execute(pool, ReserveSeats(), [untold]) == [succeeded(2)]
    assert await reserved(pool) == [1, 2]


# Declined


async def test_what_was_declined_is_not_executed_by_a_worker_that_comes_late(pool: asyncpg.Pool) -> None:
    piece = seats(1, 2)
    stopped = [Result(1, "cancelled"), Result(2, "cancelled")]
    assert await decline(pool, [declined(piece, stopped)]) == [stopped]
    assert await execute(pool, ReserveSeats(), [piece]) == [stopped]
    assert await reserved(pool) == []


async def test_what_was_executed_before_it_was_declined_is_told_as_it_was(pool: asyncpg.Pool) -> None:
    class Some(ReserveSeats):
        async def execute_many(self, _: Work, operations: Sequence[Task[Seat]]) -> Sequence[Answer]:
            return [Done() if task.what.number == 1 else TryAgain("busy") for task in operations]

    piece = seats(1, 2)
    await execute(pool, Some(), [piece])
    stopped = [Result(1, "cancelled"), Result(2, "cancelled")]
    assert await decline(pool, [declined(piece, stopped)]) == [[Result(1), Result(2, "cancelled")]]


async def test_who_declines_waits_for_a_worker_that_executes(pool: asyncpg.Pool) -> None:
    kind, piece = Gate(), seats(1)
    executing = asyncio.create_task(execute(pool, kind, [piece]))
    await kind.reached.wait()
    declining = asyncio.create_task(decline(pool, [declined(piece, [Result(1, "cancelled")])]))

    async def waiting() -> int:
        return int(await pool.fetchval("select count(*) from pg_locks where locktype = 'advisory' and not granted"))

    await eventually(waiting, 1)
    kind.opened.set()
    assert await declining == await executing == [succeeded(1)]


# What dies


async def test_a_connection_killed_in_the_middle_leaves_nothing_behind(pool: asyncpg.Pool) -> None:
    kind, piece = Gate(), seats(1, 2)
    executing = asyncio.create_task(execute(pool, kind, [piece]))
    await kind.reached.wait()
    assert await pool.fetchval("select pg_terminate_backend($1)", kind.backend)
    kind.opened.set()
    with pytest.raises(Unavailable):
        await executing
    assert (await reserved(pool), await remembered(pool)) == ([], 0)
    assert await execute(pool, ReserveSeats(), [piece]) == [succeeded(1, 2)]


async def test_a_connection_killed_while_bad_ones_are_sought_leaves_nothing_behind(pool: asyncpg.Pool) -> None:
    class Dies(ReserveSeats):
        async def execute_many(self, work: Work, operations: Sequence[Task[Seat]]) -> Sequence[Answer]:
            if self.calls == 6:
                await work.connection.fetch("select pg_terminate_backend(pg_backend_pid())")
            return await super().execute_many(work, operations)

    piece = seats(*range(1, 50), -1, *range(50, 100))
    with pytest.raises(Unavailable):
        await execute(pool, Dies(), [piece])
    assert (await reserved(pool), await remembered(pool)) == ([], 0)
    (results,) = await execute(pool, ReserveSeats(), [piece])
    assert await reserved(pool) == list(range(1, 100))
    assert [result.number for result in results if result.outcome == "failed"] == [50]


async def test_a_worker_that_is_cancelled_in_the_middle_leaves_nothing_behind(pool: asyncpg.Pool) -> None:
    kind, piece = Gate(), seats(1)
    executing = asyncio.create_task(execute(pool, kind, [piece]))
    await kind.reached.wait()
    executing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await executing
    assert await execute(pool, ReserveSeats(), [piece]) == [succeeded(1)]
    assert await reserved(pool) == [1]


class Hangs(ReserveSeats):
    """Postgres does not come to an end with seat 13."""

    timeout = 2
    attempts = 2

    async def execute_many(self, work: Work, operations: Sequence[Task[Seat]]) -> Sequence[Answer]:
        answers = await super().execute_many(work, operations)
        if any(task.what.number == 13 for task in operations):
            await work.connection.execute("select pg_sleep(600)")
        return answers


class HangsInside(Hangs):
    """The same in a transaction of its own inside."""

    async def execute_many(self, work: Work, operations: Sequence[Task[Seat]]) -> Sequence[Answer]:
        async with work.connection.transaction():
            return await super().execute_many(work, operations)


@pytest.mark.parametrize("kind", [Hangs(), HangsInside()], ids=lambda kind: type(kind).__name__)
async def test_an_operation_that_hangs_is_undone_and_in_the_end_fails_and_the_others_are_applied(
    pool: asyncpg.Pool, kind: Hangs
) -> None:
    piece = seats(11, 12, 13, 14)
    hung = Postponed(3, "failed", "It did not answer within 2 s.")
    applied = [Result(1, output="A11"), Result(2, output="A12"), hung, Result(4, output="A14")]
    assert await execute(pool, kind, [piece]) == [applied]
    assert (await reserved(pool), await remembered(pool)) == ([11, 12, 14], 1)
    left = Due(piece.work_id, 1, 2, [3], [piece.tasks[2]])
    assert await execute(pool, kind, [left]) == [[Result(3, "failed", "It did not answer within 2 s.")]]
    assert await reserved(pool) == [11, 12, 14]


async def test_a_timeout_within_a_kind_is_nobodys_fault_and_leaves_nothing_behind(pool: asyncpg.Pool) -> None:
    class Impatient(ReserveSeats):
        async def execute_many(self, work: Work, operations: Sequence[Task[Seat]]) -> Sequence[Answer]:
            answers = await super().execute_many(work, operations)
            await work.connection.execute("select pg_sleep(600)", timeout=0.1)
            return answers

    with pytest.raises(Unavailable):
        await execute(pool, Impatient(), [seats(1, 2)])
    assert (await reserved(pool), await remembered(pool)) == ([], 0)


async def test_a_database_that_does_not_answer_is_asked_again(home: Path) -> None:
    async with asyncpg.create_pool(f"postgresql:///postgres?host={home}", min_size=0) as nobody:
        for asking in (
            execute(nobody, ReserveSeats(), [seats(1)]),
            decline(nobody, [declined(seats(1), [])]),
            forget(nobody, [seats(1)]),
            sweep(nobody),
        ):
            with pytest.raises(Unavailable):
                await asking


# Kinds that write elsewhere


async def test_a_kind_without_transaction_is_isolated_outside_of_the_database(home: Path) -> None:
    class Elsewhere(ReserveSeats):
        transactional = False

        async def execute_many(self, work: Work, operations: Sequence[Task[Seat]]) -> Sequence[Answer]:
            if any(task.what.number < 0 for task in operations):
                raise ValueError("too small")
            with pytest.raises(TypeError):
                _ = work.connection
            return [Done()] * len(operations)

    async with asyncpg.create_pool(f"postgresql:///postgres?host={home}", min_size=0) as nobody:
        assert await execute(nobody, Elsewhere(), [seats(1, -1), seats(2)]) == [
            [Result(1), Result(2, "failed", "ValueError: too small")],
            [Result(1)],
        ]


async def test_what_another_service_did_before_it_went_away_is_told(home: Path) -> None:
    class Elsewhere(ReserveSeats):
        transactional = False
        limit = 2

        async def execute_many(self, work: Work, operations: Sequence[Task[Seat]]) -> Sequence[Answer]:  # noqa: ARG002
            if any(task.what.number < 0 for task in operations):
                raise Unavailable("it is gone")
            return [Done("listed")] * len(operations)

    async with asyncpg.create_pool(f"postgresql:///postgres?host={home}", min_size=0) as nobody:
        told = await execute(nobody, Elsewhere(), [seats(1, 2, -1), seats(3)])
        listed = [Result(1, output="listed"), Result(2, output="listed")]
        assert told == [[*listed, Postponed(3, "failed", "it is gone")], [Postponed(1, "failed", "it is gone")]]
        with pytest.raises(Unavailable):
            await execute(nobody, Elsewhere(), [seats(-1, 2, 3)])


# Records


async def test_records_are_inserted(pool: asyncpg.Pool) -> None:
    piece = records("ada", ("a", "1"), ("b", "two\nlines"))
    assert await execute(pool, InsertRecords(), [piece]) == [[Result(1), Result(2)]]
    rows = await pool.fetch("select owner, key, value, operation_id from batch_data.records order by key")
    assert [tuple(row.values()) for row in rows] == [
        ("ada", "a", "1", piece.tasks[0].id),
        ("ada", "b", "two\nlines", piece.tasks[1].id),
    ]


async def test_of_two_records_with_a_key_the_first_is_kept_and_the_second_is_told(pool: asyncpg.Pool) -> None:
    there = "There is a record 'a' already."
    (results,) = await execute(pool, InsertRecords(), [records("ada", ("a", "first"), ("b", "2"), ("a", "second"))])
    assert results == [Result(1), Result(2), Result(3, "failed", there)]
    ((mine,), (theirs,)) = await execute(
        pool, InsertRecords(), [records("ada", ("a", "third")), records("sam", ("a", "his"))]
    )
    assert (mine, theirs) == (Result(1, "failed", there), Result(1))
    rows = await pool.fetch("select owner, value from batch_data.records where key = 'a' order by owner")
    assert [tuple(row.values()) for row in rows] == [("ada", "first"), ("sam", "his")]


async def test_keys_that_are_there_do_not_keep_each_other_from_being_told_at_once(pool: asyncpg.Pool) -> None:
    class Counted(InsertRecords):
        calls = 0

        async def execute_many(self, work: Work, operations: Sequence[Task[Record]]) -> Sequence[Answer]:
            self.calls += 1
            return await super().execute_many(work, operations)

    kind = Counted()
    await execute(pool, kind, [records("ada", *((str(n), "old") for n in range(0, 300, 2)))])
    (results,) = await execute(pool, kind, [records("ada", *((str(n), "new") for n in range(300)))])
    assert [result.outcome for result in results] == ["failed", "succeeded"] * 150
    assert kind.calls == 2
    assert await pool.fetchval("select count(*) from batch_data.records where value = 'new'") == 150


async def test_a_record_that_postgres_cannot_hold_fails_alone(pool: asyncpg.Pool) -> None:
    (results,) = await execute(pool, InsertRecords(), [records("ada", ("a", "1"), ("b", "nul \0"), ("c", "3"))])
    assert [result.outcome for result in results] == ["succeeded", "failed", "succeeded"]
    assert "0x00" in (results[1].error or "")


@pytest.mark.parametrize("key", ["", "x" * 201, "two\nlines", "line\n", "nul\0"])
def test_a_key_is_one_line_of_text(key: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode({"key": key, "value": ""}), type=Record)
