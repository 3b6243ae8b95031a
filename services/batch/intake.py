"""How operations get in: opened, added a piece at a time while they stream, and submitted when all of them are in."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from uuid import UUID

import msgspec

from common.clock import new_id, now
from common.errors import DomainError, Invalid
from common.events import BatchLifecycle, Operation, Priority, RefusedRow
from common.projector import ReadYourWrites
from services.batch.domain import (
    AbandonBatch,
    AddOperations,
    Batch,
    BatchCommand,
    Batches,
    ContinueUpload,
    OnInvalid,
    OpenBatch,
    RefuseRows,
    SubmitBatch,
    Works,
    work_id_of,
)
from services.batch.kinds import Kind
from services.batch.upload import MANY, Pieces

AT_ONCE = 8
"""Pieces that are on their way to the log at a time; reading goes on meanwhile, so this also bounds memory."""

REFUSED_TOGETHER = 500

SIGN_OF_LIFE = 60
"""Seconds after which the log is told that an upload still comes in. With PATIENCE well within ABANDONED_AFTER."""

PATIENCE = 120
"""Seconds to wait for more of an upload."""

VisibleBatches = ReadYourWrites[BatchCommand, Batch, BatchLifecycle]
Blocks = AsyncIterator[tuple[list[Operation], list[RefusedRow]]]


class Wanted(msgspec.Struct, frozen=True):
    """What is to be done with the operations of a batch."""

    kind: str
    user_id: str
    priority: Priority
    on_invalid: OnInvalid
    run_at: datetime | None


class Intake:
    """Takes in batches."""

    def __init__(
        self,
        batches: VisibleBatches | Batches,
        works: Mapping[Priority, Works],
        kinds: Mapping[str, Kind[msgspec.Struct]],
    ) -> None:
        self._batches = batches
        self._works = works
        self._kinds = kinds

    async def take_in(self, wanted: Wanted, blocks: Blocks, batch_id: UUID | None = None) -> Batch:
        """Take in a batch. Raises Invalid for what cannot be read (with the batch's id where it was opened).

        If it breaks off, whatever the reason, nothing of the batch runs. If there is a batch of this id, nothing is
        taken in; Invalid then says if it is another, Conflict if it was abandoned or not all of it is in.
        """
        first = await anext(blocks)  # what cannot be read at all opens no batch
        batch_id = batch_id or new_id()
        opened = OpenBatch(
            batch_id, wanted.kind, wanted.user_id, wanted.priority, wanted.on_invalid, wanted.run_at, now()
        )
        try:
            handled = await self._batches.handle(batch_id, opened, new=True)
        except DomainError:
            await drained(blocks)
            raise
        if not handled.events:
            await drained(blocks)
            return handled.state
        try:
            operations, works = await self._add(batch_id, wanted, first, blocks)
        except BaseException as error:
            told = error.detail if isinstance(error, DomainError) else "The upload broke off."
            command = AbandonBatch(f"{told} Nothing of the batch ran.", now())
            await asyncio.shield(self._batches.handle(batch_id, command))
            if isinstance(error, Invalid):
                error.context["batch_id"] = batch_id
            raise
        return (await self._batches.handle(batch_id, SubmitBatch(operations, works, now()))).state

    async def _add(
        self, batch_id: UUID, wanted: Wanted, first: tuple[list[Operation], list[RefusedRow]], blocks: Blocks
    ) -> tuple[int, int]:
        """Put operations on the log as they come; how many there were, and in how many pieces."""
        # A piece is executed in one transaction, which is then no larger than its kind wants it.
        pieces, refused = Pieces(min(MANY, self._kinds[wanted.kind].limit)), list[RefusedRow]()
        operations = works = 0
        under_way: set[asyncio.Task[object]] = set()
        loop = asyncio.get_running_loop()
        told = loop.time()
        good, bad = first
        try:
            while True:
                for piece in pieces.add(good):
                    under_way.add(asyncio.create_task(self._add_piece(batch_id, wanted, works, piece)))
                    operations, works = operations + len(piece), works + 1
                    under_way = await at_most(AT_ONCE, under_way)
                refused += bad
                while len(refused) >= REFUSED_TOGETHER:
                    await self._batches.handle(batch_id, RefuseRows(refused[:REFUSED_TOGETHER], now()))
                    del refused[:REFUSED_TOGETHER]
                if loop.time() - told > SIGN_OF_LIFE:
                    await self._batches.handle(batch_id, ContinueUpload(now()))
                    told = loop.time()
                try:
                    async with asyncio.timeout(PATIENCE):
                        good, bad = await anext(blocks)
                except StopAsyncIteration:
                    break
                except TimeoutError:
                    raise Invalid(f"No more of the upload came for {PATIENCE} s.") from None
            for piece in pieces.rest():
                under_way.add(asyncio.create_task(self._add_piece(batch_id, wanted, works, piece)))
                operations, works = operations + len(piece), works + 1
            if refused:
                await self._batches.handle(batch_id, RefuseRows(refused, now()))
            await at_most(0, under_way)
        finally:
            for task in under_way:
                task.cancel()
        return operations, works

    async def _add_piece(self, batch_id: UUID, wanted: Wanted, work: int, piece: list[Operation]) -> None:
        work_id = work_id_of(batch_id, work)
        command = AddOperations(work_id, batch_id, work, wanted.kind, wanted.user_id, piece, now())
        await self._works[wanted.priority].handle(work_id, command, new=True)


async def drained(blocks: Blocks) -> None:
    """Read the rest of an upload that is not taken in: many a client reads no answer before all of it is read."""
    async for _ in blocks:
        pass


async def at_most(limit: int, under_way: set[asyncio.Task[object]]) -> set[asyncio.Task[object]]:
    """Wait until no more than `limit` are under way; which. Raises what one of them raises."""
    while len(under_way) > limit:
        done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    return under_way
