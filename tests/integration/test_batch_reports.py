"""What the tables of batches say: of rows that are no operations, and to spreadsheets."""

import csv
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from common import projector
from common.errors import NotFound
from common.event_log import Draft
from common.events import (
    BatchCompleted,
    BatchLifecycle,
    BatchOpened,
    BatchRetried,
    BatchStarted,
    BatchSubmitted,
    OperationsExecuted,
    RefusedRow,
    Result,
    RowsRefused,
)
from common.memory_log import MemoryLog
from common.projector import ReadModel
from services.batch import read_model, report
from services.batch.domain import operation_id_of

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
BATCH = UUID("01900000-0000-7000-8000-000000000000")
KIND = "records.insert"


class Tables:
    """A read model of what is told."""

    def __init__(self, model: ReadModel, database_url: str) -> None:
        self._model = model
        self._url = database_url
        self._log = MemoryLog()

    async def told(self, *events: BatchLifecycle | OperationsExecuted) -> None:
        """These happen, and the read model is made anew of all that happened."""
        end = (await self._log.end("BATCH")).sequence
        subject = f"batch.{BATCH}"
        await self._log.append(subject, [Draft.of(event) for event in events], expected=end)
        await projector.rebuild(self._model, self._log, self._url)


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(database_url, server_settings={"search_path": "batch"}) as pool:
        yield pool


def executed(*results: Result, run: int = 1, succeeded: int | None = None, failed: int = 0) -> OperationsExecuted:
    ends = (len(results) if succeeded is None else succeeded, failed, 0)
    return OperationsExecuted(UUID(int=1), BATCH, 0, KIND, "ada", run, 1, list(results), 0, *ends, NOON)


async def test_a_row_that_was_refused_is_no_operation_and_another_is_pending_until_its_batch_is_over(
    pool: asyncpg.Pool, database_url: str
) -> None:
    tables = Tables(read_model.READ_MODEL, database_url)
    rows = [RefusedRow(2, "key", "Required"), RefusedRow(3, None, "Too many cells")]
    await tables.told(
        BatchOpened(BATCH, KIND, "ada", "normal", "skip", None, NOON),
        RowsRefused(BATCH, rows, NOON),
        BatchSubmitted(BATCH, 2, 1, 2, NOON),
    )
    for row in (1, 4):
        view = await read_model.operation(pool, operation_id_of(BATCH, row), "ada")
        assert (view.status, view.batch_id, view.row) == ("pending", BATCH, row)
    for row in (2, 3):
        with pytest.raises(NotFound, match=f"Row {row} of batch {BATCH} was refused"):
            await read_model.operation(pool, operation_id_of(BATCH, row), "ada")
    for row, user_id in ((2, "eve"), (5, "ada")):
        with pytest.raises(NotFound, match="You have no operation"):
            await read_model.operation(pool, operation_id_of(BATCH, row), user_id)
    assert await pool.fetchval("select refused from batches") == 2
    await tables.told(BatchCompleted(BATCH, "ada", KIND, "COMPLETED_WITH_ERRORS", 2, 0, 0, 2, NOON))
    for row in (1, 2):
        with pytest.raises(NotFound, match="You have no operation"):
            await read_model.operation(pool, operation_id_of(BATCH, row), "ada")


async def test_a_retry_takes_back_what_failed_and_has_a_rate_of_its_own(pool: asyncpg.Pool, database_url: str) -> None:
    await Tables(report.READ_MODEL, database_url).told(BatchStarted(BATCH, NOON))  # a batch's view looks there too
    tables = Tables(read_model.READ_MODEL, database_url)
    hour = timedelta(hours=1)
    await tables.told(
        BatchOpened(BATCH, KIND, "ada", "normal", "skip", None, NOON),
        BatchSubmitted(BATCH, 4, 1, 0, NOON),
        BatchStarted(BATCH, NOON),
        executed(Result(1), Result(2), Result(3, "failed"), Result(4, "failed"), succeeded=2, failed=2),
        BatchCompleted(BATCH, "ada", KIND, "COMPLETED_WITH_ERRORS", 2, 2, 0, 0, NOON + timedelta(seconds=2)),
        BatchRetried(BATCH, [0], 2, NOON + hour),
    )
    view = await read_model.batch(pool, BATCH, "ada", NOON + hour + timedelta(seconds=5))
    assert (view.status, view.progress, view.rate, view.started_at) == ("RUNNING", 0.5, 0, NOON)
    assert (view.counts.succeeded, view.counts.failed, view.counts.pending) == (2, 0, 2)
    assert (await read_model.operation(pool, operation_id_of(BATCH, 3), "ada")).status == "pending"
    assert not (await read_model.operations(pool, BATCH, status="failed", limit=10, after=0)).items
    await tables.told(
        executed(Result(3), Result(4, "failed"), run=2, succeeded=3, failed=1),
        BatchCompleted(BATCH, "ada", KIND, "COMPLETED_WITH_ERRORS", 3, 1, 0, 0, NOON + hour + timedelta(seconds=4)),
    )
    view = await read_model.batch(pool, BATCH, "ada", NOON + 2 * hour)
    assert (view.progress, view.rate) == (1, 0.5)
    assert (view.counts.succeeded, view.counts.failed, view.counts.pending) == (3, 1, 0)


@pytest.mark.parametrize("formula", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
async def test_nothing_in_a_report_is_a_formula_to_a_spreadsheet(
    pool: asyncpg.Pool, database_url: str, formula: str
) -> None:
    await Tables(report.READ_MODEL, database_url).told(
        RowsRefused(BATCH, [RefusedRow(1, formula, "No such column"), RefusedRow(2, None, formula)], NOON),
        executed(Result(3, "failed", error=formula), Result(4, output=formula), Result(5, output=f"A{formula}")),
    )
    written = b"".join([part async for part in report.report(pool, BATCH)]).decode()
    rows = list(csv.DictReader(written.splitlines(keepends=True)))
    assert [(row["row"], row["error"], row["output"]) for row in rows] == [
        ("1", f"'{formula}: No such column", ""),
        ("2", f"'{formula}", ""),
        ("3", f"'{formula}", ""),
        ("4", "", f"'{formula}"),
        ("5", "", f"A{formula}"),
    ]
