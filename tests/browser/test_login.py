"""The page on which people log in, in a real browser."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from litestar.types import Receive, Scope, Send

from common.runtime import Platform
from tests.asgi import door, serving
from tests.browser.chromium import Chromium, Page
from tests.harness import ServiceProcess, eventually

SEEN = "document.querySelector('main').innerText.replace(/\\s+/g, ' ')"


@pytest.fixture
async def shop(platform: Platform, home: Path) -> AsyncIterator[ServiceProcess]:
    async with ServiceProcess("identity", platform.settings, home) as process:
        yield process


async def shows(page: Page, text: str) -> None:
    """Wait until the page shows this."""

    async def look() -> bool:
        return text in await page.run(SEEN)

    await eventually(look, True)


async def press(page: Page, text: str) -> None:
    """Type, as somebody who has a keyboard only."""
    for key in text:
        code = {"\t": {"key": "Tab", "windowsVirtualKeyCode": 9}, "\r": {"key": "Enter", "windowsVirtualKeyCode": 13}}
        event = code.get(key, {"key": key}) | ({"text": key} if key != "\t" else {})
        await page.call("Input.dispatchKeyEvent", type="keyDown", **event)
        await page.call("Input.dispatchKeyEvent", type="keyUp", **event)


async def test_a_developer_logs_in_by_keyboard_stays_and_gets_out(shop: ServiceProcess, home: Path) -> None:
    async with Chromium(home) as browser, browser.page() as page:
        await page.go(f"{shop.url}/login")
        await shows(page, "be whoever you like")
        await page.run("document.querySelector('#who').focus()")
        await press(page, "ada\tb\t\r")
        await shows(page, "You are ada, a buyer.")
        assert "boxoffice-session" not in await page.run("document.cookie")  # no script reads it
        await page.go(f"{shop.url}/login")
        await shows(page, "You are ada, a buyer.")
        await page.call("Network.deleteCookies", name="boxoffice-session", url=shop.url)  # five minutes pass
        await page.go(f"{shop.url}/login")
        await shows(page, "You are ada, a buyer.")
        await page.run("document.querySelector('#out').click()")
        await shows(page, "be whoever you like")
        assert await page.run("document.cookie") == ""


async def test_a_key_is_made_shown_once_and_revoked(shop: ServiceProcess, home: Path) -> None:
    async with Chromium(home) as browser, browser.page() as page, httpx.AsyncClient(base_url=shop.url) as program:
        await page.go(f"{shop.url}/login")
        await shows(page, "be whoever you like")
        await page.run("document.querySelector('#who').value = 'ada'; document.querySelector('#dev button').click()")
        await shows(page, "API keys")
        await page.run("document.querySelector('summary').click()")
        await page.run("document.querySelector('#key-name').value = 'import'")
        await page.run("document.querySelector('#new-key button').click()")
        await shows(page, "Choose at least one thing")
        await page.run("document.querySelector('[value=\"tickets:write\"]').click()")
        await page.run("document.querySelector('#key-end').value = '2999-12-31'")
        await page.run("document.querySelector('#new-key button').click()")
        await shows(page, "Copy it now")
        key = await page.run("document.querySelector('#secret').textContent")
        program.headers["Authorization"] = f"Bearer {key}"
        assert (await program.get("/api/auth/me")).json()["scopes"] == ["tickets:write"]
        await page.go(f"{shop.url}/login")
        await shows(page, "import tickets:write")
        await shows(page, "until Dec 31, 2999")
        assert key not in await page.run("document.documentElement.outerHTML")
        await page.run("document.querySelector('#keys button').click()")

        async def me() -> int:
            return (await program.get("/api/auth/me")).status_code

        await eventually(me, 401)


async def test_an_operator_changes_roles_and_logs_people_out_on_the_page(shop: ServiceProcess, home: Path) -> None:
    async with Chromium(home) as browser, browser.page() as page, httpx.AsyncClient(base_url=shop.url) as program:
        for number in range(25):
            given = await program.post("/api/auth/dev", json={"name": f"user-{number}", "role": "buyer"})
        program.headers["Authorization"] = f"Bearer {given.json()['access_token']}"  # that of user-24
        await page.go(f"{shop.url}/login")
        await shows(page, "be whoever you like")
        await page.run(
            "document.querySelector('#who').value = 'olga'; document.querySelector('#as').value = 'operator'"
        )
        await page.run("document.querySelector('#dev button').click()")
        await shows(page, "People")

        def people(what: str) -> str:
            return f"[...document.querySelectorAll('#people li')].{what}"

        async def how_many() -> Any:
            return await page.run(people("length"))

        await eventually(how_many, 20)
        own, other = (f"document.querySelector('[aria-label=\"Role of {who}\"]')" for who in ("olga", "user-24"))
        assert [await page.run(f"{each}.disabled") for each in (own, other)] == [True, False]
        await page.run("document.querySelector('#more').click()")
        await eventually(how_many, 26)
        assert await page.run("document.querySelector('#more').checkVisibility()") is False
        assert await page.run("document.documentElement.scrollWidth <= innerWidth")
        await page.run(f"{other}.focus()")
        await press(page, "s")  # the first that begins so
        assert await page.run(f"{other}.value") == "seller"

        async def role() -> Any:
            page_of_users = await page.run("fetch('/api/auth/users').then((answer) => answer.json())")
            return next(each["role"] for each in page_of_users["items"] if each["id"] == "user-24")

        await eventually(role, "seller")
        await page.run("globalThis.confirm = () => true")
        await page.run("document.querySelector('[aria-label=\"Log user-24 out everywhere\"]').click()")
        await shows(page, "user-24 is logged out everywhere")

        async def refreshed() -> int:
            answer = await program.post("/api/auth/refresh", json={"refresh_token": given.json()["refresh_token"]})
            return answer.status_code

        await eventually(refreshed, 401)
        await page.run('fetch = async () => new Response(\'{"detail": "No."}\', {status: 409})')
        await page.run(f"{other}.value = 'buyer'; {other}.dispatchEvent(new Event('change'))")
        await shows(page, "No.")
        assert await page.run(f"{other}.value") == "seller", "as it is"


async def test_other_logins_are_ended_on_the_page(shop: ServiceProcess, home: Path) -> None:
    async with Chromium(home) as browser, browser.page() as page, httpx.AsyncClient(base_url=shop.url) as program:
        lost = (await program.post("/api/auth/dev", json={"name": "ada"})).json()
        await page.go(f"{shop.url}/login")
        await shows(page, "be whoever you like")
        await page.run("document.querySelector('#who').value = 'ada'; document.querySelector('#dev button').click()")
        await shows(page, "this login")
        await shows(page, "Log out there")
        assert await page.run("document.querySelector('#people-part').checkVisibility()") is False
        assert await page.run("document.querySelectorAll('#logins button').length") == 1
        await page.run("document.querySelector('#logins button').click()")

        async def others() -> Any:
            return await page.run("document.querySelectorAll('#logins button').length")

        await eventually(others, 0)
        await shows(page, "this login")
        answer = await program.post("/api/auth/refresh", json={"refresh_token": lost["refresh_token"]})
        assert answer.status_code == 401


async def test_what_went_wrong_is_told_as_text(shop: ServiceProcess, home: Path) -> None:
    async with Chromium(home) as browser, browser.page() as page:
        await page.go(f"{shop.url}/api/auth/login/nobody")
        await shows(page, "There is no such provider")
        await page.go(f"{shop.url}/login")
        await shows(page, "be whoever you like")
        assert "provider" not in await page.run(SEEN), "it is told once"
        await page.run("document.cookie = 'boxoffice-problem=%3Cimg%20src%3Dx%3E%20Log%20in%20again.; Path=/'")
        await page.go(f"{shop.url}/login")
        await shows(page, "<img src=x> Log in again.")
        assert await page.run("document.querySelectorAll('img').length") == 0


async def test_nobody_elses_words_are_told_as_ours(shop: ServiceProcess, home: Path) -> None:
    async with Chromium(home) as browser, browser.page() as page:
        for path in ("/login?problem=Call%20555-0100", "/api/auth/login/Call%20555-0100"):
            await page.go(f"{shop.url}{path}")
            await shows(page, "be whoever you like")
            assert "555" not in await page.run(SEEN)


async def elsewhere(_scope: Scope, _receive: Receive, send: Send) -> None:
    """A page of somebody else's."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
    await send({"type": "http.response.body", "body": b"<p>Look at these kittens", "more_body": False})


async def test_a_page_of_somebody_else_does_nothing_here(shop: ServiceProcess, home: Path) -> None:
    """It neither logs its victim in, to an account of its own, nor out."""
    async with (
        door() as listening,
        serving(elsewhere, listening) as evil,
        Chromium(home) as browser,
        browser.page() as page,
    ):
        await page.go(evil)  # another port is another origin, but the same site
        await attack(page, f"{shop.url}/api/auth/dev", {"name": "eve", "page": True})
        await page.go(f"{shop.url}/login")
        await shows(page, "be whoever you like")
        await page.run("document.querySelector('#who').value = 'ada'")
        await page.run("document.querySelector('#dev button').click()")
        await shows(page, "You are ada, a seller.")
        await page.go(evil)
        for path, body in (("logout", {}), ("refresh", {}), ("keys", {"name": "x", "scopes": ["tickets:write"]})):
            await attack(page, f"{shop.url}/api/auth/{path}", body)
        await page.go(f"{shop.url}/login")
        await shows(page, "You are ada, a seller.")
        assert await page.run("fetch('/api/auth/keys').then((answer) => answer.json())") == []


async def attack(page: Page, url: str, body: object) -> None:
    """Post with the victim's cookies, in each of the ways that a page has."""
    text = msgspec.json.encode(body).decode()
    for mode, media_type in (("no-cors", "text/plain"), ("cors", "application/json")):
        options = {"method": "POST", "mode": mode, "credentials": "include", "body": text}
        given = msgspec.json.encode({**options, "headers": {"Content-Type": media_type}}).decode()
        script = f"fetch({url!r}, {given})"
        assert await page.run(f"{script}.then(() => 'sent', () => 'blocked')") in ("sent", "blocked")


async def test_who_is_logged_in_tries_doors_in_the_documentation(shop: ServiceProcess, home: Path) -> None:
    async with Chromium(home) as browser, browser.page() as page:
        await page.go(f"{shop.url}/login")
        await shows(page, "be whoever you like")
        await page.run("document.querySelector('#who').value = 'ada'; document.querySelector('#dev button').click()")
        await shows(page, "You are ada")
        document = await page.run("fetch('/api/openapi.json').then((answer) => answer.json())")
        name = document["paths"]["/api/auth/ticket"]["post"]["operationId"]
        await page.go(f"{shop.url}/api/docs#/auth/{name}")
        for button in (".try-out__btn", ".execute"):
            found = f"document.querySelector('.opblock.is-open {button}')"

            async def there(found: str = found) -> bool:
                return bool(await page.run(f"{found} !== null"))

            await eventually(there, True)
            await page.run(f"{found}.click()")

        async def answer() -> str:
            found = ".live-responses-table tbody .response-col_status"
            return str(await page.run(f"document.querySelector('{found}')?.innerText.trim()"))

        await eventually(answer, "201")
