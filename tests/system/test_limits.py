"""Rate limits as who asks too much meets them, on real servers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from litestar import Router, get, post
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.testing import AsyncTestClient
from litestar.types import ASGIApp, Receive, Scope, Send
from structlog.testing import capture_logs

from common.doors import HEAD_BYTES
from common.http import create_app
from common.limits import Limited
from common.runtime import Platform, Service
from common.settings import Settings
from tests.harness import ServiceProcess, eventually

WRONG_KEY = f"boxoffice_{'0' * 32}_{'a' * 43}"
SAM, EVE, ADA, BOB = ({"Authorization": f"Bearer dev:{name}"} for name in ("sam", "eve", "ada", "bob"))
SHOW = {"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": 1000}
RECORD = {"kind": "records.insert", "payload": {"key": "a", "value": "1"}}
RECORDS = {"kind": "records.insert", "operations": [{"key": "a", "value": "1"}]}
NOBODYS = "01920c3c-7a3e-7cc4-8a3e-3d1f0c5b9a10"
ALL = "tickets orders expiration batch notification"
RATES = {
    "BOXOFFICE_RATE_ORDERS": "3/hour",
    "BOXOFFICE_RATE_BATCHES": "2/hour",
    "BOXOFFICE_RATE_CHANGES": "4/hour",
    "BOXOFFICE_RATE_READS": "5/hour",
}


@pytest.fixture
async def shop(platform: Platform, home: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Everything with doors, where little may be asked."""
    async with (
        ServiceProcess(ALL, platform.settings, home, **RATES) as process,
        httpx.AsyncClient(base_url=process.url, timeout=20) as http,
    ):
        yield http


def refused(answer: httpx.Response, why: str) -> int:
    """When to come back, as a refusal says."""
    assert answer.status_code == 429, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    body = answer.json()
    assert why in body["detail"]
    assert answer.headers["Retry-After"] == str(body["retry_after"])
    assert f"ask again in {body['retry_after']} s." in body["detail"]
    return int(answer.headers["Retry-After"])


async def test_each_user_may_ask_so_much_of_each_and_others_go_on(shop: httpx.AsyncClient) -> None:
    ticket = (await shop.post("/api/tickets", json=SHOW, headers=SAM)).json()["id"]
    hold = {"ticket_id": ticket, "quantity": 1}
    placed = await shop.post("/api/orders", json=hold, headers=ADA)
    assert placed.status_code == 201
    order = placed.headers["Location"]
    assert (await shop.post(f"{order}/payment", json={"token": "tok_declined"}, headers=ADA)).status_code == 402
    assert (await shop.delete(f"/api/orders/{NOBODYS}", headers=ADA)).status_code == 404
    for method, path, body in (
        ("POST", "/api/orders", hold),
        ("POST", f"{order}/payment", {"token": "tok_ok"}),
        ("DELETE", order, None),
        ("POST", "/api/orders", None),  # also before it is looked at
    ):
        answer = await shop.request(method, path, json=body, headers=ADA)
        assert 0 < refused(answer, "You may send 3 requests for orders an hour") <= 1200
    assert (await shop.get(order, headers=ADA)).json()["status"] == "awaiting_payment"
    assert (await shop.post("/api/orders", json=hold, headers=BOB)).status_code == 201
    told = (await shop.get("/metrics")).text
    assert 'boxoffice_limited_requests_total{by="user",of="orders"} 4.0' in told


async def test_batches_changes_and_reads_are_counted_by_themselves(shop: httpx.AsyncClient) -> None:
    for _ in range(2):
        assert (await shop.post("/api/batches", json=RECORDS, headers=SAM)).status_code == 202
    refused(await shop.post("/api/batches", json=RECORDS, headers=SAM), "2 requests for batches")
    refused(await shop.post(f"/api/batches/{NOBODYS}/cancel", headers=SAM), "2 requests for batches")
    for _ in range(2):
        assert (await shop.post("/api/operations", json=RECORD, headers=SAM)).status_code == 202
    assert (await shop.post("/api/tickets", json=SHOW, headers=SAM)).status_code == 201
    assert (await shop.post("/api/templates", json={}, headers=SAM)).status_code == 400
    for path in ("/api/operations", "/api/tickets", "/api/templates", "/api/webhooks", "/api/notifications/ack"):
        refused(await shop.post(path, json={}, headers=SAM), "4 requests that change something")
    for path in ("/api/orders", "/api/batches", "/api/templates", "/api/webhooks", "/api/notifications/inbox"):
        assert (await shop.get(path, headers=SAM)).status_code == 200
    for path in ("/api/orders", f"/api/documents/{NOBODYS}", "/api/notifications/stream"):
        refused(await shop.get(path, headers=SAM), "5 requests that read something")
    for _ in range(10):
        assert (await shop.get("/api/tickets", headers=SAM)).status_code == 200, "what everybody may read is no user's"
    assert (await shop.post("/api/batches", json=RECORDS, headers=EVE)).status_code == 202


async def test_all_at_one_address_share_what_they_may_change(platform: Platform, home: Path) -> None:
    rates = {"BOXOFFICE_RATE_ADDRESS": "3/hour"}
    async with (
        ServiceProcess("tickets", platform.settings, home, **rates) as process,
        httpx.AsyncClient(base_url=process.url, timeout=20) as http,
    ):
        for who in (SAM, EVE, ADA):
            assert (await http.post("/api/tickets", json=SHOW, headers=who)).status_code == 201
        refused(await http.post("/api/tickets", json=SHOW, headers=BOB), "All at your address may send 3 requests")
        assert (await http.post("/api/tickets", json=SHOW)).status_code == 401, "nobody's is not counted"
        elsewhere = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
        async with httpx.AsyncClient(base_url=process.url, transport=elsewhere) as other:
            assert (await other.post("/api/tickets", json=SHOW, headers=BOB)).status_code == 201


async def test_every_operation_of_somebody_is_limited_and_says_so(shop: httpx.AsyncClient) -> None:
    document = (await shop.get("/api/openapi.json")).json()
    theirs = {
        (method.upper(), path)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if operation.get("security")
    }
    limited = {
        (method.upper(), path)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if "429" in operation["responses"]
    }
    assert len(theirs) > 30
    assert theirs == limited
    for number in range(6):
        await shop.get("/api/orders", headers=BOB)
        for path in ("/api/orders", "/api/batches", "/api/operations") if number < 5 else ():
            await shop.post(path, json={}, headers=BOB)
    for method, path in sorted(theirs):
        answer = await shop.request(method, path.replace("{", "").replace("}", ""), headers=BOB)
        assert answer.status_code == 429, f"{method} {path}"


@asynccontextmanager
async def identity(platform: Platform, home: Path, **rates: str) -> AsyncIterator[httpx.AsyncClient]:
    """Doors that believe what identity gave."""
    async with (
        ServiceProcess("identity tickets orders", platform.settings, home, **rates) as process,
        httpx.AsyncClient(base_url=process.url, timeout=20) as http,
    ):
        yield http


def bearer(shown: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {shown}"}


async def test_who_guesses_is_held_off_and_nobody_else_is(platform: Platform, home: Path) -> None:
    async with identity(platform, home, BOXOFFICE_RATE_REFUSED="3/hour") as shop:
        person = bearer((await shop.post("/api/auth/dev", json={"name": "ada"})).json()["access_token"])
        new_key = {"name": "import", "scopes": ["orders:read"]}
        used, unused = [
            bearer((await shop.post("/api/auth/keys", json=new_key, headers=person)).json()["key"]) for _ in range(2)
        ]
        assert (await shop.get("/api/orders", headers=used)).status_code == 200
        for _ in range(10):
            assert (await shop.get("/api/auth/me")).status_code == 401, "who shows nothing does not guess"
        for _ in range(3):
            assert (await shop.get("/api/orders", headers=bearer(WRONG_KEY))).status_code == 401
        for guess in (WRONG_KEY, "eyJ.eyJ.x", "garbage"):
            told = await shop.get("/api/orders", headers=bearer(guess))
            assert 0 < refused(told, "All at your address may send 3 requests that show what is not believed") <= 1200
        refused(await shop.get("/api/auth/me", headers={"Cookie": "boxoffice-session=garbage"}), "not believed")
        refused(await shop.post("/api/auth/refresh", json={"refresh_token": "garbage"}), "not believed")
        refused(await shop.get("/api/orders", headers=unused), "not believed")  # also one that is right: nobody asks

        assert (await shop.get("/api/auth/me")).status_code == 401
        assert (await shop.get("/api/orders", headers=used)).status_code == 200
        assert (await shop.get("/api/orders", headers=person)).status_code == 200
        login = (await shop.post("/api/auth/dev", json={"name": "bob"})).json()
        assert (await shop.get("/api/orders", headers=bearer(login["access_token"]))).status_code == 200
        token = {"refresh_token": login["refresh_token"]}
        renewed = (await shop.post("/api/auth/refresh", json=token)).json()
        bob = bearer(renewed["access_token"])
        assert (await shop.get("/api/orders", headers=bob)).status_code == 200
        assert (await shop.post("/api/auth/logout", headers=bob)).status_code == 204

        async def revoked() -> int:
            return (await shop.get("/api/orders", headers=bob)).status_code

        await eventually(revoked, 401)  # what was believed once is no guess


async def test_what_somebody_may_not_do_counts_for_them(platform: Platform, home: Path) -> None:
    rates = {"BOXOFFICE_RATE_CHANGES": "2/hour", "BOXOFFICE_RATE_REFUSED": "1/hour", "BOXOFFICE_RATE_LOGIN": "1/hour"}
    async with identity(platform, home, **rates) as shop:
        for _ in range(2):
            answer = await shop.post("/api/tickets", json=SHOW, headers=bearer("dev:bob:buyer"))
            assert answer.status_code == 403
        refused(await shop.post("/api/tickets", json=SHOW, headers=bearer("dev:bob:buyer")), "You may send 2 requests")
        assert (await shop.post("/api/tickets", json=SHOW, headers=SAM)).status_code == 201


async def test_logins_are_renewed_each_for_itself(platform: Platform, home: Path) -> None:
    async with identity(platform, home, BOXOFFICE_RATE_LOGIN="2/hour") as shop:
        tokens = [
            (await shop.post("/api/auth/dev", json={"name": name})).json()["refresh_token"] for name in ("ada", "bob")
        ]
        refused(await shop.post("/api/auth/dev", json={"name": "eve"}), "All at your address may send 2 requests")
        for token in tokens:
            latest = token
            for _ in range(2):
                answer = await shop.post("/api/auth/refresh", json={"refresh_token": latest})
                assert answer.status_code == 200, answer.text
                latest = answer.json()["refresh_token"]
            refused(await shop.post("/api/auth/refresh", json={"refresh_token": latest}), "You may send 2 requests")


@pytest.mark.parametrize("door", ["login", "callback"])
async def test_a_browser_that_logs_in_too_often_is_told_when_to_come_again(
    platform: Platform, home: Path, door: str
) -> None:
    async with identity(platform, home, BOXOFFICE_RATE_LOGIN="2/hour") as shop:
        for _ in range(2):
            answer = await shop.get(f"/api/auth/{door}/one")
            assert (answer.status_code, answer.headers["location"]) == (303, "/login")
        told = await shop.get(f"/api/auth/{door}/one")
        assert 0 < refused(told, "All at your address may send 2 requests for logging in an hour") <= 1800
        assert "location" not in told.headers


class Keyed(ASGIMiddleware):
    """Lets in by name and key, as API keys will."""

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        headers = dict(scope["headers"])

        class Program(msgspec.Struct):
            id: str = headers[b"x-user"].decode()
            key: str = headers[b"x-key"].decode()

        scope["user"] = Program()
        await next_app(scope, receive, send)


async def test_a_key_is_limited_before_its_owner_and_a_login_by_its_address() -> None:
    @post("/work", middleware=[Keyed(), Limited("batches")], sync_to_thread=False)
    def work() -> None: ...

    @get("/login", middleware=[Limited("login")], sync_to_thread=False)
    def login() -> None: ...

    settings = Settings(rate_batches="4/hour", rate_login="2/hour")
    app = create_app([Service("doors", [Router("/", route_handlers=[work, login])])], settings)

    async with AsyncTestClient(app) as http:

        async def works(user: str, key: str) -> int:
            return (await http.post("/work", headers={"x-user": user, "x-key": key})).status_code

        assert [await works("sam", "one") for _ in range(3)] == [201, 201, 429]
        again: Any = await http.post("/work", headers={"x-user": "sam", "x-key": "one"})
        refused(again, "An API key may send 2 requests for batches an hour")
        assert [await works("sam", "two") for _ in range(3)] == [201, 201, 429]
        assert await works("sam", "three") == 429
        assert await works("eve", "four") == 201
        assert [(await http.get("/login")).status_code for _ in range(3)] == [200, 200, 429]
        assert "429" in app.openapi_schema.to_schema()["paths"]["/login"]["get"]["responses"]


@pytest.mark.parametrize(("trusted", "headers", "told"), [("", True, 1), ("", False, 0), ("10.0.0.0/8", True, 0)])
async def test_a_proxy_that_may_be_taken_for_a_client_is_told_once(trusted: str, headers: bool, told: int) -> None:
    @get("/login", middleware=[Limited("login")], sync_to_thread=False)
    def login() -> None: ...

    app = create_app([Service("doors", [login])], Settings(rate_login="1/hour", trusted_proxies=trusted))
    with capture_logs() as logs:
        async with AsyncTestClient(app) as http:
            for _ in range(3):
                await http.get("/login", headers={"X-Forwarded-For": "203.0.113.7"} if headers else {})
    lines = [line for line in logs if line["event"] == "proxy_taken_for_a_client"]
    assert len(lines) == told
    assert all("BOXOFFICE_TRUSTED_PROXIES" in line["mend"] for line in lines)


async def test_what_is_no_http_fills_no_log(platform: Platform, home: Path) -> None:
    async with ServiceProcess("tickets", platform.settings, home) as process:
        before = process.log.read_text()
        for sent in (b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * HEAD_BYTES):
            reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
            writer.write(sent)
            assert b"HTTP/1.1 4" in await asyncio.wait_for(reader.read(), 20)
            writer.close()
        assert process.log.read_text() == before
