"""Templates that people write and try, and the kinds of operations that operators pause."""

import re
from typing import Any
from uuid import uuid4

import httpx
import pytest
from playwright.async_api import expect
from pypdf import PdfReader

from tests.browser.conftest import Enter
from tests.browser.person import Person
from tests.harness import ServiceProcess, eventually

BODY = "{{ show }}\nSeat {{ seat }}\n"


def somebody() -> str:
    """A name nobody else has."""
    return f"writer-{uuid4().hex[:8]}"


def client(shop: ServiceProcess, who: str) -> httpx.AsyncClient:
    """What asks as somebody, without the page."""
    return httpx.AsyncClient(base_url=shop.url, headers={"Authorization": f"Bearer dev:{who}:buyer"}, timeout=20)


async def kept(shop: ServiceProcess, who: str, **content: str) -> dict[str, Any]:
    """Keep a template, without the page; the template."""
    what = {"name": "E-ticket", "format": "pdf", "body": BODY, **content}
    async with client(shop, who) as http:
        made = await http.post("/api/templates", json=what)
    assert made.status_code == 201, made.text
    template: dict[str, Any] = made.json()
    return template


async def template_of(shop: ServiceProcess, who: str, template_id: str) -> dict[str, Any]:
    """A template as the server has it."""
    async with client(shop, who) as http:
        template: dict[str, Any] = (await http.get(f"/api/templates/{template_id}")).json()
    return template


def text_of(person: Person) -> Any:
    """The field for the template's text."""
    return person.page.get_by_label("Template", exact=True).and_(person.page.get_by_role("textbox"))


async def press(person: Person, name: str) -> None:
    await person.page.get_by_role("button", name=name, exact=True).click()


async def test_a_template_is_written_tried_kept_and_deleted(shop: ServiceProcess, enter: Enter) -> None:
    name = somebody()
    ada = await enter(name)
    await ada.page.goto("/jobs/templates")
    await ada.sees("You have no templates yet")
    await ada.show("templates-nothing")
    await ada.page.get_by_role("link", name="Write a template").click()
    await ada.page.get_by_label("Name").fill("Badge")
    await text_of(ada).fill(BODY)
    await ada.page.get_by_label("Data").fill('{"show": "Opening night", "seat": "Z9"}')
    await press(ada, "Preview")
    await ada.sees("Made; nothing of it is kept.")
    await ada.show("template-new")
    async with ada.page.expect_download() as download:
        await ada.page.get_by_role("link", name="Download the PDF").click()
    found = await download.value
    assert found.suggested_filename == "preview.pdf"
    text = PdfReader(await found.path()).pages[0].extract_text()
    assert "Opening night" in text
    assert "Seat Z9" in text
    await press(ada, "Save")
    await ada.sees("Version 1, saved on")
    template_id = re.sub(r".*/|\?.*", "", ada.page.url)
    await text_of(ada).fill(BODY + "Row 1\n")
    await press(ada, "Save")
    await ada.sees("Version 2, saved on")
    assert (await template_of(shop, name, template_id))["body"] == BODY + "Row 1\n"
    await ada.page.get_by_role("link", name="Templates").click()
    await ada.sees("PDF, version 2")
    await ada.show("templates")
    await ada.page.get_by_role("link", name="Badge").click()
    remove = ada.page.get_by_role("button", name="Delete…")
    await remove.click()
    await expect(ada.page.get_by_role("heading", name="Delete this template?")).to_be_focused()
    await press(ada, "Keep it")
    await expect(remove).to_be_focused()
    await remove.click()
    await press(ada, "Delete it")
    await ada.sees("You have no templates yet")
    assert (await template_of(shop, name, template_id))["status"] == 404


EVIL = """<!doctype html><html onclick="top.stolen=1"><head>
<base href="https://evil.example/" target="_top"><title>Stolen</title>
<meta http-equiv="refresh" content="0;url=/api/tickets?evil"><meta http-equiv="refresh" content="0;url=https://evil.example/">
<link rel="stylesheet" href="https://evil.example/link.css"><link rel="preload" as="image" href="https://evil.example/link.png">
<style>@import "https://evil.example/import.css"; @import url(/api/tickets?evil);
@font-face { font-family: evil; src: url(https://evil.example/font) }
h1 { background: url(https://evil.example/style) rgb(1, 2, 3); font-family: evil; cursor: url(/api/tickets?evil), auto }
b { background: u\\72l(https://evil.example/escaped); list-style: image-set("https://evil.example/set" 1x) }
b { --it: u\\72l(https://evil.example/kept); background: var(--it) url(https://evil.example/variable) }
b::after { content: url(https://evil.example/content) }
@media all { b { border-image: url(https://evil.example/media) 1 } }</style>
<style onload=top.stolen=1>b { color: red }</style>
<script src="https://evil.example/script.js"></script></head>
<body onload="top.stolen=1" background="https://evil.example/body" style="background: url(https://evil.example/body)">
<h1 onclick="top.stolen=1"style='color:red'>{{ show }}</h1>
<script>top.stolen = 1; parent.document.title = 'stolen'</script>
<p><a href="javascript:top.stolen=1">Run</a>
<a href="https://evil.example/link" target="_blank" ping="/evil">Lead away</a></p>
<b/onclick="top.stolen=1"/style="background:u\\72l(https://evil.example/inline)">on style</b>
<img src="x?evil" onerror="top.stolen=1">
<img src="https://evil.example/1.png" srcset="https://evil.example/2.png 2x" alt="Map">
<img src="data:image/png;base64,evil!" onerror="top.stolen=1">
<picture><source srcset="https://evil.example/source.png"><img alt="Plan"></picture>
<form action="/login?evil" method="post" target="_blank">
<input name="a" autofocus onfocus="top.stolen=1"><button>Send</button></form>
<iframe src="https://evil.example/frame"></iframe><iframe srcdoc="<script>top.stolen=1</script>"></iframe>
<object data="https://evil.example/object"></object><embed src="/api/tickets?evil">
<video src="https://evil.example/video" poster="/api/tickets?evil" autoplay></video>
<svg width="20" height="20" onload="top.stolen=1"><script>top.stolen=1</script>
<style>path{fill:url(//evil.example/a)}</style>
<image href="https://evil.example/svg"/><path d="wrong"/>
<a href="javascript:top.stolen=1"><text y="9">Svg</text></a></svg>
<math><mi href="javascript:top.stolen=1" xlink:href="javascript:top.stolen=1">math</mi></math>
<noscript><img src="https://evil.example/noscript"></noscript>
<template shadowrootmode="open"><script>top.stolen=1</script></template>
<details open ontoggle="top.stolen=1"><summary>More</summary>Less</details>
<p title="</style><style>p { background: url(//evil.example/title) }">The end</p></body></html>"""


async def previewed(person: Person, template: dict[str, Any], data: str = "{}") -> Any:
    """Have a template shown as the page that it makes; the frame."""
    await person.page.goto(f"/jobs/templates/{template['id']}")
    await person.page.get_by_label("Data").fill(data)
    await press(person, "Preview")
    return person.page.frame_locator("iframe[title=Preview]")


async def test_nothing_of_a_previewed_page_runs_leads_away_or_comes_from_elsewhere(
    shop: ServiceProcess, enter: Enter
) -> None:
    name = somebody()
    template = await kept(shop, name, format="html", body=EVIL)
    ada = await enter(name)
    asked, said, opened = list[str](), list[str](), list[str]()
    ada.context.on("request", lambda request: asked.append(request.url))
    ada.context.on("console", lambda message: said.append(message.text))
    ada.context.on("page", lambda page: opened.append(page.url))
    frame = await previewed(ada, template, '{"show": "<b>Night</b>"}')
    await expect(frame.get_by_role("heading")).to_have_text("<b>Night</b>")
    for text in ("Run", "Lead away", "on style", "The end"):
        await frame.get_by_text(text, exact=True).click()
    await frame.get_by_role("heading").click()
    await frame.get_by_text("More").click()  # which closes it
    await expect(frame.locator("body")).to_contain_text(re.compile("Send.*math", re.DOTALL))
    await expect(frame.get_by_text("Lead away")).to_have_attribute("title", "https://evil.example/link")
    await expect(frame.get_by_role("img", name="Map")).to_be_attached()
    await expect(frame.locator("b")).to_have_css("background-image", "none")
    await ada.sees(
        "Left out here: 13 scripts, 3 parts of forms, 4 pages in the page, 1 film, sound or drawing, "
        "5 pictures from elsewhere, 14 styles that load something, 2 jumps to other pages, "
        "3 links that can be followed. The download has all of it."
    )
    await ada.show("template-preview")
    there = await ada.page.evaluate(
        """() => {
            const all = [...document.querySelector("iframe").contentDocument.querySelectorAll("*")];
            const names = all.flatMap((each) => [...each.attributes].map(({ name }) => name));
            const sources = all.filter((each) => each.src).map((each) => each.src.slice(0, 11));
            return [[...new Set(all.map((each) => each.localName))], [...new Set(names)], sources];
        }"""
    )
    assert set(there[0]) == {"html", "head", "body", "h1", "p", "a", "b", "img", "details", "summary"}
    assert set(there[1]) == {"style", "title", "alt", "width", "height", "src"}
    assert there[2] == ["data:image/"]  # the drawing
    assert await ada.page.locator("iframe").get_attribute("sandbox") == "allow-same-origin"
    assert await ada.page.evaluate("[typeof stolen, document.title]") == ["undefined", "Template · Boxoffice"]
    assert ada.page.url.endswith(f"/jobs/templates/{template['id']}")
    assert [each for each in asked if "evil" in each or not each.startswith((shop.url, "data:image/", "blob:"))] == []
    assert (said, opened) == ([], [])
    policy = (await ada.context.request.get("/jobs/templates")).headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-src" not in policy
    async with ada.page.expect_download() as download:
        await ada.page.get_by_role("link", name="Download the HTML").click()
    assert (await (await download.value).path()).read_text() == EVIL.replace("{{ show }}", "&lt;b&gt;Night&lt;/b&gt;")


async def test_a_previewed_page_looks_as_it_is_styled(shop: ServiceProcess, enter: Enter) -> None:
    body = """<!doctype html><html lang="de"><head><style>
        h1 { color: rgb(1, 2, 3); background: linear-gradient(red, blue) }
        body.night > p { --it: rgb(4, 5, 6); color: var(--it) }
        @media only screen { .seat b { font-size: 30px } } /* "quoted" on style= */
    </style><style media="only print">h1 { color: red }</style></head>
    <body class="night" style="background-color: rgb(7, 8, 9)"><h1>{{ show }}</h1><p>A style='x' on="y"</p>
    <p class="seat" style="text-align: right"><b style="color: rgb(10, 11, 12)">Seat</b></p>
    <img alt="Dot" src="data:image/gif;base64,R0lGODlhAQABAIAAAP///wAAACwAAAAAAQABAAACAkQBADs=" width="40">
    <table bgcolor="#0d0e0f"><tr><td colspan="2">Row 1</table>{{ qr(show) }}</body></html>"""
    name = somebody()
    template = await kept(shop, name, format="html", body=body)
    ada = await enter(name)
    frame = await previewed(ada, template, '{"show": "Night"}')
    heading = frame.get_by_role("heading", name="Night")
    await expect(heading).to_have_css("color", "rgb(1, 2, 3)")
    await expect(heading).to_have_css("background-image", re.compile("^linear-gradient"))
    await expect(frame.get_by_text("A style='x' on=\"y\"")).to_have_css("color", "rgb(4, 5, 6)")
    await expect(frame.locator("body")).to_have_css("background-color", "rgb(7, 8, 9)")
    await expect(frame.get_by_text("Seat")).to_have_css("color", "rgb(10, 11, 12)")
    await expect(frame.get_by_text("Seat")).to_have_css("font-size", "30px")
    await expect(frame.locator(".seat")).to_have_css("text-align", "right")
    await expect(frame.get_by_role("table")).to_have_css("background-color", "rgb(13, 14, 15)")
    await expect(frame.locator("html[lang=de]")).to_have_count(1)
    for picture in (frame.get_by_role("img", name="Dot"), frame.locator("img.segno")):
        await expect(picture).to_have_js_property("complete", True)
        assert await picture.evaluate("image => image.naturalWidth") > 0
    await ada.show("template-preview-styled")
    await expect(ada.page.get_by_text("Left out here")).to_have_count(0)


async def test_the_line_of_a_template_that_is_wrong_is_shown(shop: ServiceProcess, enter: Enter) -> None:
    name = somebody()
    template = await kept(shop, name)
    ada = await enter(name)
    ada.allow("422")
    await ada.page.goto(f"/jobs/templates/{template['id']}")
    await text_of(ada).fill("Title\n\n{% if %}\nend")
    await press(ada, "Save")
    await expect(text_of(ada)).to_be_focused()
    await expect(text_of(ada)).to_have_accessible_description(re.compile("line 3: Expected an expression"))
    await ada.sees("Line 3: {% if %}")
    await ada.show("template-wrong")
    await press(ada, "Go to line 3")
    chosen = "[...document.querySelectorAll('[name=body]')].map(a => a.value.slice(a.selectionStart, a.selectionEnd))"
    assert await ada.page.evaluate(chosen) == ["{% if %}"]
    await text_of(ada).fill("Title\n{{ absent }}")
    await press(ada, "Preview")
    tried = ada.page.get_by_role("region", name="Try it")
    await expect(tried.get_by_role("alert")).to_contain_text("line 2")
    await expect(tried).to_contain_text("Line 2: {{ absent }}")
    await ada.page.get_by_label("Data").fill("[1]")
    await press(ada, "Preview")
    await expect(ada.page.get_by_label("Data")).to_have_accessible_description(re.compile("A JSON object is needed"))
    await expect(text_of(ada)).to_have_value("Title\n{{ absent }}")
    assert (await template_of(shop, name, template["id"]))["version"] == 1


async def test_of_two_who_write_a_template_the_later_sees_both(shop: ServiceProcess, enter: Enter) -> None:
    name = somebody()
    template = await kept(shop, name)
    one, two = await enter(name), await enter(name)
    two.allow("412")
    for person in (one, two):
        await person.page.goto(f"/jobs/templates/{template['id']}")
    await text_of(two).fill("Of two\n")
    await text_of(one).fill("Of one\n")
    await one.page.get_by_label("Name").fill("Renamed")
    await press(one, "Save")
    await one.sees("Version 2, saved on")
    await press(two, "Save")
    conflict = two.page.get_by_role("region", name="Somebody else changed it meanwhile")
    await expect(conflict).to_be_focused()
    await expect(conflict).to_contain_text("Of one")
    await expect(conflict).to_contain_text("Renamed")
    await two.show("template-conflict")
    await expect(text_of(two)).to_have_value("Of two\n")
    await press(two, "Save yours on top")
    await two.sees("Version 3, saved on")
    now = await template_of(shop, name, template["id"])
    assert (now["name"], now["body"]) == ("Renamed", "Of two\n")
    await press(one, "Save")
    await one.sees("There is nothing to save")
    one.allow("412")
    await text_of(one).fill("Of one again\n")
    await press(one, "Save")
    await press(one, "Keep theirs")
    await expect(text_of(one)).to_have_value("Of two\n")
    assert (await template_of(shop, name, template["id"]))["version"] == 3


async def test_somebody_elses_template_is_as_if_it_were_not_there(shop: ServiceProcess, enter: Enter) -> None:
    template = await kept(shop, somebody())
    eve, nobody = await enter(somebody()), await enter()
    eve.allow("404")
    await eve.page.goto(f"/jobs/templates/{template['id']}")
    await eve.sees("You have no such template.")
    await eve.show("template-foreign")
    await nobody.page.goto("/jobs/templates")
    await nobody.sees("Log in to see your templates.")


async def test_an_operator_pauses_a_kind_and_others_see_it(shop: ServiceProcess, enter: Enter) -> None:
    kind = "records.insert"
    olga, ada = await enter("olga", "operator"), await enter("ada")

    def row(person: Person) -> Any:
        return person.page.get_by_role("listitem").filter(has=person.page.get_by_text(kind, exact=True))

    await olga.page.goto("/jobs/kinds")
    await expect(row(olga)).to_contain_text("Runs")
    await expect(row(olga).get_by_role("heading")).to_have_text("Keep records")
    await olga.show("kinds-operator")
    try:
        await press(olga, f"Pause {kind}")
        await expect(row(olga)).to_contain_text("Paused")
        await expect(olga.page.get_by_role("button", name=f"Resume {kind}")).to_be_focused()
        await ada.page.goto("/jobs/kinds")
        await expect(row(ada)).to_contain_text("Paused")
        await expect(ada.page.get_by_role("button", name=re.compile("^(Pause|Resume)"))).to_have_count(0)
        await row(ada).get_by_text(f"What one of {kind} holds").click()
        await expect(row(ada)).to_contain_text("key")
        await ada.show("kinds")
        await press(olga, f"Resume {kind}")
        await expect(row(olga)).to_contain_text("Runs")
        await press(ada, "Look again")
        await expect(row(ada)).to_contain_text("Runs")
    finally:
        async with httpx.AsyncClient(base_url=shop.url, headers={"Authorization": "Bearer dev:olga:operator"}) as http:
            await http.post(f"/api/batch-kinds/{kind}/resume")


@pytest.mark.parametrize("path", ["/jobs/kinds", "/jobs/templates", "/jobs/templates/new", "/sell", "/sell/new"])
async def test_each_view_can_be_opened_first(enter: Enter, path: str) -> None:
    sam = await enter(somebody(), "seller")
    await sam.page.goto(path)
    await expect(sam.page.get_by_role("heading", level=1)).to_be_visible()
    await expect(sam.page.get_by_text("Nothing is here")).to_have_count(0)


async def finds(person: Person, text: str, *, again: bool) -> None:
    """Wait for the form with this text in it: what was written before, or what is loaded."""
    await expect(text_of(person)).to_have_value(text)
    await expect(person.page.get_by_text("What you wrote before is here again.")).to_have_count(1 if again else 0)


async def test_a_new_template_is_found_again_until_it_is_saved(enter: Enter) -> None:
    ada = await enter(somebody())
    await ada.page.goto("/jobs/templates")
    await ada.page.get_by_role("link", name="Write a template").click()
    await expect(text_of(ada)).to_have_value(re.compile("{{ show }}"))
    first = await text_of(ada).input_value()
    await ada.page.get_by_label("Name").fill("Badge")
    await ada.page.get_by_label("Format").select_option("html")
    await text_of(ada).fill("<p>{{ show }}</p>")
    await ada.page.reload()
    await finds(ada, "<p>{{ show }}</p>", again=True)
    await expect(ada.page.get_by_label("Format")).to_have_value("html")
    await ada.show("template-again")
    await ada.page.get_by_role("link", name="Templates").click()
    await ada.sees("You have no templates yet")
    await ada.page.go_back()
    await finds(ada, "<p>{{ show }}</p>", again=True)
    await press(ada, "Start afresh")
    await finds(ada, first, again=False)
    await expect(ada.page.get_by_label("Name")).to_be_focused()
    await ada.page.get_by_label("Name").fill("Ticket")
    await press(ada, "Save")
    await ada.sees("Version 1, saved on")
    await ada.page.go_back()
    await finds(ada, first, again=False)
    await expect(ada.page.get_by_label("Name")).to_have_value("")


async def test_a_template_that_is_found_again_meets_what_was_saved_meanwhile(
    shop: ServiceProcess, enter: Enter
) -> None:
    name = somebody()
    template = await kept(shop, name)
    one, two = await enter(name), await enter(name)
    two.allow("412")
    for person in (one, two):
        await person.page.goto(f"/jobs/templates/{template['id']}")
        await finds(person, BODY, again=False)
    await text_of(two).fill("Of two\n")
    await text_of(one).fill("Of one\n")
    await press(one, "Save")
    await one.sees("Version 2, saved on")

    async def read() -> str:
        return str((await template_of(shop, name, template["id"]))["body"])

    await eventually(read, "Of one\n")
    await one.page.reload()
    await finds(one, "Of one\n", again=False)
    await two.page.reload()
    await finds(two, "Of two\n", again=True)
    await press(two, "Save")
    conflict = two.page.get_by_role("region", name="Somebody else changed it meanwhile")
    await expect(conflict).to_contain_text("Of one")
    assert (await template_of(shop, name, template["id"]))["body"] == "Of one\n"
    await two.page.reload()
    await expect(conflict).to_contain_text("Of one")
    await press(two, "Save yours on top")
    await two.sees("Version 3, saved on")
    await eventually(read, "Of two\n")
    await two.page.reload()
    await finds(two, "Of two\n", again=False)


async def test_what_was_written_on_a_template_that_was_deleted_is_dropped(shop: ServiceProcess, enter: Enter) -> None:
    name = somebody()
    template = await kept(shop, name)
    ada = await enter(name)
    ada.allow("404")
    await ada.page.goto(f"/jobs/templates/{template['id']}")
    await text_of(ada).fill("Of Ada\n")
    async with httpx.AsyncClient(base_url=shop.url, headers={"Authorization": f"Bearer dev:{name}:buyer"}) as http:
        assert (await http.delete(f"/api/templates/{template['id']}")).is_success

    async def read() -> int:
        return int((await template_of(shop, name, template["id"])).get("status", 200))

    await eventually(read, 404)
    await press(ada, "Save")
    await ada.sees("You have no such template.")
    await finds(ada, "Of Ada\n", again=False)
    assert await ada.page.evaluate("sessionStorage.length") == 1
    await ada.page.reload()
    await expect(text_of(ada)).to_have_count(0)
    await ada.sees("You have no such template.")
    await expect(ada.page.locator("form")).to_have_count(0)

    async def left() -> int:
        return int(await ada.page.evaluate("sessionStorage.length"))

    await eventually(left, 0)
