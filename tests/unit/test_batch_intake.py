"""Uploads that go on, stall, or whose server is gone; on a log in memory."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest

from common.aggregate import Aggregate
from common.clock import new_id, now
from common.errors import Invalid, Retry
from common.events import BatchFailed, BatchOpened, BatchSubmitted, Event, Operation, RefusedRow, UploadContinued
from common.memory_log import MemoryLog
from services.batch import intake
from services.batch.domain import BATCHES, WORKS, Batches, ContinueUpload, OpenBatch, SubmitBatch
from services.batch.intake import Intake, Wanted
from services.batch.kinds import Kind
from services.batch.kinds_records import InsertRecords
from services.batch.listeners import ABANDONED_AFTER, AbandonUpload

WANTED = Wanted(InsertRecords.name, "ada", "normal", "skip", None)
Block = tuple[list[Operation], list[RefusedRow]]


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def batches(log: MemoryLog) -> Batches:
    return Aggregate(BATCHES, log)


@pytest.fixture
def taking_in(log: MemoryLog, batches: Batches) -> Intake:
    works = {priority: Aggregate(decider, log) for priority, decider in WORKS.items()}
    kinds: Mapping[str, Kind[Any]] = {InsertRecords.name: InsertRecords()}
    return Intake(batches, works, kinds)


async def told(log: MemoryLog, batch_id: UUID | None) -> list[Event]:
    return [recorded.event for recorded in await log.read(f"batch.{batch_id}")]


def block(number: int) -> Block:
    return [Operation(number, msgspec.Raw(b'{"key": "%d", "value": ""}' % number))], []


async def blocks(count: int, *, then: asyncio.Event | None = None) -> AsyncIterator[Block]:
    """So many operations, and then the end, or nothing more until `then`."""
    for number in range(1, count + 1):
        yield block(number)
    if then:
        await then.wait()


async def test_an_upload_that_takes_long_gives_signs_of_life(
    log: MemoryLog, taking_in: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "SIGN_OF_LIFE", -1)
    events = await told(log, (await taking_in.take_in(WANTED, blocks(3))).id)
    assert [type(event) for event in events] == [BatchOpened, *[UploadContinued] * 3, BatchSubmitted]


async def test_a_short_upload_gives_none(log: MemoryLog, taking_in: Intake) -> None:
    events = await told(log, (await taking_in.take_in(WANTED, blocks(3))).id)
    assert [type(event) for event in events] == [BatchOpened, BatchSubmitted]


async def test_an_upload_that_stalls_is_given_up(
    log: MemoryLog, taking_in: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "PATIENCE", 0)
    batch_id = new_id()
    with pytest.raises(Invalid, match="No more of the upload came"):
        await taking_in.take_in(WANTED, blocks(1, then=asyncio.Event()), batch_id)
    *_, last = await told(log, batch_id)
    assert isinstance(last, BatchFailed)
    assert last.detail.startswith("No more of the upload came")


async def open_batch(batches: Batches, *, ago: timedelta) -> BatchOpened:
    """A batch whose upload began so long ago."""
    batch_id = new_id()
    opened = OpenBatch(batch_id, WANTED.kind, "ada", "normal", "skip", None, now() - ago)
    (event,) = (await batches.handle(batch_id, opened)).events
    assert isinstance(event, BatchOpened)
    return event


async def test_an_upload_of_which_nothing_was_heard_for_long_is_abandoned(log: MemoryLog, batches: Batches) -> None:
    opened = await open_batch(batches, ago=ABANDONED_AFTER)
    for _ in range(2):
        await AbandonUpload(batches).on(opened)
    assert [type(event) for event in await told(log, opened.batch_id)] == [BatchOpened, BatchFailed]


async def test_an_upload_of_which_something_was_heard_goes_on_however_old_it_is(batches: Batches) -> None:
    opened = await open_batch(batches, ago=10 * ABANDONED_AFTER)
    await batches.handle(opened.batch_id, ContinueUpload(now()))
    with pytest.raises(Retry) as retry:
        await AbandonUpload(batches).on(opened)
    assert 0 < retry.value.after <= ABANDONED_AFTER.total_seconds()


async def test_a_batch_of_which_all_is_in_is_not_abandoned(log: MemoryLog, batches: Batches) -> None:
    opened = await open_batch(batches, ago=10 * ABANDONED_AFTER)
    await batches.handle(opened.batch_id, SubmitBatch(1, 1, now()))
    await AbandonUpload(batches).on(opened)
    assert [type(event) for event in await told(log, opened.batch_id)] == [BatchOpened, BatchSubmitted]


def test_signs_of_life_come_well_before_an_upload_counts_as_abandoned() -> None:
    assert ABANDONED_AFTER.total_seconds() > 1.5 * (intake.SIGN_OF_LIFE + intake.PATIENCE)
