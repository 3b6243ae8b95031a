"""Logging in with a provider, over HTTP from the first click to the last: a real provider, a real service."""

import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
import httpx
import msgspec
import pytest

from common.runtime import Platform
from common.settings import Settings
from services.cli.servers import PostgresServer, free_port
from tests.conftest import Migrated, copied
from tests.harness import ServiceProcess, eventually
from tests.oidc_server import OidcServer, oidc_server

SECRET = "of-this-test-and-of-no-other-at-all"  # noqa: S105  # it opens nothing
SESSION, REFRESH, CSRF, BEGUN = (f"boxoffice-{what}" for what in ("session", "refresh", "csrf", "login"))


class House:
    """A shop, and two providers that one can log in to it with."""

    def __init__(
        self,
        shop: ServiceProcess,
        provider: OidcServer,
        other: OidcServer,
        settings: Settings,
        home: Path,
        variables: dict[str, str],
    ) -> None:
        self.shop = shop
        self.provider = provider
        self.other = other
        self.settings = settings
        self.home = home
        self.variables = variables
        self.database_url = settings.database_url

    @asynccontextmanager
    async def browser(self, **cookies: str) -> AsyncIterator[httpx.AsyncClient]:
        """One that has these cookies and keeps others, and is told where to go by the test."""
        async with httpx.AsyncClient(base_url=self.shop.url, cookies=cookies) as http:
            yield http

    async def begin(self, browser: httpx.AsyncClient, provider: str = "one", then: str = "/login") -> str:
        """Click on a provider; where that leads."""
        answer = await browser.get(f"/api/auth/login/{provider}", params={"next": then})
        assert answer.status_code == 303, answer.text
        return answer.headers["location"]

    async def log_in(self, browser: httpx.AsyncClient, user: str = "ada") -> httpx.Response:
        """All the way."""
        return await browser.get(await self.provider.log_in(await self.begin(browser), user))

    async def hour_passes(self, also: str = "") -> None:
        """Since the provider was asked whether it still knows people."""
        connection = await asyncpg.connect(self.database_url)
        await connection.execute(f"update identity_data.people set checked_at = now() - interval '1 hour'{also}")  # noqa: S608 (a test's)
        await connection.close()

    def again(self, **variables: str) -> ServiceProcess:
        """The shop, to be started again with other settings."""
        return ServiceProcess(self.shop.names, self.settings, self.home, **{**self.variables, **variables})

    async def kept(self) -> list[asyncpg.Record]:
        """What is kept of people."""
        connection = await asyncpg.connect(self.database_url)
        try:
            return await connection.fetch("select user_id, name, email, sealed from identity_data.people")
        finally:
            await connection.close()


@asynccontextmanager
async def open_house(settings: Settings, home: Path) -> AsyncIterator[House]:
    """A house on these servers."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    callbacks = [f"{url}/api/auth/callback/{name}" for name in ("one", "two")]
    async with oidc_server(callbacks[0]) as provider, oidc_server(callbacks[1]) as other:
        more = {
            "name": "two",
            "issuer": other.issuer,
            "client_id": other.client_id,
            "client_secret": other.client_secret,
        }
        variables = {
            "BOXOFFICE_AUTH": "on",
            "BOXOFFICE_PORT": str(port),
            "BOXOFFICE_PUBLIC_URL": url,
            "BOXOFFICE_OPERATORS": "ada@example.org,bob@example.org",
            "BOXOFFICE_ENCRYPTION_SECRET": SECRET,
            "BOXOFFICE_OIDC_NAME": "one",
            "BOXOFFICE_OIDC_ISSUER": provider.issuer,
            "BOXOFFICE_OIDC_CLIENT_ID": provider.client_id,
            "BOXOFFICE_OIDC_CLIENT_SECRET": provider.client_secret,
            "BOXOFFICE_OIDC_SCOPES": "openid email profile offline_access",
            "BOXOFFICE_OIDC_PROVIDERS": f"[{msgspec.json.encode(more).decode()}]",
            "BOXOFFICE_PROVIDER_MINUTES": "1",
        }
        async with ServiceProcess("identity tickets", settings, home, **variables) as shop:
            yield House(shop, provider, other, settings, home, variables)


@pytest.fixture
async def house(platform: Platform, home: Path) -> AsyncIterator[House]:
    """One of the test's own, for what changes it or looks at all that is there."""
    async with open_house(platform.settings, home) as house:
        yield house


@pytest.fixture(scope="module")
async def shared(postgres: PostgresServer, migrated: Migrated) -> AsyncIterator[House]:
    """One for all that only log in there."""
    with tempfile.TemporaryDirectory(prefix="boxoffice-test-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        async with copied(postgres, migrated, home) as settings, open_house(settings, home) as house:
            yield house


def csrf(browser: httpx.AsyncClient) -> dict[str, str]:
    """What a page of ours sends beside its cookies."""
    return {"X-CSRF-Token": browser.cookies[CSRF]}


def problem(answer: httpx.Response) -> str:
    """What the page on which one logs in is told to say, for a browser that was sent there."""
    assert answer.status_code == 303, answer.text
    assert answer.headers["location"] == "/login", "an address is not where it is told: anybody can write one"
    assert not any(answer.cookies.get(name) for name in (SESSION, REFRESH, CSRF))
    [line] = [each for each in answer.headers.get_list("set-cookie") if each.startswith("boxoffice-problem=")]
    assert {"SameSite=strict", "Max-Age=60", "Path=/"} <= set(line.split("; "))
    return unquote(answer.cookies["boxoffice-problem"])


async def test_somebody_logs_in_stays_and_gets_out(shared: House) -> None:
    async with shared.browser() as browser:
        ways = (await browser.get("/api/auth/providers")).json()
        assert (ways["providers"], ways["dev"]) == (["one", "two"], False)
        arrived = await shared.log_in(browser)
        assert (arrived.status_code, arrived.headers["location"]) == (303, "/login")
        me = (await browser.get("/api/auth/me")).json()
        assert (me["name"], me["role"]) == ("Ada Lovelace", "operator")  # her address is verified, and is named
        assert browser.cookies.get(BEGUN) is None

        before = dict(browser.cookies)
        beside = csrf(browser)
        assert (await browser.post("/api/auth/refresh", json={}, headers=beside)).status_code == 200
        assert browser.cookies[SESSION] != before[SESSION]
        assert browser.cookies[REFRESH] != before[REFRESH]
        assert browser.cookies[CSRF] == before[CSRF]
        assert (await browser.get("/api/auth/me")).json() == me

        assert (await browser.post("/api/auth/logout", headers=beside)).status_code == 204
        assert dict(browser.cookies) == {}

    async with shared.browser(**before) as thief:

        async def me() -> int:
            return (await thief.get("/api/auth/me")).status_code

        await eventually(me, 401)
        assert (await thief.post("/api/auth/refresh", json={}, headers=beside)).status_code == 401


async def test_the_same_person_is_the_same_user_and_others_are_others(shared: House) -> None:
    users = []
    for user in ("ada", "ada", "bob"):
        async with shared.browser() as browser:
            await shared.log_in(browser, user)
            users.append((await browser.get("/api/auth/me")).json())
    assert users[0] == users[1]
    assert users[2]["user_id"] != users[0]["user_id"]
    assert users[2]["role"] == "buyer"  # his address is named too, but nobody has verified that it is his
    async with shared.browser() as browser:  # who is called the same at another provider is somebody else
        await browser.get(await shared.other.log_in(await shared.begin(browser, "two")))
        assert (await browser.get("/api/auth/me")).json()["user_id"] not in {each["user_id"] for each in users}


async def test_what_the_provider_entrusts_to_us_is_sealed_and_given_back_at_the_end(house: House) -> None:
    async with house.browser() as browser:
        await house.log_in(browser)
        [kept] = await house.kept()
        assert (kept["name"], kept["email"]) == ("Ada Lovelace", "ada@example.org")
        assert re.fullmatch(r"[0-9a-f]{12}\.[A-Za-z0-9_-]+", kept["sealed"])
        await browser.post("/api/auth/logout", headers=csrf(browser))
        [kept] = await house.kept()
        assert kept["sealed"] is None
        assert any("revo" in path for path in house.provider.asked)


async def test_nothing_lets_in_whom_the_provider_does_not_know_any_more(house: House) -> None:
    async with house.browser() as browser, house.browser() as other, house.browser() as program:
        await house.log_in(browser)
        await house.log_in(other)
        wanted = {"name": "import", "scopes": ["tickets:write"]}
        key = (await other.post("/api/auth/keys", json=wanted, headers=csrf(other))).json()["key"]
        program.headers["Authorization"] = f"Bearer {key}"

        async def statuses() -> list[int]:
            return [(await each.get("/api/auth/me")).status_code for each in (browser, other, program)]

        assert await statuses() == [200, 200, 200]
        house.provider.forget("ada")
        await house.hour_passes()
        await browser.post("/api/auth/refresh", json={}, headers=csrf(browser))
        await eventually(statuses, [401, 401, 401])
        for each in (browser, other):
            assert (await each.post("/api/auth/refresh", json={}, headers=csrf(each))).status_code == 401


async def test_nobody_waits_for_a_provider_that_does_not_answer(house: House) -> None:
    async with house.browser() as browser:
        await house.log_in(browser)
        house.provider.hangs = True
        await house.hour_passes()
        asked = len(house.provider.asked)
        assert (await browser.post("/api/auth/refresh", json={}, headers=csrf(browser))).status_code == 200

        async def is_asked() -> bool:
            return len(house.provider.asked) > asked

        await eventually(is_asked, True)
        assert (await browser.post("/api/auth/refresh", json={}, headers=csrf(browser))).status_code == 200
        assert (await browser.get("/api/auth/me")).status_code == 200


async def test_who_is_no_operator_any_more_by_the_settings_is_none_after_a_start(house: House) -> None:
    async with house.browser() as browser:
        await house.log_in(browser)
        assert (await browser.get("/api/auth/users")).status_code == 200
        await house.shop.kill()
        async with house.again(BOXOFFICE_OPERATORS="eve@example.org"):

            async def users() -> int:
                return (await browser.get("/api/auth/users")).status_code

            await eventually(users, 401)  # what was issued before is no longer true
            renewed = await browser.post("/api/auth/refresh", json={}, headers=csrf(browser))
            assert renewed.json()["role"] == "buyer"
            assert await users() == 403


async def test_what_is_sealed_is_sealed_anew_once_there_is_another_secret(house: House) -> None:
    async with house.browser() as browser:
        await house.log_in(browser)
    [before] = await house.kept()
    await house.shop.kill()
    another = {"BOXOFFICE_ENCRYPTION_SECRET": "another-" * 4, "BOXOFFICE_ENCRYPTION_SECRET_BEFORE": SECRET}
    async with house.again(**another) as shop:

        async def anew() -> bool:
            [kept] = await house.kept()
            return bool(kept["sealed"] != before["sealed"])

        await eventually(anew, True)
        await shop.kill()
    async with house.again(BOXOFFICE_ENCRYPTION_SECRET=another["BOXOFFICE_ENCRYPTION_SECRET"]) as shop:
        async with house.browser() as browser:
            await house.log_in(browser)  # it is there, and has lost nothing
        assert "lost=1" not in shop.log.read_text()
        assert '"lost": 1' not in shop.log.read_text()


async def test_a_token_that_cannot_be_opened_keeps_nobody_out_who_is_in(house: House) -> None:
    async with house.browser() as browser:
        await house.log_in(browser)
        await house.hour_passes(", sealed = '000000000000.AAAA'")  # with a secret that is gone
        assert (await browser.post("/api/auth/refresh", json={}, headers=csrf(browser))).status_code == 200

        async def told() -> bool:
            return "provider_not_asked" in house.shop.log.read_text()

        await eventually(told, True)
        assert (await browser.get("/api/auth/me")).status_code == 200


async def test_an_answer_of_a_provider_serves_once(shared: House) -> None:
    async with shared.browser() as browser:
        callback = await shared.provider.log_in(await shared.begin(browser))
        begun = browser.cookies[BEGUN]
        assert (await browser.get(callback)).headers["location"] == "/login"
    async with shared.browser(**{BEGUN: begun}) as again:
        told = problem(await again.get(callback))
    assert "used before" in told


async def test_an_answer_serves_only_the_browser_that_began(shared: House) -> None:
    async with shared.browser() as victim, shared.browser() as thief:
        theirs = await shared.provider.log_in(await shared.begin(thief), "bob")
        assert "begun no such login" in problem(await victim.get(theirs))  # and does not become bob
        await shared.begin(victim)
        assert "state" in problem(await victim.get(theirs))
        assert (await victim.get("/api/auth/me")).status_code == 401


async def test_an_answer_that_is_none_spoils_no_login(shared: House) -> None:
    async with shared.browser() as browser:
        first = await shared.provider.log_in(await shared.begin(browser))  # in one tab
        second = await shared.provider.log_in(await shared.begin(browser))  # and then in another
        assert "began last" in problem(await browser.get("/api/auth/callback/one?state=wrong&code=x"))
        assert "began last" in problem(await browser.get(first))
        assert (await browser.get(second)).headers["location"] == "/login"
        assert (await browser.get("/api/auth/me")).status_code == 200


async def test_an_answer_of_one_provider_is_not_taken_for_that_of_another(shared: House) -> None:
    async with shared.browser() as browser:
        callback = await shared.provider.log_in(await shared.begin(browser))
        assert "begun no such login" in problem(await browser.get(callback.replace("/one?", "/two?")))
    async with shared.browser() as browser:
        mixed = (await shared.provider.log_in(await shared.begin(browser))).split("?")[1]
        await shared.begin(browser, "two")
        assert "state" in problem(await browser.get(f"/api/auth/callback/two?{mixed}"))


async def test_a_login_that_was_tampered_with_was_not_begun_here(shared: House) -> None:
    async with shared.browser() as browser:
        callback = await shared.provider.log_in(await shared.begin(browser))
    for tampered in ("", "x", "0" * 12 + ".AAAA", "garbage.with.dots", "%00"):
        async with shared.browser(**{BEGUN: tampered}) as browser:
            assert "begun no such login" in problem(await browser.get(callback))


async def test_who_says_no_at_the_provider_is_told_so(shared: House) -> None:
    async with shared.browser() as browser:
        state = parse_qs(urlsplit(await shared.begin(browser)).query)["state"][0]
        refused = {"state": state, "error": "access_denied", "error_description": "<script>alert(1)</script>"}
        told = problem(await browser.get("/api/auth/callback/one", params=refused))
    assert "You said no there" in told
    assert "script" not in told


async def test_nobody_is_sent_away_from_here_afterwards(shared: House) -> None:
    async with shared.browser() as browser:
        for then in (
            *("https://evil.example", "//evil.example", "/\\evil.example", "\\\\evil", "evil"),
            *("/\t/evil.example", "/a\nb", "/\x00", "///evil.example", "/\u2028/evil.example"),
        ):
            answer = await browser.get("/api/auth/login/one", params={"next": then})
            assert "Expected a path of this system" in problem(answer), then


async def test_somebody_comes_back_to_where_they_wanted_to_go(shared: House) -> None:
    async with shared.browser() as browser:
        begun = await shared.begin(browser, then="/api/tickets?limit=1")
        arrived = await browser.get(await shared.provider.log_in(begun))
        assert arrived.headers["location"] == "/api/tickets?limit=1"


async def test_a_provider_that_is_not_there_is_told(shared: House) -> None:
    async with shared.browser() as browser:
        told = problem(await browser.get("/api/auth/login/three"))
    assert told == "There is no such provider to log in with; there are: one, two."


async def test_nothing_that_was_issued_is_in_the_log(house: House) -> None:
    issued: set[str] = set()
    async with house.browser() as browser:
        callback = await house.provider.log_in(await house.begin(browser))
        issued |= {value for values in parse_qs(urlsplit(callback).query).values() for value in values}
        issued.add(browser.cookies[BEGUN])
        await browser.get(callback)
        issued |= set(browser.cookies.values()) | {SECRET, house.provider.client_secret}
        await browser.get(callback)  # is refused, and told
    written = house.shop.log.read_text()
    assert "logged_in" in written
    assert [each for each in issued if len(each) > 12 and each in written] == []
