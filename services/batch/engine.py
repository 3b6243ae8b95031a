"""Executes operations: many as one statement, halved down to the bad ones where it fails, each of them once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from typing import Any, Generic, TypeVar, assert_never
from uuid import UUID

import asyncpg
import msgspec
import structlog
from prometheus_client import Histogram

from common.errors import DomainError, Unavailable
from common.events import Result
from common.postgres import POSTGRES_FAILED
from common.requests import Asks
from services.batch.kinds import Answer, Done, Kind, Refused, Task, TryAgain, Work, WrongAnswer, answered

Op = TypeVar("Op", bound=msgspec.Struct)
T = TypeVar("T")
Savepoint = Callable[[], AbstractAsyncContextManager[object]]
"""What is done inside is undone if it raises."""

log = structlog.get_logger()

STATEMENT_SIZES = Histogram(
    "boxoffice_batch_statement_operations",
    "Operations that a kind was given to execute at a time",
    ["kind"],
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000),
)
BISECT_DEPTH = Histogram(
    "boxoffice_batch_bisect_depth",
    "How often operations were halved to find the bad ones",
    ["kind"],
    buckets=(0, 1, 2, 4, 6, 8, 10, 12, 14),
)

BLAMELESS = (
    Unavailable,
    ConnectionError,
    TimeoutError,
    asyncpg.InternalClientError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.PostgresConnectionError,
    asyncpg.PostgresSystemError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,  # serialization failures and deadlocks
    asyncpg.LockNotAvailableError,
    asyncpg.ReadOnlySQLTransactionError,  # a standby
    asyncpg.IdleInTransactionSessionTimeoutError,
)
"""Errors that no operation is to blame for: the same may succeed later."""

TIMEOUTS = 12
"""Timeouts that one `isolate` spends at most; what is left then is to be tried again."""

LONGEST_BYTES = 1500
"""Of JSON of what is told of an operation: 500 such are less than the 1 MB that a message of NATS may have."""


class TooSlow(Exception):
    """A kind did not answer in the time that it has."""


class Isolated(msgspec.Struct, frozen=True):
    """An answer for each operation, in their order, and what it took: calls of the kind, and how deep it was halved."""

    answers: list[Answer]
    statements: int
    depth: int


async def isolate(kind: Kind[Op], work: Work, tasks: Sequence[Task[Op]], savepoint: Savepoint) -> Isolated:
    """Execute `tasks`; those that can be are, and the others are told why not, or to come again.

    Raises Unavailable for what is nobody's fault; all of it is then to be undone and tried again.
    """
    isolation = _Isolation(kind, work, savepoint)
    await isolation.execute(tasks)
    return Isolated(isolation.answers, isolation.statements, isolation.depth)


class _Isolation(Generic[Op]):
    """One `isolate`. Operations are executed in their order, so of two that exclude each other the first wins."""

    def __init__(self, kind: Kind[Op], work: Work, savepoint: Savepoint) -> None:
        self.answers: list[Answer] = []
        self.statements = 0
        self.depth = 0
        self._timeouts = 0
        self._kind = kind
        self._work = work
        self._savepoint = savepoint
        self._explained = False

    async def execute(self, tasks: Sequence[Task[Op]]) -> None:
        """Execute all at once, or else up to the first bad one, and then those behind it.

        Where one was bad others may be: behind it, half as many are tried at once as there were between two bad ones on
        average, and twice as many each time it goes well. Where together they took too long, each is tried alone: most
        cost little then, and one that hangs costs its timeout once.
        """
        together = between = len(tasks)
        behind_bad = 0
        while len(self.answers) < len(tasks):
            start = len(self.answers)
            if self._timeouts >= TIMEOUTS:
                self.answers += [TryAgain(f"Others before it {self._too_slow}.")] * (len(tasks) - start)
            elif self._timeouts:
                await self._one(tasks[start])
            elif await self._try(tasks[start : start + together]):
                together *= 2
            else:
                if len(self.answers) == start:
                    await self._halve(tasks[start : start + together])
                between = (between + len(self.answers) - behind_bad) // 2
                behind_bad = len(self.answers)
                together = max(1, between // 2)

    @property
    def _too_slow(self) -> str:
        return f"did not answer within {self._kind.timeout:g} s"

    async def _halve(self, tasks: Sequence[Task[Op]]) -> None:
        """Execute those of `tasks` before the first bad one, and that. They are known to fail together."""
        depth = 0
        while len(tasks) > 1 and not self._timeouts:
            depth += 1
            middle = (len(tasks) + 1) // 2
            if await self._try(tasks[:middle]):
                tasks = tasks[middle:]  # it is among these, then
            elif middle > 1:
                tasks = tasks[:middle]
            else:
                tasks = []  # it was that one
        self.depth = max(self.depth, depth)
        if tasks:
            await self._one(tasks[0])

    async def _try(self, tasks: Sequence[Task[Op]]) -> bool:
        return await (self._many(tasks) if len(tasks) > 1 else self._one(tasks[0]))

    async def _many(self, tasks: Sequence[Task[Op]]) -> bool:
        """Whether `tasks` could be executed together; if not, they have no answer. Raises Unavailable."""
        self.statements += 1
        STATEMENT_SIZES.labels(self._kind.name).observe(len(tasks))
        try:
            async with self._savepoint():
                answers = await self._in_time(self._kind.execute_many(self._work, tasks))
                answers = answered(self._kind.name, answers, len(tasks))
        except BLAMELESS as error:
            raise unavailable(error) from error
        except Exception:
            return False  # they come again in halves, and what is bad alone tells why
        self.answers += answers
        return True

    async def _one(self, task: Task[Op]) -> bool:
        """Whether `task` could be executed; if not, why is its answer. Raises Unavailable."""
        self.statements += 1
        STATEMENT_SIZES.labels(self._kind.name).observe(1)
        try:
            async with self._savepoint():
                answer = await self._in_time(self._kind.execute_one(self._work, task))
                answered(self._kind.name, [answer], 1)
        except BLAMELESS as error:
            raise unavailable(error) from error
        except TooSlow as error:
            log.warning("operation_too_slow", kind=self._kind.name, operation_id=str(task.id))
            self.answers.append(TryAgain(f"It {error}."))
            return False
        except Exception as error:
            self._explain(task, error)
            self.answers.append(Refused(told(error)))
            return False
        self.answers.append(answer)
        return True

    async def _in_time(self, execution: Awaitable[T]) -> T:
        """What the kind answers. Raises what it raises, but TooSlow when its time is over."""
        try:
            async with asyncio.timeout(self._kind.timeout) as limit:
                return await unless_ours(execution)
        except Exception as error:
            if not limit.expired():  # a timeout of its own is nobody's fault
                raise
            self._timeouts += 1
            raise TooSlow(self._too_slow) from error

    def _explain(self, task: Task[Op], error: Exception) -> None:
        """Log where an error comes from that its author did not foresee; once, as the others are likely the same."""
        if not self._explained and not isinstance(error, DomainError | asyncpg.PostgresError):
            self._explained = True
            log.warning("operation_raised", kind=self._kind.name, operation_id=str(task.id), exc_info=error)


async def unless_ours(execution: Awaitable[T]) -> T:
    """What a kind answers. That it wants to end the task or the process is an error like any other.

    Raises what it raises; RuntimeError for such a thing; CancelledError if it is we who are cancelled.
    """
    try:
        return await execution
    except (asyncio.CancelledError, SystemExit) as error:
        if (task := asyncio.current_task()) and task.cancelling():
            raise
        raise RuntimeError(f"{type(error).__name__} is nothing that a kind may raise") from error


def unavailable(error: Exception) -> Unavailable:
    """The same error in the words of this service."""
    return error if isinstance(error, Unavailable) else Unavailable(f"{type(error).__name__}: {error}")


def told(error: Exception) -> str:
    """An error for people: what it says, and which value or constraint it is about. No traceback, no SQL."""
    match error:
        case DomainError():
            text = error.detail
        case asyncpg.PostgresError():
            text = ": ".join(part for part in (error.message or str(error), error.detail) if part)
        case WrongAnswer() | asyncpg.InterfaceError():
            text = str(error)
        case _:
            text = f"{type(error).__name__}: {error}".removesuffix(": ")
    return text


def bounded(text: str | None) -> str | None:
    """A kind's text, cut to what 500 of fit into one event, without what Postgres does not store.

    That is U+0000 and halves of characters.
    """
    if text is None:
        return None
    text = text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
    for characters in (1000, 250):  # JSON writes one with 1 to 6 bytes
        cut = text if len(text) <= characters else text[: characters - 1] + "…"
        if len(_encode(cut)) <= LONGEST_BYTES:
            break
    return cut


# Exactly once

CREATE = """
create schema if not exists batch_data;
create table if not exists batch_data.executed (
    work_id uuid primary key,
    run int not null,
    attempt int not null,
    results bytea, -- JSON; null once they are on the log
    at timestamptz not null default now()
);
create table if not exists batch_data.begun ( -- a row while it is executed: one that stays was in a process that ended
    work_id uuid primary key,
    times int not null default 1,
    at timestamptz not null default now()
);
"""
# In the order of the array, so that two workers never wait for each other.
LOCK = """
select pg_advisory_xact_lock(hashtextextended('boxoffice.batch.work.' || work_id, 0)) from unnest($1::text[]) as work_id
"""
FIND = "select work_id, run, attempt, results from batch_data.executed where work_id = any($1::uuid[])"
RECORD = """
insert into batch_data.executed (work_id, run, attempt, results)
select * from unnest($1::uuid[], $2::int[], $3::int[], $4::bytea[])
on conflict (work_id) do update
set run = excluded.run, attempt = excluded.attempt, results = excluded.results, at = excluded.at
"""
# It does not wait for the disk: what a crash brings back is known a little better than it need be.
FORGET = """
with hasty as (select set_config('synchronous_commit', 'off', true))
update batch_data.executed as known set results = null
from unnest($1::uuid[], $2::int[], $3::int[]) as told (work_id, run, attempt), hasty
where (known.work_id, known.run, known.attempt) = (told.work_id, told.run, told.attempt)
"""
SWEEP = """
with executed as (delete from batch_data.executed where results is null and at < now() - interval '1 day')
delete from batch_data.begun where at < now() - interval '1 day'
"""
BEGIN = """
insert into batch_data.begun (work_id) select work_id from unnest($1::uuid[]) as work_id order by work_id
on conflict do nothing returning work_id
"""
BEGIN_AGAIN = "update batch_data.begun set times = times + 1, at = now() where work_id = $1 returning times"
END = "delete from batch_data.begun where work_id = any($1::uuid[])"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[Result]).decode


class Turn(msgspec.Struct, frozen=True):
    """A piece of work in the `attempt`th try of a run."""

    work_id: UUID
    run: int
    attempt: int

    @property
    def turn(self) -> tuple[int, int]:
        """Turns of a piece come one after the other."""
        return self.run, self.attempt


class Due(Turn, frozen=True):
    """It is to be executed. `numbers` are the rows of its `tasks`."""

    numbers: Sequence[int]
    tasks: Sequence[Task[Any]]


class Declined(Turn, frozen=True):
    """It is not to be executed; `instead` is to be told of what was not executed before."""

    instead: Sequence[Result]


T_turn = TypeVar("T_turn", bound=Turn)


class Known(msgspec.Struct, frozen=True):
    """What was done of a piece of work in its latest turn. `results`: None once they are on the log."""

    turn: tuple[int, int]
    results: list[Result] | None


async def execute(
    pool: asyncpg.Pool, kind: Kind[Any], due: Sequence[Due], requests: Asks | None = None
) -> list[list[Result]]:
    """Execute pieces of one kind together; the results of each. What has none is to be tried again, as another attempt.

    Those of a transactional kind are executed once: who asks again for the same attempt gets the same results; who asks
    for one that is on the log already gets none. Raises Unavailable: ask again, it is not known whether it was done.
    """
    if not kind.transactional:
        return await _results(kind, Work(requests=requests), nullcontext, due)

    async def results(connection: asyncpg.Connection, new: Sequence[Due]) -> list[list[Result]]:
        return await _results(kind, Work(connection), Savepoints(connection).savepoint, new)

    return await _once(pool, due, results, within=kind.timeout)


async def decline(pool: asyncpg.Pool, declined: Sequence[Declined]) -> list[list[Result]]:
    """The results of pieces that are not executed, nor by a worker that comes late: it then tells the same.

    What was executed before is told as it was. Raises Unavailable.
    """

    async def results(_: asyncpg.Connection, new: Sequence[Declined]) -> list[list[Result]]:
        return [list(piece.instead) for piece in new]

    before = await _once(pool, declined, results, within=Kind.timeout)
    told = [{result.number: result for result in results} for results in before]
    return [
        [*known.values(), *(result for result in piece.instead if result.number not in known)]
        for piece, known in zip(declined, told, strict=True)
    ]


async def _once(
    pool: asyncpg.Pool,
    pieces: Sequence[T_turn],
    results_of: Callable[[asyncpg.Connection, Sequence[T_turn]], Awaitable[list[list[Result]]]],
    *,
    within: float,
) -> list[list[Result]]:
    """The results of pieces, made in the transaction that also records them; known ones are not made again.

    It waits `within` seconds for others who have one of them. Raises Unavailable.
    """
    try:
        # Not stricter: what is read behind the lock is to be what was committed before it.
        async with pool.acquire() as acquired, acquired.transaction(isolation="read_committed"):
            connection: asyncpg.Connection = acquired  # type: ignore[assignment]  # it behaves like one
            known = await _lock(connection, pieces, within)
            new = _newer(pieces, known)
            if new:
                results = await results_of(connection, new)
                known |= {piece.work_id: Known(piece.turn, told) for piece, told in zip(new, results, strict=True)}
                await connection.execute(RECORD, *_columns(new), [_encode(told) for told in results])
    except (Unavailable, *POSTGRES_FAILED) as error:
        raise unavailable(error) from error
    return [_told_before(piece, known[piece.work_id]) for piece in pieces]


async def begin(pool: asyncpg.Pool, work_ids: Sequence[UUID]) -> set[UUID]:
    """Tell that these are executed from now on; which of them nobody has begun before without coming to an `end`."""
    try:
        return {row["work_id"] for row in await pool.fetch(BEGIN, work_ids)}
    except POSTGRES_FAILED:  # what needs it fails by itself, and may be begun again
        return set(work_ids)


async def begin_again(pool: asyncpg.Pool, work_id: UUID) -> int:
    """Tell that one is executed from now on whose process ended meanwhile; for which time it is. Raises Unavailable."""
    try:
        return await pool.fetchval(BEGIN_AGAIN, work_id) or 1
    except POSTGRES_FAILED as error:
        raise unavailable(error) from error


async def end(pool: asyncpg.Pool, work_ids: Sequence[UUID]) -> None:
    """Tell that these are not executed any more, whatever came of them."""
    with suppress(*POSTGRES_FAILED):
        await pool.execute(END, work_ids)


async def forget(pool: asyncpg.Pool, told: Sequence[Turn]) -> None:
    """The results of these are on the log now. That they were executed is known for another day. Raises Unavailable."""
    try:
        await pool.execute(FORGET, *_columns(told))
    except POSTGRES_FAILED as error:
        raise unavailable(error) from error


async def sweep(pool: asyncpg.Pool) -> None:
    """Delete what was forgotten a day ago, which is longer than anybody asks for it. Raises Unavailable."""
    try:
        await pool.execute(SWEEP)
    except POSTGRES_FAILED as error:
        raise unavailable(error) from error


async def _lock(connection: asyncpg.Connection, pieces: Sequence[Turn], within: float) -> dict[UUID, Known]:
    """Wait until nobody else executes these pieces; what was done of them before."""
    work_ids = {piece.work_id for piece in pieces}
    await connection.execute(LOCK, sorted(map(str, work_ids)), timeout=within)
    return {
        row["work_id"]: Known((row["run"], row["attempt"]), None if row["results"] is None else _decode(row["results"]))
        for row in await connection.fetch(FIND, work_ids)
    }


def _newer(pieces: Sequence[T_turn], known: Mapping[UUID, Known]) -> list[T_turn]:
    """The pieces whose turn was not executed; each once, however often it was delivered."""
    newest: dict[UUID, T_turn] = {}
    for piece in sorted(pieces, key=lambda piece: piece.turn):
        if piece.work_id not in known or piece.turn > known[piece.work_id].turn:
            newest[piece.work_id] = piece
    return list(newest.values())


def _told_before(piece: Turn, known: Known) -> list[Result]:
    return known.results or [] if known.turn == piece.turn else []


def _columns(pieces: Sequence[Turn]) -> tuple[list[UUID], list[int], list[int]]:
    return (
        [piece.work_id for piece in pieces],
        [piece.run for piece in pieces],
        [piece.attempt for piece in pieces],
    )


async def _results(kind: Kind[Any], work: Work, savepoint: Savepoint, due: Sequence[Due]) -> list[list[Result]]:
    """Execute pieces; what came of each. Raises Unavailable."""
    tasks = [task for piece in due for task in piece.tasks]
    answers: list[Answer] = []
    for start in range(0, len(tasks), kind.limit):
        try:
            isolated = await isolate(kind, work, tasks[start : start + kind.limit], savepoint)
        except Unavailable:
            if kind.transactional or not answers:
                raise
            break  # what another service did is told, lest a cancel calls it cancelled; the rest comes again
        BISECT_DEPTH.labels(kind.name).observe(isolated.depth)
        answers += isolated.answers
    answer = iter(answers)
    return [
        [
            result
            for number in piece.numbers
            if (result := _result(number, next(answer, None), last=piece.attempt >= kind.attempts))
        ]
        for piece in due
    ]


def _result(number: int, answer: Answer | None, *, last: bool) -> Result | None:
    """What became of an operation for good, or None if it is to be tried again."""
    match answer:
        case Done(output):
            return Result(number, output=bounded(output))
        case Refused(error):
            return Result(number, "failed", bounded(error))
        case TryAgain(error):
            return Result(number, "failed", bounded(error)) if last else None
        case None:
            return None
        case _:
            assert_never(answer)


class Savepoints:
    """Savepoints of a transaction, one after the other: each begins as the one before it ends, in one round trip."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._begun = False

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """What is done inside is undone if it raises, and the transaction goes on. Raises Unavailable if it cannot."""
        if not self._begun:
            await self._connection.execute("set constraints all immediate; savepoint halving")
            self._begun = True
        try:
            yield
            await self._connection.execute("release savepoint halving; savepoint halving")
        except BLAMELESS:
            raise  # all of it is undone
        except Exception as error:
            try:
                await self._connection.execute("rollback to savepoint halving")
            except POSTGRES_FAILED as lost:
                raise unavailable(lost) from error
            raise
