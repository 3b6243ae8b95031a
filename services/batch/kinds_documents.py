"""`documents.render`: a document for each operation, made of a template and its data; and the door to fetch it."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar
from uuid import UUID

import asyncpg
import msgspec
from litestar import Controller, Response, get
from litestar.di import NamedDependency
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIResponse, Operation, Schema
from litestar.params import FromPath
from msgspec import Meta

from common.auth import RequiresUser, UserRequest
from common.errors import NotFound
from common.headers import POLICY
from common.limits import Limited
from common.problems import problems
from services.batch.kinds import Answer, Done, Kind, Refused, Task, Work
from services.batch.renderers import BadTemplate, Format, Renderers
from services.batch.templates import Template, TemplateShelf

TABLES = """
create schema if not exists batch_data;
create table if not exists batch_data.documents (
    id uuid primary key,
    user_id text not null,
    media_type text not null,
    content bytea not null,
    at timestamptz not null default now()
);
"""
INSERT = """
insert into batch_data.documents (id, user_id, media_type, content)
select * from unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[])
"""
DOCUMENT_OF_USER = "select media_type, content from batch_data.documents where id = $1 and user_id = $2"

MEDIA_TYPES: Mapping[Format, str] = {"html": "text/html", "pdf": "application/pdf"}
ENDINGS: Mapping[str, str] = {media_type: form for form, media_type in MEDIA_TYPES.items()}


class RenderDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A document to be: the template (in the version that it has then, if none is said) and what to put in.

    `data` is a JSON object; in a CSV file, a column with its text.
    """

    template_id: UUID
    template_version: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    data: dict[str, Any] | str = {}  # the text without a pattern: msgspec 0.22 crashes on one beside a dict

    def __post_init__(self) -> None:
        if isinstance(self.data, str):
            try:
                parsed = msgspec.json.decode(self.data, type=dict[str, Any])
            except (msgspec.MsgspecError, RecursionError):
                raise ValueError("data: Expected a JSON object, or the text of one") from None
            msgspec.structs.force_setattr(self, "data", parsed)

    @property
    def values(self) -> Mapping[str, Any]:
        """What to put in, by name."""
        assert isinstance(self.data, dict)
        return self.data


class RenderDocuments(Kind[RenderDocument]):
    """Makes documents, and keeps all of a chunk by one insert. The output of an operation is where its document is."""

    name = "documents.render"
    operation: ClassVar[type[msgspec.Struct]] = RenderDocument
    limit = 50
    tables = TABLES
    timeout = 300  # more than 50 templates take that are killed, two at a time

    def __init__(self, shelf: TemplateShelf, renderers: Renderers) -> None:
        self._shelf = shelf
        self._renderers = renderers

    async def execute_many(self, work: Work, operations: Sequence[Task[RenderDocument]]) -> Sequence[Answer]:
        templates: dict[tuple[str, UUID, int | None], Template | Refused] = {}
        for task in operations:
            which = (task.user_id, task.what.template_id, task.what.template_version)
            if which not in templates:
                templates[which] = await self._template(*which)
        found = [templates[task.user_id, task.what.template_id, task.what.template_version] for task in operations]
        made = await asyncio.gather(*(self._render(*pair) for pair in zip(operations, found, strict=True)))
        documents = [
            (task.id, task.user_id, *document)
            for task, document in zip(operations, made, strict=True)
            if not isinstance(document, Refused)
        ]
        if documents:
            await work.connection.execute(INSERT, *zip(*documents, strict=True))
        return [
            document if isinstance(document, Refused) else Done(f"/api/documents/{task.id}")
            for task, document in zip(operations, made, strict=True)
        ]

    async def _template(self, user_id: str, template_id: UUID, version: int | None) -> Template | Refused:
        try:
            return await self._shelf.find(template_id, user_id, version)
        except NotFound as error:
            return Refused(f"template_id {template_id}: {error.detail}")

    async def _render(self, task: Task[RenderDocument], template: Template | Refused) -> tuple[str, bytes] | Refused:
        """The media type and the content."""
        if isinstance(template, Refused):
            return template
        content = template.content
        assert content
        try:
            document = await self._renderers.render(content.format, content.body, task.what.values)
        except BadTemplate as error:
            return Refused(f"Template {content.name!r} (version {template.version}): {error}")
        return MEDIA_TYPES[content.format], document


class DocumentDesk(msgspec.Struct, frozen=True):
    """What this door needs."""

    pool: asyncpg.Pool


@dataclass
class FetchDocument(Operation):
    """The documentation of a handler whose answer is of one of several media types."""

    def __post_init__(self) -> None:
        assert self.responses
        found = self.responses["200"]
        assert isinstance(found, OpenAPIResponse)
        found.content = {
            media_type: OpenAPIMediaType(schema=Schema(content_media_type=media_type))
            for media_type in MEDIA_TYPES.values()
        }


class DocumentController(Controller):
    """Documents that were made for you; somebody else's answer like absent ones."""

    path = "/api/documents"
    tags = ("templates",)
    middleware = (RequiresUser("batches"), Limited("changes"))

    @get("/{document_id:str}", operation_class=FetchDocument, responses=problems(400, 404, 503))
    async def read(
        self, document_id: FromPath[UUID], request: UserRequest, document_desk: NamedDependency[DocumentDesk]
    ) -> Response[bytes]:
        """Fetch a document, of the format that its template has."""
        row = await document_desk.pool.fetchrow(DOCUMENT_OF_USER, document_id, request.user.id)
        if row is None:
            raise NotFound(f"You have no document {document_id}.")
        return sent(document_id, row["media_type"], row["content"])


def sent(name: object, media_type: str, content: bytes) -> Response[bytes]:
    """The response that is a document, to be kept under a name."""
    headers = {"Content-Disposition": f'attachment; filename="{name}.{ENDINGS[media_type]}"'}
    if media_type == MEDIA_TYPES["html"]:  # somebody's own page, on our origin
        headers["Content-Security-Policy"] = f"sandbox; {POLICY}; style-src 'unsafe-inline'; img-src data:"
    return Response(content, media_type=media_type, headers=headers)
