"""What the batch service tells: what was asked for in bulk, how it was cut into work, and what became of it."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

from common.events.base import PERSONAL, Content, Event, Person

Priority = Literal["high", "normal", "low"]
BatchEnd = Literal["COMPLETED", "COMPLETED_WITH_ERRORS", "CANCELLED", "FAILED"]
Outcome = Literal["succeeded", "failed", "cancelled"]

Payload = Annotated[msgspec.Raw, Meta(extra={PERSONAL: "content"})]
"""What is to be done, as somebody wrote it."""


class Operation(msgspec.Struct, frozen=True, gc=False):
    """One operation: its row number (from 1) in its batch, and what is to be done, as its kind has it."""

    number: int
    payload: Payload


class Result(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What became of an operation, for good. `error` says why it failed; `output` is what its kind has to show."""

    number: int
    outcome: Outcome = "succeeded"
    error: Content | None = None
    output: Content | None = None


class Again(msgspec.Struct, frozen=True, gc=False):
    """Operations that are to be tried again: their rows as ranges (first, last), and why that is so of one of them."""

    rows: tuple[tuple[int, int], ...]
    error: Content


class RefusedRow(msgspec.Struct, frozen=True, gc=False):
    """A row that is no operation: where (row from 1, column if it is one column's fault) and why."""

    number: int
    column: Content | None
    reason: Content


class BatchOpened(Event, frozen=True, tag="batch_opened"):
    """Somebody begins to hand in operations. Nothing of them runs before `batch_submitted`."""

    batch_id: UUID
    kind: str
    user_id: Person
    priority: Priority
    on_invalid: Literal["skip", "reject"]
    run_at: datetime | None
    at: datetime


class UploadContinued(Event, frozen=True, tag="upload_continued"):
    """Operations of a batch are still coming in; told now and then, so that an upload whose server died stands out."""

    batch_id: UUID
    at: datetime


class RowsRefused(Event, frozen=True, tag="rows_refused"):
    """Some rows of a batch are no operations."""

    batch_id: UUID
    rows: list[RefusedRow]
    at: datetime


class BatchSubmitted(Event, frozen=True, tag="batch_submitted"):
    """All of it is in: `operations` of them in `works` pieces of work, beside `refused` rows."""

    batch_id: UUID
    operations: int
    works: int
    refused: int
    at: datetime


class BatchStarted(Event, frozen=True, tag="batch_started"):
    """Its time has come; its work is released."""

    batch_id: UUID
    at: datetime


class WorkCounted(Event, frozen=True, tag="work_counted"):
    """A piece of work is done with: piece `work` (from 0) of the batch, in its `run` (from 1, a retry is the next)."""

    batch_id: UUID
    work: int
    run: int
    succeeded: int
    failed: int
    cancelled: int
    at: datetime


class BatchCancelled(Event, frozen=True, tag="batch_cancelled"):
    """What has not started does not start any more."""

    batch_id: UUID
    at: datetime


class BatchRetried(Event, frozen=True, tag="batch_retried"):
    """What failed in these pieces of work is tried again."""

    batch_id: UUID
    works: list[int]
    run: int
    at: datetime


class BatchCompleted(Event, frozen=True, tag="batch_completed"):
    """Every operation has come to an end."""

    batch_id: UUID
    user_id: Person
    kind: str
    status: BatchEnd
    succeeded: int
    failed: int
    cancelled: int
    refused: int
    at: datetime


class BatchFailed(Event, frozen=True, tag="batch_failed"):
    """The batch as a whole came to nothing: its upload broke off, or it has rows that it may not have. Nothing ran."""

    batch_id: UUID
    user_id: Person
    kind: str
    reason: Literal["abandoned", "invalid"]
    detail: Content
    at: datetime


class KindPaused(Event, frozen=True, tag="kind_paused"):
    """Nothing of this kind begins until it is resumed. `by`: the operator who said so."""

    kind: str
    at: datetime
    by: Person = ""


class KindResumed(Event, frozen=True, tag="kind_resumed"):
    """Operations of this kind run again. `by`: the operator who said so."""

    kind: str
    at: datetime
    by: Person = ""


class OperationsAdded(Event, frozen=True, tag="operations_added"):
    """A piece of work, number `work` (from 0) of its batch: at most 500 operations and 512 KiB.

    `released`: it belongs to no batch and may run, from `run_at` on.
    """

    work_id: UUID
    batch_id: UUID | None
    work: int
    kind: str
    user_id: Person
    operations: Annotated[list[Operation], Meta(min_length=1, max_length=500)]
    at: datetime
    released: bool = False
    run_at: datetime | None = None


class OperationRequested(Event, frozen=True, tag="operation_requested"):
    """An Idempotency-Key was used: for the single operation that is this piece of work, with this priority."""

    work_id: UUID
    user_id: Person
    priority: Priority
    at: datetime


class WorkReleased(Event, frozen=True, tag="work_released"):
    """A piece of work may run: what of its `operations` has no result yet, or failed in an earlier run."""

    work_id: UUID
    batch_id: UUID
    work: int
    kind: str
    run: int
    operations: int
    at: datetime


class OperationsExecuted(Event, frozen=True, tag="operations_executed"):
    """What came of a try at a piece of work, how many of it are still to come, and how all of it ended so far.

    `succeeded_rows`: which succeeded and have nothing to show for it, as ranges (first, last). `results`: the others.
    `again`: which are still to come, where it is known why.
    """

    work_id: UUID
    batch_id: UUID | None
    work: int
    kind: str
    user_id: Person
    run: int
    attempt: int
    results: list[Result]
    left: int
    succeeded: int
    failed: int
    cancelled: int
    at: datetime
    succeeded_rows: tuple[tuple[int, int], ...] = ()
    again: Again | None = None


BatchLifecycle = (
    BatchOpened
    | UploadContinued
    | RowsRefused
    | BatchSubmitted
    | BatchStarted
    | WorkCounted
    | BatchCancelled
    | BatchRetried
    | BatchCompleted
    | BatchFailed
)
KindEvent = KindPaused | KindResumed
WorkEvent = OperationsAdded | WorkReleased | OperationsExecuted


class TemplateSaved(Event, frozen=True, tag="template_saved"):
    """A template is new, or has another content than before; each is a version of it."""

    template_id: UUID
    user_id: Person
    name: Content
    format: Literal["html", "pdf"]
    body: Content
    at: datetime


class TemplateDeleted(Event, frozen=True, tag="template_deleted"):
    """Nothing more is made of a template. What was made of it stays."""

    template_id: UUID
    user_id: Person
    at: datetime


TemplateEvent = TemplateSaved | TemplateDeleted
BatchEvent = BatchLifecycle | KindEvent | OperationRequested | WorkEvent | TemplateEvent
