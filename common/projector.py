"""log -> read model: batches in one transaction with their checkpoint; rebuild beside and swap; read your writes."""

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import datetime
from hashlib import sha256
from itertools import islice
from typing import Generic, TypeVar
from uuid import UUID

import asyncpg
import msgspec
import structlog

from common.aggregate import Aggregate, Handled
from common.errors import NotFound, Unavailable
from common.event_log import SKIPPED, EventLog, Recorded, StreamEnd
from common.events import Event, UndecodableEvent
from common.group_commit import BATCH_LIMIT
from common.postgres import POSTGRES_FAILED, told
from common.progress import Progress, untold
from common.rights import granted
from common.status import ReadModelStats
from common.telemetry import PROJECTED
from common.tracing import LINKS, NOTHING, Span, is_seen, span, tracer

C = TypeVar("C")
S = TypeVar("S")
E = TypeVar("E", bound=Event)
R = TypeVar("R")

log = structlog.get_logger()

Project = Callable[[asyncpg.Connection, Sequence[Recorded]], Awaitable[None]]
"""Writes a batch of one stream's events, in order, by set-based statements; tables are named without a schema."""

CHANNEL = "projected"
REBUILD_BATCH = 5_000
STAND_BY_SECONDS = 3.0
"""After so long the projector that another waits for is not one that tries in vain."""

CREATE_CHECKPOINT = """
create table checkpoint (
    stream text primary key,
    stream_created timestamptz not null,
    sequence bigint not null,
    event_id text not null
)
"""
START_CHECKPOINT = "insert into checkpoint (stream, stream_created, sequence, event_id) values ($1, $2, 0, '')"
READ_CHECKPOINT = "select stream_created, sequence, event_id from checkpoint where stream = $1"
MOVE_CHECKPOINT = """
update checkpoint set sequence = $3, event_id = $4
where stream = $1 and sequence = $2
    and (current_schema() <> $5 or coalesce(obj_description(to_regnamespace($5), 'pg_namespace'), $6) = $6)
returning true
"""
# The one active projector of a stream; and, for the length of a transaction, who may write a read model.
TRY_ACTIVE = "select pg_try_advisory_lock(hashtextextended('boxoffice.projector.' || $1, 0))"
BE_ACTIVE = "select pg_advisory_lock(hashtextextended('boxoffice.projector.' || $1, 0))"
MAY_WRITE = "select pg_advisory_xact_lock(hashtextextended('boxoffice.write.{}', 0))"
# The same for a connection that does not write itself, until it lets go or ends.
HOLD_WRITERS = "select pg_advisory_lock(hashtextextended('boxoffice.write.' || $1, 0))"
LET_WRITERS_GO = "select pg_advisory_unlock(hashtextextended('boxoffice.write.' || $1, 0))"
DURABLY = "set local synchronous_commit = on"  # and with it all that was committed before
MAY_REBUILD = "select pg_try_advisory_lock(hashtextextended('boxoffice.rebuild.' || $1, 0))"


class ReadModel(msgspec.Struct, frozen=True):
    """A Postgres schema that is made from streams: its tables, and for each stream how its events are written.

    `linger`: seconds between two transactions of a projector that keeps up. Under load the next one is larger for it,
    and the first event after a pause does not wait. `skips`: types of event that it makes nothing of, and that are so
    large that they are better not decoded for it. `service`: whose it is; where it has a role of its own in Postgres,
    that one may use it, and no other.
    """

    name: str
    tables: str
    sources: Mapping[str, Project]
    linger: float = 0.003
    skips: tuple[type[Event], ...] = ()
    service: str = ""

    @property
    def fingerprint(self) -> str:
        """Changes when the tables change; `boxoffice migrate` then rebuilds."""
        return sha256(self.tables.encode()).hexdigest()[:16]


class CheckpointMismatch(Exception):
    """The read model has seen events that the log does not have: the log was restored or replaced. Rebuild it."""


class CheckpointMoved(Exception):
    """Somebody else moved the checkpoint (a rebuild was swapped in): read it again and go on from there."""


class OtherTables(Exception):
    """The tables are those of another version of the code, which alone may write them."""


async def connect(database_url: str, schema: str) -> asyncpg.Connection:
    """A connection of its own on which tables are found in `schema`. Commits do not wait for the disk.

    A read model can lose its last transactions in a crash of Postgres: the checkpoint goes with them, and the log has
    them all.
    """
    return await asyncpg.connect(
        database_url,
        timeout=5,
        server_settings={
            "search_path": schema,
            "synchronous_commit": "off",
            "application_name": f"boxoffice projector {schema}",
            "tcp_keepalives_idle": "5",
            "client_connection_check_interval": "10s",  # a killed standby must not wait for ever to be active
        },
    )


class Projector:
    """Keeps one read model up to date with one stream. Of all replicas one is active; the others wait to take over.

    `sequence`: up to which it has brought the read model; None until it is the active one, and while another is.
    """

    def __init__(self, read_model: ReadModel, stream: str, event_log: EventLog, database_url: str) -> None:
        self.name = f"{read_model.name}.{stream}"
        self.problem: str | None = None
        self.sequence: int | None = None
        self._model = read_model
        self._stream = stream
        self._event_log = event_log
        self._database_url = database_url
        self._log = log.bind(projection=read_model.name, stream=stream)

    async def run(self) -> None:
        """Project until cancelled. What it cannot go on with is told in `problem` and tried again every second."""
        while True:
            try:
                await self._run_once()
            except CheckpointMoved:
                self._log.info("checkpoint_moved")
                continue
            except POSTGRES_FAILED as error:
                self._complain(told(error))
            except Unavailable as error:
                self._complain(error.detail)
            except CheckpointMismatch as error:
                self.sequence = None  # it would be one of another log
                self._complain(f"{error}; run `boxoffice projections rebuild {self._model.name}`")
            except OtherTables as error:
                self.sequence = None
                self._complain(str(error))
            except UndecodableEvent as error:
                self._complain(f"{error}; deploy the code that knows this event")
            await asyncio.sleep(1)

    @property
    def stats(self) -> ReadModelStats:
        """How far it is."""
        return ReadModelStats(self._model.name, self._stream, self.sequence, self.problem)

    def _complain(self, problem: str) -> None:
        if problem != self.problem:
            self._log.error("projector_stopped", problem=problem)
        self.problem = problem

    def _go_on(self, sequence: int) -> None:
        self.sequence = sequence
        if self.problem:
            self._log.info("projector_goes_on", after=sequence)
        self.problem = None

    async def _stand_by(self, connection: asyncpg.Connection) -> None:
        """Wait until the active one is gone. If that has not just come to a stop as well, all is well here."""

        def be_well() -> None:
            self.problem = None

        well = asyncio.get_running_loop().call_later(STAND_BY_SECONDS, be_well)
        try:
            await connection.execute(BE_ACTIVE, self.name)
        finally:
            well.cancel()

    def _span(self, batch: Sequence[Recorded]) -> Span:
        """That a batch is written: a part of the first trace that somebody sees, and linked to others in the batch."""
        if tracer.get() is None:
            return NOTHING
        seen = dict.fromkeys(told for each in batch if (told := each.headers.get("traceparent")) and is_seen(told))
        first, *others = islice(seen, LINKS + 1) if seen else (batch[0].headers.get("traceparent"),)
        return span(
            f"project {self.name}",
            "consumer",
            {
                "messaging.system": "nats",
                "messaging.destination.name": self._stream,
                "messaging.batch.message_count": len(batch),
                "boxoffice.projection": self._model.name,
                "boxoffice.sequence": batch[-1].sequence,
            },
            traceparent=first,
            links=[told for told in others if told],
        )

    async def _run_once(self) -> None:
        connection = await connect(self._database_url, self._model.name)
        try:
            await require_own_tables(connection, self._model)
            if not await connection.fetchval(TRY_ACTIVE, self.name):
                self.sequence = None
                await self._stand_by(connection)
                await require_own_tables(connection, self._model)
            self.sequence = sequence = await verify_checkpoint(connection, self._stream, self._event_log)
            if (await self._event_log.end(self._stream)).sequence == sequence:
                self._go_on(sequence)  # there is nothing to write; else the first batch will tell
            following = self._event_log.follow(self._stream, sequence, skips=self._model.skips)
            async with unless_lost(connection), aclosing(following) as batches:
                async for batch in batches:
                    with self._span(batch):
                        # Four round trips: `connection.transaction()` would be six. What fails ends the connection.
                        await connection.execute("begin;" + MAY_WRITE.format(self._model.name))
                        await write_batch(connection, self._model, self._stream, sequence, batch)
                        sequence = batch[-1].sequence
                        await connection.execute(f"notify {CHANNEL}, '{self.name}:{sequence}'; commit")
                    self._go_on(sequence)
                    PROJECTED.labels(self._model.name, self._stream).inc(len(batch))
                    if len(batch) < BATCH_LIMIT:
                        await asyncio.sleep(self._model.linger)
        finally:
            connection.terminate()


@asynccontextmanager
async def unless_lost(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """Raises ConnectionError as soon as the connection is lost, whatever is being waited for.

    A Postgres that crashes forgets its last commits; a projector that only waits for events would not write them again.
    """
    try:
        async with asyncio.timeout(None) as scope:

            def end(_: object) -> None:
                scope.reschedule(0)

            connection.add_termination_listener(end)
            try:
                yield
            finally:
                connection.remove_termination_listener(end)
    except TimeoutError as error:
        raise ConnectionError("the connection to Postgres was lost") from error


async def verify_checkpoint(connection: asyncpg.Connection, stream: str, event_log: EventLog) -> int:
    """The sequence up to which the read model has come. Raises CheckpointMismatch, Unavailable, PostgresError.

    Sequence numbers are used again after a restore, so the checkpoint also says which stream and which event it means.
    """
    row = await connection.fetchrow(READ_CHECKPOINT, stream)
    if row is None:
        raise CheckpointMismatch(f"the read model has no checkpoint for stream {stream}")
    end = await event_log.end(stream)
    sequence: int = row["sequence"]
    if not is_of(row["stream_created"], end):
        raise CheckpointMismatch(f"stream {stream} was created anew on {end.created:%Y-%m-%d %H:%M:%S}Z")
    if sequence > end.sequence:
        raise CheckpointMismatch(f"the read model is at {sequence}, stream {stream} ends at {end.sequence}")
    if sequence and await event_log.event_id(stream, sequence) != row["event_id"]:
        raise CheckpointMismatch(f"event {sequence} of stream {stream} is not the one that the read model has seen")
    return sequence


def is_of(stream_created: datetime, end: StreamEnd) -> bool:
    """Whether that is when this very stream was created. Postgres keeps microseconds."""
    return abs((stream_created - end.created).total_seconds()) <= 0.001


async def require_own_tables(connection: asyncpg.Connection, model: ReadModel) -> None:
    """Raises OtherTables if the read model's tables are not those that this code writes; none are no others."""
    if await fingerprint_of(connection, model.name) not in (None, model.fingerprint):
        raise OtherTables(
            f"the tables of read model {model.name} are those of another version: run `boxoffice migrate` of this one "
            "if it is the one that shall run, else deploy the other"
        )


async def write_batch(
    connection: asyncpg.Connection, model: ReadModel, stream: str, after: int, batch: Sequence[Recorded]
) -> None:
    """Within the caller's transaction: move the checkpoint past `batch`, and write what it says.

    Raises CheckpointMoved if the read model is not at `after`, or is one of other tables by now.
    """
    last, own = batch[-1], (model.name, model.fingerprint)
    if not await connection.fetchval(MOVE_CHECKPOINT, stream, after, last.sequence, last.id, *own):
        raise CheckpointMoved(stream)
    await model.sources[stream](connection, [recorded for recorded in batch if recorded.event is not SKIPPED])


async def create(
    model: ReadModel, event_log: EventLog, database_url: str, report: Callable[[str], None] = lambda _: None
) -> None:
    """Make the read model's schema if it is missing, and rebuild it if its tables have changed; safe to repeat."""
    connection = await connect(database_url, model.name)
    try:
        async with connection.transaction():
            await connection.execute(DURABLY)
            await connection.execute(MAY_WRITE.format(model.name))
            there = await fingerprint_of(connection, model.name)
            if there is None:
                await create_schema(connection, model, model.name, event_log, model.fingerprint)
            await _grant(connection, model, model.name)  # the roles may be newer than the schema
    finally:
        await connection.close()
    if there is None:
        report(f"created read model {model.name}")
    elif there != model.fingerprint:
        await rebuild(model, event_log, database_url)
        report(f"rebuilt read model {model.name}: its tables changed")


async def fingerprint_of(connection: asyncpg.Connection, schema: str) -> str | None:
    """The fingerprint of the read model that is there, or None."""
    said: str | None = await connection.fetchval("select obj_description(to_regnamespace($1), 'pg_namespace')", schema)
    return said


async def create_schema(
    connection: asyncpg.Connection, model: ReadModel, schema: str, event_log: EventLog, comment: str
) -> None:
    """The read model's tables with nothing in them, in a new schema on which the connection finds its tables."""
    await connection.execute(f'create schema "{schema}"')
    await connection.execute(f"comment on schema \"{schema}\" is '{comment}'")
    await connection.execute(CREATE_CHECKPOINT + ";" + model.tables)
    for stream in model.sources:
        await connection.execute(START_CHECKPOINT, stream, (await event_log.end(stream)).created)


async def _grant(connection: asyncpg.Connection, model: ReadModel, schema: str) -> None:
    if model.service:
        await connection.execute(granted(schema, model.service))


async def rebuild(
    model: ReadModel,
    event_log: EventLog,
    database_url: str,
    progress: Progress = untold,
) -> int:
    """Write the read model anew beside the live one and swap them; how many events it was made from.

    Readers see the old one until the swap and the new one after it. Raises Unavailable, UndecodableEvent,
    PostgresError; the live read model is then as it was.
    """
    beside, old = f"{model.name}_rebuild", f"{model.name}_old"
    connection = await connect(database_url, beside)
    try:
        if not await connection.fetchval(MAY_REBUILD, model.name):
            raise Unavailable(f"Read model {model.name} is being rebuilt or verified by somebody else.")
        for leftover in (beside, old):
            await connection.execute(f'drop schema if exists "{leftover}" cascade')
        await create_schema(connection, model, beside, event_log, model.fingerprint)
        await _grant(connection, model, beside)
        reached = dict.fromkeys(model.sources, 0)
        for stream in model.sources:
            await catch_up(connection, model, stream, reached, event_log, progress)
        async with connection.transaction():
            await connection.execute(DURABLY)
            await connection.execute(MAY_WRITE.format(model.name))  # the live projector waits from here
            for stream in model.sources:
                await catch_up(connection, model, stream, reached, event_log, progress)
            if await connection.fetchval("select to_regnamespace($1) is not null", model.name):
                await connection.execute(f'alter schema "{model.name}" rename to "{old}"')
            await connection.execute(f'alter schema "{beside}" rename to "{model.name}"')
            for stream, sequence in reached.items():  # nobody else tells of what was written here
                await connection.execute(f"notify {CHANNEL}, '{model.name}.{stream}:{sequence}'")
        await connection.execute(f'drop schema if exists "{old}" cascade')
        return sum(reached.values())
    finally:
        await connection.close()


async def catch_up(
    connection: asyncpg.Connection,
    model: ReadModel,
    stream: str,
    reached: dict[str, int],
    event_log: EventLog,
    progress: Progress,
    until: int | None = None,
) -> None:
    """Write what `stream` has past what is `reached`, up to `until` exactly, or to where it ends now.

    Raises UndecodableEvent, Unavailable.
    """
    end = (await event_log.end(stream)).sequence if until is None else until
    if reached[stream] >= end:
        return
    following = event_log.follow(stream, reached[stream], limit=REBUILD_BATCH, skips=model.skips)
    async with aclosing(following) as batches:
        async for batch in batches:
            if batch[-1].sequence > end:
                batch = [recorded for recorded in batch if recorded.sequence <= end]
            async with connection.transaction():
                await write_batch(connection, model, stream, reached[stream], batch)
            reached[stream] = batch[-1].sequence
            progress(stream, reached[stream], end)
            if reached[stream] >= end:
                return


class Projected:
    """Tells when a read model has passed a sequence of a stream, whichever replica projects it.

    After a start, its `problem` is that the read model has not come yet to where the stream ended then.
    """

    def __init__(self, model: ReadModel, stream: str, event_log: EventLog, database_url: str) -> None:
        self.name = f"{model.name}.{stream} (listen)"
        self.problem: str | None = "starting"
        self._prefix = f"{model.name}.{stream}:"
        self._model = model
        self._stream = stream
        self._event_log = event_log
        self._database_url = database_url
        self._passed = 0
        self._goal = 0
        self._renewals = 0
        self._order = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[bool]]] = []

    def span(self) -> Span:
        """That somebody waits here."""
        return NOTHING if tracer.get() is None else span(f"wait for {self._model.name}.{self._stream}")

    async def wait(self, sequence: int, *, at_most: float = 2.0) -> bool:
        """Wait until `sequence` can be read, `at_most` seconds; whether it can."""
        if sequence <= self._passed and self._is_current:
            return True
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        heapq.heappush(self._waiting, (sequence, next(self._order), waiter))
        timer = loop.call_later(at_most, _answer, waiter, False)
        try:
            return await waiter
        finally:
            timer.cancel()

    async def catch_up(self) -> bool:
        """Wait until what is in the log now can be read, 2 s at most; whether it can. Raises Unavailable."""
        end = await self._event_log.end(self._stream)
        return await self.wait(end.sequence) and self.problem is None

    async def run(self) -> None:
        """Hear of progress until cancelled."""
        while True:
            try:
                await self._listen()
            except POSTGRES_FAILED as error:
                self.problem = told(error)
            except Unavailable as error:
                self.problem = error.detail
            except OtherTables as error:
                self.problem = str(error)
            await asyncio.sleep(0.5)

    async def _listen(self) -> None:
        connection = await connect(self._database_url, self._model.name)
        lost, loop = asyncio.Event(), asyncio.get_running_loop()
        asked = loop.time()
        try:
            connection.add_termination_listener(lambda _: lost.set())
            await require_own_tables(connection, self._model)
            self._renewals = self._event_log.renewals
            self._passed = 0
            end = await self._event_log.end(self._stream)
            self._goal = end.sequence
            await connection.add_listener(CHANNEL, self._hear)
            row = await connection.fetchrow(READ_CHECKPOINT, self._stream)
            # What is heard while the checkpoint is read counts; a checkpoint of another log does not.
            read = row["sequence"] if row and is_of(row["stream_created"], end) else 0
            self._pass(max(self._passed, read))
            while not lost.is_set() and self._is_current:
                with suppress(TimeoutError):
                    await asyncio.wait_for(lost.wait(), 1)
                if not lost.is_set() and loop.time() > asked + 10:
                    asked = loop.time()
                    async with asyncio.timeout(5):  # a dead link is noticed here
                        await require_own_tables(connection, self._model)
        finally:
            connection.terminate()

    def _hear(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        text = str(payload)
        if text.startswith(self._prefix):
            self._pass(int(text[len(self._prefix) :]))

    @property
    def _is_current(self) -> bool:
        """Whether the sequences that are known are of the log that there is now, as far as this process has heard."""
        return self._renewals == self._event_log.renewals

    def _pass(self, sequence: int) -> None:
        self._passed = sequence  # less than before when the read model was rebuilt from a restored log
        behind = self._goal - self._passed
        self.problem = f"the read model is catching up, {behind} events behind" if behind > 0 else None
        while self._waiting and self._waiting[0][0] <= self._passed:
            _answer(heapq.heappop(self._waiting)[2], True)


def _answer(waiter: "asyncio.Future[bool]", passed: bool) -> None:
    if not waiter.done():  # whoever waited may be gone
        waiter.set_result(passed)


class ReadYourWrites(Generic[C, S, E]):
    """An aggregate for doors: it answers when what it wrote can be read, and finds what any replica wrote."""

    def __init__(self, aggregate: Aggregate[C, S, E], projected: Projected) -> None:
        self._aggregate = aggregate
        self._projected = projected

    async def load(self, aggregate_id: UUID) -> S:
        """What it is now, by the log."""
        return (await self._aggregate.load(aggregate_id, fresh=True)).state

    async def handle(self, aggregate_id: UUID, command: C, *, new: bool = False) -> Handled[S, E]:
        """As `Aggregate.handle`. Slow projectors do not fail it: after 2 s it answers all the same."""
        handled = await self._aggregate.handle(aggregate_id, command, new=new)
        with self._projected.span() as waiting:
            waiting.tell("boxoffice.readable", await self._projected.wait(handled.sequence))
        return handled

    async def find(self, look: Callable[[], Awaitable[R]]) -> R:
        """What `look` finds in the read model. That it finds nothing counts only when the read model is not behind.

        It may be, after a crash of Postgres or when its projector is slow. Raises NotFound, Unavailable.
        """
        try:
            return await look()
        except NotFound:
            if not await self._projected.catch_up():
                raise Unavailable("The read model is behind the log; try again.") from None
            return await look()
