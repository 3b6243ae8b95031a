"""Getting in and out of two replicas of the identity service, as the processes of other services see it."""

import asyncio
import itertools
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from http.cookies import Morsel, SimpleCookie
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

from common.clock import now
from common.credentials import digest_of
from common.events import LoginsEnded, RoleChanged, SessionEnded, SessionRefreshed
from common.runtime import Platform, connect
from common.settings import Settings
from services.cli import system
from services.cli.embedded import make_roles
from services.cli.servers import PostgresServer, free_port
from services.identity.domain import place_id_of
from services.identity.tokens import new_signing_key
from tests.facts import whole
from tests.harness import PASSWORDS, ServiceProcess, eventually, nats_in

SHOW = {"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": 10}
OLD, NEW = new_signing_key(), new_signing_key()
TRY_AGAIN = {502, 503, 504}
TABLES = "select format('%I.%I', schemaname, tablename) from pg_tables where schemaname !~ '^(pg_|information_schema)'"


class Town:
    """Two replicas of identity and a process of other services, and every secret that anybody was given."""

    def __init__(self, settings: Settings, home: Path, platform: Platform) -> None:
        self.settings, self.home, self.platform = settings, home, platform
        self.one, self.other = self.identity(), self.identity()
        self.shop = ServiceProcess("tickets orders", settings, home)
        self.http = httpx.AsyncClient(timeout=10)
        self.secrets: set[str] = {OLD, NEW}
        self._names = (f"name-{number}" for number in itertools.count())

    def identity(self, signing_key: str = OLD, **variables: str) -> ServiceProcess:
        """A replica of identity."""
        given = {"BOXOFFICE_SIGNING_KEY": signing_key, "BOXOFFICE_LOG_LEVEL": "debug", **variables}
        return ServiceProcess("identity", self.settings, self.home, **given)

    @property
    def everywhere(self) -> tuple[ServiceProcess, ...]:
        return self.one, self.other, self.shop

    def new_name(self) -> str:
        """That of somebody who was never here."""
        return next(self._names)

    async def log_in(self, name: str, role: str = "seller", at: ServiceProcess | None = None) -> dict[str, Any]:
        """The tokens of a program."""
        answer = await self.http.post(f"{(at or self.one).url}/api/auth/dev", json={"name": name, "role": role})
        return self.kept(answer)

    async def refresh(self, token: str, at: ServiceProcess | None = None) -> httpx.Response:
        return await self.http.post(f"{(at or self.one).url}/api/auth/refresh", json={"refresh_token": token})

    def kept(self, answer: httpx.Response) -> dict[str, Any]:
        """What somebody was given."""
        assert answer.is_success, answer.text
        assert answer.headers["cache-control"] == "no-store"
        told: dict[str, Any] = answer.json()
        self.secrets |= {told[name] for name in ("access_token", "refresh_token", "csrf", "key") if told.get(name)}
        self.secrets |= {cookie.value for cookie in cookies(answer).values()} - {""}
        return told

    async def statuses(self, token: str) -> list[int]:
        """How each process answers who shows this: those of identity, and one of other services."""
        shown = bearer(token)
        answers = [self.http.get(f"{each.url}/api/auth/me", headers=shown) for each in (self.one, self.other)]
        answers.append(self.http.get(f"{self.shop.url}/api/orders", headers=shown))
        return [answer.status_code for answer in await asyncio.gather(*answers)]

    async def events_of(self, kind: str, aggregate_id: UUID | str) -> list[Any]:
        recorded = await self.platform.event_log.read(f"identity.{kind}.{aggregate_id}")
        return [each.event for each in recorded]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def cookies(answer: httpx.Response) -> dict[str, "Morsel[str]"]:
    """The cookies that an answer sets, with their flags."""
    found: SimpleCookie = SimpleCookie()
    for line in answer.headers.get_list("set-cookie"):
        found.load(line)
    return dict(found)


@pytest.fixture(scope="module")
async def town(postgres: PostgresServer) -> AsyncIterator[Town]:
    """Three processes on real servers, each service as its own user."""
    with tempfile.TemporaryDirectory(prefix="boxoffice-test-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        nats = nats_in(home / "nats", free_port())
        await nats.start()
        name = f"test_{uuid4().hex}"
        connection = await asyncpg.connect(postgres.url)
        await connection.execute(f"create database {name}")
        url = postgres.url.replace("/postgres?", f"/{name}?")
        await make_roles(url, PASSWORDS)
        settings = Settings(nats_url=nats.url, database_url=url, auth="dev")
        await system.migrate(settings, lambda _: None)
        async with connect(settings, "test") as platform:
            town = Town(settings, home, platform)
            try:
                await asyncio.gather(*(each.start() for each in town.everywhere))
                async with town.http:
                    yield town
            finally:
                await asyncio.gather(*(each.kill() for each in town.everywhere))
        await connection.execute(f"drop database {name} with (force)")
        await connection.close()
        await nats.stop()


# Programs


async def test_who_logs_in_is_known_in_other_processes(town: Town) -> None:
    login = await town.log_in("sam")
    assert (login["user_id"], login["role"], login["token_type"]) == ("sam", "seller", "Bearer")
    assert await town.statuses(login["access_token"]) == [200, 200, 200]
    made = await town.http.post(f"{town.shop.url}/api/tickets", json=SHOW, headers=bearer(login["access_token"]))
    assert made.status_code == 201, made.text
    assert made.json()["seller_id"] == "sam"


async def test_a_refresh_token_is_good_once_and_its_answer_may_be_asked_for_again(town: Town) -> None:
    login = await town.log_in("ada")
    first = town.kept(await town.refresh(login["refresh_token"], town.other))
    again = town.kept(await town.refresh(login["refresh_token"], town.one))
    assert len({login["refresh_token"], first["refresh_token"], again["refresh_token"]}) == 3
    for given in (first, again):
        assert await town.statuses(given["access_token"]) == [200, 200, 200]
    town.kept(await town.refresh(again["refresh_token"], town.one))


async def test_a_refresh_at_both_replicas_at_the_same_instant_is_one_step(town: Town) -> None:
    token = (await town.log_in("ada"))["refresh_token"]
    session_id = await town_session(town, token)
    for generation in range(1, 6):
        both = await asyncio.gather(*(town.refresh(token, each) for each in (town.one, town.other) * 3))
        token = [town.kept(answer) for answer in both][generation % 6]["refresh_token"]
        told = await town.events_of("sessions", session_id)
        steps = [event.generation for event in told if isinstance(event, SessionRefreshed)]
        assert steps == list(range(1, generation + 1))


async def town_session(town: Town, refresh_token: str) -> str:
    """The session of somebody who has just logged in."""
    access = town.kept(await town.refresh(refresh_token))["access_token"]
    listed = await town.http.get(f"{town.one.url}/api/auth/sessions", headers=bearer(access))
    return str(next(each["id"] for each in listed.json() if each["current"]))


async def test_a_stolen_refresh_token_ends_the_login_everywhere(town: Town) -> None:
    name = town.new_name()
    stolen, elsewhere = await town.log_in(name), await town.log_in(name, at=town.other)
    then = town.kept(await town.refresh(stolen["refresh_token"]))
    now = town.kept(await town.refresh(then["refresh_token"]))
    assert await town.statuses(now["access_token"]) == [200, 200, 200]
    reused = await town.refresh(stolen["refresh_token"], town.other)
    assert reused.status_code == 401
    assert "used before" in reused.json()["detail"]
    for token in (stolen, then, now):
        await eventually(lambda token=token: town.statuses(token["access_token"]), [401, 401, 401])  # type: ignore[misc]  # a lambda
    assert (await town.refresh(now["refresh_token"])).status_code == 401
    assert await town.statuses(elsewhere["access_token"]) == [200, 200, 200]


async def test_who_logs_out_is_out_everywhere(town: Town) -> None:
    name = town.new_name()
    here, elsewhere = await town.log_in(name), await town.log_in(name)
    assert await town.statuses(here["access_token"]) == [200, 200, 200]
    out = await town.http.post(f"{town.other.url}/api/auth/logout", headers=bearer(here["access_token"]))
    assert out.status_code == 204
    await eventually(lambda: town.statuses(here["access_token"]), [401, 401, 401])
    assert (await town.refresh(here["refresh_token"])).status_code == 401
    assert await town.statuses(elsewhere["access_token"]) == [200, 200, 200]


async def test_a_login_is_ended_from_another_and_by_nobody_else(town: Town) -> None:
    name = town.new_name()
    here, lost, eve = await town.log_in(name), await town.log_in(name), await town.log_in(town.new_name())
    sessions = f"{town.one.url}/api/auth/sessions"

    async def logins() -> int:
        return len((await town.http.get(sessions, headers=bearer(here["access_token"]))).json())

    await eventually(logins, 2)
    listed = (await town.http.get(sessions, headers=bearer(here["access_token"]))).json()
    session_id = next(each["id"] for each in listed if not each["current"])
    foreign = await town.http.delete(f"{sessions}/{session_id}", headers=bearer(eve["access_token"]))
    absent = await town.http.delete(f"{sessions}/{uuid4()}", headers=bearer(eve["access_token"]))
    assert (foreign.status_code, foreign.json()) == (404, absent.json())
    ended = await town.http.delete(f"{sessions}/{session_id}", headers=bearer(here["access_token"]))
    assert ended.status_code == 204
    await eventually(lambda: town.statuses(lost["access_token"]), [401, 401, 401])
    await eventually(logins, 1)
    assert await town.statuses(here["access_token"]) == [200, 200, 200]


async def test_a_key_is_made_and_used_and_revoked(town: Town) -> None:
    login = bearer((await town.log_in(town.new_name()))["access_token"])
    keys = f"{town.one.url}/api/auth/keys"
    wanted = {"name": "nightly import", "scopes": ["orders:read"]}
    made = town.kept(await town.http.post(keys, json=wanted, headers=login))
    key = bearer(made["key"])
    used = await town.http.get(f"{town.shop.url}/api/orders", headers=key)
    assert used.status_code == 200, used.text
    lacking = await town.http.post(f"{town.shop.url}/api/tickets", json=SHOW, headers=key)
    assert lacking.status_code == 403
    assert "tickets:write" in lacking.json()["detail"]
    more = await town.http.post(keys, json=wanted, headers=key)
    assert more.status_code == 403, "a key makes no keys"

    async def last_used() -> bool:
        return bool((await town.http.get(f"{keys}/{made['id']}", headers=login)).json()["used_at"])

    await eventually(last_used, True)
    shown = (await town.http.get(keys, headers=login)).text
    assert made["key"] not in shown
    assert digest_of(made["key"][-43:]) not in shown
    assert (await town.http.delete(f"{keys}/{made['id']}", headers=login)).status_code == 204
    await eventually(lambda: town.statuses(made["key"]), [401, 401, 401])


async def test_an_operator_changes_a_role_and_the_log_says_who(town: Town) -> None:
    name = town.new_name()
    before = await town.log_in(name, "buyer")
    olga = bearer((await town.log_in("olga", "operator"))["access_token"])
    role = f"{town.other.url}/api/auth/users/{name}/role"
    by_themselves = await town.http.put(role, json={"role": "seller"}, headers=bearer(before["access_token"]))
    assert by_themselves.status_code == 403
    changed = await town.http.put(role, json={"role": "seller"}, headers=olga)
    assert (changed.status_code, changed.json()["role"]) == (200, "seller")
    await eventually(lambda: town.statuses(before["access_token"]), [401, 401, 401])
    after = town.kept(await town.refresh(before["refresh_token"]))
    assert after["role"] == "seller"
    assert await town.statuses(after["access_token"]) == [200, 200, 200]
    made = await town.http.post(f"{town.shop.url}/api/tickets", json=SHOW, headers=bearer(after["access_token"]))
    assert made.status_code == 201, made.text
    told = await town.events_of("users", place_id_of(name))
    assert [(event.role, event.by) for event in told if isinstance(event, RoleChanged)] == [("seller", "olga")]


async def test_parallel_requests_make_no_more_keys_than_one_may_have(town: Town) -> None:
    login = bearer((await town.log_in(town.new_name()))["access_token"])
    keys = [f"{each.url}/api/auth/keys" for each in (town.one, town.other)]
    brief = {"name": "brief", "scopes": ["orders:read"], "expires_at": (now() + timedelta(seconds=5)).isoformat()}
    town.kept(await town.http.post(keys[0], json=brief, headers=login))

    async def how_many() -> int:
        return len((await town.http.get(keys[1], headers=login)).json())

    await eventually(how_many, 0)  # it has expired, and does not count
    wanted = {"name": "one of many", "scopes": ["orders:read"]}
    answers = await asyncio.gather(*(town.http.post(each, json=wanted, headers=login) for each in keys * 30))
    made = [town.kept(answer)["id"] for answer in answers if answer.status_code == 201]
    assert (len(made), {answer.status_code for answer in answers}) == (50, {201, 409})
    assert await how_many() == 50
    assert (await town.http.delete(f"{keys[0]}/{made[0]}", headers=login)).status_code == 204
    after = [(await town.http.post(keys[1], json=wanted, headers=login)).status_code for _ in range(2)]
    assert after == [201, 409], "one that was revoked makes room for one"


async def test_ones_login_is_listed_right_after_it(town: Town) -> None:
    for _ in range(10):
        login = bearer((await town.log_in(town.new_name()))["access_token"])
        listed = await town.http.get(f"{town.other.url}/api/auth/sessions", headers=login)
        assert [each["current"] for each in listed.json()] == [True]
        gone = await town.http.delete(f"{town.one.url}/api/auth/sessions/{listed.json()[0]['id']}", headers=login)
        assert gone.status_code == 204


async def test_an_operator_logs_somebody_out_everywhere_and_the_log_says_who(town: Town) -> None:
    name = town.new_name()
    logins = [await town.log_in(name, at=each) for each in (town.one, town.other) * 2]
    wanted = {"name": "theirs", "scopes": ["orders:read"]}
    asking = bearer(logins[0]["access_token"])
    made = town.kept(await town.http.post(f"{town.one.url}/api/auth/keys", json=wanted, headers=asking))
    assert await town.statuses(made["key"]) == [200, 200, 200]
    olga = bearer((await town.log_in("olga", "operator"))["access_token"])
    users = f"{town.other.url}/api/auth/users"
    assert (await town.http.delete(f"{users}/nobody-like-that/sessions", headers=olga)).status_code == 404
    for _ in range(2):
        assert (await town.http.delete(f"{users}/{name}/sessions", headers=olga)).status_code == 204
    for secret in (*(each["access_token"] for each in logins), made["key"]):
        await eventually(lambda secret=secret: town.statuses(secret), [401, 401, 401])  # type: ignore[misc]  # a lambda
    for each in logins:
        assert (await town.refresh(each["refresh_token"])).status_code == 401
    told = await town.events_of("users", place_id_of(name))
    assert [event.by for event in told if isinstance(event, LoginsEnded)] == ["olga"] * 2
    assert await town.statuses((await town.log_in(name))["access_token"]) == [200, 200, 200]


# Pages


async def test_a_page_gets_cookies_and_what_it_sends_beside_them(town: Town) -> None:
    origin = {"Origin": town.one.url}
    answer = await town.http.post(f"{town.one.url}/api/auth/dev", json={"name": "pia", "page": True}, headers=origin)
    login = town.kept(answer)
    assert not {"access_token", "refresh_token"} & login.keys()
    given = cookies(answer)
    flags = {name: (each["httponly"], each["samesite"], each["secure"], each["path"]) for name, each in given.items()}
    assert flags == {
        "boxoffice-session": (True, "strict", "", "/"),
        "boxoffice-refresh": (True, "strict", "", "/"),
        "boxoffice-csrf": ("", "strict", "", "/"),
    }
    assert given["boxoffice-csrf"].value == login["csrf"]
    beside, csrf = {"Cookie": sent(given)}, {"X-CSRF-Token": login["csrf"]}
    assert (await town.http.get(f"{town.one.url}/api/auth/me", headers=beside)).json()["user_id"] == "pia"
    for wrong in ({}, {"X-CSRF-Token": "a" * 43}, {**csrf, "Origin": "https://evil.example"}):
        for door in ("logout", "ticket", "keys"):
            refused = await town.http.post(f"{town.one.url}/api/auth/{door}", headers={**beside, **wrong}, json={})
            assert refused.status_code == 403, (door, wrong)
        refused = await town.http.post(f"{town.one.url}/api/auth/refresh", headers={**beside, **wrong}, json={})
        assert refused.status_code == 403, wrong
    renewed = await town.http.post(f"{town.one.url}/api/auth/refresh", headers={**beside, **csrf, **origin}, json={})
    assert town.kept(renewed)["csrf"] == login["csrf"]
    given = cookies(renewed)
    as_program = await town.refresh(given["boxoffice-refresh"].value)
    assert as_program.status_code == 401, "the cookie of a page is no token of a program"
    out = await town.http.post(f"{town.one.url}/api/auth/logout", headers={"Cookie": sent(given), **csrf, **origin})
    assert out.status_code == 204
    assert {name: (each.value, each["max-age"]) for name, each in cookies(out).items()} == {
        "boxoffice-session": ("", "0"),
        "boxoffice-refresh": ("", "0"),
        "boxoffice-csrf": ("", "0"),
    }
    await eventually(lambda: town.statuses(given["boxoffice-session"].value), [401, 401, 401])


def sent(given: dict[str, "Morsel[str]"]) -> str:
    """As the browser sends them."""
    return "; ".join(f"{name}={each.value}" for name, each in given.items())


async def test_under_https_only_we_can_have_set_a_cookie(town: Town) -> None:
    async with town.identity(BOXOFFICE_PUBLIC_URL="https://tickets.example.org") as secure:
        wanted = {"name": "pia", "page": True}
        answer = await town.http.post(f"{secure.url}/api/auth/dev", json=wanted)
        town.kept(answer)
        given = cookies(answer)
        assert set(given) == {"__Host-boxoffice-session", "__Host-boxoffice-refresh", "__Host-boxoffice-csrf"}
        for each in given.values():
            assert (each["secure"], each["path"], each["domain"]) == (True, "/", "")
        tossed = {"Cookie": sent(given).replace("__Host-", "")}
        assert (await town.http.get(f"{secure.url}/api/auth/me", headers=tossed)).status_code == 401
        for origin in ("https://evil.example", "http://tickets.example.org", "null", town.one.url):
            refused = await town.http.post(f"{secure.url}/api/auth/dev", json=wanted, headers={"Origin": origin})
            assert refused.status_code == 403, "a page of others logs nobody in"
            assert not cookies(refused)


# Where nobody is let in by their word


async def test_what_development_let_in_is_out_when_it_is_over(town: Town) -> None:
    login = await town.log_in(town.new_name(), "operator")
    wanted = {"name": "a key", "scopes": ["orders:read"]}
    made = await town.http.post(f"{town.one.url}/api/auth/keys", json=wanted, headers=bearer(login["access_token"]))
    key = town.kept(made)["key"]
    await town.one.stop()
    await town.other.stop()  # questions are answered by any replica
    try:
        async with town.identity(BOXOFFICE_AUTH="on") as on:
            denied = await town.http.post(f"{on.url}/api/auth/dev", json={"name": "eve", "role": "operator"})
            assert denied.status_code == 404
            assert not cookies(denied)
            for token in ("dev:eve", "dev:eve:operator", key):
                refused = await town.http.get(f"{on.url}/api/auth/me", headers=bearer(token))
                assert refused.status_code == 401, token
            assert (await town.refresh(login["refresh_token"], on)).status_code == 401
            ways = (await town.http.get(f"{on.url}/api/auth/providers")).json()
            assert (ways["providers"], ways["dev"]) == ([], False)
    finally:
        await asyncio.gather(town.one.start(), town.other.start())


# What happens to processes


async def test_sessions_outlive_a_rebuild_of_what_is_seen_of_them(town: Town) -> None:
    name = town.new_name()
    login = await town.log_in(name)
    sessions = f"{town.one.url}/api/auth/sessions"

    async def seen() -> list[str]:
        return [each["id"] for each in (await town.http.get(sessions, headers=bearer(login["access_token"]))).json()]

    async def how_many() -> int:
        return len(await seen())

    await eventually(how_many, 1)
    before = await seen()
    await system.rebuild("identity", town.settings, lambda *_: None)
    assert await seen() == before
    assert await town.statuses(town.kept(await town.refresh(login["refresh_token"]))["access_token"]) == [200] * 3


async def test_nobody_is_locked_out_when_identity_is_killed(town: Town) -> None:
    """Answers are lost; whoever asks again soon is answered, here or at another replica."""
    stop = asyncio.Event()
    steps = dict.fromkeys((town.new_name() for _ in range(6)), 0)

    async def stay(name: str) -> str:
        replicas = itertools.cycle([town.one, town.other])
        login = await answered(lambda: town.log_in(name, at=next(replicas)))
        while not stop.is_set() or not steps[name]:
            token = login["refresh_token"]
            login = await answered(lambda token=token: refreshed(town, token, next(replicas)))
            steps[name] += 1
        return str(login["access_token"])

    async def more(than: dict[str, int]) -> bool:
        return all(steps[name] > before for name, before in than.items())

    async with asyncio.TaskGroup() as people:
        staying = [people.create_task(stay(name)) for name in steps]
        for victim in (town.one, town.other, town.one):
            await eventually(lambda before=dict(steps): more(before), True)  # type: ignore[misc]  # a lambda
            await victim.kill()
            await eventually(lambda before=dict(steps): more(before), True)  # type: ignore[misc]  # a lambda
            await victim.start()
        stop.set()
    for task in staying:
        assert await town.statuses(task.result()) == [200, 200, 200]
    events = [each.event for each in await whole(town.platform.event_log, "IDENTITY")]
    assert not [event for event in events if isinstance(event, SessionEnded) and event.user_id in steps]


async def refreshed(town: Town, token: str, at: ServiceProcess) -> dict[str, Any]:
    answer = await town.refresh(token, at)
    if answer.status_code in TRY_AGAIN:
        raise httpx.TransportError("it is not ready")
    return town.kept(answer)


async def answered(ask: Any) -> dict[str, Any]:
    """The answer of whoever gives one; a lost connection tells nothing of the outcome."""
    async with asyncio.timeout(9):  # the grace
        while True:
            try:
                told: dict[str, Any] = await ask()
            except httpx.TransportError:
                await asyncio.sleep(0.05)
            else:
                return told


async def test_the_signing_key_is_changed_while_everybody_stays(town: Town) -> None:
    """First every replica believes the new one, then each signs with it, and last the old one goes."""
    login = await town.log_in("ada")
    stop, seen = asyncio.Event(), set[int]()

    async def go_on() -> None:
        while not stop.is_set():
            answer = await town.http.get(f"{town.shop.url}/api/orders", headers=bearer(login["access_token"]))
            seen.add(answer.status_code)

    async def believed(token: str) -> bool:
        return await town.statuses(token) == [200, 200, 200]

    async def start_all_with(keys: str) -> None:
        for name in ("one", "other"):
            replaced: ServiceProcess = getattr(town, name)
            await replaced.stop()
            setattr(town, name, town.identity(keys))
            await getattr(town, name).start()

    async with asyncio.TaskGroup() as load:
        load.create_task(go_on())
        await start_all_with(OLD + NEW)
        await start_all_with(NEW + OLD)
        new = await town.log_in("ada")
        await eventually(lambda: believed(new["access_token"]), True)
        stop.set()
    assert seen == {200}, "those who were there did not notice"
    kids = [await town.http.get(f"{each.url}/.well-known/jwks.json") for each in (town.one, town.other)]
    assert [len(each.json()["keys"]) for each in kids] == [2, 2]
    renewed = town.kept(await town.refresh(login["refresh_token"], town.other))

    await start_all_with(NEW)
    assert (await town.refresh(new["refresh_token"], town.one)).status_code == 200
    assert (await town.refresh(renewed["refresh_token"], town.other)).status_code == 200
    gone = await town.refresh(login["refresh_token"], town.one)  # signed with the old one
    assert (gone.status_code, "none of ours" in gone.text) == (401, True)


# What is left behind


def everything_under(home: Path) -> Iterator[bytes]:
    """The logs of all processes, and every message of every stream, as they are on the disk."""
    for path in home.rglob("*"):
        if path.is_file() and path.suffix != ".sock":
            yield path.read_bytes()


async def test_no_secret_is_left_anywhere(town: Town) -> None:
    """The last test of these: it looks for what all of them were given."""
    name = town.new_name()
    login = await town.log_in(name)
    wanted = {"name": "a key", "scopes": ["orders:read"]}
    made = await town.http.post(f"{town.one.url}/api/auth/keys", json=wanted, headers=bearer(login["access_token"]))
    secret = town.kept(made)["key"][-43:]
    await town.http.get(f"{town.one.url}/api/auth/me", headers=bearer(login["access_token"][:-1]))
    await town.refresh(login["refresh_token"][:-1])
    connection = await asyncpg.connect(town.settings.database_url)
    tables = [row[0] for row in await connection.fetch(TABLES)]
    assert "identity_data.people" in tables
    rows = [row[0] for table in tables for row in await connection.fetch(f"select t::text from {table} as t")]  # noqa: S608 (names of tables)
    await connection.close()
    left = b"\n".join([*everything_under(town.home), "\n".join(rows).encode()])
    assert digest_of(secret).encode() in left, "it looks where keys are kept"
    assert b"logged_in" in left, "and at what processes say"
    assert name in "\n".join(rows), "and at what is in Postgres"
    assert len(town.secrets) > 2
    pieces = {piece for each in town.secrets for piece in parts(each)}
    told = [piece for piece in pieces if piece.encode() in left]
    assert not told


def parts(secret: str) -> Iterator[str]:
    """What of a secret must not be seen: lines of a key, the signature of a token, what is secret of an API key."""
    if secret.startswith("-----"):
        yield from secret.splitlines()[2:-1]
    else:
        yield secret.rpartition(".")[2][-43:]
