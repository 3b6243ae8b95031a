"""Documents: what templates make, what they may not, and what becomes of those that loop or grow."""

import asyncio
import io
import re
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import psutil  # type: ignore[import-untyped]  # it has no types
import pytest
import segno
from hypothesis import given as given_any
from hypothesis import settings as examples
from hypothesis import strategies as st
from pypdf import PdfReader

from common.aggregate import Aggregate
from common.errors import NotFound, Stale
from common.event_log import Draft
from common.events import TemplateDeleted, TemplateEvent, TemplateSaved
from common.memory_log import MemoryLog
from common.pdf import Line, pdf
from services.batch.documents import check, render
from services.batch.kinds_documents import RenderDocument
from services.batch.renderers import BadTemplate, Format, Renderers
from services.batch.templates import (
    TEMPLATES,
    Content,
    CreateTemplate,
    DeleteTemplate,
    ReplaceTemplate,
    Template,
    TemplateCommand,
    TemplateShelf,
)
from tests.given import Given
from tests.harness import eventually
from tests.paper import codes_in, text_in

FORMATS: list[Format] = ["html", "pdf"]
TICKET = """\
{{ show }}
{{ qr("https://example.org/t/" ~ number) }}
Ticket {{ number }}
{% for seat in seats %}
Seat {{ seat }}
{% endfor %}
"""
DATA = {"show": "Opening night", "number": "A-17", "seats": ["12 F", "13 F"]}


# What is made


def test_a_page_escapes_what_is_put_in_and_not_what_the_template_says() -> None:
    page = render("html", "<h1>{{ name }}</h1>", {"name": "<script>alert('1 & 2')</script>"}).decode()
    assert "<h1>&lt;script&gt;alert(&#39;1 &amp; 2&#39;)&lt;/script&gt;</h1>" in page


def test_a_page_has_its_encoding_inside_also_where_the_template_left_it_out() -> None:
    page = render("html", "<p>{{ city }}</p>", {"city": "Łódź €"})
    assert page.decode().startswith("<!doctype html>")
    assert '<meta charset="utf-8">' in page.decode()
    assert render("html", "\n<!DOCTYPE html><p>{{ city }}", {"city": "Łódź"}).decode() == "\n<!DOCTYPE html><p>Łódź"


def test_a_page_shows_a_code_as_a_drawing_of_its_own() -> None:
    page = render("html", "{{ qr(number) }}", {"number": "<A-17>"}).decode()
    assert page.count("<svg") == page.count("</svg>") == 1
    assert "&lt;svg" not in page
    [path] = re.findall(r'<path [^>]*d="([^"]+)"', page)
    drawn = segno.make_qr("<A-17>", error="m").svg_inline(scale=4)
    assert path in drawn


def test_a_ticket_has_its_title_its_lines_and_its_code() -> None:
    document = render("pdf", TICKET, DATA)
    assert document.startswith(b"%PDF")
    assert text_in(document).split("\n") == ["Opening night", "Ticket A-17", "Seat 12 F", "Seat 13 F"]
    assert codes_in(document) == [["https://example.org/t/A-17"]]
    metadata = PdfReader(io.BytesIO(document)).metadata
    assert metadata
    assert metadata.title == "Opening night"


def test_a_ticket_is_text_so_nothing_in_it_is_escaped() -> None:
    assert text_in(render("pdf", "{{ show }}", {"show": "Romeo & Juliet <live>"})) == "Romeo & Juliet <live>"


@pytest.mark.parametrize(
    "text", ["Zażółć gęślą jaźń 25 €", "Ærøskøbing, İstanbul, Țară, Győr", "Việt Nam", "Αθήνα", "Москва", "„“—…«»"]
)
def test_a_ticket_shows_any_latin_text_greek_and_cyrillic(text: str) -> None:
    assert text_in(pdf([Line("Title"), Line(text)])).split("\n")[1:] == [text]


def test_what_the_fonts_do_not_have_is_shown_plainer_or_as_missing_and_never_fails() -> None:
    document = pdf([Line("Show \N{ADMISSION TICKETS}\ufe0f"), Line("\uff46in\uff11\uff12 你\x07\u200d好\ud800")])
    assert text_in(document).split("\n") == ["Show \ufffd", "fin12 \ufffd\ufffd\ufffd"]


@examples(deadline=None, max_examples=50)
@given_any(st.lists(st.text(max_size=40), max_size=5))
def test_any_text_makes_a_ticket(lines: list[str]) -> None:
    assert pdf([Line(line) for line in lines]).startswith(b"%PDF")


def test_codes_stand_below_each_other_and_go_on_to_the_next_page() -> None:
    texts = [f"ticket {n}" for n in range(7)]
    document = render("pdf", "Show\n{% for text in texts %}{{ qr(text) }}{% endfor %}\nend", {"texts": texts})
    assert codes_in(document) == [texts[:4], texts[4:]]
    assert text_in(document).split("\n") == ["Show", "end"]


def test_a_line_moves_down_to_stand_beside_its_code() -> None:
    page = PdfReader(io.BytesIO(pdf([Line("Show"), *(Line(f"seat {n}", ["x"]) for n in range(4))]))).pages[0]
    lines: list[float] = []
    tops: list[float] = []

    def line(text: str, _: object, place: list[float], *__: object) -> None:
        if "seat" in text:
            lines.append(place[5])

    def picture(operator: bytes, _: object, place: list[float], *__: object) -> None:
        if operator == b"Do":
            tops.append(place[3] + place[5])

    page.extract_text(visitor_text=line, visitor_operand_before=picture)
    assert len(lines) == len(tops) == 4
    assert all(0 < top - below < 20 for top, below in zip(tops, lines, strict=True))  # points: within the line


def test_a_value_cannot_stand_for_a_code_that_there_is_not() -> None:
    assert text_in(render("pdf", "T\n{{ x }}", {"x": "\x020\x03a \x02999\x03b"})).split("\n") == ["T", "a b"]


@pytest.mark.parametrize("text", ["A-17", "https://example.org/?a=1&b=2", "żółw €", "x" * 1000])
def test_a_code_says_what_it_was_given(text: str) -> None:
    assert codes_in(render("pdf", "T\n{{ qr(text) }}", {"text": text})) == [[text]]


# What is refused

BAD: list[tuple[str, int | None, str]] = [
    ("a\n{% if %}", 2, "Expected an expression, got 'end of statement block'"),
    ("a\n{% for x in y %}\nb", 3, "Unexpected end of template"),
    ("{{ 'a'|sparkle }}", 1, "No filter named 'sparkle'"),
    ("a\n\n{% include 'other' %}", 3, "cannot include, import or extend another"),
    ("{% extends 'other' %}", 1, "cannot include, import or extend another"),
    ("{% import 'other' as other %}", 1, "cannot include, import or extend another"),
    ("{% from 'other' import other %}", 1, "cannot include, import or extend another"),
]
FAILING: list[tuple[str, int | None, str]] = [
    ("a\n{{ seat }}", 2, "'seat' is undefined"),
    ("a\n{{ show.time }}", 2, "has no attribute 'time'"),
    ("{{ qr(seat) }}", 1, "'seat' is undefined"),
    ("{{ qr('') }}", 1, "a code needs a text"),
    ("{{ qr('x' * 5000) }}", 1, "too long for a code"),
    ("{% for n in range(21) %}\n{{ qr(n) }}{% endfor %}", 2, "at most 20 codes"),
    ("{{ 1 / 0 }}", 1, "division by zero"),
    ("{{ show + 1 }}", 1, "can only concatenate str"),
    ("\n{{ ''.__class__.__mro__ }}", 2, "'__class__' of 'str' object is unsafe"),
    ("{{ ''|attr('__class__') }}", 1, "'__class__' of 'str' object is unsafe"),
    ("{{ '{0.__class__}'.format(show) }}", 1, "'__class__' of 'str' object is unsafe"),
    ("{{ qr.__globals__ }}", 1, "'__globals__' of 'function' object is unsafe"),
    ("{{ cycler.__init__.__globals__.os }}", 1, "'__init__' of 'type' object is unsafe"),
    ("{{ self.__init__ }}", 1, "'__init__' of 'TemplateReference' object is unsafe"),
    ("{{ [].append(1) }}", 1, "'append' of 'list' object is unsafe"),
    ("{% for i in range(10**9) %}x{% endfor %}", 1, "Range too big"),
    ("{{ 'a' * 10**9 }}", 1, "the product is too large"),
    ("{{ 10**9 * [1] }}", 1, "the product is too large"),
    ("{{ 10 ** (10**9) }}", 1, "the power is too large"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", 1, "nested too deeply, or calls itself without end"),
    ("{% for i in range(1100) %}{{ 'a' * 1000 }}{% endfor %}", None, "more than 1,000,000 characters"),
]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("body", "line", "reason"), BAD)
def test_what_cannot_become_a_document_is_told_with_its_line(
    form: Format, body: str, line: int | None, reason: str
) -> None:
    with pytest.raises(BadTemplate, match=re.escape(reason)) as refusal:
        check(form, body)
    assert refusal.value.line == line
    assert str(refusal.value).startswith(f"line {line}: ")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("body", "line", "reason"), FAILING)
def test_what_fails_with_some_data_is_told_with_its_line(
    form: Format, body: str, line: int | None, reason: str
) -> None:
    check(form, body)
    with pytest.raises(BadTemplate, match=re.escape(reason)) as refusal:
        render(form, body, {"show": "Opening night"})
    assert refusal.value.line == line


def test_a_ticket_of_too_many_pages_is_refused() -> None:
    assert pdf([Line("long")] * 700).startswith(b"%PDF")
    with pytest.raises(ValueError, match="more than 20 pages"):
        pdf([Line("long")] * 800)


# Processes that can be spared


@pytest.fixture(scope="module")
async def renderers() -> AsyncIterator[Renderers]:
    async with Renderers(computing=0.5, seconds=60) as renderers:
        yield renderers


LOOP = "a\n{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def processes() -> list[psutil.Process]:
    """The rendering processes of this test run."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it is just ending
            if "services.batch.documents" in child.cmdline():
                found.append(child)
    return found


async def test_a_process_renders_what_this_one_would(renderers: Renderers) -> None:
    assert await renderers.render("html", TICKET, DATA) == render("html", TICKET, DATA)
    assert text_in(await renderers.render("pdf", TICKET, DATA)) == text_in(render("pdf", TICKET, DATA))
    await renderers.check("pdf", TICKET)


async def test_a_process_is_used_again_and_there_are_no_more_than_wanted(renderers: Renderers) -> None:
    await asyncio.gather(*(renderers.render("html", "{{ n }}", {"n": n}) for n in range(20)))
    before = {process.pid for process in processes()}
    pages = await asyncio.gather(*(renderers.render("html", "<html>{{ n }}", {"n": n}) for n in range(20)))
    assert pages == [f"<html>{n}".encode() for n in range(20)]
    assert {process.pid for process in processes()} == before
    assert 1 <= len(before) <= 2


@pytest.mark.parametrize("form", FORMATS)
async def test_a_template_that_loops_is_stopped_and_told_where(renderers: Renderers, form: Format) -> None:
    with pytest.raises(BadTemplate, match=r"^line 2: it takes more than 0.5 s$"):
        await renderers.render(form, LOOP, {})
    assert await renderers.render("html", "<html>", {}) == b"<html>"


@pytest.mark.parametrize(
    "body",
    [
        "{{ 'a'.ljust(10**9) }}",
        "{{ 'a'|center(10**9) }}",  # Jinja would do it when it compiles
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    ],
)
async def test_a_template_that_grows_is_stopped_and_told_where(body: str) -> None:
    async with Renderers(1, computing=60, seconds=60) as patient:
        with pytest.raises(BadTemplate, match="needs too much memory") as refusal:
            await patient.render("html", body, {})
        assert refusal.value.line == 1
        assert await patient.render("html", "<html>", {}) == b"<html>"


@pytest.mark.parametrize("body", ["{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}", "{{ " + "-" * 30_000 + "1 }}"])
async def test_a_template_that_is_nested_too_deeply_is_told(renderers: Renderers, body: str) -> None:
    with pytest.raises(BadTemplate, match="nested too deeply"):
        await renderers.check("html", body)


async def test_what_does_not_compile_is_told_with_its_line_by_a_process(renderers: Renderers) -> None:
    with pytest.raises(BadTemplate, match="Expected an expression") as refusal:
        await renderers.check("html", "a\n{% if %}")
    assert refusal.value.line == 2


async def test_a_process_that_does_not_stop_by_itself_is_killed_and_replaced() -> None:
    async with Renderers(1, computing=600, seconds=2) as renderers:
        with pytest.raises(BadTemplate, match="it takes more than 2 s"):
            await renderers.render("html", LOOP, {})
        assert await renderers.render("html", "<html>", {}) == b"<html>"


async def test_a_process_that_dies_fails_what_it_rendered_and_is_replaced() -> None:
    others = {process.pid for process in processes()}

    def mine() -> list[psutil.Process]:
        return [process for process in processes() if process.pid not in others]

    async def busy() -> bool:
        return any(process.cpu_times().user > 5 for process in mine())  # more than its start takes

    async with Renderers(1, computing=600, seconds=600) as renderers:
        rendering = asyncio.create_task(renderers.render("html", LOOP, {}))
        await eventually(busy, True, within=90)
        [process] = mine()
        process.kill()
        with pytest.raises(BadTemplate, match="it broke the process that rendered it"):
            await rendering
        assert await renderers.render("html", "<html>", {}) == b"<html>"
        [idle] = mine()
        idle.kill()

        async def gone() -> bool:
            return not mine()

        await eventually(gone, True)
        assert await renderers.render("html", "<html>", {}) == b"<html>"


async def test_who_no_longer_waits_leaves_no_process_behind_that_works() -> None:
    others = {process.pid for process in processes()}

    def mine() -> set[int]:
        return {process.pid for process in processes()} - others

    async def started() -> bool:
        return bool(mine())

    async with Renderers(1, computing=600, seconds=600) as renderers:
        rendering = asyncio.create_task(renderers.render("html", LOOP, {}))
        await eventually(started, True)
        rendering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await rendering
        assert not mine()
        assert await renderers.render("html", "<html>", {}) == b"<html>"


PARENT = """
import asyncio, psutil
from services.batch.renderers import Renderers

async def main():
    renderers = Renderers(1, computing=1)
    rendering = asyncio.create_task(renderers.render("html", {body!r}, {{}}))
    while not (children := psutil.Process().children()):
        await asyncio.sleep(0.01)
    print(children[0].pid, flush=True)
    await rendering

asyncio.run(main())
"""


@pytest.mark.parametrize("signalled", [signal.SIGKILL, signal.SIGTERM])
async def test_processes_end_with_the_one_that_started_them_even_if_it_is_killed(signalled: signal.Signals) -> None:
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT.format(body=LOOP), stdout=PIPE)
    assert parent.stdout
    pid = int(await parent.stdout.readline())
    parent.send_signal(signalled)
    await parent.wait()

    async def ended() -> bool:
        try:
            return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    await eventually(ended, True)


def test_a_reason_is_a_line_of_text_whatever_it_quotes() -> None:
    assert BadTemplate(2, "no 'a\x00\n\ud800\u202eé'").reason == "no 'a\ufffd\ufffd\ufffd\ufffdé'"
    assert len(BadTemplate(2, "x" * 10_000).reason) == 300


@pytest.mark.parametrize("form", FORMATS)
async def test_half_a_character_does_not_break_a_document(renderers: Renderers, form: Format) -> None:
    document = await renderers.render(form, r'{{ "a\ud800b" }}', {})
    assert (b"a?b" in document) if form == "html" else (text_in(document) == "a\ufffdb")


async def test_a_process_knows_no_setting_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOXOFFICE_DATABASE_URL", "postgresql://secret")
    others = {process.pid for process in processes()}
    async with Renderers(1) as renderers:
        await renderers.check("html", "<html>")
        [process] = [process for process in processes() if process.pid not in others]
        environment = process.environ()
    assert "PATH" in environment
    assert not [name for name in environment if name.startswith("BOXOFFICE_")]


# Operations


TEMPLATE = UUID(int=7)


@pytest.mark.parametrize("data", [{"seat": "12 F", "rows": [1, 2]}, '{"seat": "12 F", "rows": [1, 2]}'])
def test_data_is_an_object_or_its_text(data: object) -> None:
    operation = msgspec.convert({"template_id": str(TEMPLATE), "data": data}, RenderDocument)
    assert operation.values == {"seat": "12 F", "rows": [1, 2]}
    again = msgspec.json.decode(msgspec.json.encode(operation), type=RenderDocument)
    assert again == operation


def test_a_row_of_a_file_is_an_operation() -> None:
    row = {"template_id": str(TEMPLATE), "template_version": "3", "data": '{"n": 1}'}
    assert msgspec.convert(row, RenderDocument, strict=False) == RenderDocument(TEMPLATE, 3, {"n": 1})


@pytest.mark.parametrize("data", ["", "{", "[1]", '"text"', "null", "{'n': 1}", '{"n": NaN}', '{"n":' + "[" * 100_000])
def test_what_is_no_object_is_refused_as_data(data: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="data: Expected a JSON object"):
        msgspec.convert({"template_id": str(TEMPLATE), "data": data}, RenderDocument)


async def test_any_json_can_be_data(renderers: Renderers) -> None:
    body = "<html>{{ n }} {{ x }} {{ a.b[1] }} {{ t }} {{ z is none }}"
    data = msgspec.json.decode(b'{"n": 1%s, "x": 1.5, "a": {"b": [1, "\\u20ac"]}, "t": true, "z": null}' % (b"0" * 30))
    assert await renderers.render("html", body, data) == f"<html>1{'0' * 30} 1.5 € True True".encode()


# Templates

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)
FIRST, SECOND = Content("E-ticket", "pdf", "{{ show }}"), Content("E-ticket", "html", "<h1>{{ show }}</h1>")
saved = TemplateSaved(TEMPLATE, "ada", "E-ticket", "pdf", "{{ show }}", NOON)
saved_again = TemplateSaved(TEMPLATE, "ada", "E-ticket", "html", "<h1>{{ show }}</h1>", LATER)
deleted = TemplateDeleted(TEMPLATE, "ada", LATER)


def given(*events: TemplateEvent) -> Given[TemplateCommand, Template, TemplateEvent]:
    return Given(TEMPLATES, *events)


def test_a_template_is_created_once() -> None:
    create = CreateTemplate(TEMPLATE, "ada", FIRST, NOON)
    given().when(create).then(saved)
    given(saved).when(create).then()


def test_another_content_is_another_version() -> None:
    given(saved).when(ReplaceTemplate(TEMPLATE, "ada", SECOND, 1, LATER)).then(saved_again)
    state = given(saved, saved_again).state
    assert (state.version, state.content, state.created_at, state.saved_at) == (2, SECOND, NOON, LATER)


def test_the_same_content_again_is_no_version() -> None:
    given(saved).when(ReplaceTemplate(TEMPLATE, "ada", FIRST, 1, LATER)).then()


def test_a_change_of_what_was_not_seen_is_refused() -> None:
    given(saved, saved_again).when(ReplaceTemplate(TEMPLATE, "ada", FIRST, 1, LATER)).refused(
        Stale, "it is at version 2, you saw 1", version=2
    )
    given(saved, saved_again).when(ReplaceTemplate(TEMPLATE, "ada", FIRST, None, NOON)).then(saved)


@pytest.mark.parametrize(
    "command", [ReplaceTemplate(TEMPLATE, "eve", SECOND, 1, LATER), DeleteTemplate(TEMPLATE, "eve", LATER)]
)
@pytest.mark.parametrize("before", [(), (saved,), (saved, deleted)])
def test_somebody_elses_template_is_like_none(command: TemplateCommand, before: tuple[TemplateEvent, ...]) -> None:
    given(*before).when(command).refused(NotFound, "You have no such template")


def test_a_deleted_template_stays_deleted() -> None:
    given(saved).when(DeleteTemplate(TEMPLATE, "ada", LATER)).then(deleted)
    given(saved, deleted).when(DeleteTemplate(TEMPLATE, "ada", LATER)).then()
    given(saved, deleted).when(CreateTemplate(TEMPLATE, "ada", FIRST, LATER)).then()
    given(saved, deleted).when(ReplaceTemplate(TEMPLATE, "ada", SECOND, 1, LATER)).refused(NotFound, "no such template")


async def test_every_version_can_be_found_until_the_template_is_deleted() -> None:
    log = MemoryLog()
    templates = Aggregate(TEMPLATES, log)
    shelf = TemplateShelf(templates, log)
    await templates.handle(TEMPLATE, CreateTemplate(TEMPLATE, "ada", FIRST, NOON))
    await templates.handle(TEMPLATE, ReplaceTemplate(TEMPLATE, "ada", SECOND, 1, LATER))
    found: dict[int | None, Any] = {
        version: (await shelf.find(TEMPLATE, "ada", version)).content for version in (None, 1, 2)
    }
    assert found == {None: SECOND, 1: FIRST, 2: SECOND}
    with pytest.raises(NotFound, match="no version 3; it is at version 2"):
        await shelf.find(TEMPLATE, "ada", 3)
    with pytest.raises(NotFound, match="no such template"):
        await shelf.find(TEMPLATE, "eve", 1)
    await templates.handle(TEMPLATE, DeleteTemplate(TEMPLATE, "ada", LATER))
    for version in (None, 1, 2, 3):
        with pytest.raises(NotFound, match="no such template"):
            await shelf.find(TEMPLATE, "ada", version)


async def test_what_another_replica_saved_is_found() -> None:
    log = MemoryLog()
    here, there = Aggregate(TEMPLATES, log), Aggregate(TEMPLATES, log)
    await here.handle(TEMPLATE, CreateTemplate(TEMPLATE, "ada", FIRST, NOON))
    await there.handle(TEMPLATE, ReplaceTemplate(TEMPLATE, "ada", SECOND, 1, LATER))
    assert (await TemplateShelf(here, log).find(TEMPLATE, "ada")).content == SECOND


async def test_the_id_of_something_else_is_no_template() -> None:
    log = MemoryLog()
    await log.append(f"batch.{TEMPLATE}", [Draft.of(saved)], expected=0)
    with pytest.raises(NotFound):
        await TemplateShelf(Aggregate(TEMPLATES, log), log).find(TEMPLATE, "ada")
