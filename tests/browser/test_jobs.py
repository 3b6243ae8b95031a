"""What a seller does in bulk: upload a file, watch it, mend what is wrong."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import httpx
from playwright.async_api import Page, Route, expect

from tests.browser.conftest import Enter
from tests.harness import ServiceProcess, eventually

ROWS = 5_000
SEEN = """
globalThis.seen = [];
new MutationObserver(() => {
  for (const each of document.querySelectorAll('progress[aria-label="Progress"], #going')) {
    seen.push([each.id || "job", each.value / each.max]);
  }
}).observe(document, { subtree: true, childList: true, attributes: true, attributeFilter: ["value"] });
"""
"""Whatever a progress bar showed, in the page itself: nothing is missed between two looks from outside."""


def seller(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer dev:{name}:seller"}


async def on_sale(shop: ServiceProcess, who: str, count: int) -> list[str]:
    """Put tickets on sale; their ids."""
    what = {"title": "In bulk", "price": 2500, "currency": "EUR", "quantity": 5}
    async with httpx.AsyncClient(base_url=shop.url, headers=seller(who)) as http:
        answers = [await http.post("/api/tickets", json=what) for _ in range(count)]
    return [each.json()["id"] for each in answers]


async def revise(shop: ServiceProcess, who: str, tickets: Sequence[str]) -> None:
    """Change tickets, each to its next version."""
    async with httpx.AsyncClient(base_url=shop.url, headers=seller(who)) as http:
        for each in tickets:
            version = (await http.get(f"/api/tickets/{each}")).headers["ETag"]
            told = await http.patch(f"/api/tickets/{each}", json={"venue": "Town hall"}, headers={"If-Match": version})
            assert told.is_success, told.text


def file_of(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([columns, *rows])
    return text.getvalue()


def records(count: int, mark: str) -> str:
    return file_of(["key", "value"], [[f"{mark}-{number}", "something to be kept"] for number in range(count)])


def saved(path: Path, text: str) -> None:
    path.write_text(text)


async def choose(page: Page, text: str, path: Path) -> None:
    """Take a file by the button that a browser has for it."""
    saved(path, text)
    async with page.expect_file_chooser() as chooser:
        await page.get_by_label("Choose a file").click()
    await (await chooser.value).set_files(path)


async def drop(page: Page, text: str, path: Path) -> None:
    """Let a file of the disk fall onto the page, as the hand does that dragged it there."""
    saved(path, text)
    session = await page.context.new_cdp_session(page)
    held = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    for event in ("dragEnter", "dragOver", "drop"):
        told = {"type": event, "x": 200, "y": 300, "data": held}
        await session.send("Input.dispatchDragEvent", told)
    await session.detach()


async def pause(shop: ServiceProcess, kind: str) -> None:
    """Begin nothing of a kind until it is resumed."""
    await operate(shop, f"/api/batch-kinds/{kind}/pause")


async def resume(shop: ServiceProcess, kind: str) -> None:
    await operate(shop, f"/api/batch-kinds/{kind}/resume")


async def operate(shop: ServiceProcess, path: str) -> None:
    async with httpx.AsyncClient(base_url=shop.url, headers={"Authorization": "Bearer dev:olga:operator"}) as http:
        told = await http.post(path)
    assert told.is_success, told.text


async def seen(page: Page, which: str) -> list[float]:
    """What a progress bar showed, each value once, in order."""
    values = [value for name, value in await page.evaluate("seen") if name == which]
    return [value for at, value in enumerate(values) if not at or value != values[at - 1]]


async def counts(page: Page) -> dict[str, int]:
    names = await page.locator(".counts dt").all_inner_texts()
    numbers = await page.locator(".counts dd").all_inner_texts()
    return {name: int(number.replace(",", "")) for name, number in zip(names, numbers, strict=True)}


def wrong_rows(good: Sequence[str], late: Sequence[str]) -> dict[int, tuple[list[object], str]]:
    """Twenty rows of `tickets.update` that go wrong, by their numbers, and what is said of each."""
    one = good[0]
    refused: list[tuple[list[object], str]] = [
        ([one, "dear", "", ""], 'price: Expected a whole number, got "dear"'),
        ([one, "0", "", ""], "price: Expected"),
        ([one, "1e2", "", ""], 'got "1e2"'),
        ([one, "-5", "", ""], 'got "-5"'),
        ([one, "100000001", "", ""], 'got "100000001"'),
        ([one, "null", "", ""], 'got "null"'),
        (["no-id", "2600", "", ""], 'ticket_id: Invalid UUID, got "no-id"'),
        (["", "2600", "", ""], "ticket_id"),
        ([one, "2600", "x" * 201, ""], "title: Expected"),
        ([one, "2600", " begins with a space", ""], "title: Expected"),
        ([one, "2600", "two\nlines", ""], "title: Expected"),
        ([one, "2600", "", "0"], "version: Expected"),
        ([one, "2600", "", "first"], 'got "first"'),
        ([one, "2600", ""], "Expected 4 cells as in the header, got 3"),
        ([one, "2600", "", "", "more"], "Expected 4 cells as in the header, got 5"),
    ]
    failed: list[tuple[list[object], str]] = [
        ([str(uuid4()), "2600", "", ""], "You have no ticket"),
        ([str(uuid4()), "2600", "", ""], "You have no ticket"),
    ]
    failed += [([each, "2700", "", "2"], "it is at version 1, you saw 2") for each in late]
    return {97 + 241 * place: row for place, row in enumerate(refused + failed)}


async def test_five_thousand_rows_twenty_of_them_wrong(shop: ServiceProcess, enter: Enter, tmp_path: Path) -> None:
    good, late = await on_sale(shop, "bulk", 40), await on_sale(shop, "bulk", 3)
    wrong = wrong_rows(good, late)
    rows = [
        wrong[number][0] if number in wrong else [good[number % len(good)], 2600 + number, "", ""]
        for number in range(1, ROWS + 1)
    ]
    sam = await enter("bulk", "seller")
    page = sam.page
    await page.goto("/jobs")
    await sam.sees("You have no jobs yet")
    await sam.show("jobs-none")
    await page.get_by_role("link", name="Upload a file").first.click()
    await page.get_by_label("What is to be done?").select_option("tickets.update")
    await page.get_by_label("Priority").select_option("low")
    await expect(page).to_have_url(re.compile(r"/sell/upload\?kind=tickets.update&priority=low"))
    await choose(page, file_of(["ticket_id", "price", "title", "version"], rows), tmp_path / "prices.csv")
    await sam.sees("prices.csv")
    await sam.show("upload")
    file, columns = page.get_by_label("Choose a file"), page.get_by_role("heading", name="Its columns")
    above, below = await file.bounding_box(), await columns.bounding_box()
    assert above
    assert below
    assert above["y"] < below["y"]
    await page.evaluate(SEEN)
    await page.get_by_role("button", name="Send it").click()
    await page.wait_for_url(re.compile("/jobs/[0-9a-f-]{36}"))
    await sam.sees("Done, with errors.")
    moved = await seen(page, "job")
    assert len(moved) >= 3
    assert moved == sorted(moved)
    assert moved[-1] == 1
    assert await counts(page) == {"Done": ROWS - 20, "Failed": 5, "Refused": 15, "Waiting": 0}
    await sam.sees("20 rows went wrong")
    shown = page.locator(".wrong-row")
    await expect(shown).to_have_count(20)
    for place, (number, (cells, said)) in enumerate(wrong.items()):
        before = wrong_rows_with_two_lines(wrong, number)
        await expect(shown.nth(place)).to_contain_text(f"Row {number:,}, line {number + 1 + before:,}")
        await expect(shown.nth(place)).to_contain_text(said)
        await expect(shown.nth(place)).to_contain_text(str(cells[1]))
    await sam.show("job-errors")
    async with page.expect_download() as download:
        await page.get_by_role("link", name="Download the report").click()
    told = list(csv.DictReader(io.StringIO((await (await download.value).path()).read_text())))
    assert len(told) == ROWS
    assert {int(each["row"]) for each in told if each["status"] in ("refused", "failed")} == set(wrong)
    await revise(shop, "bulk", late)
    await page.get_by_role("button", name="Try again what failed").click()
    await sam.sees("17 rows went wrong")
    await sam.sees("Done, with errors.")
    assert await counts(page) == {"Done": ROWS - 17, "Failed": 2, "Refused": 15, "Waiting": 0}
    await expect(page.get_by_role("heading", name="Change tickets")).to_be_visible()
    await page.get_by_role("link", name="Jobs").last.click()
    await expect(page.locator(".jobs li")).to_have_count(1)
    await sam.sees("Change tickets")
    await sam.sees("17 went wrong")
    await sam.show("jobs")
    await page.go_back()
    await page.get_by_role("button", name="Mend the refused rows").click()
    await page.wait_for_url(re.compile("/sell/upload"))
    await sam.sees("prices-mended.csv")
    text = page.get_by_label("Mend it here")
    mended = list(csv.reader(io.StringIO(await text.input_value())))
    assert mended[0] == ["ticket_id", "price", "title", "version"]
    assert [row[1] for row in mended[1:8]] == ["dear", "0", "1e2", "-5", "100000001", "null", "2600"]
    assert len(mended) == 16
    await text.fill(file_of(mended[0], [[good[0], "2900", "", ""] for _ in mended[1:]]))
    await page.get_by_role("button", name="Send it").click()
    await sam.sees("Done. 15 operations are done.")


def wrong_rows_with_two_lines(wrong: dict[int, tuple[list[object], str]], before: int) -> int:
    """How many rows before this one take a line more."""
    return sum("\n" in str(cell) for number, (cells, _) in wrong.items() if number < before for cell in cells)


async def test_a_dropped_file_with_a_wrong_header_is_mended_on_the_page(enter: Enter, tmp_path: Path) -> None:
    sam = await enter("dropper", "seller")
    sam.allow("422")
    page = sam.page
    await page.goto("/sell/upload?kind=records.insert")
    await sam.sees("Its columns")
    await drop(page, "key,worth\ndropped,1\n", tmp_path / "dropped.csv")
    await sam.sees("dropped.csv")
    await page.get_by_role("button", name="Send it").click()
    refused = page.locator(".refused")
    await expect(refused).to_be_focused()
    await expect(refused.get_by_role("alert")).to_contain_text('The header lacks "value"; it has the unknown "worth".')
    await expect(refused.get_by_role("alert")).to_contain_text("It is the first line of the file.")
    await sam.sees("dropped.csv is kept here")
    await sam.show("upload-refused")
    text = page.get_by_label("Mend it here")
    await expect(text).to_have_value("key,worth\ndropped,1\n")
    await text.fill("key,value\ndropped,1\n")
    await page.get_by_role("button", name="Send it again").click()
    await page.wait_for_url(re.compile("/jobs/[0-9a-f-]{36}"))
    await sam.sees("Done. 1 operation is done.")


async def test_a_file_that_changed_on_the_disk_is_told_and_chosen_anew(enter: Enter, tmp_path: Path) -> None:
    sam = await enter("changer", "seller")
    page = sam.page
    await page.goto("/sell/upload?kind=records.insert")
    await choose(page, records(1, "before"), tmp_path / "changed.csv")
    await sam.sees("changed.csv")
    saved(tmp_path / "changed.csv", records(2, "after"))
    await page.get_by_role("button", name="Send it").click()
    await sam.sees("changed.csv was changed or moved since you chose it. Choose it once more.")
    await choose(page, records(2, "after"), tmp_path / "changed.csv")
    await page.get_by_role("button", name="Send it").click()
    await sam.sees("Done. 2 operations are done.")


async def test_what_is_wrong_is_seen_while_it_runs_and_it_is_cancelled(
    shop: ServiceProcess, enter: Enter, tmp_path: Path
) -> None:
    sam = await enter("canceller", "seller")
    page = sam.page
    await pause(shop, "records.insert")
    try:
        await page.goto("/sell/upload?kind=records.insert&priority=high")
        await sam.sees("“Keep records” is paused")
        wrong = "".join(f",{number}\n" for number in range(60))
        await choose(page, records(40, "cancelled") + wrong, tmp_path / "cancelled.csv")
        await page.get_by_role("button", name="Send it").click()
        await sam.sees("Paused by an operator")
        await sam.sees("60 rows went wrong")
        await sam.sees("Row 41, line 42")
        await expect(page.locator(".wrong-row")).to_have_count(50)
        await page.get_by_role("link", name="Next rows").click()
        await sam.sees("Row 100, line 101")
        await expect(page).to_have_url(re.compile("after=90"))
        await expect(page.locator(".wrong-row")).to_have_count(10)
        await sam.show("job-paused")
        await page.get_by_role("button", name="Cancel the job").click()
        await sam.sees("is never run: 40 operations")
        await sam.show("job-cancel")
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("button", name="Cancel the job")).to_be_focused()
        assert (await counts(page))["Waiting"] == 40
        await page.keyboard.press("Enter")
        await page.get_by_role("button", name="Cancel it").click()
        await sam.sees("Cancelled.")
        await expect(page.locator(".outcome")).to_be_focused()
        assert await counts(page) == {"Done": 0, "Failed": 0, "Refused": 60, "Waiting": 0, "Never run": 40}
    finally:
        await resume(shop, "records.insert")


async def test_a_connection_that_is_lost_while_one_watches_heals(
    shop: ServiceProcess, enter: Enter, tmp_path: Path
) -> None:
    sam = await enter("watcher", "seller")
    sam.allow("ERR_", "503")
    page = sam.page
    await pause(shop, "records.insert")
    try:
        await page.goto("/sell/upload?kind=records.insert")
        await choose(page, records(700, "watched"), tmp_path / "watched.csv")
        await page.get_by_role("button", name="Send it").click()
        await sam.sees("Paused by an operator")
        await shop.kill()
        try:
            await sam.sees("Connection lost")
            assert (await counts(page))["Waiting"] == 700
        finally:
            await shop.start()
        await expect(page.get_by_text("Connection lost")).to_have_count(0)
    finally:
        await resume(shop, "records.insert")
    await sam.sees("Done. 700 operations are done.")


async def test_an_upload_to_a_server_that_is_killed_is_sent_again(
    shop: ServiceProcess, enter: Enter, tmp_path: Path
) -> None:
    sam = await enter("sender", "seller")
    sam.allow("ERR_", "503", "409")
    page = sam.page
    await page.goto("/sell/upload?kind=records.insert")
    await sam.sees("Its columns")
    await page.evaluate(SEEN)
    await choose(page, records(40_000, "sent"), tmp_path / "sent.csv")
    session = await page.context.new_cdp_session(page)
    await session.send("Network.enable")
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1}
    await session.send("Network.emulateNetworkConditions", {**slow, "uploadThroughput": 15_000})
    await page.get_by_role("button", name="Send it").click()

    async def moved(times: int) -> bool:
        return len(await seen(page, "going")) > times

    await eventually(lambda: moved(1), wanted=True)
    await sam.show("upload-going")
    await eventually(lambda: moved(4), wanted=True)
    await shop.kill()
    try:
        await sam.sees("The connection was lost, or the server is away.")
        await sam.sees("it is not done twice. sent.csv is kept here")
        await sam.show("upload-lost")
        await session.send("Network.emulateNetworkConditions", {**slow, "uploadThroughput": -1})
    finally:
        await shop.start()
    went = await seen(page, "going")
    assert went == sorted(went)
    assert 0 < went[-1] < 1
    await page.get_by_role("button", name="Send it again").click()
    await sam.sees("Done. 40,000 operations are done.")
    await page.goto("/jobs")
    await expect(page.locator(".jobs li")).to_have_count(2)
    await expect(page.locator(".jobs li").last).to_contain_text("Failed, 0%")  # what broke off does not wait for ever


async def test_a_sample_is_taken_as_it_is(enter: Enter, tmp_path: Path) -> None:
    sam = await enter("sampler", "seller")
    page = sam.page
    await page.goto("/sell/upload")
    price = page.locator(".columns > div").filter(has_text=re.compile("^price"))
    units = "in minor units of the currency: 2500 is 25.00 EUR, such as 2500"
    await expect(price).to_contain_text(f"A whole number from 1 to 100,000,000, {units}")
    currency = page.locator(".columns > div").filter(has_text=re.compile("^currency"))
    await expect(currency).to_have_text(re.compile("A code of ISO 4217 that people pay with, such as EUR$"))
    async with page.expect_download() as download:
        await page.get_by_role("link", name="Download a sample").click()
    sample = await download.value
    assert sample.suggested_filename == "tickets.create-sample.csv"
    text = (await sample.path()).read_text()
    (row,) = csv.DictReader(io.StringIO(text))
    assert (row["price"], row["currency"]) == ("2500", "EUR")  # as the column's own words have it
    await choose(page, text, tmp_path / "sample.csv")
    await page.get_by_role("button", name="Send it").click()
    await sam.sees("Done. 1 operation is done.")


async def test_a_login_that_has_run_out_is_renewed_before_a_file_goes(enter: Enter, tmp_path: Path) -> None:
    sam = await enter("renewer", "seller")
    sam.allow("401")
    page = sam.page
    await page.goto("/sell/upload?kind=records.insert")
    await choose(page, records(1, "renewed"), tmp_path / "renewed.csv")
    await sam.context.clear_cookies(name="boxoffice-session")
    async with page.expect_response("**/api/auth/refresh"):
        await page.get_by_role("button", name="Send it").click()
    await sam.sees("Done. 1 operation is done.")


async def hand_in(shop: ServiceProcess, who: str, count: int, mark: str) -> None:
    """Hand in records, without the page."""
    async with httpx.AsyncClient(base_url=shop.url, headers=seller(who) | {"Content-Type": "text/csv"}) as http:
        told = await http.post("/api/batches", params={"kind": "records.insert"}, content=records(count, mark))
    assert told.status_code == 202, told.text


async def test_the_list_moves_by_itself_and_comes_in_pages(shop: ServiceProcess, enter: Enter) -> None:
    for number in range(20):
        await hand_in(shop, "lister", 1, f"listed-{number}")
    await pause(shop, "records.insert")
    try:
        await hand_in(shop, "lister", 3, "listed-last")
        sam = await enter("lister", "seller")
        page = sam.page
        await page.goto("/jobs")
        first = page.locator(".jobs li").first
        await expect(first).to_contain_text("Paused by an operator, 0% of 3 operations")
        await expect(page.locator(".jobs li")).to_have_count(20)
        await page.get_by_role("button", name="More").click()
        await expect(page.locator(".jobs li")).to_have_count(21)
        await expect(page.get_by_role("button", name="More")).to_have_count(0)
    finally:
        await resume(shop, "records.insert")
    await expect(first).to_contain_text("Done, 100% of 3 operations")
    await expect(page.locator(".jobs li")).to_have_count(21)
    await page.get_by_label("Show").select_option("FAILED")
    await expect(page).to_have_url(re.compile("status=FAILED"))
    await sam.sees("No job is so")
    await page.get_by_label("Show").select_option("COMPLETED")
    await expect(page.locator(".jobs li")).to_have_count(20)


async def test_what_came_in_though_its_answer_was_lost_is_no_second_job(
    shop: ServiceProcess, enter: Enter, tmp_path: Path
) -> None:
    sam = await enter("twice", "seller")
    sam.allow("ERR_")
    page = sam.page
    await page.goto("/sell/upload?kind=records.insert")
    await choose(page, records(3, "twice"), tmp_path / "twice.csv")

    async def lose(route: Route) -> None:
        await route.fetch()
        await route.abort()

    await page.route("**/api/batches?*", lose, times=1)
    await page.get_by_role("button", name="Send it").click()
    await sam.sees("it is not done twice. twice.csv is kept here")
    await page.get_by_role("button", name="Send it again").click()
    await sam.sees("Done. 3 operations are done.")
    async with httpx.AsyncClient(base_url=shop.url, headers=seller("twice")) as http:
        assert len((await http.get("/api/batches")).json()["items"]) == 1


async def test_an_upload_by_keyboard_that_does_nothing_if_a_row_is_wrong(enter: Enter, tmp_path: Path) -> None:
    sam = await enter("typist", "seller")
    page, keys = sam.page, sam.page.keyboard
    await page.goto("/sell/upload?kind=records.insert")
    await page.get_by_label("What is to be done?").focus()
    await keys.press("Tab")
    await expect(page.get_by_label("Choose a file")).to_be_focused()
    saved(tmp_path / "typed.csv", records(2, "typed") + ",\n")
    async with page.expect_file_chooser() as chooser:
        await keys.press("Space")
    await (await chooser.value).set_files(tmp_path / "typed.csv")
    await sam.sees("typed.csv")
    await keys.press("Tab")
    await keys.press("Tab")
    await expect(page.get_by_label("If a row is wrong")).to_be_focused()
    await keys.press("ArrowDown")
    await expect(page).to_have_url(re.compile("wrong=reject"))
    await keys.press("Tab")
    await keys.press("Enter")
    await sam.sees("Failed. 1 row is no operation, so nothing ran.")
    await sam.sees("Row 3, line 4")
    await sam.show("job-rejected")
    again = await sam.context.new_page()
    await again.goto(page.url)
    await expect(again.get_by_text("This page does not have the file any more")).to_contain_text("choose it once more")
    await again.close()
    await page.get_by_role("button", name="Mend the file").click()
    text = page.get_by_label("Mend it here")
    await expect(text).to_have_value(re.compile("typed-0"))  # nothing of it ran: all of it is sent again
    await text.fill(records(2, "typed"))
    await page.get_by_role("button", name="Send it").click()
    await sam.sees("Done. 2 operations are done.")
