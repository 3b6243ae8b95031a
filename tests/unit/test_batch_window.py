"""Of a batch a window of pieces is released at a time, whatever is killed, cancelled or tried again meanwhile."""

import random
from collections.abc import Sequence
from contextlib import suppress

import msgspec
import pytest
from msgspec import Raw

from common.aggregate import Aggregate
from common.clock import new_id, now
from common.errors import Retry, Unavailable
from common.event_log import Draft
from common.events import (
    BatchLifecycle,
    BatchRetried,
    BatchSubmitted,
    Operation,
    OperationsExecuted,
    Outcome,
    Result,
    WorkReleased,
)
from common.memory_log import MemoryLog
from services.batch.domain import (
    BATCHES,
    WORKS,
    AddOperations,
    Batch,
    CancelBatch,
    OpenBatch,
    RecordResults,
    ReleaseWork,
    RetryBatch,
    StartBatch,
    SubmitBatch,
    work_id_of,
)
from services.batch.listeners import CountWorkDone, ReleaseBatch


class TornLog(MemoryLog):
    """A log that takes nothing that releases work while `torn`, as when the worker dies before it gets to that."""

    torn = False

    async def append(self, subject: str, drafts: Sequence[Draft], *, expected: int) -> int:
        if self.torn and isinstance(drafts[0].event, WorkReleased):
            raise Unavailable("The worker is dead.")
        return await super().append(subject, drafts, expected=expected)


class Office:
    """A batch of so many pieces of one operation each, and who releases and counts them."""

    def __init__(self, pieces: int, window: int) -> None:
        self.log = TornLog()
        self.batch_id = new_id()
        self.pieces = pieces
        self.window = window
        self.random = random.Random(7)  # noqa: S311 (no secret)

    def start(self) -> None:
        """Start the process, which knows nothing yet."""
        self.batches = Aggregate(BATCHES, self.log)
        self.works = {priority: Aggregate(decider, self.log) for priority, decider in WORKS.items()}
        self.counting = CountWorkDone(self.batches, self.works, self.window)

    async def submit(self) -> None:
        self.start()
        opened = OpenBatch(self.batch_id, "test", "ada", "normal", "skip", None, now())
        await self.batches.handle(self.batch_id, opened)
        for number in range(self.pieces):
            work_id, rows = work_id_of(self.batch_id, number), [Operation(number + 1, Raw(b"{}"))]
            added = AddOperations(work_id, self.batch_id, number, "test", "ada", rows, now())
            await self.works["normal"].handle(work_id, added)
        await self.batches.handle(self.batch_id, SubmitBatch(self.pieces, self.pieces, now()))

    async def hear_of(self, *events: type[BatchLifecycle]) -> None:
        """The latest of these comes to who releases batches, perhaps again."""
        there = [recorded.event for recorded in await self.log.read(f"batch.{self.batch_id}")]
        event = [event for event in there if isinstance(event, events)][-1]
        assert isinstance(event, BatchSubmitted | BatchRetried)
        with suppress(Retry):
            await ReleaseBatch(self.batches, self.works, self.window).on(event)

    async def batch(self) -> Batch:
        return (await self.batches.load(self.batch_id)).state

    async def released(self) -> list[int]:
        """The pieces that were released in the latest run, in order."""
        run, found = (await self.batch()).run, list[tuple[int, int]]()
        for number in range(self.pieces):
            for recorded in await self.log.read(f"batch.normal.{work_id_of(self.batch_id, number)}"):
                if isinstance(recorded.event, WorkReleased) and recorded.event.run == run:
                    found.append((recorded.sequence, number))
        return [number for _, number in sorted(found)]

    async def waiting(self) -> list[int]:
        """The pieces that were released and are not counted."""
        counted = (await self.batch()).counted
        return [number for number in await self.released() if number not in counted]

    async def execute(self, number: int, outcome: Outcome = "succeeded") -> OperationsExecuted:
        work_id, run = work_id_of(self.batch_id, number), (await self.batch()).run
        command = RecordResults(run, 1, [Result(1 + number, outcome)], now())
        (event,) = (await self.works["normal"].handle(work_id, command)).events
        assert isinstance(event, OperationsExecuted)
        return event

    async def finish(self, outcome: Outcome = "succeeded") -> None:
        """Execute and count what is released, in any order, until nothing is."""
        while waiting := await self.waiting():
            assert len(waiting) <= self.window
            await self.counting.on(await self.execute(self.random.choice(waiting), outcome))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits to be counted."""
    monkeypatch.setattr("services.batch.listeners.LINGER", 0)


async def ended(office: Office) -> tuple[str, int, int, int]:
    """How the batch has ended, with how many succeeded, failed and cancelled."""
    batch = await office.batch()
    counts = [msgspec.structs.astuple(counts) for counts in batch.counted.values()]
    succeeded, failed, cancelled = map(sum, zip(*counts, strict=True))
    return batch.status, succeeded, failed, cancelled


@pytest.mark.parametrize(("pieces", "window"), [(20, 3), (20, 1), (3, 3), (2, 3)])
async def test_each_piece_is_released_once_and_no_more_than_the_window_wait(pieces: int, window: int) -> None:
    office = Office(pieces, window)
    await office.submit()
    await office.hear_of(BatchSubmitted)
    assert await office.released() == list(range(min(pieces, window)))
    await office.finish()
    assert sorted(await office.released()) == list(range(pieces))
    assert await ended(office) == ("COMPLETED", pieces, 0, 0)


async def test_who_dies_between_the_count_and_the_release_has_lost_nothing() -> None:
    office = Office(10, 3)
    await office.submit()
    await office.hear_of(BatchSubmitted)
    executed = await office.execute(1)
    office.log.torn = True
    with pytest.raises(Unavailable):
        await office.counting.on(executed)
    assert (await office.waiting(), len((await office.batch()).counted)) == ([0, 2], 1)
    office.log.torn = False
    office.start()
    await office.counting.on(executed)
    assert await office.waiting() == [0, 2, 4]
    await office.counting.on(executed)
    assert await office.waiting() == [0, 2, 4]
    await office.finish()
    assert await ended(office) == ("COMPLETED", 10, 0, 0)


async def test_a_batch_that_is_cancelled_in_the_middle_goes_on_until_all_of_it_is_counted() -> None:
    office = Office(10, 3)
    await office.submit()
    await office.hear_of(BatchSubmitted)
    for number in (0, 1):
        await office.counting.on(await office.execute(number))
    await office.batches.handle(office.batch_id, CancelBatch("ada", now()))
    await office.finish("cancelled")
    assert await ended(office) == ("CANCELLED", 2, 0, 8)


async def test_a_retry_releases_what_failed_as_a_window_of_its_own() -> None:
    office = Office(20, 3)
    await office.submit()
    await office.hear_of(BatchSubmitted)
    first = await office.execute(0)
    await office.counting.on(first)
    while waiting := await office.waiting():
        number = waiting[0]
        await office.counting.on(await office.execute(number, "failed" if number % 2 else "succeeded"))
    assert await ended(office) == ("COMPLETED_WITH_ERRORS", 10, 10, 0)
    await office.batches.handle(office.batch_id, RetryBatch("ada", now()))
    await office.counting.on(first)  # of the first run, once more
    await office.hear_of(BatchSubmitted)  # which has been seen to before
    assert await office.released() == []
    await office.hear_of(BatchRetried)
    assert await office.released() == [1, 3, 5]
    office.start()
    await office.counting.on(await office.execute(5))
    assert await office.waiting() == [1, 3, 11]  # 5 was the third, and this is the sixth
    await office.finish()
    assert sorted(await office.released()) == list(range(1, 20, 2))
    assert await ended(office) == ("COMPLETED", 20, 0, 0)


async def release_as_before(office: Office, numbers: range) -> None:
    """What a version did that knew no window."""
    await office.batches.handle(office.batch_id, StartBatch(now()))
    for number in numbers:
        await office.works["normal"].handle(work_id_of(office.batch_id, number), ReleaseWork(1, now()))


async def test_a_batch_of_which_all_was_released_at_once_goes_on() -> None:
    office = Office(10, 3)
    await office.submit()
    await release_as_before(office, range(10))
    office.start()
    await office.hear_of(BatchSubmitted)
    for number in (3, 9, 0, 8, 1, 7, 2, 6, 4, 5):
        await office.counting.on(await office.execute(number))
    assert await office.released() == list(range(10))
    assert await ended(office) == ("COMPLETED", 10, 0, 0)


async def test_what_was_not_released_when_another_version_counted_is_released_on_a_second_look() -> None:
    office = Office(10, 3)
    await office.submit()
    await release_as_before(office, range(6))
    before = CountWorkDone(office.batches, office.works, 100)  # it releases nothing
    for number in (0, 1, 2, 3, 5):
        await before.on(await office.execute(number))
    office.start()
    await office.hear_of(BatchSubmitted)
    assert await office.waiting() == [4, 6, 8]  # the last two are behind 3 and 5
    await office.finish()
    assert await ended(office) == ("COMPLETED", 10, 0, 0)


async def test_a_batch_of_more_than_a_window_is_looked_at_again_until_it_is_over() -> None:
    office = Office(4, 3)
    await office.submit()
    listener, submitted = ReleaseBatch(office.batches, office.works, 3), BatchSubmitted(office.batch_id, 4, 4, 0, now())
    for _ in range(2):
        with pytest.raises(Retry):
            await listener.on(submitted)
    await office.finish()
    await listener.on(submitted)
    small = Office(3, 3)
    await small.submit()
    await ReleaseBatch(small.batches, small.works, 3).on(BatchSubmitted(small.batch_id, 3, 3, 0, now()))
