"""What became of operations, as it can be read: the same however it was told and cut into transactions."""

import csv
import io
import random
from collections.abc import Sequence
from functools import partial
from uuid import UUID

import msgspec
import pytest

from common.clock import new_id, now
from common.errors import NotFound
from common.event_log import Draft, Recorded
from common.events import (
    Again,
    BatchCompleted,
    BatchOpened,
    BatchRetried,
    BatchSubmitted,
    Event,
    OperationsExecuted,
    Outcome,
    RefusedRow,
    Result,
    RowsRefused,
)
from common.projector import Project, connect
from common.runtime import Platform
from services.batch import read_model, report
from services.batch.domain import operation_id_of, ranges_of

Ends = dict[int, Result]
PIECES = 8
PIECE = 50


def recorded(batch_id: UUID, events: Sequence[Event]) -> list[Recorded]:
    """Events as the log has them."""
    subject = f"batch.{batch_id}"
    return [Recorded(subject, n, event, Draft.of(event).headers("/" + subject)) for n, event in enumerate(events, 1)]


class Story:
    """A batch in three runs. `ends`: how its operations ended; `lines`: what its report says, by row and run."""

    def __init__(self, seed: int, *, one_by_one: bool) -> None:
        self.random = random.Random(seed)  # noqa: S311 (a story, no secret)
        self.one_by_one = one_by_one
        self.batch_id = new_id()
        self.ends: Ends = {}
        self.lines: dict[tuple[int, int], Outcome | str] = {}
        self.refused = set(self.random.sample(range(1, PIECES * PIECE + 1), 10))
        all_of_them = [range(n * PIECE + 1, n * PIECE + PIECE + 1) for n in range(PIECES)]
        self.pieces = [[row for row in rows if row not in self.refused] for rows in all_of_them]
        self.events: list[Event] = [
            BatchOpened(self.batch_id, "test", "ada", "normal", "skip", None, now()),
            RowsRefused(self.batch_id, [RefusedRow(row, "key", "bad") for row in sorted(self.refused)], now()),
            BatchSubmitted(self.batch_id, sum(map(len, self.pieces)), PIECES, len(self.refused), now()),
        ]
        self.lines |= {(row, 1): "refused" for row in self.refused}
        for run in (1, 2, 3):
            if run > 1:
                self.events.append(BatchRetried(self.batch_id, [], run, now()))  # nobody asks here which pieces
            for work, piece in enumerate(self.pieces):
                left = [row for row in piece if row not in self.ends or self.ends[row].outcome == "failed"]
                self.execute(work, run, left)
        self.events.append(
            BatchCompleted(self.batch_id, "ada", "test", "COMPLETED_WITH_ERRORS", 0, 0, 0, len(self.refused), now())
        )

    def execute(self, work: int, run: int, rows: list[int]) -> None:
        """A piece of work, in one or two attempts."""
        self.random.shuffle(rows)
        half = self.random.choice([0, len(rows) // 2])
        for attempt, part in enumerate([rows[:half], rows[half:]], 1):
            results = [self.result(row) for row in sorted(part)]
            self.ends |= {result.number: result for result in results}
            self.lines |= {(result.number, run): result.outcome for result in results}
            plain = [] if self.one_by_one else [r.number for r in results if r == Result(r.number)]
            others = [result for result in results if result.number not in plain]
            ends = [self.ends[row].outcome for row in self.pieces[work] if row in self.ends]
            counts = (ends.count("succeeded"), ends.count("failed"), ends.count("cancelled"))
            told = (self.batch_id, work, "test", "ada", run, attempt, others, 0, *counts, now(), ranges_of(plain))
            self.events.append(OperationsExecuted(UUID(int=work), *told))

    def result(self, row: int) -> Result:
        """What came of an operation: mostly what came of the one before it."""
        if self.random.random() < 0.5:
            return Result(row)
        return self.random.choice([Result(row, "failed", "taken"), Result(row, output=f"made {row}")])


async def project(platform: Platform, schema: str, write: Project, story: Story) -> None:
    """Write a story, in transactions of any size."""
    connection = await connect(platform.settings.database_url, schema)
    try:
        left = recorded(story.batch_id, story.events)
        while left:
            some = story.random.randint(1, 60)
            await write(connection, left[:some])
            left = left[some:]
    finally:
        await connection.close()


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("seed", range(5))
async def test_operations_read_as_they_ended_last(platform: Platform, seed: int, one_by_one: bool) -> None:
    story = Story(seed, one_by_one=one_by_one)
    await project(platform, "batch", read_model.project, story)
    async with platform.pool("batch") as pool:
        for status in (None, "succeeded", "failed", "cancelled"):
            read: list[read_model.OperationView] = []
            cursor: str | None = "0"
            while cursor is not None:
                limit = story.random.randint(1, 70)
                page = await read_model.operations(pool, story.batch_id, status=status, limit=limit, after=int(cursor))
                assert len(page.items) == limit or page.next_cursor is None
                read += page.items
                cursor = page.next_cursor
            assert {view.row: (view.status, view.error, view.output) for view in read} == {
                row: (end.outcome, end.error, end.output)
                for row, end in story.ends.items()
                if status in (None, end.outcome)
            }
            assert [view.row for view in read] == sorted({view.row for view in read})
        for row, end in story.ends.items():
            view = await read_model.operation(pool, operation_id_of(story.batch_id, row), "ada")
            assert (view.batch_id, view.row, view.status, view.output) == (
                story.batch_id,
                row,
                end.outcome,
                end.output,
            )
        for row in story.refused:
            with pytest.raises(NotFound):
                await read_model.operation(pool, operation_id_of(story.batch_id, row), "ada")


async def test_a_single_operation_reads_by_its_id_and_only_for_its_user(platform: Platform) -> None:
    work_id = new_id()
    done = OperationsExecuted(work_id, None, 0, "test", "ada", 1, 1, [], 0, 1, 0, 0, now(), ((1, 1),))
    connection = await connect(platform.settings.database_url, "batch")
    await read_model.project(connection, recorded(work_id, [done]))
    await connection.close()
    async with platform.pool("batch") as pool:
        read = partial(read_model.operation, pool)
        view = await read(operation_id_of(work_id, 1), "ada")
        assert (view.batch_id, view.row, view.status) == (None, 1, "succeeded")
        for other_row, user_id in ((1, "eve"), (0, "ada"), (2, "ada")):
            with pytest.raises(NotFound):
                await read(operation_id_of(work_id, other_row), user_id)


@pytest.mark.parametrize("together", [False, True])
async def test_why_something_waits_is_told_while_it_does(platform: Platform, together: bool) -> None:
    batch_id = new_id()

    def executed(work: int, attempt: int, left: int, again: Again | None) -> OperationsExecuted:
        told = OperationsExecuted(UUID(int=work), batch_id, work, "test", "ada", 1, attempt, [], left, 0, 0, 0, now())
        return msgspec.structs.replace(told, again=again)

    batch = (
        BatchOpened(batch_id, "test", "ada", "normal", "skip", None, now()),
        BatchSubmitted(batch_id, 20, 2, 0, now()),
    )
    turns = [
        (executed(0, 1, 4, Again(((2, 3), (5, 6)), "busy")), executed(1, 1, 10, Again(((11, 20),), "gone"))),
        (executed(0, 2, 1, Again(((5, 5),), "late")),),
        (executed(1, 2, 0, None), executed(0, 3, 1, None)),  # nobody knows why
    ]
    seen = []
    async with platform.pool("batch") as pool:
        connection = await connect(platform.settings.database_url, "batch")
        await read_model.project(connection, recorded(batch_id, batch))
        for turn in turns:
            for events in [turn] if together else [(event,) for event in turn]:
                await read_model.project(connection, recorded(batch_id, events))
            view = await read_model.batch(pool, batch_id, "ada", now())
            rows = [await read_model.operation(pool, operation_id_of(batch_id, row), "ada") for row in (4, 5, 11)]
            seen.append((view.trouble, [(row.attempts, row.error) for row in rows]))
        await connection.close()
    trouble = read_model.Trouble
    assert seen == [
        (trouble(14, 1, "gone"), [(0, None), (1, "busy"), (1, "gone")]),
        (trouble(11, 2, "late"), [(0, None), (2, "late"), (1, "gone")]),
        (None, [(0, None), (0, None), (0, None)]),
    ]


@pytest.mark.parametrize("one_by_one", [False, True])
async def test_a_report_has_a_line_for_each_row_and_run(platform: Platform, one_by_one: bool) -> None:
    story = Story(7, one_by_one=one_by_one)
    await project(platform, "batch_report", report.project, story)
    async with platform.pool("batch") as pool:
        text = b"".join([part async for part in report.report(pool, story.batch_id)]).decode()
    lines = list(csv.DictReader(io.StringIO(text)))
    assert len(lines) == len(story.lines)
    assert {(int(line["row"]), int(line["run"])): line["status"] for line in lines} == story.lines
    for line in lines:
        row = int(line["row"])
        refused = row in story.refused
        assert line["operation_id"] == ("" if refused else str(operation_id_of(story.batch_id, row)))
        assert line["error"] == {"failed": "taken", "refused": "key: bad"}.get(line["status"], "")
        assert line["output"] in ("", f"made {row}")
