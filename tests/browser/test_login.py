"""The page on which people log in, in a real browser."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest
from litestar.types import Receive, Scope, Send
from playwright.async_api import Dialog, Page, expect

from common.runtime import Platform
from tests.asgi import door, serving
from tests.browser.conftest import Enter
from tests.browser.person import Person
from tests.harness import ServiceProcess, eventually

WELCOME = "be whoever you like"


@pytest.fixture
async def shop(platform: Platform, home: Path) -> AsyncIterator[ServiceProcess]:
    async with ServiceProcess("identity", platform.settings, home) as process:
        yield process


@pytest.fixture
async def somebody(enter: Enter) -> Person:
    """Who is not logged in, which is what the server answers them."""
    somebody = await enter()
    somebody.allow("401")
    return somebody


async def logs_in(somebody: Person, name: str, role: str = "seller") -> None:
    """Log in on the page that is shown."""
    await somebody.sees(WELCOME)
    await somebody.page.get_by_label("Name").fill(name)
    await somebody.page.get_by_label("Role").select_option(role)
    await somebody.page.get_by_role("button", name="Log in").click()


async def cookies(page: Page) -> str:
    """Those that scripts read."""
    return str(await page.evaluate("document.cookie"))


async def test_a_developer_logs_in_by_keyboard_stays_and_gets_out(somebody: Person) -> None:
    page = somebody.page
    await page.goto("/login")
    await somebody.sees(WELCOME)
    await page.get_by_label("Name").focus()
    for key in ("a", "d", "a", "Tab", "b", "Tab", "Enter"):
        await page.keyboard.press(key)
    await somebody.sees("You are ada, a buyer.")
    assert "boxoffice-session" not in await cookies(page)
    await page.goto("/login")
    await somebody.sees("You are ada, a buyer.")
    await somebody.context.clear_cookies(name="boxoffice-session")  # five minutes pass
    await page.goto("/login")
    await somebody.sees("You are ada, a buyer.")
    await page.get_by_role("button", name="Log out").first.click()
    await somebody.sees(WELCOME)
    assert await cookies(page) == ""


async def test_a_key_is_made_shown_once_and_revoked(shop: ServiceProcess, somebody: Person) -> None:
    page = somebody.page
    async with httpx.AsyncClient(base_url=shop.url) as program:
        await page.goto("/login")
        await logs_in(somebody, "ada")
        await somebody.sees("API keys")
        await page.get_by_text("Make a key").click()
        await page.get_by_label("What is it for?").fill("import")
        await page.get_by_role("button", name="Make it").click()
        await somebody.sees("Choose at least one thing")
        await page.get_by_label("tickets:write").check()
        await page.get_by_label("Until when?").fill("2999-12-31")
        await page.get_by_role("button", name="Make it").click()
        await somebody.sees("Copy it now")
        key = await page.locator("#secret").inner_text()
        program.headers["Authorization"] = f"Bearer {key}"
        assert (await program.get("/api/auth/me")).json()["scopes"] == ["tickets:write"]
        await page.goto("/login")
        await somebody.sees("import tickets:write")
        await somebody.sees("until 31 Dec 2999")
        assert key not in await page.content()
        await page.get_by_role("button", name="Revoke import").click()

        async def me() -> int:
            return (await program.get("/api/auth/me")).status_code

        await eventually(me, 401)


async def test_an_operator_changes_roles_and_logs_people_out_on_the_page(
    shop: ServiceProcess, somebody: Person
) -> None:
    page = somebody.page
    async with httpx.AsyncClient(base_url=shop.url) as program:
        for number in range(25):
            given = await program.post("/api/auth/dev", json={"name": f"user-{number}", "role": "buyer"})
        program.headers["Authorization"] = f"Bearer {given.json()['access_token']}"  # that of user-24
        await page.set_viewport_size({"width": 360, "height": 640})
        await page.goto("/login")
        await logs_in(somebody, "olga", "operator")
        await somebody.sees("People")
        people = page.get_by_role("list", name="People").get_by_role("listitem")
        await expect(people).to_have_count(20)
        own, other = (page.get_by_label(f"Role of {who}", exact=True) for who in ("olga", "user-24"))
        await expect(own).to_be_disabled()
        await expect(other).to_be_enabled()
        more = page.get_by_role("button", name="More")
        await more.click()
        await expect(people).to_have_count(26)
        await expect(more).to_be_hidden()
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await other.focus()
        await page.keyboard.press("s")  # the first that begins so
        await expect(other).to_have_value("seller")

        async def role() -> str:
            items = await page.evaluate("fetch('/api/auth/users').then((answer) => answer.json())")
            return next(str(each["role"]) for each in items["items"] if each["id"] == "user-24")

        await eventually(role, "seller")
        asked: list[str] = []

        async def agree(dialog: Dialog) -> None:
            asked.append(dialog.message)
            await dialog.accept()

        page.on("dialog", agree)
        await page.get_by_role("button", name="Log user-24 out everywhere", exact=True).click()
        await somebody.sees("user-24 is logged out everywhere")
        assert asked == ["Log user-24 out everywhere, and revoke all of their keys?"]

        async def refreshed() -> int:
            answer = await program.post("/api/auth/refresh", json={"refresh_token": given.json()["refresh_token"]})
            return answer.status_code

        await eventually(refreshed, 401)
        somebody.allow("409")
        await page.route(
            "**/api/auth/users/user-24/role", lambda route: route.fulfill(status=409, json={"detail": "No."})
        )
        await other.select_option("buyer")
        await somebody.sees("No.")
        await expect(other).to_have_value("seller")  # as it is


async def test_other_logins_are_ended_on_the_page(shop: ServiceProcess, somebody: Person) -> None:
    page = somebody.page
    async with httpx.AsyncClient(base_url=shop.url) as program:
        lost = (await program.post("/api/auth/dev", json={"name": "ada"})).json()
        await page.goto("/login")
        await logs_in(somebody, "ada")
        await somebody.sees("this login")
        await somebody.sees("Log out there")
        await expect(page.get_by_role("heading", name="People")).to_be_hidden()
        out = page.get_by_role("list", name="Logins").get_by_role("button")
        await expect(out).to_have_count(1)
        await out.click()
        await expect(out).to_have_count(0)
        await somebody.sees("this login")
        answer = await program.post("/api/auth/refresh", json={"refresh_token": lost["refresh_token"]})
        assert answer.status_code == 401


async def test_what_went_wrong_is_told_as_text(somebody: Person) -> None:
    page = somebody.page
    await page.goto("/api/auth/login/nobody")
    await somebody.sees("There is no such provider")
    await page.goto("/login")
    await somebody.sees(WELCOME)
    await expect(page.get_by_role("main")).not_to_contain_text("provider", use_inner_text=True)  # it is told once
    await page.evaluate("document.cookie = 'boxoffice-problem=%3Cimg%20src%3Dx%3E%20Log%20in%20again.; Path=/'")
    await page.goto("/login")
    await somebody.sees("<img src=x> Log in again.")
    await expect(page.locator("img")).to_have_count(0)


async def test_nobody_elses_words_are_told_as_ours(somebody: Person) -> None:
    for path in ("/login?problem=Call%20555-0100", "/api/auth/login/Call%20555-0100"):
        await somebody.page.goto(path)
        await somebody.sees(WELCOME)
        await expect(somebody.page.get_by_role("main")).not_to_contain_text("555")


async def elsewhere(_scope: Scope, _receive: Receive, send: Send) -> None:
    """A page of somebody else's."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
    await send({"type": "http.response.body", "body": b"<p>Look at these kittens", "more_body": False})


async def test_a_page_of_somebody_else_does_nothing_here(shop: ServiceProcess, somebody: Person) -> None:
    """It neither logs its victim in, to an account of its own, nor out."""
    page = somebody.page
    somebody.allow("ERR_", "CORS")
    async with door() as listening, serving(elsewhere, listening) as evil:
        await page.goto(evil)  # another port is another origin, but the same site
        await attack(page, f"{shop.url}/api/auth/dev", {"name": "eve", "page": True})
        await page.goto("/login")
        await logs_in(somebody, "ada")
        await somebody.sees("You are ada, a seller.")
        await page.goto(evil)
        for path, body in (("logout", {}), ("refresh", {}), ("keys", {"name": "x", "scopes": ["tickets:write"]})):
            await attack(page, f"{shop.url}/api/auth/{path}", body)
        await page.goto("/login")
        await somebody.sees("You are ada, a seller.")
        assert await page.evaluate("fetch('/api/auth/keys').then((answer) => answer.json())") == []


async def attack(page: Page, url: str, body: object) -> None:
    """Post with the victim's cookies, in each of the ways that a page has."""
    text = msgspec.json.encode(body).decode()
    for mode, media_type in (("no-cors", "text/plain"), ("cors", "application/json")):
        options = {"method": "POST", "mode": mode, "credentials": "include", "body": text}
        given = {**options, "headers": {"Content-Type": media_type}}
        script = "([url, given]) => fetch(url, given).then(() => 'sent', () => 'blocked')"
        assert await page.evaluate(script, [url, given]) in ("sent", "blocked")


async def test_who_is_logged_in_tries_doors_in_the_documentation(somebody: Person) -> None:
    page = somebody.page
    await page.goto("/login")
    await logs_in(somebody, "ada")
    await somebody.sees("You are ada")
    document = await page.evaluate("fetch('/api/openapi.json').then((answer) => answer.json())")
    name = document["paths"]["/api/auth/ticket"]["post"]["operationId"]
    await page.goto(f"/api/docs#/auth/{name}")
    operation = page.locator(".opblock.is-open")
    for button in ("Try it out", "Execute"):
        await operation.get_by_role("button", name=button).click()
    await expect(operation.locator(".live-responses-table tbody .response-col_status")).to_have_text("201")
