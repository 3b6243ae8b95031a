"""Collects pieces of work of a kind, and executes what came together as one statement."""

import asyncio
import random
from collections import Counter as Tally
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from uuid import UUID

import asyncpg
import msgspec
import structlog
from asyncpg.pgproto import pgproto
from prometheus_client import Counter, Histogram

from common.clock import now
from common.errors import Retry, Unavailable
from common.events import Priority, Result
from common.requests import Asks
from services.batch import engine
from services.batch.domain import (
    PRIORITIES,
    Batches,
    Kinds,
    Piece,
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

PAUSED_SECONDS = 2.0
"""How often a piece of a paused kind looks whether it may go on."""

FAIR = 8
"""Of so many statements one takes what has waited longest: low is slow, and never starves."""

AT_ONCE = 8
"""Statements of a kind under way in a process: some are made or told of while another is executed."""

SLOTS: Mapping[Priority, int] = {"high": AT_ONCE, "normal": AT_ONCE - 1, "low": AT_ONCE - 2}
"""One of each priority begins only while fewer than these are under way: what is low never has all the room."""


class Released(msgspec.Struct, frozen=True):
    """A piece of work of `size` operations that may be executed `since` then."""

    priority: Priority
    work_id: UUID
    batch_id: UUID | None
    kind: str
    run: int
    size: int
    since: datetime


class Waiting(msgspec.Struct, eq=False):
    """A released piece of work that wants to be executed."""

    piece: Released
    done: "asyncio.Future[None]"


class Queue(msgspec.Struct, eq=False):
    """What waits of one kind, by priority. `under_way`: the priorities of the statements that are executed now."""

    waiting: dict[Priority, deque[Waiting]]
    filled: asyncio.Event
    under_way: list[Priority] = []
    workers: int = 0
    turn: int = 0

    @property
    def size(self) -> int:
        """Operations that wait."""
        return sum(each.piece.size for several in self.waiting.values() for each in several)

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

        Empty if nothing waits that may begin now. Priorities are not mixed: the statement ends for all at once.
        """
        order = [
            priority for priority in PRIORITIES if self.waiting[priority] and len(self.under_way) < SLOTS[priority]
        ]
        if not order:
            return []
        self.turn += 1
        if self.turn % FAIR == 0:
            order.sort(key=lambda priority: self.waiting[priority][0].piece.since)
        waiting = self.waiting[order[0]]
        taken = [waiting.popleft()]
        room = limit - taken[0].piece.size
        while waiting and waiting[0].piece.size <= room:
            taken.append(waiting.popleft())
            room -= taken[-1].piece.size
        return taken


def not_installed(piece: Piece) -> list[Result]:
    """What becomes of a piece whose kind is not here: it comes again, as another replica may have it, up to a limit."""
    if piece.attempt + 1 < Kind.attempts:
        return []
    error = f"Kind {piece.kind} is not installed here."
    return [Result(operation.number, "failed", error) for operation in piece.left]


def ended_processes(due: engine.Due, times: int) -> engine.Declined:
    """What becomes of a piece in whose execution processes have ended."""
    log.error("work_ended_processes", work_id=str(due.work_id), times=times)
    error = f"The process that executed it, perhaps together with others, ended {times} times."
    failed = [Result(number, "failed", error) for number in due.numbers]
    return engine.Declined(due.work_id, due.run, due.attempt, failed)


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
        self._alone = asyncio.Lock()
        self._decoders: dict[str, msgspec.json.Decoder[msgspec.Struct]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def execute(self, piece: Released) -> None:
        """Execute a piece of work; it returns when all of its results are on the log.

        Raises Retry when some of it, or all, is to be tried again; Unavailable.
        """
        empty = {priority: deque[Waiting]() for priority in PRIORITIES}
        queue = self._queues.setdefault(piece.kind, Queue(empty, asyncio.Event()))
        waiting = Waiting(piece, asyncio.get_running_loop().create_future())
        queue.waiting[piece.priority].append(waiting)
        if not queue.filled.is_set() and queue.size >= self._limit:
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

    async def _work(self, kind: str, queue: Queue) -> None:
        """Execute what waits of a kind until nothing does that may begin; what may not, others come back for."""
        try:
            while queue.size:
                if queue.size < self._limit:
                    queue.filled.clear()
                    try:
                        async with asyncio.timeout(self._interval):
                            await queue.filled.wait()
                    except TimeoutError:
                        pass
                taken = queue.take(min(self._limit, self._kinds[kind].limit) if kind in self._kinds else self._limit)
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
        """Execute pieces and tell each what came of it."""
        outcomes: Sequence[Exception | None]
        try:
            outcomes = await self._together(kind, [waiting.piece for waiting in taken])
        except Exception as error:
            outcomes = [error] * len(taken)
        for waiting, outcome in zip(taken, outcomes, strict=True):
            if waiting.done.done():
                continue  # who asked is gone
            if outcome is None:
                waiting.done.set_result(None)
            else:
                waiting.done.set_exception(outcome)

    async def _together(self, name: str, taken: Sequence[Released]) -> list[Exception | None]:
        """Execute pieces of one kind as one statement; for each what it raises. While it is paused, only what is
        cancelled comes to its end.
        """
        batches = {piece.batch_id for piece in taken if piece.batch_id}
        cancelled = {each for each in batches if (await self._batches.load(each, fresh=True)).state.cancelled}
        if not (await self._paused.load(kind_id_of(name), fresh=True)).state:
            return await self._of_one_kind(name, taken, cancelled)
        stopped = [piece for piece in taken if piece.batch_id in cancelled]
        told = dict(zip(stopped, await self._of_one_kind(name, stopped, cancelled), strict=True))
        return [told[piece] if piece in told else Retry(PAUSED_SECONDS) for piece in taken]

    async def _of_one_kind(
        self, name: str, taken: Sequence[Released], cancelled: Collection[UUID]
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
            else:
                due[place], outdated[place] = self._due(kind, released, piece)
        if kind and due:
            told, given_up = await self._executed(kind, due)
            results |= {place: outdated[place] + ends for place, ends in told.items()}
            declined |= given_up
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
        if declined:  # a retry may try as often again
            await engine.end(self._pool, [each.work_id for each in declined.values()])
        return outcomes

    async def _executed(
        self, kind: Kind[msgspec.Struct], due: Mapping[int, engine.Due]
    ) -> tuple[dict[int, list[Result]], dict[int, engine.Declined]]:
        """What came of the operations of pieces, and which pieces are given up; by place. Raises Unavailable.

        A piece that was executed when a process ended is executed alone from then on, lest it takes others with it. It
        is given up when that has happened as often as its kind may try.
        """
        new = await engine.begin(self._pool, [each.work_id for each in due.values()])
        together = {place: each for place, each in due.items() if each.work_id in new}
        results = dict(zip(together, await self._executed_together(kind, list(together.values())), strict=True))
        given_up: dict[int, engine.Declined] = {}
        for place, each in due.items():
            if place not in together:
                async with self._alone:
                    times = await engine.begin_again(self._pool, each.work_id)
                    if times <= kind.attempts:
                        (results[place],) = await self._executed_together(kind, [each])
                    else:
                        given_up[place] = ended_processes(each, times - 1)
        return results, given_up

    async def _executed_together(self, kind: Kind[msgspec.Struct], due: Sequence[engine.Due]) -> list[list[Result]]:
        if not due:
            return []
        try:
            return await engine.execute(self._pools.get(kind.name, self._pool), kind, due, self._requests)
        finally:
            await engine.end(self._pool, [each.work_id for each in due])

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
        """Put the results of a piece on the log; Retry if some of it is still to come."""
        command = RecordResults(piece.run, piece.attempt + 1, results, now())
        try:
            handled = await self._works[released.priority].handle(released.work_id, command)
        except Unavailable as error:
            return error
        if handled.events:  # and not told by somebody else before
            for outcome, times in Tally(result.outcome for result in results).items():
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
