"""Kill -9 of a worker in each phase of its work, where a lock or a proxy holds it: nothing is lost or doubled."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import msgspec
import pytest

from common.events import Event, OperationsExecuted, WorkCounted, WorkReleased, type_of
from common.rights import granted
from common.runtime import Platform
from common.topology import CONSUMERS
from services.batch.collector import SLOTS
from services.batch.domain import operation_id_of, work_id_of
from services.batch.listeners import WINDOW
from tests.harness import Fate, Judge, Proxy, ServiceProcess, eventually
from tests.system.test_batch import CSV, OPERATOR, Office, command

ROWS = 600
PIECES = 2
MANY = WINDOW + 200
"""Rows of a batch in which each is a piece of its own: more than are released at once."""
HEARD = [consumer for consumer in CONSUMERS if consumer.service == "batch" and consumer.durable != "batch-abandon"]
SOON = 2.0
"""Seconds; the consumers' own 30 and 10 would be waited for in each phase."""

PLUGIN = '''
from collections.abc import Sequence

import msgspec

from services.batch.kinds import Answer, Done, Kind, Task, TryAgain, Work


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    number: int


class MakeEntries(Kind[Entry]):
    """Makes entries, in a table where no constraint keeps an operation from making two."""

    name = "entries.make"
    operation = Entry

    async def execute_many(self, work: Work, operations: Sequence[Task[Entry]]) -> Sequence[Answer]:
        await work.connection.execute(
            "insert into batch_data.entries select * from unnest($1::uuid[], $2::bigint[])",
            [task.id for task in operations],
            [task.what.number for task in operations],
        )
        return [Done(str(task.what.number)) for task in operations]


class AddEntries(MakeEntries):
    """The same by another name."""

    name = "entries.add"


class AddOneEntry(MakeEntries):
    """The same one by one."""

    name = "entries.one"
    limit = 1


class PrintEntries(MakeEntries):
    """Makes none."""

    name = "entries.print"

    async def execute_many(self, work: Work, operations: Sequence[Task[Entry]]) -> Sequence[Answer]:
        return [TryAgain("There is no paper.")] * len(operations)
'''

# Who has a piece of work and waits for a table, and who of them has written an entry.
WAITING = """
select count(distinct waiting.pid) from pg_locks as waiting
join pg_locks as piece on piece.pid = waiting.pid and piece.locktype = 'advisory' and piece.granted
where not waiting.granted and waiting.relation = $1::regclass
  and $2 = exists(
      select from pg_locks as written
      where written.pid = waiting.pid and written.granted
        and written.relation = 'batch_data.entries'::regclass and written.mode = 'RowExclusiveLock'
  )
"""


class Ward:
    """A worker that is going to be killed, the one that takes over, and what there is to see."""

    def __init__(self, platform: Platform, proxy: Proxy, home: Path, database: asyncpg.Connection) -> None:
        plugin = {"PYTHONPATH": str(installed(home))}
        cut_off = msgspec.structs.replace(platform.settings, nats_url=proxy.url)
        self.platform = platform
        self.proxy = proxy
        self.database = database
        self.victim = ServiceProcess("batch", cut_off, home, **plugin)
        self.heir = ServiceProcess("batch", platform.settings, home, **plugin)

    async def submit(self, http: httpx.AsyncClient, kind: str, rows: str) -> UUID:
        """Hand in a file at the victim's."""
        office = Office(self.victim, http, self.platform.settings.database_url)
        answer = await office.ask("POST", "/api/batches", params={"kind": kind}, content=rows.encode(), headers=CSV)
        assert answer.status_code == 202, answer.text
        return UUID(answer.json()["id"])

    async def told(self, batch_id: UUID) -> Counter[int]:
        """How many results each row has on the log."""
        results: Counter[int] = Counter()
        for work in range(PIECES):
            for recorded in await self.platform.event_log.read(f"batch.normal.{work_id_of(batch_id, work)}"):
                if isinstance(recorded.event, OperationsExecuted):
                    results.update(result.number for result in recorded.event.results)
        return results

    async def counted(self, batch_id: UUID) -> int:
        """How many pieces of work the batch knows to be done with."""
        events = await self.platform.event_log.read(f"batch.{batch_id}")
        return sum(isinstance(recorded.event, WorkCounted) for recorded in events)

    async def released(self, batch_id: UUID, work: int) -> bool:
        """Whether a piece of work may run."""
        events = await self.platform.event_log.read(f"batch.normal.{work_id_of(batch_id, work)}")
        return any(isinstance(recorded.event, WorkReleased) for recorded in events)

    async def unsettled(self) -> int:
        """Events that a listener of the batch service is not done with, and dead letters."""
        count: int = (await self.platform.event_log.end("DEAD")).sequence
        for consumer in HEARD:
            info = await self.platform.client.jetstream().consumer_info(consumer.stream, consumer.durable)
            count += (info.num_pending or 0) + (info.num_ack_pending or 0)
        return count

    async def kill(self) -> None:
        """Kill the victim; what it had not acknowledged soon goes to others."""
        await self.victim.kill()
        for consumer in HEARD:
            soon = msgspec.structs.replace(consumer, ack_wait=SOON)
            await soon.apply(self.platform.client.jetstream(), 1, new=False)

    async def see(self, question: str, *arguments: object) -> Any:
        return await self.database.fetchval(question, *arguments)


def installed(home: Path) -> Path:
    """The plugin, as a package that is installed."""
    package = home / "plugin"
    about = package / "entries-1.0.dist-info"
    about.mkdir(parents=True)
    (package / "entries.py").write_text(PLUGIN)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: entries\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[boxoffice.batch_kinds]\nentries.make = entries:MakeEntries\nentries.add = entries:AddEntries\n"
        "entries.one = entries:AddOneEntry\nentries.print = entries:PrintEntries\n"
    )
    return package


@pytest.fixture
async def ward(platform: Platform, proxy: Proxy, home: Path) -> AsyncIterator[Ward]:
    database = await asyncpg.connect(platform.settings.database_url)
    ward = Ward(platform, proxy, home, database)
    await database.execute("create table batch_data.entries (operation_id uuid not null, number bigint not null)")
    await database.execute(granted("batch_data", "batch", "entries"))
    try:
        async with ward.victim:
            yield ward
    finally:
        await ward.heir.kill()
        await database.close()


Phase = Callable[[Ward], Any]
"""A context: inside it, the worker comes to this phase and no further. It yields whether it has come there."""


@asynccontextmanager
async def holding(ward: Ward, tables: str, mode: str) -> AsyncIterator[None]:
    """Nobody comes past these tables meanwhile."""
    holder = await asyncpg.connect(ward.platform.settings.database_url)
    try:
        async with holder.transaction():
            await holder.execute(f"lock table {tables} in {mode} mode")
            yield
    finally:
        await holder.close()


def locked(table: str, mode: str, *, written: bool) -> Phase:
    """Where a worker that has its pieces of work waits for `table`, before it has `written` their effect or after."""

    @asynccontextmanager
    async def phase(ward: Ward) -> AsyncIterator[Callable[[UUID], Awaitable[bool]]]:
        async def reached(_: UUID) -> bool:
            return bool(await ward.see(WAITING, table, written))

        async with holding(ward, table, mode):
            yield reached
        assert await ward.see("select count(*) from batch_data.entries") == 0

    return phase


def dropped(judge: Judge, then: Callable[[Ward, UUID], Awaitable[bool]]) -> Phase:
    """Where all that the worker sends and `judge` drops is lost; `then` it has come there."""

    @asynccontextmanager
    async def phase(ward: Ward) -> AsyncIterator[Callable[[UUID], Awaitable[bool]]]:
        async def reached(batch_id: UUID) -> bool:
            return await then(ward, batch_id)

        ward.proxy.requests = judge
        yield reached

    return phase


def appends_of(event: type[Event]) -> Judge:
    tag = f"ce-type: {type_of(event)}\r\n".encode()

    def judge(frame: bytes) -> Fate:
        return "drop" if frame.startswith(b"HPUB batch.") and tag in frame else "pass"

    return judge


def acknowledgements(frame: bytes) -> Fate:
    return "drop" if frame.startswith(b"PUB $JS.ACK.BATCH.batch-work-") else "pass"


async def committed(ward: Ward, batch_id: UUID) -> bool:
    return await ward.see("select count(*) from batch_data.executed") > 0 and not await ward.told(batch_id)


async def appended(ward: Ward, batch_id: UUID) -> bool:
    if len(await ward.told(batch_id)) < ROWS:
        return False
    info = await ward.platform.client.jetstream().consumer_info("BATCH", "batch-work-normal")
    events = await ward.platform.event_log.read(f"batch.normal.{work_id_of(batch_id, 0)}")
    assert info.ack_floor
    return info.ack_floor.stream_seq < events[0].sequence and (info.num_ack_pending or 0) > 0


async def not_counted(ward: Ward, batch_id: UUID) -> bool:
    return len(await ward.told(batch_id)) == ROWS and await ward.counted(batch_id) == 0


PHASES: dict[str, Phase] = {
    "before the transaction does anything": locked("batch_data.executed", "access exclusive", written=False),
    "in the statement": locked("batch_data.entries", "share", written=False),
    "after the statement, before the commit": locked("batch_data.executed", "share", written=True),
    "after the commit, before the append": dropped(appends_of(OperationsExecuted), committed),
    "after the append, before the ack": dropped(acknowledgements, appended),
    "before it is counted": dropped(appends_of(WorkCounted), not_counted),
}


async def operations_of(office: Office, batch_id: UUID) -> list[tuple[int, str, str]]:
    """Row, output and status of operations, as they are listed."""
    answer = await office.ask("GET", f"/api/batches/{batch_id}/operations", params={"limit": "1000"})
    return [(each["row"], each["output"], each["status"]) for each in answer.json()["items"]]


@pytest.mark.parametrize("phase", PHASES)
async def test_a_worker_killed_in_any_phase_leaves_every_operation_done_and_told_once(ward: Ward, phase: str) -> None:
    rows = "number\n" + "".join(f"{number}\n" for number in range(1, ROWS + 1))
    async with httpx.AsyncClient(timeout=30) as http:
        async with PHASES[phase](ward) as reached:
            batch_id = await ward.submit(http, "entries.make", rows)
            await eventually(lambda: reached(batch_id), True)
            await ward.kill()
        await ward.heir.start()
        await eventually(ward.unsettled, 0, 60)
        office = Office(ward.heir, http, ward.platform.settings.database_url)
        over = await office.over(str(batch_id), "COMPLETED")
        report = await office.report(str(batch_id))
        shown = await operations_of(office, batch_id)
    assert over["counts"]["succeeded"] == ROWS
    once = Counter(range(1, ROWS + 1))
    made = await ward.database.fetch("select operation_id, number from batch_data.entries")
    assert Counter(row["number"] for row in made) == once
    assert all(row["operation_id"] == operation_id_of(batch_id, row["number"]) for row in made)
    assert await ward.told(batch_id) == once
    assert Counter(int(row["row"]) for row in report) == once
    assert {row["status"] for row in report} == {"succeeded"}
    assert shown == [(row, str(row), "succeeded") for row in once]


async def test_tickets_are_listed_once_although_the_worker_that_had_them_listed_was_killed(
    ward: Ward, platform: Platform, home: Path
) -> None:
    rows = "title,price,currency,quantity\n" + "".join(f"Show {number},2500,EUR,10\n" for number in range(1, ROWS + 1))

    async def listed(ward: Ward, batch_id: UUID) -> bool:
        return await ward.see("select count(*) from tickets.tickets") > 0 and not await ward.told(batch_id)

    async with (
        httpx.AsyncClient(timeout=30) as http,
        ServiceProcess("tickets", platform.settings, home),
        dropped(appends_of(OperationsExecuted), listed)(ward) as reached,
    ):
        batch_id = await ward.submit(http, "tickets.create", rows)
        await eventually(lambda: reached(batch_id), True)
        await ward.kill()
        await ward.heir.start()
        await eventually(ward.unsettled, 0, 60)
        office = Office(ward.heir, http, platform.settings.database_url)
        over = await office.over(str(batch_id), "COMPLETED")
        report = await office.report(str(batch_id))
        await eventually(lambda: ward.see("select count(*) from tickets.tickets"), ROWS)
    assert over["counts"]["succeeded"] == ROWS
    assert await ward.told(batch_id) == Counter(range(1, ROWS + 1))
    tickets = await ward.database.fetch("select id, title from tickets.tickets")
    assert Counter(ticket["title"] for ticket in tickets) == Counter(f"Show {number}" for number in range(1, ROWS + 1))
    assert {row["output"] for row in report} == {str(ticket["id"]) for ticket in tickets}


async def test_both_takers_of_results_catch_up_after_they_were_killed_while_they_wrote(ward: Ward) -> None:
    rows = "number\n" + "".join(f"{number}\n" for number in range(1, ROWS + 1))
    tables = ["batch.operations", "batch_report.parts"]

    async def writing() -> int:
        question = "select count(distinct relation) from pg_locks where not granted and relation = any($1::regclass[])"
        count: int = await ward.see(question, tables)
        return count

    async with httpx.AsyncClient(timeout=30) as http:
        async with holding(ward, ", ".join(tables), "exclusive"):
            batch_id = await ward.submit(http, "entries.make", rows)
            await eventually(lambda: ward.counted(batch_id), PIECES)
            await eventually(writing, len(tables))
            await ward.kill()
        assert await ward.see("select count(*) from batch_report.parts") == 0
        await ward.heir.start()
        office = Office(ward.heir, http, ward.platform.settings.database_url)
        over = await office.over(str(batch_id), "COMPLETED")
        report = await office.report(str(batch_id))
        shown = await operations_of(office, batch_id)
    assert over["written"] == {"operations": ROWS, "report": ROWS}
    assert Counter(int(row["row"]) for row in report) == Counter(range(1, ROWS + 1))
    assert shown == [(row, str(row), "succeeded") for row in range(1, ROWS + 1)]


async def test_work_of_a_kind_that_is_not_installed_any_more_waits_and_can_be_cancelled(
    ward: Ward, platform: Platform, home: Path
) -> None:
    before = PHASES["before the transaction does anything"]
    async with httpx.AsyncClient(timeout=30) as http:
        async with before(ward) as reached:
            batch_id = await ward.submit(http, "entries.make", "number\n1\n2\n")
            await eventually(lambda: reached(batch_id), True)
            await ward.kill()
        async with ServiceProcess("batch", platform.settings, home) as without:
            office = Office(without, http, platform.settings.database_url)

            async def missed() -> bool:
                return "kind_not_installed" in without.log.read_text(errors="replace")

            await eventually(missed, True)
            assert (await office.batch(str(batch_id)))["status"] == "RUNNING"
            assert (await office.ask("POST", f"/api/batches/{batch_id}/cancel")).status_code == 200
            assert (await office.over(str(batch_id), "CANCELLED"))["counts"]["cancelled"] == 2
            await eventually(ward.unsettled, 0, 60)


async def test_kinds_that_hang_keep_no_other_from_its_work(ward: Ward) -> None:
    rows = "number\n" + "".join(f"{number}\n" for number in range(8000))
    hanging = "select count(distinct pid) from pg_locks where not granted and relation = 'batch_data.entries'::regclass"
    async with httpx.AsyncClient(timeout=30) as http:
        office = Office(ward.victim, http, ward.platform.settings.database_url)
        async with holding(ward, "batch_data.entries", "access exclusive"):
            slow = [await ward.submit(http, kind, rows) for kind in ("entries.make", "entries.add")]
            await eventually(lambda: ward.see(hanging), 2 * SLOTS["normal"], 30)
            fast = await ward.submit(http, "records.insert", "key,value\na,1\n")
            await office.over(str(fast), "COMPLETED", 30)
        for batch_id in slow:
            await office.over(str(batch_id), "COMPLETED", 60)


HANGING = "select count(distinct pid) from pg_locks where not granted and relation = 'batch_data.entries'::regclass"


def entries(count: int) -> str:
    """A CSV of entries."""
    return "number\n" + "".join(f"{number}\n" for number in range(1, count + 1))


async def test_a_worker_killed_before_it_released_what_was_next_leaves_every_piece_executed_once(ward: Ward) -> None:
    lost = seen = 0

    def judge(frame: bytes) -> Fate:
        nonlocal lost, seen
        if appends_of(WorkReleased)(frame) == "pass":
            return "pass"
        seen += 1
        lost += seen > WINDOW + 50
        return "drop" if seen > WINDOW + 50 else "pass"

    async def lost_some() -> bool:
        return lost > 10

    ward.proxy.requests = judge
    async with httpx.AsyncClient(timeout=30) as http:
        batch_id = await ward.submit(http, "entries.one", entries(MANY))
        await eventually(lost_some, True, 60)
        await ward.kill()
        assert 0 < await ward.counted(batch_id) < MANY
        await ward.heir.start()
        office = Office(ward.heir, http, ward.platform.settings.database_url)
        over = await office.over(str(batch_id), "COMPLETED", 60)
    assert over["counts"]["succeeded"] == MANY
    made = await ward.database.fetch("select number from batch_data.entries")
    assert Counter(row["number"] for row in made) == Counter(range(1, MANY + 1))
    assert await ward.counted(batch_id) == MANY


async def test_one_operation_passes_a_large_batch_of_a_kind_that_hangs_which_goes_on_when_it_is_resumed(
    ward: Ward,
) -> None:
    large = 2 * WINDOW + 50
    async with httpx.AsyncClient(timeout=30) as http:
        office = Office(ward.victim, http, ward.platform.settings.database_url)
        async with holding(ward, "batch_data.entries", "access exclusive"):
            batch_id = await ward.submit(http, "entries.one", entries(large))
            await eventually(lambda: ward.see(HANGING), SLOTS["normal"], 30)
            await eventually(lambda: ward.released(batch_id, WINDOW - 1), True)
            small = {"kind": "records.insert", "payload": {"key": "a", "value": "b"}}
            path = (await office.ask("POST", "/api/operations", json=small)).headers["location"]

            async def status() -> str:
                return str((await office.ask("GET", path)).json()["status"])

            await eventually(status, "succeeded", 25)
            assert not await ward.released(batch_id, WINDOW)
            assert (await office.batch(str(batch_id)))["counts"]["pending"] == large
            assert (await office.ask("POST", "/api/batch-kinds/entries.one/pause", who=OPERATOR)).status_code == 200
        await eventually(lambda: ward.see(HANGING), 0, 30)
        assert (await office.ask("POST", "/api/batch-kinds/entries.one/resume", who=OPERATOR)).status_code == 200
        over = await office.over(str(batch_id), "COMPLETED", 60)
    assert over["counts"]["succeeded"] == large
    assert await ward.see("select count(*) from batch_data.entries") == large


async def test_a_batch_of_more_than_a_window_that_is_cancelled_in_the_middle_is_cancelled_to_its_end(
    ward: Ward,
) -> None:
    async with httpx.AsyncClient(timeout=30) as http:
        office = Office(ward.victim, http, ward.platform.settings.database_url)
        async with holding(ward, "batch_data.entries", "access exclusive"):
            batch_id = await ward.submit(http, "entries.one", entries(MANY))
            await eventually(lambda: ward.see(HANGING), SLOTS["normal"], 30)
            assert (await office.ask("POST", f"/api/batches/{batch_id}/cancel")).status_code == 200
        counts = (await office.over(str(batch_id), "CANCELLED", 60))["counts"]
        report = await office.report(str(batch_id))
    made = await ward.see("select count(*) from batch_data.entries")
    assert (counts["succeeded"], counts["cancelled"]) == (made, MANY - made)
    assert SLOTS["normal"] <= made < WINDOW
    assert Counter(row["status"] for row in report) == {"succeeded": made, "cancelled": MANY - made}
    assert Counter(int(row["row"]) for row in report) == Counter(range(1, MANY + 1))


async def test_what_is_tried_again_and_again_says_why_until_it_has_ended(ward: Ward) -> None:
    async with httpx.AsyncClient(timeout=30) as http:
        office = Office(ward.victim, http, ward.platform.settings.database_url)
        batch_id = await ward.submit(http, "entries.print", entries(3))
        single = await office.ask("POST", "/api/operations", json={"kind": "entries.print", "payload": {"number": 1}})
        in_batch = f"/api/operations/{operation_id_of(batch_id, 2)}"
        for path in (in_batch, single.headers["location"]):

            async def tried(path: str = path) -> tuple[str, str, bool]:
                shown = (await office.ask("GET", path)).json()
                return shown["status"], shown["error"], (shown["attempts"] or 0) >= 2

            await eventually(tried, ("pending", "There is no paper.", True), 30)
        trouble = (await office.batch(str(batch_id)))["trouble"]
        assert (trouble["operations"], trouble["error"]) == (3, "There is no paper.")
        assert trouble["attempts"] >= 2
        _, said = await command(office, "show", str(batch_id))
        assert "3 to be tried again, after " in said
        assert " times: There is no paper." in said
        assert (await office.ask("POST", f"/api/batches/{batch_id}/cancel")).status_code == 200
        assert (await office.over(str(batch_id), "CANCELLED"))["trouble"] is None
        shown = (await office.ask("GET", in_batch)).json()
        assert (shown["status"], shown["error"], shown["attempts"]) == ("cancelled", None, None)


async def test_long_refusals_of_many_operations_are_told(ward: Ward) -> None:
    key = "\U000e0001" * 190
    rows = "key,value\n" + "".join(f"{key}{number},1\n" for number in range(500))
    async with httpx.AsyncClient(timeout=30) as http:
        office = Office(ward.victim, http, ward.platform.settings.database_url)
        for status in ("COMPLETED", "FAILED"):
            batch_id = await ward.submit(http, "records.insert", rows)
            over = await office.over(str(batch_id), status, 30)
        assert over["counts"]["failed"] == 500
