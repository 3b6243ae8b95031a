"""Event -> deed: release the work of a batch, execute it, count it."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import ClassVar

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
from services.batch.collector import Collector, Released
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

TOGETHER = 100
"""Pieces released at a time."""

LINGER = 0.1
"""Seconds that a piece which ends right after another waits to be counted."""


class ReleaseBatch(Listener[BatchSubmitted | BatchRetried]):
    """Lets the work of a batch run when its time has come."""

    durable = "batch-release"
    waits = True

    def __init__(self, batches: Batches, works: Mapping[Priority, Works]) -> None:
        self.batches = batches
        self.works = works

    async def on(self, event: BatchSubmitted | BatchRetried) -> None:
        batch = (await self.batches.load(event.batch_id, fresh=True)).state
        if batch.is_over:
            return
        if batch.run_at and (left := (batch.run_at - now()).total_seconds()) > 0:
            raise Retry(left)
        handled = await self.batches.handle(event.batch_id, StartBatch(now()))
        if handled.state.is_over:
            return  # it was cancelled a moment before
        if isinstance(event, BatchSubmitted):
            await self.release(handled.state, range(event.works), 1)
        else:
            await self.release(handled.state, event.works, event.run)

    async def release(self, batch: Batch, numbers: range | list[int], run: int) -> None:
        """Release pieces of work, in order."""
        assert batch.id, "it was submitted"
        works = self.works[batch.priority]
        for start in range(0, len(numbers), TOGETHER):
            await asyncio.gather(
                *(
                    works.handle(work_id_of(batch.id, number), ReleaseWork(run, now()))
                    for number in numbers[start : start + TOGETHER]
                )
            )


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


class ExecuteWork(Listener[OperationsAdded | WorkReleased]):
    """Executes the pieces of work of normal priority, with others of their kind."""

    durable = "batch-work-normal"
    priority: ClassVar[Priority] = "normal"
    concurrency = 1000
    waits = True

    def __init__(self, collector: Collector) -> None:
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
    """Counts a piece of work that has come to its end, so that its batch knows when it has.

    What comes right after another waits a little, so that many are counted by one append: for the 4 ms that an atomic
    batch of any size takes, the stream takes nothing else.
    """

    durable = "batch-count"

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.heard = -LINGER  # by the loop's clock: when the last one came

    async def on(self, event: OperationsExecuted) -> None:
        if event.batch_id is not None and event.left == 0:
            before, self.heard = self.heard, asyncio.get_running_loop().time()
            if self.heard - before < LINGER:
                await asyncio.sleep(LINGER)
            counts = Counts(event.succeeded, event.failed, event.cancelled)
            await self.batches.handle(event.batch_id, CountWork(event.work, event.run, counts, event.at))
