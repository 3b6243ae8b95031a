"""What a batch, a piece of its work and a kind of operation may do and become."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal, assert_never
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec
from rpds import HashTrieMap

from common.aggregate import Aggregate, Decider
from common.errors import Conflict, Invalid, NotFound
from common.events import (
    Again,
    BatchCancelled,
    BatchCompleted,
    BatchEnd,
    BatchFailed,
    BatchLifecycle,
    BatchOpened,
    BatchRetried,
    BatchStarted,
    BatchSubmitted,
    KindEvent,
    KindPaused,
    KindResumed,
    Operation,
    OperationRequested,
    OperationsAdded,
    OperationsExecuted,
    Outcome,
    Priority,
    RefusedRow,
    Result,
    RowsRefused,
    UploadContinued,
    WorkCounted,
    WorkEvent,
    WorkReleased,
)

Status = Literal["PENDING", "RUNNING", "COMPLETED", "COMPLETED_WITH_ERRORS", "FAILED", "CANCELLED"]
OnInvalid = Literal["skip", "reject"]
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")


class Counts(msgspec.Struct, frozen=True):
    """How many operations of a piece of work came to which end."""

    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0


class Batch(msgspec.Struct, frozen=True):
    """A batch as its events leave it. `counted`: the pieces of work that are done with, by number.

    `numbers`: which pieces its latest run is about, in order; a retry is about those in which something failed.
    `heard_at`: when operations were last known to come in. `ended_at`: when the last of `counted` came to its end.
    `abandoned`: its upload came to no end.
    """

    id: UUID | None = None
    kind: str = ""
    user_id: str = ""
    priority: Priority = "normal"
    on_invalid: OnInvalid = "skip"
    run_at: datetime | None = None
    status: Status = "PENDING"
    detail: str | None = None
    created_at: datetime | None = None
    submitted_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    heard_at: datetime | None = None
    ended_at: datetime | None = None
    abandoned: bool = False
    cancelled: bool = False
    operations: int = 0
    works: int = 0
    refused: int = 0
    run: int = 1
    numbers: Sequence[int] = ()
    counted: "HashTrieMap[int, Counts]" = HashTrieMap()

    def due(self, window: int) -> list[int]:
        """The pieces that are to be released by now and not counted, so that no more than `window` are."""
        return [
            number
            for place, number in enumerate(self.numbers)
            if number not in self.counted and (place < window or self.numbers[place - window] in self.counted)
        ]

    def behind(self, number: int, window: int) -> int | None:
        """The piece whose turn it is when this one is counted, if there are so many."""
        place = bisect_left(self.numbers, number) + window
        return self.numbers[place] if place < len(self.numbers) else None

    @property
    def is_over(self) -> bool:
        return self.status not in ("PENDING", "RUNNING")

    @property
    def submitted(self) -> bool:
        """All of it is in."""
        return self.submitted_at is not None

    @property
    def ends(self) -> Counts:
        """What became of its operations so far; what never ran of one that is over was cancelled."""
        succeeded = sum(counts.succeeded for counts in self.counted.values())
        failed = sum(counts.failed for counts in self.counted.values())
        cancelled = sum(counts.cancelled for counts in self.counted.values())
        return Counts(succeeded, failed, self.operations - succeeded - failed if self.is_over else cancelled)

    @property
    def comes_in(self) -> bool:
        """Not all of it is in."""
        return not (self.submitted or self.is_over)

    @property
    def is_waiting(self) -> bool:
        """All of it is in, and nothing of it was released yet."""
        return self.submitted and self.status == "PENDING"

    def owned_by(self, user_id: str) -> "Batch":
        """Itself, if it is this user's. Raises NotFound."""
        if self.id is None or self.user_id != user_id:
            raise NotFound("You have no such batch.")
        return self


class OpenBatch(msgspec.Struct, frozen=True):
    """The same id again is the same batch."""

    batch_id: UUID
    kind: str
    user_id: str
    priority: Priority
    on_invalid: OnInvalid
    run_at: datetime | None
    at: datetime


class ContinueUpload(msgspec.Struct, frozen=True):
    """Its operations still come in."""

    at: datetime


class RefuseRows(msgspec.Struct, frozen=True):
    rows: Sequence[RefusedRow]
    at: datetime


class SubmitBatch(msgspec.Struct, frozen=True):
    """All of it is in."""

    operations: int
    works: int
    at: datetime


class AbandonBatch(msgspec.Struct, frozen=True):
    """Its upload came to no end."""

    detail: str
    at: datetime


class StartBatch(msgspec.Struct, frozen=True):
    at: datetime


class CountWork(msgspec.Struct, frozen=True):
    work: int
    run: int
    counts: Counts
    at: datetime


class CancelBatch(msgspec.Struct, frozen=True):
    user_id: str
    at: datetime


class RetryBatch(msgspec.Struct, frozen=True):
    user_id: str
    at: datetime


BatchCommand = (
    OpenBatch
    | ContinueUpload
    | RefuseRows
    | SubmitBatch
    | AbandonBatch
    | StartBatch
    | CountWork
    | CancelBatch
    | RetryBatch
)


def decide_batch(command: BatchCommand, batch: Batch) -> list[BatchLifecycle]:
    match command:
        case OpenBatch(batch_id, kind, user_id, priority, on_invalid, run_at, at):
            if batch.id:
                return opened_before(command, batch)
            return [BatchOpened(batch_id, kind, user_id, priority, on_invalid, run_at, at)]
        case ContinueUpload(at):
            return [UploadContinued(found(batch), at)] if batch.comes_in else []
        case RefuseRows(rows, at):
            return [RowsRefused(found(batch), list(rows), at)] if batch.comes_in else []
        case SubmitBatch(operations, works, at):
            return [submitted(batch, operations, works, at)] if batch.comes_in else []
        case AbandonBatch(detail, at):
            return [failed(batch, "abandoned", detail, at)] if batch.comes_in and batch.id else []
        case StartBatch(at):
            return [BatchStarted(found(batch), at)] if batch.is_waiting else []
        case CountWork(work, run, counts, at):
            if run != batch.run or work in batch.counted or batch.is_over:
                return []
            return counted(batch, work, run, counts, at)
        case CancelBatch(user_id, at):
            return cancelled(batch.owned_by(user_id), at)
        case RetryBatch(user_id, at):
            return [retried(batch.owned_by(user_id), at)]
        case _:
            assert_never(command)


def opened_before(command: OpenBatch, batch: Batch) -> list[BatchLifecycle]:
    """Nothing. Raises Invalid where it is another batch, Conflict where it comes to nothing."""
    wanted = (command.kind, command.user_id, command.priority, command.on_invalid, command.run_at)
    if wanted != (batch.kind, batch.user_id, batch.priority, batch.on_invalid, batch.run_at):
        raise used_for_another("batch")
    if batch.comes_in:
        detail = (
            "An upload with this Idempotency-Key is under way, or broke off minutes ago; look at the batch, ask again."
        )
        raise Conflict(detail, batch_id=command.batch_id)
    if batch.abandoned:
        detail = "The upload with this Idempotency-Key came to no end, and nothing of it ran; take a new key."
        raise Conflict(detail, batch_id=command.batch_id)
    return []


def used_for_another(thing: str) -> Invalid:
    """Why a request with a key, or an id of a request, that was used before is refused."""
    return Invalid(f"Idempotency-Key: Used for another {thing}; take a new one", field="Idempotency-Key")


def found(batch: Batch) -> UUID:
    """Its id. Raises NotFound before it was opened."""
    if batch.id is None:
        raise NotFound("There is no such batch.")
    return batch.id


def submitted(batch: Batch, operations: int, works: int, at: datetime) -> BatchSubmitted | BatchFailed:
    if batch.refused and batch.on_invalid == "reject":
        rows = "1 row is no operation" if batch.refused == 1 else f"{batch.refused:,} rows are no operations"
        return failed(batch, "invalid", f"{rows}, so nothing ran.", at)
    if not operations:
        return failed(batch, "invalid", "There is no row that is an operation.", at)
    return BatchSubmitted(found(batch), operations, works, batch.refused, at)


def failed(batch: Batch, reason: Literal["abandoned", "invalid"], detail: str, at: datetime) -> BatchFailed:
    return BatchFailed(found(batch), batch.user_id, batch.kind, reason, detail, at)


def counted(batch: Batch, work: int, run: int, counts: Counts, at: datetime) -> list[BatchLifecycle]:
    event = WorkCounted(found(batch), work, run, counts.succeeded, counts.failed, counts.cancelled, at)
    after = evolve_batch(batch, event)
    return [event, completed(after, after.ended_at or at)] if len(after.counted) == after.works else [event]


def completed(batch: Batch, at: datetime) -> BatchCompleted:
    succeeded = sum(counts.succeeded for counts in batch.counted.values())
    failed = sum(counts.failed for counts in batch.counted.values())
    cancelled = batch.operations - succeeded - failed
    if cancelled:
        status: BatchEnd = "CANCELLED"
    elif failed == 0 and batch.refused == 0:
        status = "COMPLETED"
    else:
        status = "COMPLETED_WITH_ERRORS" if succeeded else "FAILED"
    return BatchCompleted(
        found(batch), batch.user_id, batch.kind, status, succeeded, failed, cancelled, batch.refused, at
    )


def cancelled(batch: Batch, at: datetime) -> list[BatchLifecycle]:
    if batch.cancelled:
        return []
    if batch.is_over:
        raise Conflict(f"The batch is over ({batch.status}).", batch_status=batch.status)
    if not batch.submitted:
        return [failed(batch, "abandoned", "It was cancelled before all of it was in.", at)]
    event = BatchCancelled(found(batch), at)
    return [event, completed(evolve_batch(batch, event), at)] if batch.is_waiting else [event]


def retried(batch: Batch, at: datetime) -> BatchRetried:
    if not batch.is_over:
        raise Conflict(
            f"The batch is still {batch.status}; only what failed can be tried again.", batch_status=batch.status
        )
    works = sorted(work for work, counts in batch.counted.items() if counts.failed)
    if not works:
        detail = "Nothing of the batch can be tried again: no operation of it failed."
        if batch.refused:
            detail += (
                f" Rows that are no operations are to be mended: `boxoffice batch bad {batch.id} FILE` gives them back."
            )
        raise Conflict(detail, batch_status=batch.status)
    return BatchRetried(found(batch), works, batch.run + 1, at)


def evolve_batch(batch: Batch, event: BatchLifecycle) -> Batch:
    match event:
        case BatchOpened(batch_id, kind, user_id, priority, on_invalid, run_at, at):
            return Batch(batch_id, kind, user_id, priority, on_invalid, run_at, created_at=at, heard_at=at)
        case UploadContinued(at=at):
            return msgspec.structs.replace(batch, heard_at=at)
        case RowsRefused(_, rows):
            return msgspec.structs.replace(batch, refused=batch.refused + len(rows))
        case BatchSubmitted(_, operations, works, at=at):
            return msgspec.structs.replace(
                batch, submitted_at=at, operations=operations, works=works, numbers=range(works)
            )
        case BatchStarted(at=at):
            return msgspec.structs.replace(batch, status="RUNNING", started_at=at)
        case WorkCounted(_, work, _, succeeded, failed, cancelled, at):
            counts = batch.counted.insert(work, Counts(succeeded, failed, cancelled))
            ended_at = max(at, batch.ended_at) if batch.ended_at else at  # they are counted in any order
            return msgspec.structs.replace(batch, counted=counts, ended_at=ended_at)
        case BatchCancelled():
            return msgspec.structs.replace(batch, cancelled=True)
        case BatchRetried(_, works, run):
            left = batch.counted
            for work in works:
                left = left.discard(work)
            return msgspec.structs.replace(
                batch,
                status="RUNNING",
                run=run,
                numbers=sorted(works),
                counted=left,
                cancelled=False,
                completed_at=None,
            )
        case BatchCompleted(status=status, at=at):
            return msgspec.structs.replace(batch, status=status, completed_at=at)
        case BatchFailed(reason=reason, detail=detail, at=at):
            return msgspec.structs.replace(
                batch, status="FAILED", detail=detail, abandoned=reason == "abandoned", completed_at=at
            )
        case _:
            assert_never(event)


def asks_of_batch(event: BatchLifecycle) -> BatchCommand | None:
    """The command that leads to an event."""
    match event:
        case BatchOpened(batch_id, kind, user_id, priority, on_invalid, run_at, at):
            return OpenBatch(batch_id, kind, user_id, priority, on_invalid, run_at, at)
        case UploadContinued(_, at):
            return ContinueUpload(at)
        case RowsRefused(_, rows, at):
            return RefuseRows(rows, at)
        case BatchSubmitted(_, operations, works, at=at):
            return SubmitBatch(operations, works, at)
        case BatchStarted(_, at):
            return StartBatch(at)
        case WorkCounted(_, work, run, succeeded, failed, cancelled, at):
            return CountWork(work, run, Counts(succeeded, failed, cancelled), at)
        case BatchFailed(reason=reason, detail=detail, at=at):
            return AbandonBatch(detail, at) if reason == "abandoned" else None  # how much was submitted is not told
        case BatchCompleted():
            return None  # it comes with the last piece of work that is counted
        case BatchCancelled() | BatchRetried():
            return None  # who asked for it is not told
        case _:
            assert_never(event)


class Postponed(Result, frozen=True):
    """No result yet: the operation is to be tried again, and `error` says why. It is told as part of `Again`."""


class Piece(msgspec.Struct, frozen=True):
    """A piece of work as its events leave it. A later run tries again what failed.

    `succeeded_rows`: which succeeded and have nothing to show for it, as ranges. `results`: the others, by row.
    `failed_before`: the results that this run is to better. `again`: why what is left is still to come.
    `ended_at`: when the last of it came to its end.
    """

    id: UUID | None = None
    batch_id: UUID | None = None
    work: int = 0
    kind: str = ""
    user_id: str = ""
    operations: tuple[Operation, ...] = ()
    run_at: datetime | None = None
    run: int = 0
    attempt: int = 0
    results: "HashTrieMap[int, Result]" = HashTrieMap()
    succeeded_rows: tuple[tuple[int, int], ...] = ()
    failed_before: "HashTrieMap[int, Result]" = HashTrieMap()
    again: Again | None = None
    ended_at: datetime | None = None
    size: int = 0  # bytes of payload

    @property
    def ended(self) -> set[int]:
        """The rows that have a result."""
        rows = set(self.results)
        for first, last in self.succeeded_rows:
            rows.update(range(first, last + 1))
        return rows

    @property
    def left(self) -> list[Operation]:
        """What has no result yet."""
        ended = self.ended
        return [operation for operation in self.operations if operation.number not in ended]

    @property
    def counts(self) -> Counts:
        """How many came to which end so far."""
        ends = [result.outcome for result in self.results.values()]
        succeeded = len(self.ended) - len(ends) + ends.count("succeeded")
        return Counts(succeeded, ends.count("failed"), ends.count("cancelled"))

    @property
    def stopped(self) -> list[Result]:
        """What becomes of `left` when it is not tried any more: what failed in an earlier run has still failed."""
        numbers = [operation.number for operation in self.left]
        return [self.failed_before.get(number) or Result(number, "cancelled") for number in numbers]

    def result(self, number: int) -> Result | None:
        """What became of the operation in a row, if that is known."""
        return self.results.get(number) or (Result(number) if number in self.ended else None)


class AddOperations(msgspec.Struct, frozen=True):
    """`released`: they belong to no batch and may run."""

    work_id: UUID
    batch_id: UUID | None
    work: int
    kind: str
    user_id: str
    operations: Sequence[Operation]
    at: datetime
    released: bool = False
    run_at: datetime | None = None


class ReleaseWork(msgspec.Struct, frozen=True):
    """It may run; in a later `run`, what failed before."""

    run: int
    at: datetime


class RecordResults(msgspec.Struct, frozen=True):
    """What came of the `attempt`th try in a run; what has no result comes again, Postponed or not."""

    run: int
    attempt: int
    results: Sequence[Result]
    at: datetime


WorkCommand = AddOperations | ReleaseWork | RecordResults


def decide_work(command: WorkCommand, piece: Piece) -> list[WorkEvent]:
    match command:
        case AddOperations(work_id, batch_id, work, kind, user_id, operations, at, released, run_at):
            if piece.id:
                return added_before(command, piece)
            return [OperationsAdded(work_id, batch_id, work, kind, user_id, list(operations), at, released, run_at)]
        case ReleaseWork(run, at):
            if piece.id is None or piece.batch_id is None or run <= piece.run:
                return []
            size = len(piece.operations)
            return [WorkReleased(piece.id, piece.batch_id, piece.work, piece.kind, run, size, at)]
        case RecordResults(run, attempt, results, at):
            if piece.id is None or run != piece.run or attempt <= piece.attempt:
                return []  # somebody else has told of this try
            return [executed(piece, attempt, results, at)]
        case _:
            assert_never(command)


def added_before(command: AddOperations, piece: Piece) -> list[WorkEvent]:
    """Nothing. Raises Invalid where the operations are others."""
    if (command.kind, command.user_id, command.run_at) != (piece.kind, piece.user_id, piece.run_at):
        raise used_for_another("operation")
    if list(command.operations) != list(piece.operations):
        raise used_for_another("operation")
    return []


def executed(piece: Piece, attempt: int, results: Sequence[Result], at: datetime) -> OperationsExecuted:
    assert piece.id, "it was added"
    ended = piece.ended
    new = [result for result in results if result.number not in ended and not isinstance(result, Postponed)]
    why = next((result.error for result in results if isinstance(result, Postponed)), None)
    plain = [result.number for result in new if result.outcome == "succeeded" and result.output is None]
    others = [result for result in new if result.outcome != "succeeded" or result.output is not None]
    succeeded_rows = ranges_of(plain)
    after = with_results(piece, attempt, others, succeeded_rows)
    ends, left = after.counts, after.left
    return OperationsExecuted(
        piece.id,
        piece.batch_id,
        piece.work,
        piece.kind,
        piece.user_id,
        piece.run,
        attempt,
        others,
        len(left),
        ends.succeeded,
        ends.failed,
        ends.cancelled,
        at,
        succeeded_rows,
        Again(ranges_of(operation.number for operation in left), why) if left and why else None,
    )


def with_results(
    piece: Piece, attempt: int, results: Sequence[Result], succeeded_rows: tuple[tuple[int, int], ...]
) -> Piece:
    return msgspec.structs.replace(
        piece,
        attempt=attempt,
        results=piece.results.update({result.number: result for result in results}),
        succeeded_rows=piece.succeeded_rows + succeeded_rows,
    )


def ranges_of(numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Numbers as ranges: the first and the last of each, in order."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return tuple(ranges)


class Ended(msgspec.Struct, frozen=True, gc=False):
    """The rows from `first` to `last` of a batch, which came to the same end."""

    first: int
    last: int
    status: Outcome | Literal["refused"]
    error: str | None = None
    output: str | None = None


def ends_of(event: OperationsExecuted) -> list[Ended]:
    """What an event tells of which rows, in order."""
    told = [Ended(first, last, "succeeded") for first, last in event.succeeded_rows]
    told += [Ended(r.number, r.number, r.outcome, r.error, r.output) for r in event.results]
    return sorted(told, key=lambda ended: ended.first)


def never_run(rows: int, refused: Iterable[int]) -> list[Ended]:
    """What became of the operations of a batch that was cancelled before it started: its rows but the refused ones."""
    return [Ended(*numbers, "cancelled") for numbers in ranges_of(set(range(1, rows + 1)).difference(refused))]


def evolve_work(piece: Piece, event: WorkEvent) -> Piece:
    match event:
        case OperationsAdded(work_id, batch_id, work, kind, user_id, operations, _, released, run_at):
            run = 1 if released else 0
            size = sum(len(operation.payload) for operation in operations)
            return Piece(work_id, batch_id, work, kind, user_id, tuple(operations), run_at, run, size=size)
        case WorkReleased(run=run):
            failed = HashTrieMap({n: result for n, result in piece.results.items() if result.outcome == "failed"})
            kept = HashTrieMap({n: result for n, result in piece.results.items() if n not in failed})
            return msgspec.structs.replace(piece, run=run, attempt=0, results=kept, failed_before=failed, again=None)
        case OperationsExecuted(attempt=attempt, results=results, succeeded_rows=succeeded_rows, at=at) as e:
            after = with_results(piece, attempt, results, succeeded_rows)
            return msgspec.structs.replace(after, ended_at=at, again=e.again)
        case _:
            assert_never(event)


def asks_of_work(event: WorkEvent) -> WorkCommand:
    """The command that leads to an event."""
    match event:
        case OperationsAdded(work_id, batch_id, work, kind, user_id, operations, at, released, run_at):
            return AddOperations(work_id, batch_id, work, kind, user_id, operations, at, released, run_at)
        case WorkReleased(run=run, at=at):
            return ReleaseWork(run, at)
        case OperationsExecuted(run=run, attempt=attempt, results=results, at=at) as e:
            succeeded = [Result(number) for number in numbers_of(e.succeeded_rows)]
            again = [Postponed(number, error=e.again.error) for number in numbers_of(e.again.rows)] if e.again else []
            return RecordResults(run, attempt, [*results, *succeeded, *again], at)
        case _:
            assert_never(event)


def numbers_of(ranges: Iterable[tuple[int, int]]) -> list[int]:
    """The numbers in ranges, each given by its first and last."""
    return [number for first, last in ranges for number in range(first, last + 1)]


class RequestOperation(msgspec.Struct, frozen=True):
    """Use an Idempotency-Key, whose request makes this piece of work. Raises Invalid if it made one elsewhere.

    The same piece with another priority would be another one, in another place of the log.
    """

    work_id: UUID
    user_id: str
    priority: Priority
    at: datetime


def decide_request(command: RequestOperation, before: OperationRequested | None) -> list[OperationRequested]:
    if before is None:
        return [OperationRequested(command.work_id, command.user_id, command.priority, command.at)]
    if command.priority != before.priority:
        raise used_for_another("operation")
    return []


def evolve_request(_: OperationRequested | None, event: OperationRequested) -> OperationRequested:
    return event


def asks_request(event: OperationRequested) -> RequestOperation:
    """The command that leads to an event."""
    return RequestOperation(event.work_id, event.user_id, event.priority, event.at)


class SetPaused(msgspec.Struct, frozen=True):
    kind: str
    paused: bool
    by: str
    at: datetime


def decide_kind(command: SetPaused, paused: bool) -> list[KindEvent]:
    if command.paused == paused:
        return []
    event = KindPaused if command.paused else KindResumed
    return [event(command.kind, command.at, command.by)]


def evolve_kind(_: bool, event: KindEvent) -> bool:
    match event:
        case KindPaused():
            return True
        case KindResumed():
            return False
        case _:
            assert_never(event)


def asks_of_kind(event: KindEvent) -> SetPaused:
    """The command that leads to an event."""
    return SetPaused(event.kind, isinstance(event, KindPaused), event.by, event.at)


def weight_of(piece: Piece) -> int:
    """How many bytes of memory a piece takes, roughly; an operation of a hundred bytes takes three times as much."""
    return piece.size + 200 * len(piece.operations) + 1000


def work_id_of(batch_id: UUID, work: int) -> UUID:
    """The id of a piece of work of a batch."""
    return uuid5(batch_id, f"work {work}")


def operation_id_of(owner_id: UUID, number: int) -> UUID:
    """The id of the operation in a row of a batch; for one of its own, `owner_id` is its work's and the row 1.

    Ids of one batch follow each other, so that a table needs no other index to list them.
    """
    return UUID(int=owner_id.int + number)


def kind_id_of(kind: str) -> UUID:
    """The id under which a kind is paused and resumed."""
    return uuid5(NAMESPACE_URL, f"boxoffice:batch-kind:{kind}")


BATCHES = Decider("batch", BatchLifecycle, decide_batch, evolve_batch, Batch(), asks_of_batch)
WORKS = {
    priority: Decider(f"batch.{priority}", WorkEvent, decide_work, evolve_work, Piece(), asks_of_work)
    for priority in PRIORITIES
}
KINDS = Decider("batch", KindEvent, decide_kind, evolve_kind, initial=False, asks=asks_of_kind)
OPERATION_REQUESTS = Decider("batch", OperationRequested, decide_request, evolve_request, None, asks_request)
Batches = Aggregate[BatchCommand, Batch, BatchLifecycle]
Works = Aggregate[WorkCommand, Piece, WorkEvent]
Kinds = Aggregate[SetPaused, bool, KindEvent]
OperationRequests = Aggregate[RequestOperation, OperationRequested | None, OperationRequested]
