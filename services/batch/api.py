"""HTTP -> batches, operations, kinds."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID, uuid5

import asyncpg
import msgspec
from litestar import Controller, Response, get, post
from litestar.di import NamedDependency
from litestar.exceptions import HTTPException
from litestar.openapi.spec import OpenAPIFormat, OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.response import Stream
from msgspec import Meta

from common.auth import RequiresUser, User, UserRequest
from common.clock import Moment, now
from common.errors import NotFound
from common.events import Outcome, Priority
from common.http import LOCATION_HEADER
from common.idempotency import IdempotencyKey, request_id_of
from common.limits import Limited
from common.paging import Cursor
from common.postgres import POSTGRES_FAILED
from common.problems import BODY_LIMIT, BadRequest, FieldProblem, parsed, problems, shown
from common.requests.batch import KindName, start_of
from services.batch import read_model, report
from services.batch.domain import (
    Batch,
    CancelBatch,
    Kinds,
    OnInvalid,
    RetryBatch,
    SetPaused,
    Status,
    kind_id_of,
)
from services.batch.intake import Blocks, Intake, VisibleBatches, Wanted
from services.batch.kinds import Kind, known
from services.batch.read_model import MOST_ROWS, BatchPage, BatchView, OperationPage, OperationView, RowErrorPage
from services.batch.singles import Singles
from services.batch.upload import Read, operations_in, operations_of

UPLOAD_LIMIT = 2_000_000_000
"""Bytes of an upload at most."""

MEDIA_TYPES: Mapping[str, Literal["text/csv", "application/x-ndjson"]] = {
    "text/csv": "text/csv",
    "application/x-ndjson": "application/x-ndjson",
}

MomentText = Annotated[
    str | None,
    QueryParameter(
        schema_extra={"format": "date-time"},
        description="A time with its offset from UTC, as 2030-12-31T20:00:00Z, in the next 366 days",
    ),
]
"""Litestar 2.25 would take a number for a time, and a time without an offset."""


AfterRow = Annotated[
    str | None,
    QueryParameter(
        max_length=18,
        pattern="^[0-9]+$",
        description="A `next_cursor` that a list gave; leave it out to begin at the start",
    ),
]


class NewBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Operations of one kind. `run_at`: not before that time, in the next 366 days; `on_invalid`: skip the rows that
    are none, or reject it all.
    """

    kind: KindName
    operations: Annotated[list[msgspec.Raw], Meta(min_length=1)]
    priority: Priority = "normal"
    run_at: Moment | None = None
    on_invalid: OnInvalid = "skip"


ONE_OF_PRIORITIES = Schema(type=OpenAPIType.STRING, enum=["high", "normal", "low"], default="normal")
ANY = Schema(description="An operation, as its kind has it; what is none is refused by itself")
FILE = Schema(type=OpenAPIType.STRING, min_length=1, description="One operation on each row")


@dataclass
class SubmitOperation(Operation):
    """The documentation of a handler that reads its body itself."""

    def __post_init__(self) -> None:
        batch = Schema(
            type=OpenAPIType.OBJECT,
            description=NewBatch.__doc__,
            required=["kind", "operations"],
            properties={
                "kind": Schema(type=OpenAPIType.STRING, min_length=1, max_length=100),
                "operations": Schema(type=OpenAPIType.ARRAY, items=ANY, min_items=1),
                "priority": ONE_OF_PRIORITIES,
                "run_at": Schema(type=[OpenAPIType.STRING, OpenAPIType.NULL], format=OpenAPIFormat.DATE_TIME),
                "on_invalid": Schema(type=OpenAPIType.STRING, enum=["skip", "reject"], default="skip"),
            },
            additional_properties=False,
            examples=[{"kind": "records.insert", "operations": [{"key": "a", "value": "1"}]}],
        )
        self.request_body = RequestBody(
            required=True,
            content={
                "application/json": OpenAPIMediaType(schema=batch),
                **{media_type: OpenAPIMediaType(schema=FILE) for media_type in MEDIA_TYPES},
            },
        )


class NewOperation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One operation, which is executed together with others of its kind; not before `run_at`, in the next 366 days."""

    kind: KindName
    payload: Annotated[msgspec.Raw, Meta(examples=[{"key": "a", "value": "1"}])]
    priority: Priority = "normal"
    run_at: Moment | None = None


class KindView(msgspec.Struct, frozen=True):
    """A kind of operation that is installed here; `fields` is the JSON schema of one."""

    name: str
    about: str
    paused: bool
    fields: dict[str, Any]


class BatchDesk(msgspec.Struct, frozen=True):
    """What these doors need."""

    batches: VisibleBatches
    singles: Singles
    paused: Kinds
    intake: Intake
    kinds: Mapping[str, Kind[msgspec.Struct]]
    pool: asyncpg.Pool

    def kind(self, name: str, user: User) -> Kind[msgspec.Struct]:
        """A kind that this user may have executed. Raises NotFound, Forbidden."""
        kind = known(self.kinds, name)
        user.require(kind.area, kind.role, write=True)
        return kind

    async def batch(self, batch_id: UUID, user_id: str) -> BatchView:
        """A batch of this user. Raises NotFound, Unavailable."""
        return await self.batches.find(lambda: read_model.batch(self.pool, batch_id, user_id, now()))

    async def written(self, batch: Batch, at: datetime) -> BatchView:
        """A batch that was written `at` this time: also where the read model is behind, or cannot be asked."""
        assert batch.id, "it was opened"
        with suppress(NotFound, *POSTGRES_FAILED):
            view = await read_model.batch(self.pool, batch.id, batch.user_id, now())
            if batch.is_over == (view.completed_at is not None) or (view.completed_at and view.completed_at > at):
                return view
        paused = (await self.paused.load(kind_id_of(batch.kind), fresh=True)).state
        return BatchView.of_state(batch, paused=paused)


class BatchController(Controller):
    """Operations in bulk."""

    path = "/api/batches"
    tags = ("batches",)
    middleware = (RequiresUser("batches"), Limited("batches"))

    @post(
        "/",
        status_code=202,
        request_max_body_size=UPLOAD_LIMIT,
        operation_class=SubmitOperation,
        responses=problems(400, 404, 409, 413, 415, 422, 503),
        response_headers=[LOCATION_HEADER],
    )
    async def submit(
        self,
        request: UserRequest,
        desk: NamedDependency[BatchDesk],
        kind: Annotated[str | None, QueryParameter(max_length=100)] = None,
        priority: Annotated[Priority, QueryParameter()] = "normal",
        run_at: MomentText = None,
        on_invalid: Annotated[OnInvalid, QueryParameter()] = "skip",
        idempotency_key: IdempotencyKey = None,
    ) -> Response[BatchView]:
        """Hand in operations: as JSON, or as a file (text/csv with a header, application/x-ndjson), which is streamed.

        JSON may have 1,000,000 bytes, a file 1,000,000 rows. With a file, `kind` and the options are query parameters;
        with JSON they are in the body.

        A cell of CSV is its text, and an empty one leaves its field out: it changes nothing in `tickets.update`, and
        clears nothing. What is to be cleared is `null` in NDJSON or JSON. A whole number is digits, perhaps with a
        minus sign before them; a time is as 2030-12-31T20:00:00Z.

        With an `Idempotency-Key` that was used before, the answer is the batch of that time as it is now, and nothing
        is taken in; the rows are not compared. With another kind or other options it is 422. While its upload is under
        way it is 409: ask again. If that upload broke off, or its file could not be read to the end, it is 409 too:
        nothing of it ran, and it is to be handed in with a new key.
        """
        blocks: Blocks
        start = start_of(moment(run_at), now())
        media_type = request.content_type[0]
        if media_type == "application/json":
            if name := next(iter(request.query_params), None):
                raise BadRequest(FieldProblem(name, "Belongs in the body, beside `operations`"))
            new = parsed(await whole(request), NewBatch, outermost=True)  # each operation is checked by itself
            start = start_of(new.run_at, now())
            wanted = Wanted(new.kind, request.user.id, new.priority, new.on_invalid, start)
            blocks = once(operations_of(new.operations, desk.kind(new.kind, request.user).operation))
        elif media_type in MEDIA_TYPES:
            if kind is None:
                raise BadRequest(FieldProblem("kind", "Required with a file; which kind of operation are its rows?"))
            wanted = Wanted(kind, request.user.id, priority, on_invalid, start)
            blocks = operations_in(request.stream(), MEDIA_TYPES[media_type], desk.kind(kind, request.user).operation)
        else:
            allowed = ", ".join(("application/json", *MEDIA_TYPES))
            got = shown(request.headers.get("content-type", "none"))
            raise HTTPException(status_code=415, detail=f"Content-Type: One of {allowed} is needed, got {got}")
        named = uuid5(request_id_of(request.user.id, idempotency_key), "batch") if idempotency_key else None
        taken = await desk.intake.take_in(wanted, blocks, named)
        batch = await desk.written(taken, taken.submitted_at or now())
        return Response(batch, status_code=202, headers={"Location": f"/api/batches/{batch.id}"})

    @get("/", responses=problems(400, 503))
    async def list(
        self,
        request: UserRequest,
        desk: NamedDependency[BatchDesk],
        status: Annotated[Status | None, QueryParameter()] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
        cursor: Cursor = None,
    ) -> BatchPage:
        """Your batches, newest first."""
        return await read_model.batches(desk.pool, request.user.id, now(), status=status, limit=limit, cursor=cursor)

    @get("/{batch_id:str}", responses=problems(400, 404, 503))
    async def read(self, batch_id: FromPath[UUID], request: UserRequest, desk: NamedDependency[BatchDesk]) -> BatchView:
        """One of your batches, and how far it has come."""
        return await desk.batch(batch_id, request.user.id)

    @get("/{batch_id:str}/operations", responses=problems(400, 404, 503))
    async def operations(
        self,
        batch_id: FromPath[UUID],
        request: UserRequest,
        desk: NamedDependency[BatchDesk],
        status: Annotated[Outcome | None, QueryParameter()] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100,
        cursor: AfterRow = None,
    ) -> OperationPage:
        """Operations of a batch that have come to an end, by row."""
        await desk.batch(batch_id, request.user.id)
        return await read_model.operations(desk.pool, batch_id, status=status, limit=limit, after=int(cursor or 0))

    @get("/{batch_id:str}/errors", responses=problems(400, 404, 503))
    async def errors(
        self,
        batch_id: FromPath[UUID],
        request: UserRequest,
        desk: NamedDependency[BatchDesk],
        limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100,
        cursor: AfterRow = None,
    ) -> RowErrorPage:
        """Rows of a batch that were refused or have failed, by row; also while others still run."""
        await desk.batch(batch_id, request.user.id)
        return await read_model.errors(desk.pool, batch_id, limit=limit, after=min(int(cursor or 0), MOST_ROWS))

    @get("/{batch_id:str}/report.csv", media_type="text/csv", responses=problems(400, 404, 503))
    async def report(self, batch_id: FromPath[UUID], request: UserRequest, desk: NamedDependency[BatchDesk]) -> Stream:
        """What became of each row, as far as it is known, as CSV.

        An error or output that a spreadsheet would take for a formula has an apostrophe before it.
        """
        await desk.batch(batch_id, request.user.id)
        name = f'attachment; filename="batch-{batch_id}.csv"'
        return Stream(report.report(desk.pool, batch_id), headers={"Content-Disposition": name})

    @post("/{batch_id:str}/cancel", status_code=200, responses=problems(400, 404, 409, 503))
    async def cancel(
        self, batch_id: FromPath[UUID], request: UserRequest, desk: NamedDependency[BatchDesk]
    ) -> BatchView:
        """Start nothing more of it. What has been executed stays."""
        command = CancelBatch(request.user.id, now())
        return await desk.written((await desk.batches.handle(batch_id, command)).state, command.at)

    @post("/{batch_id:str}/retry", status_code=202, responses=problems(400, 404, 409, 503))
    async def retry(
        self, batch_id: FromPath[UUID], request: UserRequest, desk: NamedDependency[BatchDesk]
    ) -> BatchView:
        """Try again what failed, and only that. Who may not hand in its kind (any more) may not do this either."""
        batch = (await desk.batches.load(batch_id)).owned_by(request.user.id)
        if kind := desk.kinds.get(batch.kind):
            request.user.require(kind.area, kind.role, write=True)
        command = RetryBatch(request.user.id, now())
        return await desk.written((await desk.batches.handle(batch_id, command)).state, command.at)


def moment(text: str | None) -> datetime | None:
    """A time that somebody wrote. Raises BadRequest."""
    try:
        return msgspec.convert(text, Moment | None)
    except msgspec.ValidationError as error:
        raise BadRequest(FieldProblem("run_at", str(error), shown(text))) from error


async def whole(request: UserRequest) -> bytes:
    """A JSON body. Raises HTTPException (413) when it is larger than all others may be."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > BODY_LIMIT:
            raise HTTPException(
                status_code=413,
                detail=f"JSON may have {BODY_LIMIT:,} bytes, and this is more: send a file (text/csv or "
                "application/x-ndjson), which may have 1,000,000 rows.",
            )
    return bytes(body)


async def once(block: Read) -> Blocks:
    """Operations that are all here already."""
    yield block


class OperationController(Controller):
    """Single operations, collected with others of their kind."""

    path = "/api/operations"
    tags = ("operations",)
    middleware = (RequiresUser("batches"), Limited("changes"))

    @post("/", status_code=202, responses=problems(400, 404, 413, 415, 422, 503), response_headers=[LOCATION_HEADER])
    async def create(
        self,
        data: JSONBody[NewOperation],
        request: UserRequest,
        desk: NamedDependency[BatchDesk],
        idempotency_key: IdempotencyKey = None,
    ) -> Response[OperationView]:
        """Have one operation executed, soon and with others.

        With an `Idempotency-Key` that was used before, the answer is the operation of that time as it is now; if the
        request is not the same, 422.
        """
        request_id = request_id_of(request.user.id, idempotency_key) if idempotency_key else None
        start = start_of(data.run_at, now())
        desk.kind(data.kind, request.user)
        created = await desk.singles.create(request_id, request.user.id, data.kind, data.payload, data.priority, start)
        return Response(created, status_code=202, headers={"Location": f"/api/operations/{created.id}"})

    @get("/{operation_id:str}", responses=problems(400, 404, 503))
    async def read(
        self, operation_id: FromPath[UUID], request: UserRequest, desk: NamedDependency[BatchDesk]
    ) -> OperationView:
        """What became of an operation."""
        return await desk.singles.get(operation_id, request.user.id)


FOR_OPERATORS = RequiresUser("batches", "operator")


class KindController(Controller):
    """The kinds of operation that are installed."""

    path = "/api/batch-kinds"
    tags = ("batches",)
    middleware = (RequiresUser("batches"), Limited("changes"))

    @get("/", responses=problems(400, 503))
    async def list(self, desk: NamedDependency[BatchDesk]) -> list[KindView]:
        """Which kinds there are, and what their operations hold."""
        return [await view(desk, name) for name in sorted(desk.kinds)]

    @post("/{kind:str}/pause", middleware=[FOR_OPERATORS], status_code=200, responses=problems(400, 404, 503))
    async def pause(self, kind: FromPath[str], request: UserRequest, desk: NamedDependency[BatchDesk]) -> KindView:
        """Begin nothing of this kind until it is resumed."""
        return await set_paused(desk, kind, request.user.id, paused=True)

    @post("/{kind:str}/resume", middleware=[FOR_OPERATORS], status_code=200, responses=problems(400, 404, 503))
    async def resume(self, kind: FromPath[str], request: UserRequest, desk: NamedDependency[BatchDesk]) -> KindView:
        """Let operations of this kind run again."""
        return await set_paused(desk, kind, request.user.id, paused=False)


async def set_paused(desk: BatchDesk, kind: str, user_id: str, *, paused: bool) -> KindView:
    """Pause or resume a kind. Raises NotFound."""
    known(desk.kinds, kind)
    await desk.paused.handle(kind_id_of(kind), SetPaused(kind, paused, user_id, now()))
    return await view(desk, kind)


async def view(desk: BatchDesk, name: str) -> KindView:
    """A kind as it is now."""
    kind = desk.kinds[name]
    paused = (await desk.paused.load(kind_id_of(name), fresh=True)).state
    about = (type(kind).__doc__ or "").strip().partition("\n")[0]
    return KindView(name, about, paused, msgspec.json.schema(kind.operation))
