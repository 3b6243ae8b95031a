"""HTTP -> templates."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import msgspec
from litestar import Controller, Response, delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter
from msgspec import Meta

from common.auth import RequiresUser, UserRequest
from common.clock import new_id, now
from common.errors import Invalid
from common.etag import ETAG_HEADER, IfMatch, etag_of, version_in
from common.events import TemplateEvent
from common.http import LINE, LOCATION_HEADER
from common.limits import Limited
from common.paging import Cursor
from common.problems import problems
from common.projector import ReadYourWrites
from services.batch import templates
from services.batch.kinds_documents import MEDIA_TYPES, FetchDocument, sent
from services.batch.renderers import BadTemplate, Format, Renderers
from services.batch.templates import (
    Content,
    CreateTemplate,
    DeleteTemplate,
    ReplaceTemplate,
    Template,
    TemplateCommand,
    TemplatePage,
    TemplateShelf,
    TemplateView,
)

Body = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=65_536,
        pattern=r"^[^\x00]*$",
        description="Jinja2, 1 to 65536 characters without NUL",
        examples=['{{ show }}\n{{ qr("https://example.org/" ~ number) }}\nTicket {{ number }}\nSeat {{ seat }}\n'],
    ),
]


class NewTemplate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A template of Jinja2, for documents that are made of it and an operation's data; `qr(text)` shows a QR code.

    `html` escapes what is put in. Of `pdf` the first line is the title, the others are text, and codes stand at the
    right of the line that asks for them; its fonts have Latin, Greek and Cyrillic letters, and a mark for all others.
    It stands alone (no include, import or extends); a document is of 1 MB, 20 pages and 20 codes at most.
    """

    name: Annotated[str, LINE, Meta(examples=["E-ticket"])]
    format: Annotated[Format, Meta(examples=["pdf"])]
    body: Body


class Preview(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A template that may become one, and data to see what it makes of it."""

    format: Annotated[Format, Meta(examples=["pdf"])]
    body: Body
    data: Annotated[dict[str, Any], Meta(examples=[{"show": "Opening night", "number": 7, "seat": "A1"}])] = {}


VisibleTemplates = ReadYourWrites[TemplateCommand, Template, TemplateEvent]


class TemplateDesk(msgspec.Struct, frozen=True):
    """What these doors need."""

    templates: VisibleTemplates
    shelf: TemplateShelf
    renderers: Renderers
    pool: asyncpg.Pool

    async def content(self, new: NewTemplate) -> Content:
        """What can become documents. Raises Invalid with the line where it cannot, Unavailable."""
        with at_its_line():
            await self.renderers.check(new.format, new.body)
        return Content(new.name, new.format, new.body)


@contextmanager
def at_its_line() -> Iterator[None]:
    """Tell where a template is wrong. Raises Invalid."""
    try:
        yield
    except BadTemplate as error:
        raise Invalid(f"body: {error}", field="body", line=error.line, reason=error.reason) from error


class TemplateController(Controller):
    """Your own templates; somebody else's answer like absent ones."""

    path = "/api/templates"
    tags = ("templates",)
    middleware = (RequiresUser("batches"), Limited("changes"))

    @post("/", responses=problems(400, 413, 415, 422, 503), response_headers=[ETAG_HEADER, LOCATION_HEADER])
    async def create(
        self, data: JSONBody[NewTemplate], request: UserRequest, template_desk: NamedDependency[TemplateDesk]
    ) -> Response[TemplateView]:
        """Keep a new template."""
        content, template_id = await template_desk.content(data), new_id()
        command = CreateTemplate(template_id, request.user.id, content, now())
        handled = await template_desk.templates.handle(template_id, command)
        created = shown(handled.state, status=201)
        created.headers["Location"] = f"/api/templates/{template_id}"
        return created

    @post(
        "/preview",
        status_code=200,
        operation_class=FetchDocument,
        media_type="application/octet-stream",
        responses=problems(400, 413, 415, 422, 503),
    )
    async def preview(self, data: JSONBody[Preview], template_desk: NamedDependency[TemplateDesk]) -> Response[bytes]:
        """The document that a template would make of some data. Nothing is kept."""
        with at_its_line():
            document = await template_desk.renderers.render(data.format, data.body, data.data)
        return sent("preview", MEDIA_TYPES[data.format], document)

    @get("/", responses=problems(400, 503))
    async def list(
        self,
        request: UserRequest,
        template_desk: NamedDependency[TemplateDesk],
        limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
        cursor: Cursor = None,
    ) -> TemplatePage:
        """Your templates, newest first."""
        return await templates.templates(template_desk.pool, request.user.id, limit=limit, cursor=cursor)

    @get("/{template_id:str}", responses=problems(400, 404, 503), response_headers=[ETAG_HEADER])
    async def read(
        self,
        template_id: FromPath[UUID],
        request: UserRequest,
        template_desk: NamedDependency[TemplateDesk],
        version: Annotated[int | None, QueryParameter(ge=1, le=2**31)] = None,
    ) -> Response[TemplateView]:
        """One of your templates, as it is or as it was in a version."""
        return shown(await template_desk.shelf.find(template_id, request.user.id, version))

    @put(
        "/{template_id:str}",
        responses=problems(400, 404, 412, 413, 415, 422, 428, 503),
        response_headers=[ETAG_HEADER],
    )
    async def replace(
        self,
        data: JSONBody[NewTemplate],
        template_id: FromPath[UUID],
        request: UserRequest,
        template_desk: NamedDependency[TemplateDesk],
        if_match: IfMatch,
    ) -> Response[TemplateView]:
        """Make a new version of your template, if nobody else did since you looked."""
        seen = version_in(if_match)
        content = await template_desk.content(data)
        command = ReplaceTemplate(template_id, request.user.id, content, seen, now())
        return shown((await template_desk.templates.handle(template_id, command)).state)

    @delete("/{template_id:str}", responses=problems(400, 404, 503))
    async def delete(
        self, template_id: FromPath[UUID], request: UserRequest, template_desk: NamedDependency[TemplateDesk]
    ) -> None:
        """Make nothing more of it. Documents that were made of it stay."""
        await template_desk.templates.handle(template_id, DeleteTemplate(template_id, request.user.id, now()))


def shown(template: Template, status: int = 200) -> Response[TemplateView]:
    """The response that shows a template, with its ETag."""
    return Response(TemplateView.of(template), status_code=status, headers={"ETag": etag_of(template.version)})
