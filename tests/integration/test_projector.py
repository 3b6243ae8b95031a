"""What a Projector promises: the read model is the fold of the log, whatever dies, is rebuilt or is replaced."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from structlog.testing import capture_logs

from common import projector, topology
from common.aggregate import Aggregate, Decider
from common.errors import NotFound, Unavailable
from common.event_log import Draft, Recorded
from common.events import UPCASTS, ExpirationCompleted, TicketWithdrawn, UndecodableEvent
from common.projector import Projected, Projector, ReadModel, ReadYourWrites
from common.runtime import Platform, running
from common.status import ReadModelStats
from services.cli.servers import NatsServer, PostgresServer
from tests.facts import AT, STREAM, draft, drafts, fact, number_of, tell
from tests.harness import eventually

TABLES = "create table facts (number bigint primary key, times bigint not null)"

WRITE = """
insert into facts (number, times) select number, 1 from unnest($1::bigint[]) as new (number)
on conflict (number) do update set times = facts.times + 1
"""
READ = "select number, times from facts order by number"


async def project(connection: asyncpg.Connection, events: Sequence[Recorded]) -> None:
    """Count how often each fact was told. A batch that is written twice shows."""
    await connection.execute(WRITE, [number_of(recorded.event) for recorded in events])


async def project_tickets(connection: asyncpg.Connection, events: Sequence[Recorded]) -> None:
    """The same for another stream: a withdrawn ticket counts as the fact of that number."""
    withdrawn = [recorded.event for recorded in events if isinstance(recorded.event, TicketWithdrawn)]
    await connection.execute(WRITE, [event.ticket_id.int for event in withdrawn])


FACTS = ReadModel("facts", TABLES, {STREAM: project})
NAME = f"facts.{STREAM}"
TWO_STREAMS = ReadModel("facts", TABLES, {STREAM: project, "TICKETS": project_tickets})


class Database:
    """A database, the streams, and what is seen in the read model."""

    def __init__(self, platform: Platform, url: str) -> None:
        self.platform = platform
        self.log = platform.event_log
        self.url = url

    async def query(self, sql: str, *arguments: object) -> list[tuple[object, ...]]:
        """Rows, as a reader of the schema sees them."""
        connection = await projector.connect(self.url, "facts")
        try:
            return [tuple(row.values()) for row in await connection.fetch(sql, *arguments)]
        finally:
            await connection.close()

    async def facts(self) -> dict[object, object]:
        """How often each fact is counted."""
        return dict(await self.query(READ))  # type: ignore[arg-type]  # READ gives pairs

    async def checkpoint(self) -> int:
        """The sequence of the stream that the read model has come to."""
        [(sequence,)] = await self.query("select sequence from checkpoint where stream = $1", STREAM)
        assert isinstance(sequence, int)
        return sequence

    async def lock_owners(self) -> dict[bool, set[object]]:
        """The backends that are the active projector of a stream, and those that wait to be."""
        rows = await self.query(
            "select granted, pid from pg_locks where locktype = 'advisory' and database = "
            "(select oid from pg_database where datname = current_database())"
        )
        return {state: {pid for granted, pid in rows if granted is state} for state in (True, False)}

    async def lock_owners_now(self) -> set[object]:
        """The active ones only."""
        return (await self.lock_owners())[True]

    async def terminate(self, pid: object) -> None:
        """End a backend, as a crash of its client or the network would."""
        await self.query("select pg_terminate_backend($1)", pid)

    def projector(self, model: ReadModel = FACTS, stream: str = STREAM) -> Projector:
        """Another replica."""
        return Projector(model, stream, self.log, self.url)

    @asynccontextmanager
    async def projecting(self, model: ReadModel = FACTS) -> AsyncIterator[Projector]:
        """A running projector for each stream; the first stream's is returned."""
        projectors = [self.projector(model, stream) for stream in model.sources]
        async with running(projectors):
            yield projectors[0]


@pytest.fixture
async def db(streams: Platform, database_url: str) -> Database:
    await projector.create(FACTS, streams.event_log, database_url)
    return Database(streams, database_url)


def once(numbers: range) -> dict[object, object]:
    return dict.fromkeys(numbers, 1)


async def problem_of(worker: Projector | Projected, text: str) -> None:
    """Wait until the projector tells this problem."""

    async def look() -> bool:
        return text in (worker.problem or "")

    await eventually(look, True)


async def no_problem(worker: Projector | Projected) -> None:
    """Wait until the projector is at work again."""

    async def look() -> str | None:
        return worker.problem

    await eventually(look, None)


async def test_what_a_read_model_skips_is_not_decoded_for_it_and_its_place_counts(db: Database) -> None:
    await tell(db.log, 1)
    headers = draft(2).headers("/expiration.broken") | {"ce-type": "ticket_withdrawn"}
    await db.platform.client.request("expiration.broken", b"no JSON", headers=headers)
    model = msgspec.structs.replace(FACTS, skips=(TicketWithdrawn,))
    async with db.projecting(model):
        await eventually(db.checkpoint, 2)
        await tell(db.log, 3)
        await eventually(db.checkpoint, 3)
    assert await db.facts() == {1: 1, 3: 1}
    await projector.rebuild(model, db.log, db.url)
    assert (await db.facts(), await db.checkpoint()) == ({1: 1, 3: 1}, 3)
    with pytest.raises(UndecodableEvent):
        await projector.rebuild(FACTS, db.log, db.url)


async def test_the_read_model_follows_the_log(db: Database) -> None:
    await tell(db.log, *range(10))
    async with db.projecting():
        await eventually(db.facts, once(range(10)))
        for n in range(3):
            await db.log.append(f"expiration.{n}", drafts(range(10 + n * 1000, 1010 + n * 1000)), expected=0)
        await eventually(db.checkpoint, 3010)
    assert await db.facts() == once(range(3010))


async def test_a_new_run_goes_on_at_the_checkpoint(db: Database) -> None:
    for turn in range(4):
        await tell(db.log, turn)  # while nobody projects
        async with db.projecting():
            await eventually(db.checkpoint, turn + 1)
    assert await db.facts() == once(range(4))


@pytest.mark.parametrize("death", ["of the projector", "of its connection"])
async def test_a_death_between_writing_and_committing_leaves_no_trace(db: Database, death: str) -> None:
    inside = asyncio.Event()

    async def die_the_first_time(connection: asyncpg.Connection, events: Sequence[Recorded]) -> None:
        await project(connection, events)
        if not inside.is_set():
            inside.set()
            await connection.execute("select pg_sleep(600)")

    worker = db.projector(ReadModel("facts", TABLES, {STREAM: die_the_first_time}))
    await tell(db.log, *range(5))
    task = asyncio.create_task(worker.run())
    await inside.wait()
    if death == "of the projector":
        task.cancel()
        await asyncio.wait([task])
        task = asyncio.create_task(worker.run())
    else:
        [(pid,)] = await db.query("select pid from pg_stat_activity where query = 'select pg_sleep(600)'")
        await db.terminate(pid)
    await tell(db.log, *range(5, 8))
    await eventually(db.checkpoint, 8)
    assert await db.facts() == once(range(8))
    task.cancel()
    await asyncio.wait([task])


async def test_connections_that_die_again_and_again_double_and_lose_nothing(db: Database) -> None:
    async with db.projecting(), asyncio.TaskGroup() as group:
        telling = group.create_task(tell(db.log, *range(2000)))
        for after in (200, 600, 1000):
            await eventually(lambda after=after: passed(db, after), True)  # type: ignore[misc]  # a default binds it now
            for pid in (await db.lock_owners())[True]:
                await db.terminate(pid)
        await telling
        await eventually(db.checkpoint, 2000)
    assert await db.facts() == once(range(2000))


async def passed(db: Database, sequence: int) -> bool:
    return await db.checkpoint() >= sequence


async def test_of_two_projectors_one_waits_and_takes_over(db: Database) -> None:
    await tell(db.log, 1)
    async with db.projecting() as one:
        await eventually(db.checkpoint, 1)
        [active] = (await db.lock_owners())[True]
        async with db.projecting() as other:

            async def waiting() -> int:
                return len((await db.lock_owners())[False])

            await eventually(waiting, 1)
            [standby] = (await db.lock_owners())[False]
            await tell(db.log, 2)
            await eventually(db.checkpoint, 2)
            assert (await db.lock_owners())[True] == {active}
            await db.terminate(active)
            await eventually(db.lock_owners_now, {standby})
            await tell(db.log, 3)
            await eventually(db.checkpoint, 3)
            await eventually(waiting, 1)  # the first one stands by now
            assert (await db.lock_owners())[True] == {standby}
            assert other.problem is None
            assert one.name == other.name == NAME

            async def told() -> list[ReadModelStats]:
                return [one.stats, other.stats]

            await eventually(told, [ReadModelStats("facts", STREAM, up_to, None) for up_to in (None, 3)])
    assert await db.facts() == once(range(1, 4))


async def test_a_rebuild_is_seen_by_nobody_but_its_progress(streams: Platform, database_url: str) -> None:
    await projector.create(TWO_STREAMS, streams.event_log, database_url)
    db = Database(streams, database_url)
    await db.log.append("expiration.first", drafts(range(500)), expected=0)
    settings = msgspec.structs.replace(streams.settings, database_url=database_url)
    stop = asyncio.Event()
    told = 500
    reads = [0, 0, 0]

    async def keep_telling() -> None:
        nonlocal told
        while not stop.is_set():
            await tell(db.log, told)
            withdrawn = TicketWithdrawn(UUID(int=told + 1), "sam", AT)
            await db.log.append(f"tickets.{told}", [Draft.of(withdrawn)], expected=0)
            told += 2

    async def keep_reading(pool: asyncpg.Pool, reader: int) -> None:
        least = 0
        while not stop.is_set():
            rows = await pool.fetch(READ)
            assert len(rows) >= least, "a reader saw less than before"
            assert {row["times"] for row in rows} <= {1}
            least = len(rows)
            reads[reader] += 1

    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(
            Platform(streams.client, streams.event_log, settings, streams.connections).pool("facts")
        )
        worker = await stack.enter_async_context(db.projecting(TWO_STREAMS))
        await eventually(db.facts, once(range(500)))
        async with asyncio.TaskGroup() as group:
            group.create_task(keep_telling())
            for reader in range(3):
                group.create_task(keep_reading(pool, reader))
            for _ in range(5):
                before = told
                progress: list[tuple[str, int, int]] = []
                count = await projector.rebuild(
                    TWO_STREAMS,
                    db.log,
                    db.url,
                    lambda *step, progress=progress: progress.append(step),
                )
                assert count >= before
                assert {stream for stream, _, _ in progress} == {STREAM, "TICKETS"}
                assert all(reached >= 1 for _, reached, _ in progress)
                seen = list(reads)
                await eventually(lambda seen=seen: more(reads, seen), True)  # type: ignore[misc]
            stop.set()
        await eventually(db.facts, once(range(told)))
        assert worker.problem is None
    assert await db.query("select nspname::text from pg_namespace where nspname like 'facts%'") == [("facts",)]


async def more(reads: list[int], than: list[int]) -> bool:
    """Whether every reader has read twice since."""
    return all(now >= before + 2 for now, before in zip(reads, than, strict=True))


async def test_creating_again_changes_nothing(db: Database) -> None:
    await tell(db.log, 1)
    async with db.projecting():
        await eventually(db.checkpoint, 1)
        reported: list[str] = []
        await projector.create(FACTS, db.log, db.url, reported.append)
        assert reported == []
        assert await db.facts() == {1: 1}


async def test_creating_changed_tables_rebuilds_them(db: Database) -> None:
    await tell(db.log, 1, 2)
    changed = ReadModel("facts", TABLES.replace("not null)", "not null, note text default 'new')"), {STREAM: project})
    reported: list[str] = []
    await projector.create(changed, db.log, db.url, reported.append)
    assert reported == ["rebuilt read model facts: its tables changed"]
    assert await db.query("select number, times, note from facts") == [(1, 1, "new"), (2, 1, "new")]
    reported.clear()
    await projector.create(changed, db.log, db.url, reported.append)
    assert reported == []


async def test_code_of_another_version_neither_writes_nor_is_ready_until_its_own_tables_are_back(db: Database) -> None:
    """While a new version is rolled out or taken back, processes of both run."""
    noted = ReadModel("facts", TABLES.replace("not null)", "not null, note text)"), {STREAM: project_with_note})
    await tell(db.log, 1)
    listening = Projected(FACTS, STREAM, db.log, db.url)
    async with db.projecting() as old, running([listening]), db.projecting(noted) as new:
        await eventually(db.checkpoint, 1)
        await problem_of(new, "those of another version: run `boxoffice migrate` of this one")
        await projector.create(noted, db.log, db.url)  # nothing is told meanwhile, so the checkpoint stays where it was
        await tell(db.log, 2)
        await problem_of(old, "those of another version")
        await problem_of(listening, "those of another version")
        await no_problem(new)
        await eventually(db.checkpoint, 2)
        assert await db.query("select number, times, note from facts order by 1") == [(1, 1, "seen"), (2, 1, "seen")]

        await projector.create(FACTS, db.log, db.url)  # it is taken back
        await no_problem(old)
        await no_problem(listening)
        await tell(db.log, 3)
        await problem_of(new, "those of another version")
        await eventually(db.facts, once(range(1, 4)))


async def project_with_note(connection: asyncpg.Connection, events: Sequence[Recorded]) -> None:
    """What only the newer tables can hold; code that does not know of it would leave it out."""
    await project(connection, events)
    await connection.execute("update facts set note = 'seen' where note is null")


async def test_two_may_create_at_the_same_time(streams: Platform, database_url: str) -> None:
    reported: list[str] = []
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(projector.create(FACTS, streams.event_log, database_url, reported.append))
    assert reported == ["created read model facts"]


async def test_a_projector_awaits_its_tables(streams: Platform, database_url: str) -> None:
    db = Database(streams, database_url)
    await tell(db.log, 1)
    async with db.projecting() as worker:
        await problem_of(worker, "checkpoint")
        await projector.create(FACTS, db.log, db.url)
        await no_problem(worker)
        await eventually(db.checkpoint, 1)


async def test_what_postgres_refuses_is_told_once_with_its_mend_until_events_are_written_again(db: Database) -> None:
    broken = asyncio.Event()
    broken.set()
    tried = 0

    async def project_when_mended(connection: asyncpg.Connection, events: Sequence[Recorded]) -> None:
        nonlocal tried
        tried += 1
        if broken.is_set():
            await connection.execute("select nonsense from checkpoint")
        await project(connection, events)

    async def tries() -> bool:
        return tried >= 2

    await tell(db.log, 1)
    with capture_logs() as logs:
        async with db.projecting(ReadModel("facts", TABLES, {STREAM: project_when_mended})) as worker:
            await eventually(tries, True)
            assert "Postgres refuses: UndefinedColumnError" in (worker.problem or "")  # while it writes, too
            assert "run `boxoffice migrate`" in (worker.problem or "")
            broken.clear()
            await no_problem(worker)
            assert await db.facts() == once(range(1, 2))
    assert [entry["event"] for entry in logs] == ["projector_stopped", "projector_goes_on"]


async def test_a_problem_is_over_when_there_is_nothing_to_write(db: Database) -> None:
    async with db.projecting() as worker:
        await tell(db.log, 1)
        await eventually(db.checkpoint, 1)
        [active] = (await db.lock_owners())[True]
        await db.terminate(active)
        await problem_of(worker, "Postgres does not answer")
        await no_problem(worker)


async def test_a_log_that_was_replaced_is_noticed_and_nothing_is_mixed(
    db: Database, nats: NatsServer, home: Path
) -> None:
    await tell(db.log, 1, 2, 3)
    async with db.projecting() as worker:
        await eventually(db.checkpoint, 3)
        nats.kill()
        shutil.rmtree(home / "nats" / "jetstream")
        await nats.start()
        await eventually(lambda: migrated(db), True)
        await tell(db.log, *range(11, 16))
        await problem_of(worker, "created anew")
        assert await db.facts() == once(range(1, 4))
        await projector.rebuild(FACTS, db.log, db.url)
        await no_problem(worker)
        await tell(db.log, 16)
        await eventually(db.facts, once(range(11, 17)))


async def migrated(db: Database) -> bool:
    try:
        await topology.migrate(db.platform.client)
    except Unavailable:
        return False
    return True


async def test_a_log_restored_from_a_backup_is_noticed_and_nothing_is_mixed(
    db: Database, nats: NatsServer, home: Path
) -> None:
    await tell(db.log, 1, 2, 3)
    await nats.stop()
    shutil.copytree(home / "nats" / "jetstream", home / "backup")
    await nats.start()
    await eventually(lambda: migrated(db), True)
    await tell(db.log, 4, 5)
    async with db.projecting() as worker:
        await eventually(db.checkpoint, 5)
        nats.kill()
        shutil.rmtree(home / "nats" / "jetstream")
        shutil.copytree(home / "backup", home / "nats" / "jetstream")
        await nats.start()
        await eventually(lambda: migrated(db), True)
        await problem_of(worker, f"the read model is at 5, stream {STREAM} ends at 3")
        await tell(db.log, 14, 15, 16)
        await problem_of(worker, f"event 5 of stream {STREAM} is not the one")
        assert worker.sequence is None  # it has none in this log
        assert await db.facts() == once(range(1, 6))
        assert await projector.rebuild(FACTS, db.log, db.url) == 6
        await no_problem(worker)
        await tell(db.log, 17)
        await eventually(db.facts, once(range(1, 4)) | once(range(14, 18)))


async def test_a_restarted_server_is_projected_again(db: Database, nats: NatsServer) -> None:
    async with db.projecting() as worker:
        for turn in range(2):
            await tell(db.log, turn)
            await eventually(db.checkpoint, turn + 1)
            nats.kill()
            await nats.start()
            await eventually(lambda: migrated(db), True)
        await tell(db.log, 2)
        await eventually(db.facts, once(range(3)))
        await no_problem(worker)


async def test_an_event_that_is_not_understood_stops_the_projector_right_before_it(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tell(db.log, 1, 2)
    body = msgspec.json.encode(fact(3)).replace(b"expiration_completed", b"expiration_postponed")
    headers = {"ce-type": "expiration_postponed", "ce-id": "from the future"}
    await db.platform.client.jetstream().publish("expiration.f3", body, headers=headers)
    await tell(db.log, 4)
    async with db.projecting() as worker:
        await problem_of(worker, "expiration_postponed")
        assert (await db.checkpoint(), await db.facts(), worker.sequence) == (2, once(range(1, 3)), 2)
        with pytest.raises(UndecodableEvent):
            await projector.rebuild(FACTS, db.log, db.url)
        assert await db.facts() == once(range(1, 3))
        monkeypatch.setitem(UPCASTS, "expiration_postponed", lambda old: old | {"type": "expiration_completed"})
        await eventually(db.facts, once(range(1, 5)))  # now there is code that knows it
        await no_problem(worker)


async def test_a_second_rebuild_is_refused_while_one_runs_and_one_that_was_stopped_can_be_repeated(
    db: Database,
) -> None:
    await tell(db.log, 1, 2)
    async with db.projecting():
        await eventually(db.checkpoint, 2)
    inside = asyncio.Event()

    async def never_end(_: asyncpg.Connection, __: Sequence[Recorded]) -> None:
        inside.set()
        await asyncio.Event().wait()

    endless = asyncio.create_task(projector.rebuild(ReadModel("facts", TABLES, {STREAM: never_end}), db.log, db.url))
    await inside.wait()
    with pytest.raises(Unavailable, match="somebody else"):
        await projector.rebuild(FACTS, db.log, db.url)
    assert await db.facts() == once(range(1, 3))
    endless.cancel()
    await asyncio.wait([endless])
    assert await db.facts() == once(range(1, 3))
    assert await projector.rebuild(FACTS, db.log, db.url) == 2
    assert await db.facts() == once(range(1, 3))


async def test_writers_can_wait_until_what_they_wrote_can_be_read(db: Database) -> None:
    projected = Projected(FACTS, STREAM, db.log, db.url)
    async with running([projected]):
        await tell(db.log, *range(3))
        assert not await projected.wait(1, at_most=0.05)  # nobody projects
        waiting = [asyncio.create_task(projected.wait(sequence, at_most=20)) for sequence in (3, 1, 5, 2)]
        async with db.projecting():
            assert await waiting[0]
            assert await db.facts() == once(range(3))
            assert await waiting[1]
            assert await waiting[3]
            assert not waiting[2].done()
            await tell(db.log, 3, 4)
            assert await waiting[2]
            assert await db.facts() == once(range(5))
        assert await projected.wait(4, at_most=0)
    again = Projected(FACTS, STREAM, db.log, db.url)
    async with running([again]):  # what was passed before it began, it reads from the checkpoint
        assert await again.wait(5, at_most=20)
        assert not await again.wait(6, at_most=0.05)


async def test_a_rebuild_tells_those_who_wait_for_what_it_wrote(db: Database) -> None:
    projected = Projected(FACTS, STREAM, db.log, db.url)
    async with running([projected]):
        await eventually(lambda: projected.catch_up(), True)
        await tell(db.log, 1, 2, 3)
        await projector.rebuild(FACTS, db.log, db.url)
        assert await projected.wait(3, at_most=20)


async def test_waiting_outlives_the_connection_it_waits_on(db: Database) -> None:
    projected = Projected(FACTS, STREAM, db.log, db.url)
    async with running([projected]), db.projecting():
        for turn in range(3):
            await tell(db.log, turn)
            assert await projected.wait(turn + 1, at_most=20)
            await db.query(
                "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() "
                "and application_name = 'boxoffice projector facts'"
            )
    assert await db.facts() == once(range(3))


Tell = int
FOLD = Decider[Tell, frozenset[int], ExpirationCompleted](
    "expiration",
    ExpirationCompleted,
    lambda number, told: [] if number in told else [fact(number)],
    lambda told, event: told | {number_of(event)},
    frozenset(),
)


async def test_a_door_answers_when_its_write_can_be_read(db: Database) -> None:
    projected = Projected(FACTS, STREAM, db.log, db.url)
    door = ReadYourWrites(Aggregate(FOLD, db.log), projected)
    async with running([projected]):
        async with db.projecting():
            for number in range(20):
                handled = await door.handle(uuid4(), number)
                assert (await db.facts())[number] == handled.version == 1
        handled = await door.handle(uuid4(), 20)  # a success, although nobody projects it
    assert (handled.sequence, await db.facts()) == (21, once(range(20)))


async def test_a_door_finds_what_the_read_model_has_not_come_to_yet(db: Database) -> None:
    projected = Projected(FACTS, STREAM, db.log, db.url)
    door = ReadYourWrites(Aggregate(FOLD, db.log), projected)

    async def look(number: int = 1) -> object:
        if number not in (facts := await db.facts()):
            raise NotFound("no such fact")
        return facts[number]

    async with running([projected]):
        await tell(db.log, 1)  # by another replica
        with pytest.raises(Unavailable, match="behind"):
            await door.find(look)
        finding = asyncio.create_task(door.find(look))
        async with db.projecting():
            assert await finding == 1
            with pytest.raises(NotFound):
                await door.find(lambda: look(2))


@pytest.fixture
async def mortal(home: Path) -> AsyncIterator[PostgresServer]:
    """A Postgres that a test may kill."""
    server = PostgresServer(home / "postgres")
    try:
        await server.start()
        yield server
    finally:
        server.kill()


async def test_tables_that_were_reported_survive_a_kill_right_after(streams: Platform, mortal: PostgresServer) -> None:
    db = Database(streams, mortal.url)
    await tell(db.log, 1, 2)
    changed = ReadModel(
        "facts", TABLES.replace("times bigint not null", "times bigint not null check (times = 1)"), FACTS.sources
    )
    for model in (FACTS, changed):
        reported: list[str] = []
        await projector.create(model, db.log, db.url, reported.append)
        mortal.kill()
        await mortal.start()
        await projector.create(model, db.log, db.url, reported.append)
        assert len(reported) == 1
    assert await db.facts() == once(range(1, 3))


async def test_a_killed_database_costs_nothing_but_time(streams: Platform, mortal: PostgresServer) -> None:
    await projector.create(FACTS, streams.event_log, mortal.url)
    db = Database(streams, mortal.url)
    projected = Projected(FACTS, STREAM, db.log, db.url)
    async with db.projecting() as worker, running([projected]), asyncio.TaskGroup() as group:
        telling = group.create_task(tell(db.log, *range(1500)))
        await eventually(lambda: passed(db, 100), True)
        await asyncio.to_thread(mortal.kill)
        await telling

        async def complains() -> bool:
            return worker.problem is not None and projected.problem is not None

        await eventually(complains, True)
        await mortal.start()
        assert await projected.wait(1500, at_most=20)
        assert await db.facts() == once(range(1500))
        await no_problem(worker)
