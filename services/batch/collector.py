"""Collects pieces of work of a kind, and executes what came together as one statement."""

import asyncio
import random
from collections import Counter as Tally
from collections import OrderedDict, deque
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from time import monotonic
from uuid import UUID

import asyncpg
import msgspec
import structlog
from asyncpg.pgproto import pgproto
from msgspec import field
from prometheus_client import Counter, Gauge, Histogram

from common.clock import now
from common.errors import Retry, Unavailable
from common.events import Priority, Result
from common.requests import Asks
from common.telemetry import Cause, cause, current_cause
from services.batch import engine
from services.batch.domain import (
    PRIORITIES,
    Batches,
    Kinds,
    Piece,
    Postponed,
    RecordResults,
    Works,
    kind_id_of,
)
from services.batch.kinds import Kind, Task
from services.batch.settings import BatchSettings

log = structlog.get_logger()

OPERATIONS = Counter("boxoffice_batch_operations_total", "Operations that came to an end", ["kind", "outcome"])
RETRIES = Counter("boxoffice_batch_retries_total", "Operations that are to be tried again", ["kind"])
QUEUE_AGE = Histogram(
    "boxoffice_batch_queue_seconds",
    "How long a piece of work waited, since it might run, each time that it was tried",
    ["priority"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 300),
)

OLDEST = Gauge(
    "boxoffice_batch_queue_oldest_seconds",
    "How long that piece of work has waited by now, since it might run, which waits longest in this process",
    ["priority"],
)

WAITING = Gauge(
    "boxoffice_batch_operations_waiting",
    "Operations that may run and wait for their turn in this process",
    ["priority"],
)
UNDER_WAY = Gauge(
    "boxoffice_batch_statements_under_way",
    "Statements of operations that are executed now in this process",
    ["priority"],
)

PAUSED_SECONDS = 2.0
"""How often a piece of a paused kind looks whether it may go on."""

FAIR = 8
"""Of so many statements one takes what has waited longest: low is slow, and never starves."""

MOST_WAITING = 2000
"""Pieces of one kind and priority that wait here, at most; others are put back, and leave room to other kinds."""

LATE_SECONDS = 10.0
"""How much later than it should a piece comes again that was put back; after that somebody else has it."""

UNAVAILABLE_SECONDS = 60.0
"""After which a piece comes again, at most, for which something was not available (`common.listener`)."""

MOST_PUT_BACK = 10_000
"""Pieces that were put back of which it is known here since when they wait."""

AT_ONCE = 8
"""Statements of a kind under way in a process: some are made or told of while another is executed."""

SLOTS: Mapping[Priority, int] = {"high": AT_ONCE, "normal": AT_ONCE - 1, "low": AT_ONCE - 2}
"""One of each priority begins only while fewer than these are under way: what is low never has all the room."""


class Released(msgspec.Struct, frozen=True):
    """A piece of work of `size` operations that may be executed `since` then.

    `cause`: of its results; those of several are told by one task, which may have been started for another.
    """

    priority: Priority
    work_id: UUID
    batch_id: UUID | None
    kind: str
    run: int
    size: int
    since: datetime
    cause: Cause | None = None


class Waiting(msgspec.Struct, eq=False):
    """A released piece of work that wants to be executed. `came`: when, by `monotonic`."""

    piece: Released
    done: "asyncio.Future[None]"
    came: float = 0.0


Line = OrderedDict[UUID | None, deque[Waiting]]
"""Pieces by their batch, those of none together; first is whose turn it is."""


class Queue(msgspec.Struct, eq=False):
    """What waits of one kind, by priority. `under_way`: the priorities of the statements that are executed now."""

    filled: asyncio.Event
    lines: dict[Priority, Line] = field(default_factory=lambda: {priority: OrderedDict() for priority in PRIORITIES})
    under_way: list[Priority] = []
    workers: int = 0
    turn: int = 0
    size: int = 0  # operations that wait

    def put(self, waiting: Waiting) -> Waiting | None:
        """Let a piece wait; which one finds no room then: the last of those who have most."""
        line = self.lines[waiting.piece.priority]
        line.setdefault(waiting.piece.batch_id, deque()).append(waiting)
        self.size += waiting.piece.size
        if sum(map(len, line.values())) <= MOST_WAITING:
            return None
        return self._pop(line, max(reversed(line), key=lambda owner: len(line[owner])), -1)

    def patience(self, priority: Priority, at: float) -> float:
        """Seconds after which there may be room: as many as the first of those who wait has waited, about."""
        first = min(pieces[0].came for pieces in self.lines[priority].values())
        return random.uniform(0.5, 1) * min(30, max(1, at - first))  # noqa: S311 (jitter)

    def _pop(self, line: Line, owner: UUID | None, place: int) -> Waiting:
        """Take out one of an owner's pieces."""
        waiting = line[owner][place]
        del line[owner][place]
        self.size -= waiting.piece.size
        if not line[owner]:
            del line[owner]
        return waiting

    def wants_worker(self, priority: Priority) -> bool:
        """Whether a piece of this priority is not to wait for the workers that there are."""
        if self.workers >= SLOTS[priority]:
            return False
        if self.workers == 0 or self.filled.is_set():
            return True
        lowest = max(map(PRIORITIES.index, self.under_way), default=0)
        return len(self.under_way) == self.workers and PRIORITIES.index(priority) < lowest

    def take(self, limit: int) -> list[Waiting]:
        """The next pieces of one priority, as many as one statement of `limit` operations takes, and one at least.

        Of each batch comes one in turn, so that what is small need not wait for all of what is large. Empty if nothing
        waits that may begin now. Priorities are not mixed: the statement ends for all at once.
        """
        self.turn += 1
        fair = self.turn % FAIR == 0
        order = [
            line
            for priority, line in self.lines.items()
            if line and (len(self.under_way) < SLOTS[priority] or (fair and priority not in self.under_way))
        ]
        if not order:
            return []
        line = order[0]
        if fair:
            line, owner = min(
                ((line, owner) for line in order for owner in line), key=lambda each: each[0][each[1]][0].piece.since
            )
            line.move_to_end(owner, last=False)
        taken: list[Waiting] = []
        room, passed = limit, 0
        while passed < len(line) and (room > 0 or not taken):
            owner = next(iter(line))
            line.move_to_end(owner)
            if taken and line[owner][0].piece.size > room:
                passed += 1  # something smaller may fit
            else:
                taken.append(self._pop(line, owner, 0))
                room, passed = room - taken[-1].piece.size, 0
        return taken


def not_installed(piece: Piece) -> list[Result]:
    """What becomes of a piece whose kind is not here: it comes again, as another replica may have it, up to a limit."""
    end = Postponed if piece.attempt + 1 < Kind.attempts else Result
    error = f"Kind {piece.kind} is not installed here."
    return [end(operation.number, "failed", error) for operation in piece.left]


def ended_processes(piece: Piece, times: int) -> list[Result]:
    """What becomes of a piece in whose execution processes have ended, as often as its kind may try."""
    log.error("work_ended_processes", work_id=str(piece.id), times=times)
    error = f"The process that executed it, perhaps together with others, ended {times} times."
    return [Result(operation.number, "failed", error) for operation in piece.left]


class Collector:
    """Executes pieces of work, many as one statement where they come together."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        pools: Mapping[str, asyncpg.Pool],
        requests: Asks,
        works: Mapping[Priority, Works],
        batches: Batches,
        paused: Kinds,
        kinds: Mapping[str, Kind[msgspec.Struct]],
        settings: BatchSettings,
    ) -> None:
        """`pools`: of each transactional kind by its name, with AT_ONCE connections; `pool`: for all else."""
        self._pool = pool
        self._pools = pools
        self._requests = requests
        self._works = works
        self._batches = batches
        self._paused = paused
        self._kinds = kinds
        self._limit = settings.batch_limit
        self._interval = settings.batch_interval_ms / 1000
        self._queues: dict[str, Queue] = {}
        self._alone: dict[str, asyncio.Lock] = {}
        self._decoders: dict[str, msgspec.json.Decoder[msgspec.Struct]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._put_back: dict[UUID, tuple[Released, float]] = {}  # and until when, by `monotonic`, it is expected
        for priority in PRIORITIES:
            OLDEST.labels(priority).set_function(partial(self.oldest, priority))
            WAITING.labels(priority).set_function(partial(self.waiting, priority))
            UNDER_WAY.labels(priority).set_function(partial(self.under_way, priority))

    async def execute(self, piece: Released) -> None:
        """Execute a piece of work; it returns when all of its results are on the log.

        Raises Retry when some of it, or all, is to be tried again; Unavailable.
        """
        self._put_back.pop(piece.work_id, None)
        try:
            await self._executed_in_turn(piece)
        except (Retry, Unavailable) as error:
            after = error.after if isinstance(error, Retry) else UNAVAILABLE_SECONDS
            self._put_back[piece.work_id] = (piece, monotonic() + after + LATE_SECONDS)
            if len(self._put_back) > MOST_PUT_BACK:
                del self._put_back[next(iter(self._put_back))]
            raise

    def oldest(self, priority: Priority) -> float:
        """Seconds that the oldest piece has waited which waits here, or was put back and has not come again."""
        at = monotonic()
        self._put_back = {work_id: each for work_id, each in self._put_back.items() if each[1] > at}
        lines = [queue.lines[priority] for queue in self._queues.values()]
        since = [waiting.piece.since for line in lines for pieces in line.values() for waiting in pieces]
        since += [piece.since for piece, _ in self._put_back.values() if piece.priority == priority]
        return max(0.0, (now() - min(since)).total_seconds()) if since else 0.0

    def waiting(self, priority: Priority) -> int:
        """Operations that wait here."""
        lines = [queue.lines[priority] for queue in self._queues.values()]
        return sum(waiting.piece.size for line in lines for pieces in line.values() for waiting in pieces)

    def under_way(self, priority: Priority) -> int:
        """Statements that are executed here now."""
        return sum(queue.under_way.count(priority) for queue in self._queues.values())

    async def _executed_in_turn(self, piece: Released) -> None:
        """Wait for its turn, and until it was executed. Raises Retry, Unavailable."""
        if (queue := self._queues.get(piece.kind)) is None:
            queue = self._queues[piece.kind] = Queue(asyncio.Event())
        caused = msgspec.structs.replace(piece, cause=current_cause())
        waiting = Waiting(caused, asyncio.get_running_loop().create_future(), monotonic())
        if (late := queue.put(waiting)) and not late.done.done():
            late.done.set_exception(Retry(queue.patience(piece.priority, monotonic())))
        if not queue.filled.is_set() and queue.size >= self._most(piece.kind):
            queue.filled.set()
        if queue.wants_worker(piece.priority):
            queue.workers += 1
            task = asyncio.create_task(self._work(piece.kind, queue))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await waiting.done

    async def give_up(self, released: Released, why: str) -> None:
        """Let what is left of a piece fail that cannot be executed, nobody knows why. Raises Unavailable."""
        piece = (await self._works[released.priority].load(released.work_id, fresh=True)).state
        if piece.run == released.run and piece.left:
            failed = [Result(operation.number, "failed", why) for operation in piece.left]
            declined = engine.Declined(released.work_id, piece.run, piece.attempt + 1, failed)
            (results,) = await engine.decline(self._pool, [declined])
            await self._record(released, piece, results)

    def _most(self, name: str) -> int:
        """Operations of this kind in one statement, at most."""
        return min(self._limit, self._kinds[name].limit) if name in self._kinds else self._limit

    async def _work(self, kind: str, queue: Queue) -> None:
        """Execute what waits of a kind until nothing does that may begin; what may not, others come back for."""
        most = self._most(kind)
        try:
            while queue.size:
                if queue.size < most:
                    queue.filled.clear()
                    try:
                        async with asyncio.timeout(self._interval):
                            await queue.filled.wait()
                    except TimeoutError:
                        pass
                taken = queue.take(most)
                if not taken:
                    break
                at, priority = now(), taken[0].piece.priority
                for waiting in taken:
                    QUEUE_AGE.labels(priority).observe(max(0, (at - waiting.piece.since).total_seconds()))
                queue.under_way.append(priority)
                try:
                    await self._settle(kind, taken)
                finally:
                    queue.under_way.remove(priority)
        finally:
            queue.workers -= 1

    async def _settle(self, kind: str, taken: Sequence[Waiting]) -> None:
        """Execute pieces and tell each what came of it.

        A piece that was executed when a process ended is executed alone from then on, lest it takes others with it.
        """
        new = await engine.begin(self._pool, [waiting.piece.work_id for waiting in taken])
        await self._settle_some(kind, [waiting for waiting in taken if waiting.piece.work_id in new])
        for waiting in taken:
            if waiting.piece.work_id not in new:
                async with self._alone.setdefault(kind, asyncio.Lock()):
                    await self._settle_some(kind, [waiting], again=True)

    async def _settle_some(self, kind: str, taken: Sequence[Waiting], *, again: bool = False) -> None:
        """`again`: it was begun before, and did not come to an end."""
        pieces = [waiting.piece for waiting in taken]
        outcomes: Sequence[Exception | None]
        try:
            ended = await engine.begin_again(self._pool, pieces[0].work_id) - 1 if again else 0
            outcomes = await self._together(kind, pieces, ended)
        except Exception as error:
            outcomes = [error] * len(taken)
        finally:
            await engine.end(self._pool, [piece.work_id for piece in pieces])
        for waiting, outcome in zip(taken, outcomes, strict=True):
            if waiting.done.done():
                continue  # who asked is gone
            if outcome is None:
                waiting.done.set_result(None)
            else:
                waiting.done.set_exception(outcome)

    async def _together(self, name: str, taken: Sequence[Released], ended: int) -> list[Exception | None]:
        """Execute pieces of one kind as one statement; for each what it raises. While it is paused, only what is
        cancelled comes to its end.

        `ended`: in whose execution so many processes have ended before.
        """
        batches = {piece.batch_id for piece in taken if piece.batch_id}
        cancelled = {each for each in batches if (await self._batches.load(each, fresh=True)).state.cancelled}
        if not (await self._paused.load(kind_id_of(name), fresh=True)).state:
            return await self._of_one_kind(name, taken, cancelled, ended)
        stopped = [piece for piece in taken if piece.batch_id in cancelled]
        told = dict(zip(stopped, await self._of_one_kind(name, stopped, cancelled, ended), strict=True))
        return [told[piece] if piece in told else Retry(PAUSED_SECONDS) for piece in taken]

    async def _of_one_kind(
        self, name: str, taken: Sequence[Released], cancelled: Collection[UUID], ended: int
    ) -> list[Exception | None]:
        """Execute pieces that may begin, but for those whose batch is cancelled; for each what it raises."""
        # Fresh: a replica that is behind would take what others released for done.
        loaded = await asyncio.gather(*(self._works[each.priority].load(each.work_id, fresh=True) for each in taken))
        pieces = [each.state for each in loaded]
        kind = self._kinds.get(name)
        if kind is None:
            log.warning("kind_not_installed", kind=name, operations=sum(piece.size for piece in taken))
        done: list[engine.Turn] = []
        due: dict[int, engine.Due] = {}
        declined: dict[int, engine.Declined] = {}
        outdated: dict[int, list[Result]] = {}
        results: dict[int, list[Result]] = {}
        for place, (released, piece) in enumerate(zip(taken, pieces, strict=True)):
            if piece.run != released.run or not piece.left:
                done.append(engine.Turn(released.work_id, piece.run, piece.attempt))  # by one who was killed then
                continue
            turn = (released.work_id, piece.run, piece.attempt + 1)
            if piece.batch_id in cancelled:
                declined[place] = engine.Declined(*turn, piece.stopped)
            elif kind is None:
                declined[place] = engine.Declined(*turn, not_installed(piece))
            elif ended >= kind.attempts:
                declined[place] = engine.Declined(*turn, ended_processes(piece, ended))
            else:
                due[place], outdated[place] = self._due(kind, released, piece)
        for place, told in zip(due, await self._executed(kind, list(due.values())), strict=True):
            results[place] = outdated[place] + told
        if declined:
            results |= zip(declined, await engine.decline(self._pool, list(declined.values())), strict=True)
        outcomes: list[Exception | None] = [None] * len(taken)
        recorded = await asyncio.gather(*(self._record(taken[n], pieces[n], results[n]) for n in results))
        for place, outcome in zip(results, recorded, strict=True):
            outcomes[place] = outcome
        turns = {**(due if name in self._pools else {}), **declined}.items()
        done += [turn for place, turn in turns if not isinstance(outcomes[place], Unavailable)]
        if done:
            await engine.forget(self._pool, done)
        return outcomes

    async def _executed(self, kind: Kind[msgspec.Struct] | None, due: Sequence[engine.Due]) -> list[list[Result]]:
        """What came of the operations of pieces. Raises Unavailable."""
        if kind is None or not due:
            return []
        return await engine.execute(self._pools.get(kind.name, self._pool), kind, due, self._requests)

    def _due(self, kind: Kind[msgspec.Struct], released: Released, piece: Piece) -> tuple[engine.Due, list[Result]]:
        """What is to be executed of a piece; and what cannot be, as the kind has changed since it was taken in."""
        decode = self._decoders.setdefault(kind.name, msgspec.json.Decoder(kind.operation)).decode
        owner_id = piece.batch_id or released.work_id
        numbers: list[int] = []
        tasks: list[Task[msgspec.Struct]] = []
        outdated: list[Result] = []
        for operation in piece.left:
            try:
                what = decode(operation.payload)
            except msgspec.ValidationError as error:
                outdated.append(Result(operation.number, "failed", f"It is no {kind.name} any more: {error}"))
            else:
                numbers.append(operation.number)
                tasks.append(Task(id_of(owner_id, operation.number), piece.user_id, what))
        return engine.Due(released.work_id, piece.run, piece.attempt + 1, numbers, tasks), outdated

    async def _record(self, released: Released, piece: Piece, results: list[Result]) -> Exception | None:
        """Put the results of a piece on the log; Retry if some of it is still to come. In a task of its own."""
        if released.cause:
            cause.set(released.cause)
        command = RecordResults(piece.run, piece.attempt + 1, results, now())
        try:
            handled = await self._works[released.priority].handle(released.work_id, command)
        except Unavailable as error:
            return error
        if handled.events:  # and not told by somebody else before
            ended = (result.outcome for result in results if not isinstance(result, Postponed))
            for outcome, times in Tally(ended).items():
                OPERATIONS.labels(piece.kind, outcome).inc(times)
            RETRIES.labels(piece.kind).inc(len(handled.state.left))
        if handled.state.left:
            return Retry(random.uniform(0.5, 1) * min(300, 2 ** (piece.attempt + 1)))  # noqa: S311 (jitter)
        return None


def id_of(owner_id: UUID, number: int) -> UUID:
    """`operation_id_of` in the type that asyncpg has for it: made and sent in a third of the time."""
    return pgproto.UUID((owner_id.int + number).to_bytes(16))


class Sweeper:
    """Deletes what was kept for workers that are late."""

    name = "batch.sweeper"
    problem: str | None = None

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def run(self) -> None:
        """Sweep now and every hour until cancelled."""
        while True:
            with suppress(Unavailable):
                await engine.sweep(self._pool)
            await asyncio.sleep(3600)
