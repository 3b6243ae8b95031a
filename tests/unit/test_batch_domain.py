"""What a batch and a piece of its work may do and become, as sentences."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Literal
from uuid import UUID

import msgspec
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from msgspec import Raw

from common.errors import Conflict, Invalid, NotFound
from common.events import (
    Again,
    BatchCancelled,
    BatchCompleted,
    BatchFailed,
    BatchLifecycle,
    BatchOpened,
    BatchRetried,
    BatchStarted,
    BatchSubmitted,
    KindPaused,
    KindResumed,
    Operation,
    OperationsAdded,
    OperationsExecuted,
    RefusedRow,
    Result,
    RowsRefused,
    UploadContinued,
    WorkCounted,
    WorkEvent,
    WorkReleased,
)
from services.batch.domain import (
    BATCHES,
    KINDS,
    WORKS,
    AbandonBatch,
    AddOperations,
    Batch,
    BatchCommand,
    CancelBatch,
    ContinueUpload,
    Counts,
    CountWork,
    Ended,
    OnInvalid,
    OpenBatch,
    Piece,
    Postponed,
    RecordResults,
    RefuseRows,
    ReleaseWork,
    RetryBatch,
    SetPaused,
    StartBatch,
    SubmitBatch,
    WorkCommand,
    ends_of,
    evolve_work,
    operation_id_of,
    ranges_of,
)
from tests.given import Given

BATCH = UUID(int=1 << 64)
WORK = UUID(int=2)
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(minutes=5)
KIND = "records.insert"
ROW = RefusedRow(3, "price", "Expected a number")


def opened(on_invalid: OnInvalid = "skip", run_at: datetime | None = None) -> BatchOpened:
    return BatchOpened(BATCH, KIND, "ada", "normal", on_invalid, run_at, NOON)


refused = RowsRefused(BATCH, [ROW], NOON)
submitted = BatchSubmitted(BATCH, 1000, 2, 0, NOON)
started = BatchStarted(BATCH, NOON)
cancelled = BatchCancelled(BATCH, NOON)
abandoned = BatchFailed(BATCH, "ada", KIND, "abandoned", "gone", NOON)


def counted(work: int, succeeded: int = 0, failed: int = 0, cancelled: int = 0, run: int = 1) -> WorkCounted:
    return WorkCounted(BATCH, work, run, succeeded, failed, cancelled, NOON)


def count(work: int, succeeded: int = 0, failed: int = 0, cancelled: int = 0, run: int = 1) -> CountWork:
    return CountWork(work, run, Counts(succeeded, failed, cancelled), NOON)


def completed(
    status: Literal["COMPLETED", "COMPLETED_WITH_ERRORS", "CANCELLED", "FAILED"],
    succeeded: int = 0,
    failed: int = 0,
    cancelled: int = 0,
    refused: int = 0,
) -> BatchCompleted:
    return BatchCompleted(BATCH, "ada", KIND, status, succeeded, failed, cancelled, refused, NOON)


def given(*events: BatchLifecycle) -> Given[BatchCommand, Batch, BatchLifecycle]:
    return Given(BATCHES, *events)


def test_a_batch_is_opened_once() -> None:
    open_it = OpenBatch(BATCH, KIND, "ada", "normal", "skip", None, NOON)
    given().when(open_it).then(opened())
    given(opened()).when(open_it).refused(Conflict, "under way, or broke off", batch_id=BATCH)
    given(opened(), submitted).when(open_it).then()
    given(opened("reject")).when(open_it).refused(Invalid, "another batch", field="Idempotency-Key")
    given(opened(), abandoned).when(open_it).refused(Conflict, "take a new key", batch_id=BATCH)


def test_a_batch_of_which_all_is_in_is_submitted_once() -> None:
    given(opened()).when(SubmitBatch(1000, 2, NOON)).then(submitted)
    given(opened(), submitted).when(SubmitBatch(1000, 2, NOON)).then()


def test_rows_that_are_no_operations_are_skipped_or_end_it_all() -> None:
    given(opened()).when(RefuseRows([ROW], NOON)).then(refused)
    given(opened(), refused).when(SubmitBatch(1000, 2, NOON)).then(BatchSubmitted(BATCH, 1000, 2, 1, NOON))
    rejected = BatchFailed(BATCH, "ada", KIND, "invalid", "1 row is no operation, so nothing ran.", NOON)
    given(opened("reject"), refused).when(SubmitBatch(1000, 2, NOON)).then(rejected)


def test_a_batch_without_an_operation_fails() -> None:
    nothing = BatchFailed(BATCH, "ada", KIND, "invalid", "There is no row that is an operation.", NOON)
    given(opened(), refused).when(SubmitBatch(0, 0, NOON)).then(nothing)


def test_an_upload_that_broke_off_ends_it_and_nothing_of_it_is_submitted_later() -> None:
    given(opened()).when(AbandonBatch("gone", NOON)).then(abandoned)
    given(opened(), abandoned).when(SubmitBatch(1000, 2, NOON)).then()
    given(opened(), abandoned).when(StartBatch(NOON)).then()
    given(opened(), submitted).when(AbandonBatch("gone", NOON)).then()


def test_an_upload_tells_that_it_goes_on_until_all_of_it_is_in() -> None:
    going_on = UploadContinued(BATCH, LATER)
    given(opened()).when(ContinueUpload(LATER)).then(going_on)
    assert given(opened()).state.heard_at == NOON
    assert given(opened(), going_on).state.heard_at == LATER
    given(opened(), submitted).when(ContinueUpload(LATER)).then()
    given(opened(), abandoned).when(ContinueUpload(LATER)).then()


def test_only_a_batch_that_was_submitted_starts_and_once() -> None:
    given(opened()).when(StartBatch(NOON)).then()
    given(opened(), submitted).when(StartBatch(NOON)).then(started)
    given(opened(), submitted, started).when(StartBatch(NOON)).then()


def test_a_batch_is_complete_when_all_of_its_work_is_counted() -> None:
    running = given(opened(), submitted, started)
    running.when(count(0, 500)).then(counted(0, 500))
    given(opened(), submitted, started, counted(0, 500)).when(count(0, 500)).then()
    given(opened(), submitted, started, counted(0, 500)).when(count(1, 500)).then(
        counted(1, 500), completed("COMPLETED", 1000)
    )


@pytest.mark.parametrize(
    ("first", "second", "end"),
    [
        (Counts(499, 1), Counts(500), completed("COMPLETED_WITH_ERRORS", 999, 1)),
        (Counts(0, 500), Counts(0, 500), completed("FAILED", 0, 1000)),
    ],
)
def test_how_a_batch_ends_depends_on_its_operations(first: Counts, second: Counts, end: BatchCompleted) -> None:
    before = counted(0, first.succeeded, first.failed)
    given(opened(), submitted, started, before).when(count(1, second.succeeded, second.failed)).then(
        counted(1, second.succeeded, second.failed), end
    )


def test_skipped_rows_are_errors_too() -> None:
    all_in = BatchSubmitted(BATCH, 500, 1, 1, NOON)
    given(opened(), refused, all_in, started).when(count(0, 500)).then(
        counted(0, 500), completed("COMPLETED_WITH_ERRORS", 500, refused=1)
    )


def test_a_batch_that_waits_is_cancelled_at_once_and_one_that_runs_when_its_work_has_ended() -> None:
    cancel = CancelBatch("ada", NOON)
    given(opened(run_at=LATER), submitted).when(cancel).then(cancelled, completed("CANCELLED", cancelled=1000))
    given(opened(), submitted, started).when(cancel).then(cancelled)
    given(opened(), submitted, started, cancelled).when(cancel).then()
    given(opened(), submitted, started, cancelled, counted(0, 500)).when(count(1, 0, 0, 500)).then(
        counted(1, 0, 0, 500), completed("CANCELLED", 500, cancelled=500)
    )
    given(opened(), submitted, started, counted(0, 500), counted(1, 500), completed("COMPLETED", 1000)).when(
        cancel
    ).refused(Conflict, "over", batch_status="COMPLETED")


@pytest.mark.parametrize("command", [CancelBatch("eve", NOON), RetryBatch("eve", NOON)])
def test_somebody_elses_batch_looks_as_if_it_were_not_there(command: BatchCommand) -> None:
    given(opened(), submitted).when(command).refused(NotFound, "no such batch")
    given().when(command).refused(NotFound, "no such batch")


def test_only_what_failed_is_tried_again() -> None:
    over = (opened(), submitted, started, counted(0, 500), counted(1, 450, 50))
    retried = BatchRetried(BATCH, [1], 2, NOON)
    end = completed("COMPLETED_WITH_ERRORS", 950, 50)
    given(*over, end).when(RetryBatch("ada", NOON)).then(retried)
    given(*over, end, retried).when(count(1, 450, 50)).then()  # of the first run, once more
    given(*over, end, retried).when(count(1, 500, run=2)).then(counted(1, 500, run=2), completed("COMPLETED", 1000))
    given(opened(), submitted, started).when(RetryBatch("ada", NOON)).refused(
        Conflict, "still RUNNING", batch_status="RUNNING"
    )
    given(opened(), submitted, started, counted(0, 500), counted(1, 500), completed("COMPLETED", 1000)).when(
        RetryBatch("ada", NOON)
    ).refused(Conflict, "no operation of it failed", batch_status="COMPLETED")


def test_rows_that_are_no_operations_are_not_tried_again_but_given_back() -> None:
    over = (opened(), refused, BatchSubmitted(BATCH, 500, 1, 1, NOON), started, counted(0, 500))
    end = completed("COMPLETED_WITH_ERRORS", 500, refused=1)
    given(*over, end).when(RetryBatch("ada", NOON)).refused(
        Conflict, f"boxoffice batch bad {BATCH} FILE", batch_status="COMPLETED_WITH_ERRORS"
    )
    failed = (*over[:-1], counted(0, 499, 1), completed("COMPLETED_WITH_ERRORS", 499, 1, refused=1))
    given(*failed).when(RetryBatch("ada", NOON)).then(BatchRetried(BATCH, [0], 2, NOON))


def test_what_failed_of_a_batch_that_was_cancelled_can_be_tried_again() -> None:
    end = (counted(0, 450, 50), counted(1, cancelled=500), completed("CANCELLED", 450, 50, 500))
    before = (opened(), submitted, started, cancelled, *end)
    retried = BatchRetried(BATCH, [0], 2, NOON)
    given(*before).when(RetryBatch("ada", NOON)).then(retried)
    assert not given(*before, retried).state.cancelled
    given(*before, retried).when(count(0, 500, run=2)).then(counted(0, 500, run=2), completed("CANCELLED", 500, 0, 500))


def test_a_batch_is_over_when_the_last_of_its_work_is_in_whatever_order_it_is_counted() -> None:
    first = CountWork(1, 1, Counts(500), LATER)
    before = given(opened(), submitted, started).when(first)
    before.then(WorkCounted(BATCH, 1, 1, 500, 0, 0, LATER))
    end = BatchCompleted(BATCH, "ada", KIND, "COMPLETED", 1000, 0, 0, 0, LATER)
    given(opened(), submitted, started, WorkCounted(BATCH, 1, 1, 500, 0, 0, LATER)).when(count(0, 500)).then(
        counted(0, 500), end
    )


OPERATIONS = [Operation(number, Raw(b"{}")) for number in (1, 2, 3)]
added = OperationsAdded(WORK, BATCH, 0, KIND, "ada", OPERATIONS, NOON)
alone = OperationsAdded(WORK, None, 0, KIND, "ada", OPERATIONS[:1], NOON, released=True)
released = WorkReleased(WORK, BATCH, 0, KIND, 1, 3, NOON)


def executed(
    *results: Result,
    left: int,
    attempt: int = 1,
    ends: tuple[int, int, int] = (0, 0, 0),
    run: int = 1,
    rows: tuple[tuple[int, int], ...] = (),
) -> OperationsExecuted:
    return OperationsExecuted(WORK, BATCH, 0, KIND, "ada", run, attempt, list(results), left, *ends, NOON, rows)


def piece(*events: WorkEvent) -> Given[WorkCommand, Piece, WorkEvent]:
    return Given(WORKS["normal"], *events)


def test_operations_are_added_once_and_released_once_a_run() -> None:
    add = AddOperations(WORK, BATCH, 0, KIND, "ada", OPERATIONS, NOON)
    piece().when(add).then(added)
    piece(added).when(add).then()
    others: list[dict[str, Any]] = [{"kind": "other"}, {"operations": OPERATIONS[1:]}, {"run_at": LATER}]
    for other in others:
        piece(added).when(msgspec.structs.replace(add, **other)).refused(
            Invalid, "another operation", field="Idempotency-Key"
        )
    piece(added).when(ReleaseWork(1, NOON)).then(released)
    piece(added, released).when(ReleaseWork(1, NOON)).then()


def test_what_belongs_to_no_batch_is_not_released() -> None:
    piece(alone).when(ReleaseWork(2, NOON)).then()


def test_each_operation_has_one_result_and_the_rest_comes_again() -> None:
    first, second = Result(1), Result(2, "failed", "taken")
    once = executed(second, left=1, ends=(1, 1, 0), rows=((1, 1),))
    piece(added, released).when(RecordResults(1, 1, [first, second], NOON)).then(once)
    before = (added, released, once)
    piece(*before).when(RecordResults(1, 1, [first, second], NOON)).then()  # told before
    piece(*before).when(RecordResults(1, 2, [Result(1, "failed"), Result(3)], NOON)).then(
        executed(left=0, attempt=2, ends=(2, 1, 0), rows=((3, 3),))
    )


def test_what_succeeded_and_has_nothing_to_show_is_told_as_ranges() -> None:
    shown = Result(2, output="a ticket")
    piece(added, released).when(RecordResults(1, 1, [Result(3), shown, Result(1)], NOON)).then(
        executed(shown, left=0, ends=(3, 0, 0), rows=((1, 1), (3, 3)))
    )
    piece(added, released).when(RecordResults(1, 1, [Result(1), Result(2), Result(3)], NOON)).then(
        executed(left=0, ends=(3, 0, 0), rows=((1, 3),))
    )


def test_results_that_were_told_one_by_one_count_as_ranges_do() -> None:
    one_by_one = executed(Result(1), Result(2, "failed"), left=1, ends=(1, 1, 0))
    as_ranges = executed(Result(2, "failed"), left=1, ends=(1, 1, 0), rows=((1, 1),))
    for before in (one_by_one, as_ranges):
        piece(added, released, before).when(RecordResults(1, 2, [Result(1, "failed"), Result(3)], NOON)).then(
            executed(left=0, attempt=2, ends=(2, 1, 0), rows=((3, 3),))
        )
        known = evolve_work(evolve_work(Piece(), added), before)
        assert [known.result(row) for row in (1, 2, 3)] == [Result(1), Result(2, "failed"), None]
        assert [operation.number for operation in known.left] == [3]


@drawn(st.sets(st.integers(1, 60)))
def test_ranges_hold_exactly_the_rows_they_were_made_of(rows: set[int]) -> None:
    ranges = ranges_of(rows)
    assert [row for first, last in ranges for row in range(first, last + 1)] == sorted(rows)
    assert all(first - last > 1 for (_, last), (first, _) in pairwise(ranges)), "none could be one with its neighbour"


def test_what_an_event_tells_is_in_the_order_of_its_rows() -> None:
    told = executed(Result(9, output="made"), Result(4, "failed", "taken"), left=0, rows=((1, 3), (5, 8)))
    assert ends_of(told) == [
        Ended(1, 3, "succeeded"),
        Ended(4, 4, "failed", "taken"),
        Ended(5, 8, "succeeded"),
        Ended(9, 9, "succeeded", None, "made"),
    ]


def test_what_is_to_be_tried_again_is_told_with_a_reason_and_is_no_result() -> None:
    why = Postponed(1, "failed", "busy"), Postponed(3, "failed", "too late")
    told = RecordResults(1, 1, [why[0], Result(2), why[1]], NOON)
    again = Again(((1, 1), (3, 3)), "busy")
    once = msgspec.structs.replace(executed(left=2, ends=(1, 0, 0), rows=((2, 2),)), again=again)
    piece(added, released).when(told).then(once)
    assert piece(added, released, once).state.again == again
    for results in ([Result(1), Result(3)], [Result(1, "failed", "busy"), Result(3)]):  # at the next try; at the last
        (end,) = WORKS["normal"].decide(RecordResults(1, 2, results, NOON), piece(added, released, once).state)
        assert isinstance(end, OperationsExecuted)
        assert (end.left, end.again) == (0, None)
    assert piece(added, released, once, executed(left=2, attempt=2)).state.again is None  # nobody knows why
    assert piece(added, released, once, WorkReleased(WORK, BATCH, 0, KIND, 2, 3, NOON)).state.again is None


def test_a_try_without_a_result_counts_as_one() -> None:
    piece(added, released).when(RecordResults(1, 1, [], NOON)).then(executed(left=3))


def test_a_second_run_leaves_what_succeeded_and_begins_its_tries_anew() -> None:
    first = executed(Result(3, "failed", "taken"), left=0, attempt=10, ends=(2, 1, 0), rows=((1, 2),))
    again = WorkReleased(WORK, BATCH, 0, KIND, 2, 3, NOON)
    piece(added, released, first).when(ReleaseWork(2, NOON)).then(again)
    piece(added, released, first, again).when(RecordResults(2, 1, [Result(3)], NOON)).then(
        executed(left=0, ends=(3, 0, 0), run=2, rows=((3, 3),))
    )
    piece(added, released, first, again).when(RecordResults(1, 11, [Result(3)], NOON)).then()


def test_what_had_failed_has_still_failed_when_its_next_run_is_stopped() -> None:
    failed = Result(3, "failed", "taken")
    first = executed(failed, left=0, attempt=10, ends=(2, 1, 0), rows=((1, 2),))
    again = WorkReleased(WORK, BATCH, 0, KIND, 2, 3, NOON)
    assert piece(added, released).state.stopped == [Result(number, "cancelled") for number in (1, 2, 3)]
    assert piece(added, released, first, again).state.stopped == [failed]


def test_a_kind_is_paused_and_resumed() -> None:
    Given(KINDS).when(SetPaused(KIND, True, "ada", NOON)).then(KindPaused(KIND, NOON, "ada"))
    Given(KINDS).when(SetPaused(KIND, False, "ada", NOON)).then()
    paused = KindPaused(KIND, NOON, "ada")
    Given(KINDS, paused).when(SetPaused(KIND, False, "ada", NOON)).then(KindResumed(KIND, NOON, "ada"))


def test_the_ids_of_a_batchs_operations_follow_each_other() -> None:
    ids = [operation_id_of(BATCH, number) for number in range(1, 1001)]
    assert ids == sorted(ids)
    assert len({BATCH, *ids}) == 1001
