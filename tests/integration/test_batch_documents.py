"""Templates and documents on real servers: kept, listed, changed, rendered, fetched."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import UUID

import asyncpg
import httpx
import msgspec
import pytest
from litestar import Router

from common import projector
from common.aggregate import Aggregate
from common.clock import new_id, now
from common.headers import POLICY
from common.http import create_app, given
from common.projector import Projected, Projector, ReadModel, ReadYourWrites
from common.runtime import Platform, Service, running
from services.batch.kinds import Answer, Done, Refused, Task, Work
from services.batch.kinds_documents import DocumentController, DocumentDesk, RenderDocument, RenderDocuments
from services.batch.renderers import Renderers
from services.batch.templates import (
    CACHED,
    TABLES,
    TEMPLATES,
    Content,
    CreateTemplate,
    TemplateShelf,
    project_templates,
)
from services.batch.templates_api import TemplateController, TemplateDesk
from tests.harness import eventually

ADA, EVE = ({"Authorization": f"Bearer dev:{name}"} for name in ("ada", "eve"))
TICKET = {"name": "E-ticket", "format": "pdf", "body": "{{ show }}\n{{ qr(number) }}\nSeat {{ seat }}\n"}
PAGE = {"name": "Page", "format": "html", "body": "<html><h1>{{ show }}</h1>"}
LOOP = "a\n{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
MODEL = ReadModel("documents", TABLES, {"BATCH": project_templates})


class Desk(msgspec.Struct, frozen=True):
    """The doors, the kind, and what they stand on."""

    client: httpx.AsyncClient
    kind: RenderDocuments
    pool: asyncpg.Pool
    projected: Projected
    platform: Platform

    async def template(self, **content: str) -> dict[str, Any]:
        made = await self.client.post("/api/templates", json=TICKET | content, headers=ADA)
        assert made.status_code == 201, made.text
        body: dict[str, Any] = made.json()
        return body

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection in a transaction."""
        async with self.pool.acquire() as connection, connection.transaction():
            yield cast(asyncpg.Connection, connection)

    async def execute(self, *operations: RenderDocument, user_id: str = "ada") -> tuple[list[UUID], Sequence[Answer]]:
        """Execute operations in a transaction of their own; their ids and the answers."""
        tasks = [Task(new_id(), user_id, operation) for operation in operations]
        async with self.transaction() as connection:
            answers = await self.kind.execute_many(Work(connection), tasks)
        return [task.id for task in tasks], answers

    async def rows(self) -> list[tuple[Any, ...]]:
        """What the read model has."""
        return [tuple(row) for row in await self.pool.fetch("select id, name, format, version from templates")]


@pytest.fixture(scope="module")
async def renderers() -> AsyncIterator[Renderers]:
    async with Renderers(computing=0.5, seconds=60) as renderers:
        yield renderers


@pytest.fixture
async def desk(platform: Platform, renderers: Renderers) -> AsyncIterator[Desk]:
    url, log = platform.settings.database_url, platform.event_log
    await projector.create(MODEL, log, url)
    aggregate, projected = Aggregate(TEMPLATES, log, cache=CACHED), Projected(MODEL, "BATCH", log, url)
    shelf = TemplateShelf(aggregate, log)
    async with (
        platform.pool(MODEL.name) as pool,
        running([Projector(MODEL, "BATCH", log, url), projected]),
    ):
        await pool.execute(RenderDocuments.tables)
        things = given(
            template_desk=TemplateDesk(ReadYourWrites(aggregate, projected), shelf, renderers, pool),
            document_desk=DocumentDesk(pool),
        )
        router = Router("/", route_handlers=[TemplateController, DocumentController], dependencies=things)
        app = create_app([Service("batch", [router])], platform.settings)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(cast(Any, app)), base_url="http://127.0.0.1"
        ) as client:
            yield Desk(client, RenderDocuments(shelf, renderers), pool, projected, platform)


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    return body


# Templates


async def test_a_template_is_kept_shown_and_listed(desk: Desk) -> None:
    made = await desk.client.post("/api/templates", json=TICKET, headers=ADA)
    assert made.status_code == 201
    template = made.json()
    assert {name: template[name] for name in TICKET} == TICKET
    assert (template["version"], made.headers["etag"]) == (1, '"1"')
    assert made.headers["location"] == f"/api/templates/{template['id']}"
    shown = await desk.client.get(made.headers["location"], headers=ADA)
    assert (shown.json(), shown.headers["etag"]) == (template, '"1"')
    listed = (await desk.client.get("/api/templates", headers=ADA)).json()
    item = {name: value for name, value in template.items() if name != "body"}
    assert listed == {"items": [item], "next_cursor": None}


async def test_a_list_is_read_page_by_page_newest_first(desk: Desk) -> None:
    made = [await desk.template(name=f"Template {n}") for n in range(5)]
    seen, cursor = [], ""
    while True:
        page = (await desk.client.get(f"/api/templates?limit=2{cursor}", headers=ADA)).json()
        seen += [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == [template["id"] for template in reversed(made)]
    problem(await desk.client.get("/api/templates?cursor=x", headers=ADA), 400)


async def test_a_change_makes_a_version_and_older_ones_can_be_read(desk: Desk) -> None:
    template = await desk.template()
    path = f"/api/templates/{template['id']}"
    changed = await desk.client.put(path, json=PAGE, headers=ADA | {"If-Match": '"1"'})
    assert (changed.status_code, changed.headers["etag"]) == (200, '"2"')
    after = changed.json()
    assert {name: after[name] for name in PAGE} == PAGE
    assert (after["version"], after["created_at"]) == (2, template["created_at"])
    assert after["saved_at"] > template["saved_at"]
    for version, wanted in ((1, template), (2, after)):
        shown = await desk.client.get(f"{path}?version={version}", headers=ADA)
        assert (shown.json(), shown.headers["etag"]) == (wanted, f'"{version}"')
    assert (await desk.client.get(path, headers=ADA)).json() == after
    assert "no version 3" in problem(await desk.client.get(f"{path}?version=3", headers=ADA), 404)["detail"]
    assert await desk.rows() == [(UUID(template["id"]), "Page", "html", 2)]


async def test_the_same_content_again_is_no_new_version(desk: Desk) -> None:
    template = await desk.template()
    again = await desk.client.put(f"/api/templates/{template['id']}", json=TICKET, headers=ADA | {"If-Match": "*"})
    assert again.json() == template


async def test_a_change_needs_the_version_that_was_seen(desk: Desk) -> None:
    path = f"/api/templates/{(await desk.template())['id']}"
    assert "If-Match" in problem(await desk.client.put(path, json=PAGE, headers=ADA), 428)["detail"]
    stale = problem(await desk.client.put(path, json=PAGE, headers=ADA | {"If-Match": '"7"'}), 412)
    assert (stale["version"], "you saw 7" in stale["detail"]) == (1, True)
    problem(await desk.client.put(path, json=PAGE, headers=ADA | {"If-Match": "one"}), 400)
    assert (await desk.client.get(path, headers=ADA)).headers["etag"] == '"1"'


async def test_of_two_changes_at_once_one_is_made(desk: Desk) -> None:
    path = f"/api/templates/{(await desk.template())['id']}"
    answers = await asyncio.gather(
        *(desk.client.put(path, json=PAGE | {"name": f"Name {n}"}, headers=ADA | {"If-Match": '"1"'}) for n in range(5))
    )
    assert sorted(answer.status_code for answer in answers) == [200, 412, 412, 412, 412]


async def test_a_deleted_template_is_gone_in_every_version(desk: Desk) -> None:
    template = await desk.template()
    path = f"/api/templates/{template['id']}"
    for _ in range(2):
        gone = await desk.client.delete(path, headers=ADA)
        assert (gone.status_code, gone.content) == (204, b"")
    for version in ("", "?version=1"):
        problem(await desk.client.get(path + version, headers=ADA), 404)
    problem(await desk.client.put(path, json=PAGE, headers=ADA | {"If-Match": "*"}), 404)
    assert (await desk.client.get("/api/templates", headers=ADA)).json()["items"] == []


async def test_somebody_elses_template_answers_like_none(desk: Desk) -> None:
    template = await desk.template()
    for template_id in (template["id"], str(new_id())):
        path = f"/api/templates/{template_id}"
        answers = [
            await desk.client.get(path, headers=EVE),
            await desk.client.get(f"{path}?version=1", headers=EVE),
            await desk.client.put(path, json=PAGE, headers=EVE | {"If-Match": "*"}),
            await desk.client.delete(path, headers=EVE),
        ]
        assert {problem(answer, 404)["detail"] for answer in answers} == {"You have no such template."}
    assert (await desk.client.get("/api/templates", headers=EVE)).json()["items"] == []
    problem(await desk.client.get("/api/templates"), 401)


async def test_a_template_that_does_not_compile_is_refused_with_its_line(desk: Desk) -> None:
    broken = TICKET | {"body": "{{ show }}\n{% if %}"}
    refused = problem(await desk.client.post("/api/templates", json=broken, headers=ADA), 422)
    assert (refused["errors"][0]["field"], refused["line"]) == ("body", 2)
    assert refused["reason"] == "Expected an expression, got 'end of statement block'"
    assert refused["detail"] == f"body: line 2: {refused['reason']}"
    path = f"/api/templates/{(await desk.template())['id']}"
    problem(await desk.client.put(path, json=broken, headers=ADA | {"If-Match": "*"}), 422)
    including = TICKET | {"body": "{% include '/etc/passwd' %}"}
    assert problem(await desk.client.post("/api/templates", json=including, headers=ADA), 422)["line"] == 1


async def test_a_preview_is_the_document_and_nothing_is_kept(desk: Desk) -> None:
    async def preview(**what: object) -> httpx.Response:
        return await desk.client.post("/api/templates/preview", json=what, headers=ADA)

    page = await preview(format="html", body="<h1>{{ show }}</h1>", data={"show": "<b>Night</b>"})
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "<h1>&lt;b&gt;Night&lt;/b&gt;</h1>" in page.text
    assert page.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    assert page.headers["content-disposition"] == 'attachment; filename="preview.html"'
    paper = await preview(format="pdf", body="Title\n{{ show }}", data={"show": "Night"})
    assert (paper.headers["content-type"], paper.content[:5]) == ("application/pdf", b"%PDF-")
    refused = problem(await preview(format="pdf", body="Title\n\n{{ missing }}"), 422)
    assert (refused["errors"][0]["field"], refused["line"]) == ("body", 3)
    problem(await preview(format="pdf", body="x", data=[]), 400)
    problem(await desk.client.post("/api/templates/preview", json={"format": "pdf", "body": "x"}), 401)
    assert await desk.rows() == []


@pytest.mark.parametrize(
    "wrong", [{"body": ""}, {"body": "a\x00b"}, {"body": "a" * 65_537}, {"name": ""}, {"format": "docx"}, {"more": 1}]
)
async def test_what_is_no_template_is_refused_at_its_field(desk: Desk, wrong: dict[str, object]) -> None:
    refused = problem(await desk.client.post("/api/templates", json=TICKET | wrong, headers=ADA), 400)
    assert [each["field"] for each in refused["errors"]] == list(wrong)


async def test_the_list_is_rebuilt_from_the_log_in_one_piece(desk: Desk) -> None:
    kept, gone = await desk.template(), await desk.template()
    changed = await desk.client.put(f"/api/templates/{kept['id']}", json=PAGE, headers=ADA | {"If-Match": '"1"'})
    await desk.client.delete(f"/api/templates/{gone['id']}", headers=ADA)
    listed = (await desk.client.get("/api/templates", headers=ADA)).json()
    await projector.rebuild(MODEL, desk.platform.event_log, desk.platform.settings.database_url)
    again = (await desk.client.get("/api/templates", headers=ADA)).json()
    assert again == listed
    assert [item["id"] for item in again["items"]] == [kept["id"]]
    assert again["items"][0]["created_at"] == kept["created_at"] < changed.json()["saved_at"]


# Documents


async def test_operations_become_documents_which_only_their_owner_fetches(desk: Desk) -> None:
    ticket, page = await desk.template(), await desk.template(**PAGE)
    data = {"show": "Opening <night>", "number": "A-17", "seat": "12 F"}
    ids, answers = await desk.execute(
        RenderDocument(UUID(ticket["id"]), data=data), RenderDocument(UUID(page["id"]), data=data)
    )
    assert answers == [Done(f"/api/documents/{each}") for each in ids]
    pdf, html = [await desk.client.get(f"/api/documents/{each}", headers=ADA) for each in ids]
    assert (pdf.status_code, pdf.headers["content-type"], pdf.content[:4]) == (200, "application/pdf", b"%PDF")
    assert pdf.headers["content-disposition"] == f'attachment; filename="{ids[0]}.pdf"'
    assert pdf.headers["content-security-policy"] == POLICY
    assert html.content == b"<html><h1>Opening &lt;night&gt;</h1>"
    assert html.headers["content-type"] == "text/html; charset=utf-8"
    assert html.headers["content-disposition"] == f'attachment; filename="{ids[1]}.html"'
    assert html.headers["content-security-policy"].startswith(f"sandbox; {POLICY}; style-src")
    assert {answer.headers["x-content-type-options"] for answer in (pdf, html)} == {"nosniff"}
    documented = (await desk.client.get("/api/openapi.json")).json()["paths"]["/api/documents/{document_id}"]["get"]
    assert set(documented["responses"]["200"]["content"]) == {
        answer.headers["content-type"].partition(";")[0] for answer in (pdf, html)
    }
    for path in (f"/api/documents/{ids[0]}", f"/api/documents/{new_id()}"):
        assert "You have no document" in problem(await desk.client.get(path, headers=EVE), 404)["detail"]
    problem(await desk.client.get(f"/api/documents/{ids[0]}"), 401)


async def test_a_document_is_made_of_the_version_that_was_asked_for(desk: Desk) -> None:
    template_id = UUID((await desk.template(**PAGE))["id"])
    changed = PAGE | {"body": "<html><h2>{{ show }}</h2>"}
    await desk.client.put(f"/api/templates/{template_id}", json=changed, headers=ADA | {"If-Match": "*"})
    ids, _ = await desk.execute(*(RenderDocument(template_id, version, {"show": "Show"}) for version in (None, 1, 2)))
    pages = [(await desk.client.get(f"/api/documents/{each}", headers=ADA)).text for each in ids]
    assert pages == [f"<html><h{n}>Show</h{n}>" for n in (2, 1, 2)]


async def test_each_bad_row_is_refused_with_its_reason_and_the_others_are_made(desk: Desk) -> None:
    page = UUID((await desk.template(**PAGE))["id"])
    looping = UUID((await desk.template(body=LOOP))["id"])
    unknown, show = new_id(), {"show": "Show"}
    ids, answers = await desk.execute(
        RenderDocument(page, data=show),
        RenderDocument(page, data={"title": "Show"}),
        RenderDocument(looping),
        RenderDocument(unknown, data=show),
        RenderDocument(page, 2, show),
        RenderDocument(page, data=show),
    )
    made = Done(f"/api/documents/{ids[0]}"), Done(f"/api/documents/{ids[5]}")
    assert answers == [
        made[0],
        Refused("Template 'Page' (version 1): line 1: 'show' is undefined"),
        Refused("Template 'E-ticket' (version 1): line 2: it takes more than 0.5 s"),
        Refused(f"template_id {unknown}: You have no such template."),
        Refused(f"template_id {page}: The template has no version 2; it is at version 1."),
        made[1],
    ]
    stored = await desk.pool.fetch("select id, user_id from batch_data.documents order by id")
    assert [tuple(row) for row in stored] == [(ids[0], "ada"), (ids[5], "ada")]


async def test_nobody_makes_documents_of_somebody_elses_template(desk: Desk) -> None:
    template_id = UUID((await desk.template(**PAGE))["id"])
    _, answers = await desk.execute(RenderDocument(template_id, data={"show": "Show"}), user_id="eve")
    assert answers == [Refused(f"template_id {template_id}: You have no such template.")]


async def test_documents_are_kept_only_when_the_transaction_is(desk: Desk) -> None:
    operation = RenderDocument(UUID((await desk.template(**PAGE))["id"]), data={"show": "Show"})
    task = Task(new_id(), "ada", operation)
    async with desk.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        answers = await desk.kind.execute_many(Work(cast(asyncpg.Connection, connection)), [task])
        await transaction.rollback()
    assert answers == [Done(f"/api/documents/{task.id}")]
    problem(await desk.client.get(f"/api/documents/{task.id}", headers=ADA), 404)
    assert len((await desk.execute(operation))[1]) == 1
    assert await desk.pool.fetchval("select count(*) from batch_data.documents") == 1


async def test_a_chunk_is_kept_by_one_statement(desk: Desk) -> None:
    operation = RenderDocument(UUID((await desk.template(**PAGE))["id"]), data={"show": "Show"})
    statements: list[str] = []
    async with desk.transaction() as connection:
        with connection.query_logger(lambda query: statements.append(query.query)):
            tasks = [Task(new_id(), "ada", operation) for _ in range(RenderDocuments.limit)]
            answers = await desk.kind.execute_many(Work(connection), tasks)
    assert answers == [Done(f"/api/documents/{task.id}") for task in tasks]
    assert len([statement for statement in statements if "batch_data.documents" in statement]) == 1


async def test_a_template_can_be_used_before_the_list_has_it(desk: Desk) -> None:
    template_id, content = new_id(), Content("Page", "html", "<html>{{ show }}")
    elsewhere = Aggregate(TEMPLATES, desk.platform.event_log)
    async with desk.transaction() as connection:
        await connection.execute(projector.MAY_WRITE.format(MODEL.name))  # the projector waits
        await elsewhere.handle(template_id, CreateTemplate(template_id, "ada", content, now()))
        [document_id], answers = await desk.execute(RenderDocument(template_id, data={"show": "Show"}))
        assert answers == [Done(f"/api/documents/{document_id}")]
        assert await desk.rows() == []
    await eventually(desk.rows, [(template_id, "Page", "html", 1)])
