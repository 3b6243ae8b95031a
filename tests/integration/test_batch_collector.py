"""Collecting pieces of work and telling what became of them, also when workers die, batches end and kinds are gone."""

import asyncio
from collections import Counter as Tally
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from time import monotonic
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
import msgspec
import pytest
from msgspec import Raw
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from common.aggregate import Aggregate
from common.clock import new_id, now
from common.errors import Retry, Unavailable
from common.event_log import Draft
from common.events import Again, Operation, OperationsExecuted, Priority, Result
from common.memory_log import MemoryLog
from common.requests import Endpoint
from common.telemetry import Cause, cause
from services.batch import collector as collecting
from services.batch import engine
from services.batch.collector import AT_ONCE, PAUSED_SECONDS, SLOTS, Collector, Released
from services.batch.domain import (
    BATCHES,
    KINDS,
    WORKS,
    AddOperations,
    Batch,
    CancelBatch,
    OpenBatch,
    Piece,
    ReleaseWork,
    SetPaused,
    StartBatch,
    SubmitBatch,
    kind_id_of,
    work_id_of,
)
from services.batch.kinds import Answer, Done, Kind, Task, TryAgain, Work
from services.batch.kinds_records import InsertRecords, Record
from services.batch.listeners import CountWorkDone
from services.batch.settings import BatchSettings

Q = TypeVar("Q", bound=msgspec.Struct)
A = TypeVar("A", bound=msgspec.Struct)


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(database_url, min_size=0) as pool:
        await pool.execute(engine.CREATE + InsertRecords.tables)
        yield pool


class Nobody:
    """Answers nothing."""

    async def ask(self, endpoint: Endpoint[Q, A], question: Q, *, within: float = 10) -> A:
        raise Unavailable(f"{endpoint.service} {question!r} {within}")


class DyingLog(MemoryLog):
    """A log that does not get the results while `dead`, as when the worker dies before it appends them."""

    dead = False

    async def append(self, subject: str, drafts: Sequence[Draft], *, expected: int) -> int:
        if self.dead and isinstance(drafts[0].event, OperationsExecuted):
            raise Unavailable("The worker is dead.")
        return await super().append(subject, drafts, expected=expected)


class Insert(InsertRecords):
    """Records; each shows its key."""

    async def execute_many(self, work: Work, operations: Sequence[Task[Record]]) -> Sequence[Answer]:
        await super().execute_many(work, operations)
        return [Done(task.what.key) for task in operations]


class NotYet(Insert):
    """Records, of which `b` is to be tried again."""

    async def execute_many(self, work: Work, operations: Sequence[Task[Record]]) -> Sequence[Answer]:
        ready = [task for task in operations if task.what.key != "b"]
        answers = dict(zip(ready, await super().execute_many(work, ready), strict=True))
        return [answers.get(task, TryAgain("not yet")) for task in operations]


class Held(Insert):
    """Records; those of Ada's wait until they may go on."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.may_go_on = asyncio.Event()

    async def execute_many(self, work: Work, operations: Sequence[Task[Record]]) -> Sequence[Answer]:
        if operations[0].user_id == "ada":
            self.begun.set()
            await self.may_go_on.wait()
        return await super().execute_many(work, operations)


class Ordered(Insert):
    """Records; statements, of which each has whose operations, wait until they may go on. `full`: no other begins."""

    def __init__(self, slots: int = SLOTS["normal"]) -> None:
        self.full = asyncio.Event()
        self.slots = slots
        self.may_go_on = asyncio.Event()
        self.statements: list[Tally[str]] = []

    async def execute_many(self, work: Work, operations: Sequence[Task[Record]]) -> Sequence[Answer]:
        self.statements.append(Tally(task.user_id for task in operations))
        if len(self.statements) == self.slots:
            self.full.set()
        await self.may_go_on.wait()
        return await super().execute_many(work, operations)


DONE = {1: Result(1, output="a"), 2: Result(2, output="b"), 3: Result(3, output="c")}


class Office:
    """Workers, and one batch of one piece of work for them: records `a`, `b` and `c`."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.log = DyingLog()
        self.batch_id = new_id()
        self.work_id = work_id_of(self.batch_id, 0)
        self._pool = pool

    async def submit(self) -> None:
        batches, works = Aggregate(BATCHES, self.log), Aggregate(WORKS["normal"], self.log)
        await batches.handle(
            self.batch_id, OpenBatch(self.batch_id, "records.insert", "ada", "normal", "skip", None, now())
        )
        rows = [Operation(n, Raw(msgspec.json.encode(Record(key, "v")))) for n, key in enumerate("abc", 1)]
        added = AddOperations(self.work_id, self.batch_id, 0, "records.insert", "ada", rows, now())
        await works.handle(self.work_id, added)
        await batches.handle(self.batch_id, SubmitBatch(3, 1, now()))
        await batches.handle(self.batch_id, StartBatch(now()))
        await works.handle(self.work_id, ReleaseWork(1, now()))

    async def work(self, *kinds: Kind[Any]) -> None:
        """Execute the piece as a worker that was started just now. Raises what the worker raises."""
        await self.collector(*kinds).execute(self.released)

    async def work_beside(self, other: UUID, kind: Kind[Any]) -> None:
        """Execute the piece, and another one that came at the same time."""
        collector = self.collector(kind)
        single = Released("normal", other, None, "records.insert", 1, 1, now())
        await asyncio.gather(collector.execute(self.released), collector.execute(single))

    @property
    def released(self) -> Released:
        """The piece, as the log tells that it may be executed."""
        return Released("normal", self.work_id, self.batch_id, "records.insert", 1, 3, now())

    def collector(self, *kinds: Kind[Any], limit: int = 1000) -> Collector:
        """One that was started just now."""
        works = {priority: Aggregate(decider, self.log) for priority, decider in WORKS.items()}
        named = {kind.name: kind for kind in kinds}
        batches, paused = Aggregate(BATCHES, self.log), Aggregate(KINDS, self.log)
        settings = BatchSettings(nats_url="", database_url="", batch_interval_ms=0, batch_limit=limit)
        pools = dict.fromkeys(named, self._pool)
        return Collector(self._pool, pools, Nobody(), works, batches, paused, named, settings)

    async def add(self, priority: Priority, user_id: str) -> UUID:
        """A piece of one operation that belongs to no batch; its id."""
        work_id = new_id()
        row = Operation(1, Raw(msgspec.json.encode(Record(str(work_id), "v"))))
        added = AddOperations(work_id, None, 0, "records.insert", user_id, [row], now(), True)
        await Aggregate(WORKS[priority], self.log).handle(work_id, added)
        return work_id

    async def add_batch(self, pieces: int) -> list[Released]:
        """A batch of Ada's of so many pieces of one record each, which may all be executed."""
        batch_id, batches, works = new_id(), Aggregate(BATCHES, self.log), Aggregate(WORKS["normal"], self.log)
        await batches.handle(batch_id, OpenBatch(batch_id, "records.insert", "ada", "normal", "skip", None, now()))
        for number in range(pieces):
            row = Operation(number + 1, Raw(msgspec.json.encode(Record(f"{batch_id} {number}", "v"))))
            work_id = work_id_of(batch_id, number)
            added = AddOperations(work_id, batch_id, number, "records.insert", "ada", [row], now())
            await works.handle(work_id, added)
            await works.handle(work_id, ReleaseWork(1, now()))
        ids = [work_id_of(batch_id, number) for number in range(pieces)]
        return [Released("normal", work_id, batch_id, "records.insert", 1, 1, now()) for work_id in ids]

    async def pause(self, *, paused: bool) -> None:
        await Aggregate(KINDS, self.log).handle(
            kind_id_of("records.insert"), SetPaused("records.insert", paused, "operator", now())
        )

    async def die(self, kind: Kind[Any]) -> None:
        """Work, and die between the commit and the append of the results."""
        self.log.dead = True
        with pytest.raises(Unavailable):
            await self.work(kind)
        self.log.dead = False

    async def cancel(self) -> None:
        await Aggregate(BATCHES, self.log).handle(self.batch_id, CancelBatch("ada", now()))

    async def piece(self) -> Piece:
        return (await Aggregate(WORKS["normal"], self.log).load(self.work_id)).state

    async def told(self) -> dict[int, Result]:
        """What the log tells of each operation."""
        return dict((await self.piece()).results.items())

    async def counted(self) -> Batch:
        """The batch, with what was told counted."""
        batches = Aggregate(BATCHES, self.log)
        works = {priority: Aggregate(decider, self.log) for priority, decider in WORKS.items()}
        for recorded in await self.log.read(f"batch.normal.{self.work_id}"):
            if isinstance(recorded.event, OperationsExecuted):
                await CountWorkDone(batches, works).on(recorded.event)
        return (await batches.load(self.batch_id)).state

    async def keys(self) -> list[str]:
        """The records that are there."""
        return [row["key"] for row in await self._pool.fetch("select key from batch_data.records order by key")]


@pytest.fixture
async def office(pool: asyncpg.Pool) -> Office:
    office = Office(pool)
    await office.submit()
    return office


@pytest.mark.parametrize(("low", "size"), [(1, 1), (2 * AT_ONCE, 1000)])  # one worker; as many as there may be
async def test_high_work_is_executed_while_low_work_is_held_up(office: Office, low: int, size: int) -> None:
    kind = Held()
    collector = office.collector(kind)
    slow = [
        asyncio.create_task(
            collector.execute(Released("low", await office.add("low", "ada"), None, kind.name, 1, size, now()))
        )
        for _ in range(low)
    ]
    await asyncio.wait_for(kind.begun.wait(), 20)
    high = await office.add("high", "eve")
    await asyncio.wait_for(collector.execute(Released("high", high, None, kind.name, 1, 1, now())), 20)
    assert (await Aggregate(WORKS["high"], office.log).load(high)).state.result(1)
    assert not any(each.done() for each in slow)
    kind.may_go_on.set()
    await asyncio.wait_for(asyncio.gather(*slow), 20)


async def test_one_operation_behind_a_large_batch_of_its_kind_runs_with_the_next_statement(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "SLOTS", dict.fromkeys(SLOTS, 1))
    kind = Ordered(1)
    collector = office.collector(kind, limit=4)
    batch = [asyncio.create_task(collector.execute(piece)) for piece in await office.add_batch(40)]
    await asyncio.wait_for(kind.full.wait(), 20)
    single = Released("normal", await office.add("normal", "eve"), None, kind.name, 1, 1, now())
    alone = asyncio.create_task(collector.execute(single))
    await asyncio.sleep(0)
    kind.may_go_on.set()
    await asyncio.wait_for(alone, 20)
    assert not all(each.done() for each in batch)
    await asyncio.wait_for(asyncio.gather(*batch), 20)
    assert kind.statements[1] == {"ada": 3, "eve": 1}
    assert sum(statement["ada"] for statement in kind.statements) == 40


async def test_what_finds_no_room_among_its_kind_is_put_back_and_a_single_operation_is_let_in(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "MOST_WAITING", 10)
    kind = Ordered()
    collector = office.collector(kind, limit=1)
    room = SLOTS["normal"] + 10
    pieces = await office.add_batch(room + 5)
    batch = [asyncio.create_task(collector.execute(piece)) for piece in pieces[: SLOTS["normal"]]]
    await asyncio.wait_for(kind.full.wait(), 20)
    batch += [asyncio.create_task(collector.execute(piece)) for piece in pieces[SLOTS["normal"] :]]
    single = Released("normal", await office.add("normal", "eve"), None, kind.name, 1, 1, now())
    alone = asyncio.create_task(collector.execute(single))
    put_back, _ = await asyncio.wait(batch[-6:], timeout=20)
    assert put_back == set(batch[-6:])
    assert all(isinstance(each.exception(), Retry) for each in put_back)
    kind.may_go_on.set()
    await asyncio.wait_for(asyncio.gather(alone, *batch[:-6]), 20)


def oldest() -> float:
    """What a scrape tells of normal priority."""
    return REGISTRY.get_sample_value("boxoffice_batch_queue_oldest_seconds", {"priority": "normal"}) or 0


async def test_how_long_the_oldest_waits_is_measured_while_it_does(office: Office) -> None:
    hour = timedelta(hours=1)
    kind = Ordered()
    collector = office.collector(kind, limit=1)
    assert oldest() == 0
    begun = [asyncio.create_task(collector.execute(piece)) for piece in await office.add_batch(SLOTS["normal"])]
    await asyncio.wait_for(kind.full.wait(), 20)
    assert oldest() == 0  # these do not wait any more
    old = msgspec.structs.replace(office.released, since=now() - hour)
    waiting = asyncio.create_task(collector.execute(old))
    await asyncio.sleep(0)
    assert hour.total_seconds() <= oldest() < 2 * hour.total_seconds()
    kind.may_go_on.set()
    await asyncio.wait_for(asyncio.gather(waiting, *begun), 20)
    assert oldest() == 0


async def test_what_was_put_back_waits_until_it_has_come_again(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    hour = timedelta(hours=1)
    collector = office.collector(Insert())
    old = msgspec.structs.replace(office.released, since=now() - hour)
    await office.pause(paused=True)
    with pytest.raises(Retry):
        await collector.execute(old)
    assert oldest() >= hour.total_seconds()
    await office.pause(paused=False)
    await collector.execute(old)
    assert oldest() == 0
    await office.pause(paused=True)
    with pytest.raises(Retry):
        await collector.execute(old)
    assert oldest() >= hour.total_seconds()
    at = monotonic() + PAUSED_SECONDS + collecting.LATE_SECONDS
    monkeypatch.setattr(collecting, "monotonic", lambda: at)
    assert oldest() == 0  # somebody else has it


async def test_what_is_tried_again_says_why_and_how_often_it_was_tried(office: Office) -> None:
    for attempt in (1, 2):
        with pytest.raises(Retry):
            await office.work(NotYet())
        piece = await office.piece()
        assert (piece.attempt, piece.again) == (attempt, Again(((2, 2),), "not yet"))
    with pytest.raises(Retry):
        await office.work()
    assert (await office.piece()).again == Again(((2, 2),), "Kind records.insert is not installed here.")
    await office.work(Insert())
    assert (await office.piece()).again is None


async def test_what_a_worker_had_executed_when_it_died_is_told_although_the_batch_was_cancelled(office: Office) -> None:
    await office.die(Insert())
    await office.cancel()
    assert await office.keys() == ["a", "b", "c"]
    await office.work(Insert())
    assert await office.told() == DONE
    assert (await office.counted()).status == "COMPLETED"


async def test_what_a_worker_had_not_executed_when_it_died_is_cancelled(office: Office) -> None:
    await office.die(NotYet())
    await office.cancel()
    await office.work(Insert())
    assert await office.told() == DONE | {2: Result(2, "cancelled")}
    assert (await office.counted()).status == "CANCELLED"
    assert await office.keys() == ["a", "c"]


async def test_nothing_of_a_batch_is_executed_after_it_was_cancelled(office: Office) -> None:
    await office.cancel()
    await office.work(Insert())
    assert {result.outcome for result in (await office.told()).values()} == {"cancelled"}
    assert await office.keys() == []


async def test_operations_of_a_kind_that_is_not_installed_fail_in_the_end(office: Office) -> None:
    for _ in range(Kind.attempts - 1):
        with pytest.raises(Retry), capture_logs() as logs:
            await office.work()
        assert logs == [
            {"event": "kind_not_installed", "log_level": "warning", "kind": "records.insert", "operations": 3}
        ]
        assert await office.told() == {}
    await office.work()
    error = "Kind records.insert is not installed here."
    assert await office.told() == {number: Result(number, "failed", error) for number in (1, 2, 3)}
    assert (await office.counted()).status == "FAILED"


async def test_what_is_given_up_has_failed_but_for_what_was_executed(office: Office) -> None:
    await office.die(NotYet())
    await office.collector().give_up(office.released, "It could not be executed: TypeError.")
    assert await office.told() == DONE | {2: Result(2, "failed", "It could not be executed: TypeError.")}
    assert (await office.counted()).status == "COMPLETED_WITH_ERRORS"
    await office.collector().give_up(office.released, "It is over.")
    assert await office.told() == DONE | {2: Result(2, "failed", "It could not be executed: TypeError.")}


async def test_what_was_executed_as_its_process_ended_is_executed_alone(office: Office, pool: asyncpg.Pool) -> None:
    sizes: list[int] = []

    class Insert(InsertRecords):
        async def execute_many(self, work: Work, operations: Sequence[Task[Record]]) -> Sequence[Answer]:
            sizes.append(len(operations))
            return await super().execute_many(work, operations)

    other = await office.add("normal", "ada")
    await engine.begin(pool, [office.work_id])  # and never came to its end
    await office.work_beside(other, Insert())
    assert sizes == [1, 3]
    assert len(await office.keys()) == 4
    assert await pool.fetch("select from batch_data.begun") == []


async def test_what_ends_every_process_has_failed_after_as_many_as_its_kind_may_try(
    office: Office, pool: asyncpg.Pool
) -> None:
    await engine.begin(pool, [office.work_id])
    for _ in range(Insert.attempts - 1):
        await engine.begin_again(pool, office.work_id)
    await office.work(Insert())
    error = "The process that executed it, perhaps together with others, ended 10 times."
    assert await office.told() == {number: Result(number, "failed", error) for number in (1, 2, 3)}
    assert await office.keys() == []
    assert (await office.counted()).status == "FAILED"
    assert await pool.fetch("select from batch_data.begun") == []


async def test_what_cannot_be_told_of_has_ended_no_process(office: Office, pool: asyncpg.Pool) -> None:
    await office.die(Insert())
    assert await pool.fetch("select from batch_data.begun") == []


async def test_a_replica_that_has_the_kind_executes_what_another_could_not(office: Office) -> None:
    with pytest.raises(Retry):
        await office.work()
    await office.work(Insert())
    assert await office.told() == DONE
    assert await office.keys() == ["a", "b", "c"]


async def test_a_replica_without_the_kind_tells_what_one_with_it_had_executed(office: Office) -> None:
    await office.die(Insert())
    await office.work()
    assert await office.told() == DONE
    assert await office.keys() == ["a", "b", "c"]


async def test_a_batch_of_a_kind_that_is_not_installed_can_be_cancelled(office: Office) -> None:
    with pytest.raises(Retry):
        await office.work()
    await office.cancel()
    await office.work()
    assert {result.outcome for result in (await office.told()).values()} == {"cancelled"}
    assert (await office.counted()).status == "CANCELLED"


async def test_results_of_each_piece_have_its_own_cause_also_where_they_are_executed_together(office: Office) -> None:
    collector, held = office.collector(Insert()), {}

    async def heard(why: Cause, work_id: UUID) -> None:
        cause.set(why)
        await collector.execute(Released("normal", work_id, None, "records.insert", 1, 1, now()))

    for user in ("ada", "bob", "eve"):
        held[Cause(f"the-click-of-{user}", str(new_id()))] = await office.add("normal", user)
    await asyncio.gather(*(heard(why, work_id) for why, work_id in held.items()))
    for why, work_id in held.items():
        *_, told = await office.log.read(f"batch.normal.{work_id}")
        assert isinstance(told.event, OperationsExecuted)
        assert told.cause == why
