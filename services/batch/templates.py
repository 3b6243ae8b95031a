"""What a template may do and become, and the list of them that people see."""

from collections.abc import Sequence
from datetime import datetime
from typing import Self, assert_never
from uuid import UUID

import asyncpg
import msgspec

from common.aggregate import Aggregate, Decider
from common.errors import NotFound, Stale
from common.event_log import EventLog, Recorded
from common.events import TemplateDeleted, TemplateEvent, TemplateSaved
from common.paging import cursor_of, position_of
from services.batch.renderers import Format


class Content(msgspec.Struct, frozen=True):
    """What a template is, apart from whose."""

    name: str
    format: Format
    body: str


class Template(msgspec.Struct, frozen=True):
    """A template as its events leave it; without content before the first one, and once it is deleted."""

    id: UUID | None = None
    user_id: str = ""
    content: Content | None = None
    version: int = 0
    created_at: datetime | None = None
    saved_at: datetime | None = None

    def owned_by(self, user_id: str) -> Content:
        """The content, if it is this user's. Raises NotFound."""
        if self.content is None or self.user_id != user_id:
            raise NotFound("You have no such template.")
        return self.content


class CreateTemplate(msgspec.Struct, frozen=True):
    template_id: UUID
    user_id: str
    content: Content
    at: datetime


class ReplaceTemplate(msgspec.Struct, frozen=True):
    """Give it another content, if it is still at version `seen` (None: at any)."""

    template_id: UUID
    user_id: str
    content: Content
    seen: int | None
    at: datetime


class DeleteTemplate(msgspec.Struct, frozen=True):
    template_id: UUID
    user_id: str
    at: datetime


TemplateCommand = CreateTemplate | ReplaceTemplate | DeleteTemplate


def decide(command: TemplateCommand, template: Template) -> list[TemplateEvent]:
    match command:
        case CreateTemplate(template_id, user_id, content, at):
            return [] if template.id else [saved_as(template_id, user_id, content, at)]
        case ReplaceTemplate(template_id, user_id, content, seen, at):
            before = template.owned_by(user_id)
            if seen is not None and seen != template.version:
                raise Stale(
                    f"The template has changed since you looked: it is at version {template.version}, you saw {seen}.",
                    version=template.version,
                )
            return [] if content == before else [saved_as(template_id, user_id, content, at)]
        case DeleteTemplate(template_id, user_id, at):
            if template.id and template.content is None and template.user_id == user_id:
                return []  # it is gone already
            template.owned_by(user_id)
            return [TemplateDeleted(template_id, user_id, at)]
        case _:
            assert_never(command)


def saved_as(template_id: UUID, user_id: str, content: Content, at: datetime) -> TemplateSaved:
    return TemplateSaved(template_id, user_id, content.name, content.format, content.body, at)


def evolve(template: Template, event: TemplateEvent) -> Template:
    match event:
        case TemplateSaved(template_id, user_id, name, form, body, at):
            created_at = template.created_at or at
            return Template(template_id, user_id, Content(name, form, body), event.version, created_at, at)
        case TemplateDeleted():
            return msgspec.structs.replace(template, content=None, version=event.version)
        case _:
            assert_never(event)


def asks(event: TemplateEvent) -> TemplateCommand:
    """The command that leads to an event."""
    match event:
        case TemplateSaved(template_id, user_id, name, form, body, at):
            content = Content(name, form, body)
            if event.version == 1:
                return CreateTemplate(template_id, user_id, content, at)
            return ReplaceTemplate(template_id, user_id, content, None, at)
        case TemplateDeleted(template_id, user_id, at):
            return DeleteTemplate(template_id, user_id, at)
        case _:
            assert_never(event)


TEMPLATES = Decider("batch.template", TemplateEvent, decide, evolve, initial=Template(), asks=asks)
"""Its subjects are apart from those of batches: whoever takes a template's id for a batch's finds nothing there."""
Templates = Aggregate[TemplateCommand, Template, TemplateEvent]

CACHED = 1_000
"""Events for which templates are kept in memory; each may be of 64 KiB."""


class TemplateShelf:
    """Templates as the log has them now, in every version."""

    def __init__(self, templates: Templates, event_log: EventLog) -> None:
        self._templates = templates
        self._log = event_log

    async def find(self, template_id: UUID, user_id: str, version: int | None = None) -> Template:
        """This user's template as it is, or as it was in `version`. Raises NotFound, Unavailable."""
        template = (await self._templates.load(template_id, fresh=True)).state
        template.owned_by(user_id)
        if version is None or version == template.version:
            return template
        was = TEMPLATES.initial
        for recorded in await self._log.read(self._templates.subject(template_id)):
            was = evolve(was, recorded.event)  # type: ignore[arg-type]  # a subject holds one kind
            if was.version == version:
                return was
        raise NotFound(f"The template has no version {version}; it is at version {template.version}.")


TABLES = """
create table templates (
    id uuid primary key,
    user_id text not null,
    name text not null,
    format text not null,
    version bigint not null,
    created_at timestamptz not null,
    saved_at timestamptz not null
);
create index on templates (user_id, created_at desc, id desc);
"""


class TemplateItem(msgspec.Struct, frozen=True):
    """A template in a list."""

    id: UUID
    name: str
    format: Format
    version: int
    created_at: datetime
    saved_at: datetime


class TemplateView(msgspec.Struct, frozen=True):
    """A template, as whoever owns it sees it. `version` counts its contents; `saved_at` is when this one came."""

    id: UUID
    name: str
    format: Format
    body: str
    version: int
    created_at: datetime
    saved_at: datetime

    @classmethod
    def of(cls, template: Template) -> Self:
        """The view of a template that has a content."""
        assert template.id
        assert template.content
        assert template.created_at
        assert template.saved_at
        content = template.content
        return cls(
            template.id,
            content.name,
            content.format,
            content.body,
            template.version,
            template.created_at,
            template.saved_at,
        )


SAVE_TEMPLATES = """
insert into templates (id, user_id, name, format, version, created_at, saved_at)
select id, user_id, name, format, version, created_at, saved_at
from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::timestamptz[], $7::timestamptz[])
    as new (id, user_id, name, format, version, created_at, saved_at)
on conflict (id) do update set name = excluded.name, format = excluded.format, version = excluded.version,
                               saved_at = excluded.saved_at
"""

DELETE_TEMPLATES = "delete from templates where id = any($1::uuid[])"


async def project_templates(connection: asyncpg.Connection, events: Sequence[Recorded]) -> None:
    """Write each template as the batch of events leaves it, and take away what was deleted."""
    created: dict[UUID, datetime] = {}  # or last saved, where the row is there already and keeps its own
    left: dict[UUID, tuple[object, ...] | None] = {}
    for recorded in events:
        match recorded.event:
            case TemplateSaved(template_id, user_id, name, form, _, at) as e:
                created_at = created.setdefault(template_id, at)
                left[template_id] = (template_id, user_id, name, form, e.version, created_at, at)
            case TemplateDeleted() as e:
                left[e.template_id] = None
    if saved := [row for row in left.values() if row]:
        await connection.execute(SAVE_TEMPLATES, *zip(*saved, strict=True))
    if deleted := [template_id for template_id, row in left.items() if row is None]:
        await connection.execute(DELETE_TEMPLATES, deleted)


TEMPLATES_OF_USER = """
select id, name, format, version, created_at, saved_at
from templates
where user_id = $1
  and ($2::timestamptz is null or (created_at, id) < ($2, $3::uuid))
order by created_at desc, id desc
limit $4
"""


class TemplatePage(msgspec.Struct, frozen=True):
    """Some of your templates, newest first. `next_cursor` is null on the last page."""

    items: list[TemplateItem]
    next_cursor: str | None


async def templates(pool: asyncpg.Pool, user_id: str, *, limit: int, cursor: str | None) -> TemplatePage:
    """A user's templates."""
    rows = await pool.fetch(TEMPLATES_OF_USER, user_id, *position_of(cursor), limit + 1)
    items = [TemplateItem(**row) for row in rows[:limit]]
    return TemplatePage(items, cursor_of(items[-1].created_at, items[-1].id) if len(rows) > limit else None)
