"""Event -> deed: release the work of a batch, execute it, count it."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import ClassVar, Protocol

from common.clock import now
from common.errors import Retry
from common.events import (
    BatchOpened,
    BatchRetried,
    BatchSubmitted,
    OperationsAdded,
    OperationsExecuted,
    Priority,
    WorkReleased,
)
from common.listener import Listener
from services.batch.collector import Released
from services.batch.domain import (
    AbandonBatch,
    Batch,
    Batches,
    Counts,
    CountWork,
    ReleaseWork,
    StartBatch,
    Works,
    work_id_of,
)

ABANDONED_AFTER = timedelta(minutes=5)
"""An upload of which nothing was heard for so long never comes to its end: whoever took it in is gone."""

WINDOW = 500
"""Pieces of a batch that are released and not counted, at most: it takes no more room than that from all others."""

TOGETHER = 100
"""Pieces released at a time."""

LOOK_AGAIN = 60.0
"""Seconds after which a batch of more than a window is looked at again, in case nobody released what was due: with
another window than this, as another version may have, the piece behind a counted one is another too.
"""

LINGER = 0.1
"""Seconds that a piece which ends right after another waits to be counted."""


class ReleaseBatch(Listener[BatchSubmitted | BatchRetried]):
    """Lets the first of the work of a batch run when its time has come; the rest follows, piece by piece."""

    durable = "batch-release"
    waits = True

    def __init__(self, batches: Batches, works: Mapping[Priority, Works], window: int = WINDOW) -> None:
        self.batches = batches
        self.works = works
        self.window = window

    async def on(self, event: BatchSubmitted | BatchRetried) -> None:
        batch = (await self.batches.load(event.batch_id, fresh=True)).state
        if batch.is_over:
            return
        if batch.run_at and (left := (batch.run_at - now()).total_seconds()) > 0:
            raise Retry(left)
        handled = await self.batches.handle(event.batch_id, StartBatch(now()))
        batch = handled.state
        if batch.is_over or batch.run != (event.run if isinstance(event, BatchRetried) else 1):
            return  # it was cancelled a moment before, or that run is over
        due = batch.due(self.window)
        for start in range(0, len(due), TOGETHER):
            await asyncio.gather(*(release(self.works, batch, each) for each in due[start : start + TOGETHER]))
        if len(batch.numbers) > self.window:
            raise Retry(LOOK_AGAIN)


async def release(works: Mapping[Priority, Works], batch: Batch, number: int) -> None:
    """Release a piece of work of a batch, once in its run."""
    assert batch.id, "it was submitted"
    await works[batch.priority].handle(work_id_of(batch.id, number), ReleaseWork(batch.run, now()))


class AbandonUpload(Listener[BatchOpened]):
    """Gives up a batch that nobody hands in any more: the process that took it in was killed."""

    durable = "batch-abandon"
    waits = True

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    async def on(self, event: BatchOpened) -> None:
        batch = (await self.batches.load(event.batch_id, fresh=True)).state
        if not batch.comes_in:
            return
        assert batch.heard_at, "it was opened"
        if (left := (batch.heard_at + ABANDONED_AFTER - now()).total_seconds()) > 0:
            raise Retry(min(left, 60))
        detail = "Its upload came to no end, so nothing of it ran."
        await self.batches.handle(event.batch_id, AbandonBatch(detail, now()))


class Executing(Protocol):
    """What executes pieces of work: `Collector`."""

    async def execute(self, piece: Released) -> None:
        """Return when all of its results are on the log. Raises Retry when some of it is tried again; Unavailable."""

    async def give_up(self, released: Released, why: str) -> None:
        """Let what is left of a piece fail. Raises Unavailable."""


class ExecuteWork(Listener[OperationsAdded | WorkReleased]):
    """Executes the pieces of work of normal priority, with others of their kind."""

    durable = "batch-work-normal"
    priority: ClassVar[Priority] = "normal"
    concurrency = 5000  # more than one kind may fill
    waits = True

    def __init__(self, collector: Executing) -> None:
        self.collector = collector

    async def on(self, event: OperationsAdded | WorkReleased) -> None:
        if (released := self.released(event)) is not None:
            if (left := (released.since - now()).total_seconds()) > 0:
                raise Retry(left)
            await self.collector.execute(released)

    async def give_up(self, event: OperationsAdded | WorkReleased, error: Exception) -> None:
        """What cannot be executed has failed: nobody waits for it for ever."""
        if (released := self.released(event)) is not None:
            await self.collector.give_up(released, f"It could not be executed: {type(error).__name__}.")

    def released(self, event: OperationsAdded | WorkReleased) -> Released | None:
        """What may be executed by this event; None where another event will say so."""
        work = (self.priority, event.work_id, event.batch_id, event.kind)
        if isinstance(event, WorkReleased):
            return Released(*work, event.run, event.operations, event.at)
        return Released(*work, 1, len(event.operations), event.run_at or event.at) if event.released else None


class ExecuteHighWork(ExecuteWork):
    """Executes what has high priority."""

    durable = "batch-work-high"
    priority = "high"


class ExecuteLowWork(ExecuteWork):
    """Executes what has low priority."""

    durable = "batch-work-low"
    priority = "low"


class CountWorkDone(Listener[OperationsExecuted]):
    """Counts a piece of work that has come to its end, so that its batch knows when it has, and releases another.

    What comes right after another waits a little, so that many are counted by one append: for the 4 ms that an atomic
    batch of any size takes, the stream takes nothing else.
    """

    durable = "batch-count"

    def __init__(
        self, batches: Batches, works: Mapping[Priority, Works], window: int = WINDOW, *, linger: float = LINGER
    ) -> None:
        """`linger`: seconds that a piece waits which ends less than that after another."""
        self.batches = batches
        self.works = works
        self.window = window
        self.linger = linger
        self.heard = -linger  # by the loop's clock: when the last one came

    async def on(self, event: OperationsExecuted) -> None:
        if event.batch_id is not None and event.left == 0:
            before, self.heard = self.heard, asyncio.get_running_loop().time()
            if self.heard - before < self.linger:
                await asyncio.sleep(self.linger)
            counts = Counts(event.succeeded, event.failed, event.cancelled)
            count = CountWork(event.work, event.run, counts, event.at)
            batch = (await self.batches.handle(event.batch_id, count)).state
            if batch.run != event.run or batch.is_over:
                return
            # Also where it was counted before: by one who was killed before the next was released, perhaps.
            if (number := batch.behind(event.work, self.window)) is not None:
                await release(self.works, batch, number)
