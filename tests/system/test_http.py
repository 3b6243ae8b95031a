"""The HTTP contract, point by point, as two replicas of the whole system keep it."""

import asyncio
import gzip
import json
import re
import tempfile
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import psutil  # type: ignore[import-untyped]  # psutil ships no types
import pytest
from litestar import get
from litestar.testing import AsyncTestClient

from common.http import create_app
from common.runtime import Platform, Service, connect
from common.settings import Settings
from services.cli import system
from services.cli.embedded import make_roles
from services.cli.servers import NatsServer, PostgresServer
from tests.harness import PASSWORDS, ServiceProcess, eventually, nats_in

SAM, EVE, ADA, BOB = ({"Authorization": f"Bearer dev:{name}"} for name in ("sam", "eve", "ada", "bob"))
SHOW = {"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": 10}
NOBODYS = "01920c3c-7a3e-7cc4-8a3e-3d1f0c5b9a10"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")
ALL = "tickets orders expiration"


class Shop:
    """Two replicas: what is written `here` can be read `there`."""

    def __init__(self, here: httpx.AsyncClient, there: httpx.AsyncClient, platform: Platform) -> None:
        self.here = here
        self.there = there
        self.platform = platform

    async def ticket(self, **changes: object) -> dict[str, Any]:
        made = await self.here.post("/api/tickets", json=SHOW | changes, headers=SAM)
        assert made.status_code == 201, made.text
        return read(made)

    async def order(
        self, ticket: Mapping[str, Any], quantity: int = 1, user: dict[str, str] = ADA, **more: object
    ) -> dict[str, Any]:
        wanted = {"ticket_id": ticket["id"], "quantity": quantity, **more}
        made = await self.here.post("/api/orders", json=wanted, headers=user)
        assert made.status_code == 201, made.text
        return read(made)

    async def pay(self, order: Mapping[str, Any], by: str = "tok_ok", **headers: str) -> httpx.Response:
        return await self.here.post(f"/api/orders/{order['id']}/payment", json={"token": by}, headers=ADA | headers)

    async def everywhere(self, path: str, user: dict[str, str] = ADA) -> list[Any]:
        """What both replicas say now, without waiting for anything."""
        return [(await client.get(path, headers=user)).json() for client in (self.there, self.here)]


def read(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert isinstance(body, dict)
    return body


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """The problem details of an answer that has this status."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    return dict(body)


@pytest.fixture(scope="module")
async def shop(postgres: PostgresServer) -> AsyncIterator[Shop]:
    """Every service, twice, on real servers."""
    with tempfile.TemporaryDirectory(prefix="boxoffice-test-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        nats = nats_in(home / "nats")
        await nats.start()
        name = f"test_{uuid4().hex}"
        connection = await asyncpg.connect(postgres.url)
        await connection.execute(f"create database {name}")
        settings = Settings(nats_url=nats.url, database_url=postgres.url.replace("/postgres?", f"/{name}?"), auth="dev")
        await system.migrate(settings, lambda _: None)
        async with (
            connect(settings, "test") as platform,
            ServiceProcess(ALL, settings, home) as one,
            ServiceProcess(ALL, settings, home) as other,
            httpx.AsyncClient(base_url=one.url, timeout=10) as here,
            httpx.AsyncClient(base_url=other.url, timeout=10) as there,
        ):
            yield Shop(here, there, platform)
        await connection.execute(f"drop database {name} with (force)")
        await connection.close()
        await nats.stop()


# Listings


async def test_a_listing_tells_all_that_a_buyer_needs(shop: Shop) -> None:
    details = {"max_per_order": 4, "venue": "Town hall", "starts_at": "2030-12-31T20:00:00.5+02:00"}
    made = await shop.here.post("/api/tickets", json=SHOW | details, headers=SAM)
    assert made.status_code == 201
    body = read(made)
    ticket_id, created_at = body["id"], body["created_at"]
    assert body == {
        "id": str(UUID(ticket_id)),
        "seller_id": "sam",
        **SHOW,
        "available": 10,
        "taken": 0,
        **details,
        "starts_at": "2030-12-31T18:00:00.500000Z",
        "status": "on_sale",
        "version": 1,
        "created_at": created_at,
    }
    assert TIME.fullmatch(created_at)
    assert made.headers["location"] == f"/api/tickets/{ticket_id}"
    assert made.headers["etag"] == '"1"'
    for client in (shop.there, shop.here):
        shown = await client.get(made.headers["location"])
        assert (shown.status_code, shown.headers["etag"], read(shown)) == (200, '"1"', body)


async def test_what_a_seller_leaves_out_has_a_default(shop: Shop) -> None:
    ticket = await shop.ticket()
    assert (ticket["max_per_order"], ticket["venue"], ticket["starts_at"]) == (10, None, None)


async def test_a_change_names_the_version_that_was_seen(shop: Shop) -> None:
    ticket = await shop.ticket(venue="Town hall")
    path = f"/api/tickets/{ticket['id']}"

    async def change(if_match: str | None, **changes: object) -> httpx.Response:
        headers = SAM | ({} if if_match is None else {"If-Match": if_match})
        return await shop.here.patch(path, json=changes, headers=headers)

    assert "If-Match" in problem(await change(None, price=1), 428)["detail"]
    for malformed in ("1", '"x"', '"-1"', '""', '"1", "2"', '"99999999999999999999"'):
        told = problem(await change(malformed, price=1), 400)
        assert told["detail"].startswith("If-Match: Expected the ETag that GET gave you")
        assert json.loads(told["errors"][0]["got"]) == malformed
    assert problem(await change('"2"', price=1), 412)["version"] == 1

    changed = await change('"1"', price=1900, venue=None)
    assert changed.status_code == 200
    assert changed.headers["etag"] == '"2"'
    assert read(changed) == {**ticket, "price": 1900, "venue": None, "version": 2}
    assert await shop.everywhere(path) == [read(changed)] * 2
    problem(await change('"1"', price=1), 412)
    assert read(await change('"2"', price=1900))["version"] == 2  # nothing changed
    assert read(await change("*", title="Last night"))["version"] == 3
    assert read(await change('W/"3"', quantity=20))["available"] == 20  # as proxies that compress mark it


async def test_of_two_changes_to_the_same_version_one_is_made(shop: Shop) -> None:
    path = f"/api/tickets/{(await shop.ticket())['id']}"
    changes = [
        client.patch(path, json={"price": price}, headers=SAM | {"If-Match": '"1"'})
        for price, client in enumerate([shop.here, shop.there] * 4, start=1)
    ]
    statuses = sorted(answer.status_code for answer in await asyncio.gather(*changes))
    assert statuses == [200] + [412] * 7


async def test_only_its_seller_changes_or_withdraws_a_listing(shop: Shop) -> None:
    ticket = await shop.ticket()
    for ticket_id in (ticket["id"], NOBODYS):
        path, detail = f"/api/tickets/{ticket_id}", f"You have no ticket {ticket_id} on sale."
        changed = await shop.here.patch(path, json={"price": 1}, headers=EVE | {"If-Match": "*"})
        assert problem(changed, 404)["detail"] == detail
        assert problem(await shop.here.delete(path, headers=EVE), 404)["detail"] == detail
    assert await shop.everywhere(f"/api/tickets/{ticket['id']}") == [ticket] * 2


async def test_a_withdrawn_listing_can_be_read_and_not_be_bought(shop: Shop) -> None:
    ticket = await shop.ticket(title="Withdrawn soon")
    path = f"/api/tickets/{ticket['id']}"
    order = await shop.order(ticket)
    withdrawn = await shop.here.delete(path, headers=SAM)
    assert withdrawn.status_code == 200
    assert withdrawn.headers["etag"] == '"2"'
    assert (read(withdrawn)["status"], read(withdrawn)["version"]) == ("withdrawn", 2)
    shown, _ = await shop.everywhere(path)
    assert (shown["status"], shown["version"]) == ("withdrawn", 2)
    assert [page["items"] for page in await shop.everywhere("/api/tickets?q=Withdrawn soon")] == [[], []]
    assert read(await shop.here.delete(path, headers=SAM))["version"] == 2  # again
    problem(await shop.here.patch(path, json={"price": 1}, headers=SAM | {"If-Match": "*"}), 409)

    async def refused() -> tuple[int, int]:
        wanted = {"ticket_id": ticket["id"], "quantity": 1}
        answer = await shop.here.post("/api/orders", json=wanted, headers=BOB)
        return answer.status_code, int(answer.json().get("available", -1))

    await eventually(refused, (409, 0))
    assert (await shop.pay(order)).status_code == 200  # what is reserved may be paid


async def test_a_seller_sees_what_they_have_listed_and_nothing_else(shop: Shop) -> None:
    seller = {"Authorization": f"Bearer dev:{uuid4().hex}:seller"}
    await shop.ticket(title="Of somebody else")
    made = [read(await shop.here.post("/api/tickets", json=SHOW, headers=seller)) for _ in range(3)]
    assert (await shop.here.delete(f"/api/tickets/{made[1]['id']}", headers=seller)).status_code == 200
    await shop.order(made[0], quantity=4)

    async def listed() -> list[tuple[str, str, int, int]]:
        page = read(await shop.there.get("/api/tickets/mine", headers=seller))
        return [(each["id"], each["status"], each["available"], each["taken"]) for each in page["items"]]

    wanted = [(made[2]["id"], "on_sale", 10, 0), (made[1]["id"], "withdrawn", 0, 0), (made[0]["id"], "on_sale", 6, 4)]
    await eventually(listed, wanted)
    first = read(await shop.there.get("/api/tickets/mine?limit=2", headers=seller))
    rest = read(await shop.there.get(f"/api/tickets/mine?limit=2&cursor={first['next_cursor']}", headers=seller))
    assert [each["id"] for each in first["items"] + rest["items"]] == [id_ for id_, *_ in wanted]
    assert rest["next_cursor"] is None
    smaller = read(
        await shop.here.patch(f"/api/tickets/{made[0]['id']}", json={"quantity": 3}, headers=seller | {"If-Match": "*"})
    )
    assert (smaller["quantity"], smaller["available"], smaller["taken"]) == (3, 0, 4)
    problem(await shop.here.get("/api/tickets/mine"), 401)
    problem(await shop.here.get("/api/tickets/mine", headers={"Authorization": "Bearer dev:bea:buyer"}), 403)


async def test_pages_have_no_doubles_and_no_gaps_while_new_listings_come(shop: Shop) -> None:
    word = uuid4().hex
    listed = [(await shop.ticket(title=f"{word} {n}"))["id"] for n in range(7)]
    seen, cursor = [], ""
    for client, size in ((shop.here, 3), (shop.there, 3), (shop.here, 1)):
        page = read(await client.get(f"/api/tickets?q={word}&limit={size}{cursor}"))
        seen += [ticket["id"] for ticket in page["items"]]
        cursor = f"&cursor={page['next_cursor']}"
        await shop.ticket(title=f"{word} came later")
    assert seen == listed[::-1]
    assert page["next_cursor"] is None
    assert len(read(await shop.here.get(f"/api/tickets?q={word}&limit=10"))["items"]) == 10
    assert len(read(await shop.here.get("/api/tickets"))["items"]) <= 20


@pytest.fixture(scope="module")
async def titles(shop: Shop) -> set[str]:
    """What is on sale, among other things."""
    titles = {"100% fun", "1000 funny things", "snake_case", "snakeXcase", "back\\slash", "über alles"}
    for title in titles:
        await shop.ticket(title=title)
    return titles


@pytest.mark.parametrize(
    ("q", "found"),
    [
        ("100%", {"100% fun"}),
        ("%", {"100% fun"}),
        ("_", {"snake_case"}),
        ("\\", {"back\\slash"}),
        ("FUN", {"100% fun", "1000 funny things"}),
        ("e_c", {"snake_case"}),
        ("ÜBER", {"über alles"}),
        ("x' or 'a'='a", set()),
    ],
)
async def test_a_search_finds_the_text_itself_in_titles(shop: Shop, titles: set[str], q: str, found: set[str]) -> None:
    answer = read(await shop.there.get("/api/tickets", params={"q": q, "limit": 100}))
    assert {ticket["title"] for ticket in answer["items"]} & titles == found


# Orders


async def test_an_order_tells_all_that_its_buyer_needs(shop: Shop) -> None:
    ticket = await shop.ticket()
    wanted = {"ticket_id": ticket["id"], "quantity": 3}
    made = await shop.here.post("/api/orders", json=wanted, headers=ADA)
    assert made.status_code == 201
    body = read(made)
    assert body == {
        "id": str(UUID(body["id"])),
        "ticket_id": ticket["id"],
        "title": "Opening night",
        "quantity": 3,
        "price": 2500,
        "total": 7500,
        "currency": "EUR",
        "status": "created",
        "paying": False,
        "expires_at": body["expires_at"],
        "closed_at": None,
        "version": body["version"],
        "created_at": body["created_at"],
    }
    assert TIME.fullmatch(body["created_at"])
    assert TIME.fullmatch(body["expires_at"])
    assert held(body) == timedelta(seconds=900)
    assert made.headers["location"] == f"/api/orders/{body['id']}"
    assert await shop.everywhere(made.headers["location"]) == [body] * 2
    for page in await shop.everywhere("/api/orders?limit=1"):
        assert page["items"] == [body]


def held(order: Mapping[str, Any]) -> timedelta:
    return datetime.fromisoformat(order["expires_at"]) - datetime.fromisoformat(order["created_at"])


@pytest.mark.parametrize(("asked", "given"), [(60, 60), (900, 900), (901, 900), (86_400, 900), (None, 900)])
async def test_a_buyer_may_ask_for_less_time_and_not_for_more(shop: Shop, asked: int | None, given: int) -> None:
    order = await shop.order(await shop.ticket(), hold_seconds=asked)
    assert held(order) == timedelta(seconds=given)


async def test_the_same_key_and_body_again_give_the_same_order(shop: Shop) -> None:
    ticket, other = await shop.ticket(), await shop.ticket()
    key = {"Idempotency-Key": f"key-{uuid4()}"}

    async def place(user: dict[str, str], client: httpx.AsyncClient = shop.here, **body: object) -> httpx.Response:
        wanted = {"ticket_id": ticket["id"], "quantity": 2} | body
        return await client.post("/api/orders", json=wanted, headers=user | key)

    together = await asyncio.gather(*(place(ADA, client) for client in [shop.here, shop.there] * 5))
    first = together[0]
    assert first.status_code == 201
    for again in (*together, await place(ADA), await place(ADA, shop.there)):
        assert (again.status_code, again.json()) == (201, first.json())
        assert again.headers["location"] == first.headers["location"]
    for another in ({"quantity": 3}, {"hold_seconds": 60}, {"ticket_id": other["id"]}):
        for client in (shop.here, shop.there):
            assert "Idempotency-Key" in problem(await place(ADA, client, **another), 422)["detail"]
    bobs = await place(BOB)
    assert (bobs.status_code, bobs.json()["id"] != first.json()["id"]) == (201, True)

    async def available() -> int:
        return int(read(await shop.here.get(f"/api/tickets/{ticket['id']}"))["available"])

    await eventually(available, 6)  # two orders of two


async def test_what_is_not_there_cannot_be_reserved(shop: Shop) -> None:
    ticket = await shop.ticket(quantity=5, max_per_order=4)

    async def refused(quantity: int) -> dict[str, Any]:
        wanted = {"ticket_id": ticket["id"], "quantity": quantity}
        return problem(await shop.here.post("/api/orders", json=wanted, headers=BOB), 409)

    too_many = await refused(5)
    assert (too_many["max_per_order"], too_many["available"]) == (4, 5)
    assert "quantity" in too_many["detail"]
    await shop.order(ticket, 4)
    assert (await refused(2))["available"] == 1
    await shop.order(ticket, 1)
    sold_out = await refused(1)
    assert (sold_out["available"], "sold out" in sold_out["detail"]) == (0, True)
    wanted = {"ticket_id": NOBODYS, "quantity": 1}
    problem(await shop.here.post("/api/orders", json=wanted, headers=BOB), 404)


async def test_somebody_elses_orders_look_as_if_they_were_not_there(shop: Shop) -> None:
    order = await shop.order(await shop.ticket())
    path = f"/api/orders/{order['id']}"
    for stranger in (BOB, SAM):
        problem(await shop.here.get(path, headers=stranger), 404)
        problem(await shop.here.delete(path, headers=stranger), 404)
        problem(await shop.here.post(f"{path}/payment", json={"token": "tok_ok"}, headers=stranger), 404)
        listed = read(await shop.here.get("/api/orders?limit=100", headers=stranger))["items"]
        assert order["id"] not in [each["id"] for each in listed]
    assert await shop.everywhere(path) == [order] * 2


async def test_orders_are_listed_by_status_and_page(shop: Shop) -> None:
    cleo = {"Authorization": f"Bearer dev:cleo-{uuid4().hex}"}
    ticket = await shop.ticket()
    orders = [(await shop.order(ticket, user=cleo))["id"] for _ in range(5)]
    await shop.here.delete(f"/api/orders/{orders[1]}", headers=cleo)
    await shop.here.post(f"/api/orders/{orders[3]}/payment", json={"token": "tok_ok"}, headers=cleo)

    async def ids(query: str) -> list[str]:
        here, there = await shop.everywhere(f"/api/orders?{query}", cleo)
        assert here == there
        return [order["id"] for order in here["items"]]

    assert await ids("") == orders[::-1]
    assert await ids("status=cancelled") == [orders[1]]
    assert await ids("status=complete") == [orders[3]]
    assert await ids("status=created") == [orders[4], orders[2], orders[0]]
    assert await ids("status=awaiting_payment") == []
    first = read(await shop.here.get("/api/orders?status=created&limit=2", headers=cleo))
    late = (await shop.order(ticket, user=cleo))["id"]
    rest = read(await shop.there.get(f"/api/orders?status=created&cursor={first['next_cursor']}", headers=cleo))
    assert [order["id"] for order in first["items"] + rest["items"]] == [orders[4], orders[2], orders[0]]
    assert rest["next_cursor"] is None
    assert (await ids("limit=1")) == [late]


async def test_a_cancelled_order_gives_its_seats_back_and_stays_cancelled(shop: Shop) -> None:
    ticket = await shop.ticket(quantity=2)
    order = await shop.order(ticket, 2)
    path = f"/api/orders/{order['id']}"
    cancelled = await shop.here.delete(path, headers=ADA)
    assert cancelled.status_code == 200
    body = read(cancelled)
    assert (body["status"], body["reason"], body["total"]) == ("cancelled", "buyer", 5000)
    assert TIME.fullmatch(body["closed_at"])
    assert order["created_at"] < body["closed_at"] < order["expires_at"]
    assert await shop.everywhere(path) == [body] * 2
    again = await shop.here.delete(path, headers=ADA)
    assert (again.status_code, read(again)) == (200, body)
    assert problem(await shop.pay(order), 409)["order_status"] == "cancelled"
    await shop.order(ticket, 2, BOB)


async def test_a_declined_payment_leaves_the_order_to_be_paid_and_a_paid_one_stays(shop: Shop) -> None:
    order = await shop.order(await shop.ticket())
    path = f"/api/orders/{order['id']}"
    problem(await shop.pay(order, "tok_declined"), 402)
    assert {(each["status"], each["paying"]) for each in await shop.everywhere(path)} == {("awaiting_payment", False)}
    assert "tok_ok" in problem(await shop.pay(order, "tok_nosuch"), 422)["detail"]
    paid = await shop.pay(order)
    assert paid.status_code == 200
    body = read(paid)
    assert (body["status"], "reason" in body) == ("complete", False)
    assert TIME.fullmatch(body["closed_at"])
    assert await shop.everywhere(path) == [body] * 2
    assert problem(await shop.pay(order), 409)["order_status"] == "complete"
    assert problem(await shop.here.delete(path, headers=ADA), 409)["order_status"] == "complete"
    assert await shop.everywhere(path) == [body] * 2


async def test_a_payment_again_with_the_same_key_answers_the_same(shop: Shop) -> None:
    order = await shop.order(await shop.ticket())
    key = {"Idempotency-Key": "pay-1"}
    first, *others = await asyncio.gather(*(shop.pay(order, **key) for _ in range(4)))
    assert first.status_code == 200
    for again in (*others, await shop.pay(order, **key)):
        assert (again.status_code, again.json()) == (200, first.json())
    problem(await shop.pay(order, **{"Idempotency-Key": "pay-2"}), 409)


async def test_an_order_that_expired_is_told_with_its_reason_and_cannot_be_paid(shop: Shop) -> None:
    order = await shop.order(await shop.ticket(), hold_seconds=1)

    async def reason() -> str:
        return str(read(await shop.there.get(f"/api/orders/{order['id']}", headers=ADA)).get("reason"))

    await eventually(reason, "expired")
    assert problem(await shop.pay(order), 409)["order_status"] == "cancelled"


async def test_an_order_cancelled_while_the_bank_thinks_is_not_sold(shop: Shop) -> None:
    order = await shop.order(await shop.ticket())
    payment = asyncio.create_task(shop.pay(order, "tok_slow"))
    path = f"/api/orders/{order['id']}"

    async def status() -> tuple[str, bool]:
        told = read(await shop.there.get(path, headers=ADA))
        return told["status"], told["paying"]

    await eventually(status, ("awaiting_payment", True))
    assert (await shop.there.delete(path, headers=ADA)).status_code == 200
    assert problem(await payment, 409)["order_status"] == "cancelled"
    assert await status() == ("cancelled", False)


# Who asks, and what belongs together


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/tickets"),
        ("PATCH", f"/api/tickets/{NOBODYS}"),
        ("DELETE", f"/api/tickets/{NOBODYS}"),
        ("POST", "/api/orders"),
        ("GET", "/api/orders"),
        ("GET", f"/api/orders/{NOBODYS}"),
        ("DELETE", f"/api/orders/{NOBODYS}"),
        ("POST", f"/api/orders/{NOBODYS}/payment"),
    ],
)
async def test_who_does_not_say_who_they_are_is_asked_to(shop: Shop, method: str, path: str) -> None:
    long = "x" * 65
    for told in (None, "", "Bearer", "Bearer dev:", "Basic c2FtOg==", "dev:sam", f"Bearer dev:{long}"):
        headers = {} if told is None else {"Authorization": told}
        refused = await shop.here.request(method, path, headers=headers, content=b"not even JSON")
        assert "Bearer dev:<name>" in problem(refused, 401)["detail"]
        assert refused.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("told", ["Bearer dev:ada", "bearer dev:ada", "BEARER  dev:ada"])
async def test_the_scheme_may_be_written_in_any_case(shop: Shop, told: str) -> None:
    assert (await shop.here.get("/api/orders", headers={"Authorization": told})).status_code == 200


async def test_names_alone_are_believed_in_development_only(shop: Shop, home: Path) -> None:
    settings = shop.platform.settings
    async with (
        ServiceProcess("tickets orders", settings, home, BOXOFFICE_AUTH="on") as process,
        httpx.AsyncClient(base_url=process.url) as client,
    ):
        for headers in ({}, ADA):
            refused = await client.get("/api/orders", headers=headers)
            detail = problem(refused, 401)["detail"]
            assert ("access token or API key" in detail, "dev:" in detail) == (True, False)
            assert refused.headers["www-authenticate"] == "Bearer"
        assert (await client.get("/api/tickets")).status_code == 200


async def test_an_answer_carries_the_correlation_id_of_its_request_and_so_do_its_events(shop: Shop) -> None:
    mine = f"test-{uuid4()}"
    made = await shop.here.post("/api/tickets", json=SHOW, headers=SAM | {"X-Correlation-ID": mine})
    assert made.headers["x-correlation-id"] == mine
    [recorded] = await shop.platform.event_log.read(f"tickets.{made.json()['id']}")
    assert recorded.cause.correlation_id == mine
    for path in ("/api/tickets", "/nowhere", "/api/tickets/nonsense", "/api/orders"):
        answer = await shop.here.put(path, headers={"X-Correlation-ID": mine})
        assert answer.headers["x-correlation-id"] == mine, path
    for nonsense in ("short", "x" * 65, "with space", 'quote"s', ""):
        answer = await shop.here.get("/api/tickets", headers={"X-Correlation-ID": nonsense})
        assert UUID(answer.headers["x-correlation-id"]).version == 7
    assert UUID((await shop.here.get("/api/tickets")).headers["x-correlation-id"]).version == 7


# What is wrong with a request


def ticket(**fields: object) -> bytes:
    return json.dumps(SHOW | fields).encode()


def order(**fields: object) -> bytes:
    return json.dumps({"ticket_id": NOBODYS, "quantity": 1} | fields).encode()


Wrong = tuple[str, bytes, str, str]
"""A path, a body that is wrong, the field that is to be named, and what else is to be told of it."""

WRONG_BODIES: dict[str, Wrong] = {
    "empty": ("/api/tickets", b"", "body", "object"),
    "null": ("/api/tickets", b"null", "body", "object"),
    "an array": ("/api/tickets", b"[]", "body", "object"),
    "a number": ("/api/tickets", b"1", "body", "object"),
    "cut short": ("/api/tickets", ticket()[:-5], "body", "truncated"),
    "no JSON": ("/api/tickets", b"title=Opening", "body", "malformed"),
    "trailing garbage": ("/api/tickets", ticket() + b"}", "body", "trailing"),
    "two documents": ("/api/tickets", ticket() + ticket(), "body", "trailing"),
    "a byte order mark": ("/api/tickets", b"\xef\xbb\xbf" + ticket(), "body", "malformed"),
    "UTF-16": ("/api/tickets", ticket().decode().encode("utf-16"), "body", "malformed"),
    "broken UTF-8": ("/api/tickets", ticket(title="~").replace(b"~", b"\xff"), "body", "UTF-8"),
    "a lone surrogate": ("/api/tickets", ticket(title="~").replace(b"~", b"\\ud800"), "body", "surrogate"),
    "NaN": ("/api/tickets", ticket(price="~").replace(b'"~"', b"NaN"), "body", "malformed"),
    "nested deeply": ("/api/tickets", b"[" * 100_000, "body", "object"),
    "nested deeply in a field": ("/api/tickets", b'{"title":' * 50_000, "title", "Expected text"),
    "a name twice": ("/api/tickets", ticket()[:-1] + b', "price": 1}', "price", "once"),
    "no title": ("/api/tickets", b'{"price": 1}', "title", "Required"),
    "an unknown field": ("/api/tickets", ticket(colour="red"), "colour", "max_per_order"),
    "an unknown long field": ("/api/tickets", ticket(**{"x" * 10_000: 1}), "x" * 77 + "...", "Unknown"),
    "an id of one's own": ("/api/tickets", ticket(id=NOBODYS), "id", "Unknown"),
    "an empty title": ("/api/tickets", ticket(title=""), "title", "at least 1"),
    "a title of 10,000": ("/api/tickets", ticket(title="x" * 10_000), "title", "at most 200"),
    "a title of 201": ("/api/tickets", ticket(title="x" * 201), "title", "at most 200"),
    "a blank title": ("/api/tickets", ticket(title="   "), "title", "one line of text"),
    "a no-break space": ("/api/tickets", ticket(title="\u00a0"), "title", "one line of text"),
    "two lines": ("/api/tickets", ticket(title="a\nb"), "title", "one line of text"),
    "text that turns around": ("/api/tickets", ticket(title="a\u202eb"), "title", "one line of text"),
    "a line separator": ("/api/tickets", ticket(title="a\u2028b"), "title", "one line of text"),
    "a line at the end": ("/api/tickets", ticket(title="a\n"), "title", "one line of text"),
    "an escape": ("/api/tickets", ticket(title="\x1b[31mred"), "title", "one line of text"),
    "a C1 control": ("/api/tickets", ticket(title="a\x9bb"), "title", "one line of text"),
    "NUL": ("/api/tickets", ticket(title="a\x00b"), "title", "one line of text"),
    "NUL in a venue": ("/api/tickets", ticket(venue="\x00"), "venue", "one line of text"),
    "a number for a title": ("/api/tickets", ticket(title=1), "title", "Expected text"),
    "null for a title": ("/api/tickets", ticket(title=None), "title", "Expected text"),
    "an object for a venue": ("/api/tickets", ticket(venue={"a": 1}), "venue", "text or null"),
    "a text for a price": ("/api/tickets", ticket(price="2500"), "price", '"2500"'),
    "a fraction": ("/api/tickets", ticket(price=24.99), "price", "24.99"),
    "a fraction beside a whole": ("/api/tickets", ticket(price=24.99, quantity=10.0), "price", "24.99"),
    "a large whole": ("/api/tickets", ticket(price=1e300), "price", "Expected a whole number"),
    "a truth": ("/api/tickets", ticket(price=True), "price", "true"),
    "zero": ("/api/tickets", ticket(price=0), "price", "at least 1"),
    "a negative": ("/api/tickets", ticket(price=-1), "price", "at least 1"),
    "2**63": ("/api/tickets", ticket(price=2**63), "price", "at most 100000000"),
    "10**30": ("/api/tickets", ticket(price=10**30), "price", "at most 100000000"),
    "5,000 digits": ("/api/tickets", ticket(price="~").replace(b'"~"', b"9" * 5000), "price", "from 1 to 100000000"),
    "1e400": ("/api/tickets", ticket(price="~").replace(b'"~"', b"1e400"), "price", "from 1 to 100000000"),
    "none for sale": ("/api/tickets", ticket(quantity=0), "quantity", "at least 1"),
    "too many for sale": ("/api/tickets", ticket(quantity=1_000_001), "quantity", "at most 1000000"),
    "none per order": ("/api/tickets", ticket(max_per_order=0), "max_per_order", "at least 1"),
    "an unknown currency": ("/api/tickets", ticket(currency="XXX"), "currency", "ISO 4217"),
    "a small currency": ("/api/tickets", ticket(currency="eur"), "currency", "such as EUR"),
    "a number for a currency": ("/api/tickets", ticket(currency=978), "currency", "978"),
    "a date": ("/api/tickets", ticket(starts_at="2030-01-01"), "starts_at", "RFC3339"),
    "a time without a zone": ("/api/tickets", ticket(starts_at="2030-01-01T20:00:00"), "starts_at", "timezone"),
    "a number for a time": ("/api/tickets", ticket(starts_at=1893456000), "starts_at", "Expected a time"),
    "before all time": ("/api/tickets", ticket(starts_at="0001-01-01T00:00:00+23:00"), "starts_at", "years 1 to 9999"),
    "after all time": ("/api/tickets", ticket(starts_at="9999-12-31T23:59:59-23:00"), "starts_at", "years 1 to 9999"),
    "a ticket without an id": ("/api/orders", order(ticket_id="nope"), "ticket_id", "UUID"),
    "a number for an id": ("/api/orders", order(ticket_id=7), "ticket_id", "Expected a UUID"),
    "no seats": ("/api/orders", order(quantity=0), "quantity", "at least 1"),
    "more seats than anyone gets": ("/api/orders", order(quantity=1001), "quantity", "at most 1000"),
    "a text for seats": ("/api/orders", order(quantity="1"), "quantity", '"1"'),
    "no time": ("/api/orders", order(hold_seconds=0), "hold_seconds", "at least 1"),
    "more than a day": ("/api/orders", order(hold_seconds=86_401), "hold_seconds", "at most 86400"),
    "a buyer": ("/api/orders", order(buyer_id="ada"), "buyer_id", "there are ticket_id, quantity"),
    "no token": (f"/api/orders/{NOBODYS}/payment", b"{}", "token", "Required"),
    "an empty token": (f"/api/orders/{NOBODYS}/payment", b'{"token": ""}', "token", "at least 1"),
    "a token of two words": (f"/api/orders/{NOBODYS}/payment", b'{"token": "a b"}', "token", "visible ASCII"),
}


@pytest.mark.parametrize(("path", "body", "field", "told"), WRONG_BODIES.values(), ids=WRONG_BODIES.keys())
async def test_a_wrong_body_is_refused_by_field_with_what_is_allowed(
    shop: Shop, path: str, body: bytes, field: str, told: str
) -> None:
    headers = ADA | {"Content-Type": "application/json"}
    refused = await shop.here.post(path, content=body, headers=headers)
    said = problem(refused, 422 if "years" in told else 400)
    assert said["detail"].startswith(f"{field}: ")
    assert told in said["detail"]
    assert [error["field"] for error in said["errors"]] == [field]
    assert len(refused.content) < 1_000


async def test_a_whole_number_may_be_written_with_a_point(shop: Shop) -> None:
    body = ticket(price="~").replace(b'"~"', b"25e2").replace(b'"quantity": 10', b'"quantity": 10.0')
    created = read(await shop.here.post("/api/tickets", content=body, headers=SAM | {"Content-Type": JSON}))
    assert (created["price"], created["quantity"]) == (2500, 10)


WRONG_PARAMETERS: dict[str, Wrong] = {
    "limit=0": ("GET", b"/api/tickets?limit=0", "limit", "at least 1"),
    "limit=101": ("GET", b"/api/tickets?limit=101", "limit", "at most 100"),
    "limit=huge": ("GET", b"/api/tickets?limit=99999999999999999999", "limit", "at most 100"),
    "limits=5": ("GET", b"/api/tickets?limit=5&limits=5", "limits", "there are cursor, limit, q"),
    "no text": ("GET", b"/api/orders?%ff%00=5", "\ufffd\0", "there are cursor, limit, status"),
    "limit twice": ("GET", b"/api/orders?limit=1&limit=2", "limit", "once"),
    "none at all": ("POST", b"/api/tickets?dry_run=1", "dry_run", "there are none here"),
    "of nothing": ("GET", b"/api/orders/" + NOBODYS.encode() + b"?full=", "full", "there are none here"),
    "limit=x": ("GET", b"/api/orders?limit=x", "limit", '"x"'),
    "limit=": ("GET", b"/api/orders?limit=", "limit", "Expected a whole number"),
    "q=": ("GET", b"/api/tickets?q=", "q", "at least 1"),
    "q=NUL": ("GET", b"/api/tickets?q=a%00b", "q", "one line of text"),
    "q=long": ("GET", b"/api/tickets?q=" + b"x" * 201, "q", "at most 200"),
    "status=lost": ("GET", b"/api/orders?status=lost", "status", "awaiting_payment, cancelled, complete, created"),
    "cursor=long": ("GET", b"/api/tickets?cursor=" + b"1" * 201, "cursor", "that a list gave"),
    "ticket": ("GET", b"/api/tickets/nope", "ticket_id", '"nope"'),
    "ticket=NUL": ("GET", b"/api/tickets/%00", "ticket_id", "UUID"),
    "ticket=urn": ("DELETE", f"/api/tickets/urn:uuid:{NOBODYS}".encode(), "ticket_id", "UUID"),
    "order": ("GET", b"/api/orders/1", "order_id", "UUID"),
    "order to cancel": ("DELETE", b"/api/orders/1", "order_id", "UUID"),
}


@pytest.mark.parametrize(("method", "path", "field", "told"), WRONG_PARAMETERS.values(), ids=WRONG_PARAMETERS.keys())
async def test_a_wrong_parameter_is_refused_by_name_with_what_is_allowed(
    shop: Shop, method: str, path: bytes, field: str, told: str
) -> None:
    said = problem(await shop.here.request(method, path.decode(), headers=ADA), 400)
    assert said["detail"].startswith(f"{field}: ")
    assert told in said["detail"]
    assert [error["field"] for error in said["errors"]] == [field]


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "nonsense",
        f"1893456000000000-{NOBODYS}",
        f"-1-{UUID(NOBODYS).hex}",
        f"99999999999999999-{UUID(NOBODYS).hex}",
        f"1893456000000000-{UUID(NOBODYS).hex}\n",
        f"१२३-{UUID(NOBODYS).hex}",
        "1893456000000000-nope",
        "1893456000000000",
        "\x00-\x00",
    ],
)
async def test_a_cursor_that_no_list_gave_is_refused(shop: Shop, cursor: str) -> None:
    for path in ("/api/tickets", "/api/orders"):
        told = problem(await shop.here.get(path, params={"cursor": cursor}, headers=ADA), 400)
        assert told["detail"].startswith("cursor: ")
        assert [error["field"] for error in told["errors"]] == ["cursor"]


@pytest.mark.parametrize(
    ("key", "told"),
    [("", "at least 1"), ("two words", "visible ASCII"), ("x" * 129, "at most 128"), ("naïve", "visible ASCII")],
)
async def test_a_key_that_is_none_is_refused(shop: Shop, key: str, told: str) -> None:
    headers = [(name.encode(), value.encode()) for name, value in (ADA | {"Content-Type": JSON}).items()]
    headers.append((b"Idempotency-Key", key.encode("latin-1")))
    for path, body in (("/api/orders", order()), (f"/api/orders/{NOBODYS}/payment", b'{"token": "tok_ok"}')):
        refused = await shop.here.post(path, content=body, headers=headers)
        said = problem(refused, 400)
        assert said["detail"].startswith("Idempotency-Key: ")
        assert told in said["detail"]


JSON = "application/json"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/msgpack", "json", ""])
async def test_a_body_that_is_not_called_json_is_refused(shop: Shop, kind: str) -> None:
    refused = await shop.here.post("/api/tickets", content=ticket(), headers=SAM | {"Content-Type": kind})
    told = problem(refused, 415)["detail"]
    assert "Content-Type" in told
    assert JSON in told
    assert kind in told


async def test_a_body_may_name_its_charset(shop: Shop) -> None:
    headers = SAM | {"Content-Type": "application/json; charset=utf-8"}
    assert (await shop.here.post("/api/tickets", content=ticket(), headers=headers)).status_code == 201


@pytest.mark.parametrize("path", ["/api/tickets", "/api/orders"])
async def test_a_body_that_is_encoded_is_refused_with_what_is_taken(shop: Shop, path: str) -> None:
    headers = SAM | {"Content-Type": JSON, "Content-Encoding": "gzip"}
    refused = await shop.here.post(path, content=gzip.compress(ticket()), headers=headers)
    assert "identity" in problem(refused, 415)["detail"]
    assert refused.headers["accept-encoding"] == "identity"
    plain = await shop.here.post("/api/tickets", content=ticket(), headers=headers | {"Content-Encoding": "Identity"})
    assert plain.status_code == 201


async def test_a_ticket_that_is_not_there_is_named(shop: Shop) -> None:
    path, known = f"/api/tickets/{NOBODYS}", SAM | {"If-Match": "*"}
    for refused, detail in (
        (await shop.here.get(path), f"There is no ticket {NOBODYS}."),
        (await shop.here.patch(path, json={"price": 1}, headers=known), f"You have no ticket {NOBODYS} on sale."),
        (await shop.here.delete(path, headers=SAM), f"You have no ticket {NOBODYS} on sale."),
        (
            await shop.here.post("/api/orders", json={"ticket_id": NOBODYS, "quantity": 1}, headers=ADA),
            f"There is no ticket {NOBODYS}.",
        ),
    ):
        told = problem(refused, 404)
        assert told["detail"] == detail
        assert [(error["field"], error["got"]) for error in told["errors"]] == [("ticket_id", f'"{NOBODYS}"')]


async def test_a_body_over_a_megabyte_is_refused_with_and_without_its_length(shop: Shop) -> None:
    headers = SAM | {"Content-Type": JSON}
    whole = ticket(title="x" * 1_000_001)

    async def in_pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(whole), 65_536):
            yield whole[start : start + 65_536]

    for content in (whole, in_pieces()):
        refused = await shop.here.post("/api/tickets", content=content, headers=headers)
        assert "1,000,000" in problem(refused, 413)["detail"]
    just_under = ticket(title="x" * 900_000)
    problem(await shop.here.post("/api/tickets", content=just_under, headers=headers), 400)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/tickets", {"GET", "HEAD", "POST", "OPTIONS"}),
        (f"/api/tickets/{NOBODYS}", {"GET", "HEAD", "PATCH", "DELETE", "OPTIONS"}),
        ("/api/orders", {"GET", "HEAD", "POST", "OPTIONS"}),
        (f"/api/orders/{NOBODYS}", {"GET", "HEAD", "DELETE", "OPTIONS"}),
        (f"/api/orders/{NOBODYS}/payment", {"POST", "OPTIONS"}),
        ("/health/live", {"GET", "HEAD", "OPTIONS"}),
    ],
)
async def test_a_method_that_is_not_there_is_refused_with_those_that_are(
    shop: Shop, path: str, allowed: set[str]
) -> None:
    assert (await shop.here.head(path, headers=ADA)).status_code in ({200, 404} if "HEAD" in allowed else {405})
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE"} - allowed:
        refused = await shop.here.request(method, path, headers=ADA)
        assert method in problem(refused, 405)["detail"]
        assert set(refused.headers["allow"].split(", ")) == allowed
    asked = await shop.here.options(path)
    assert (asked.status_code, asked.content) == (204, b"")
    assert set(asked.headers["allow"].split(", ")) == allowed


async def test_head_answers_as_get_without_the_body(shop: Shop) -> None:
    path = f"/api/tickets/{(await shop.ticket())['id']}"
    head, get = await shop.here.head(path), await shop.here.get(path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "content-length", "etag"):
        assert head.headers[name] == get.headers[name]


async def test_the_bare_address_leads_to_the_documentation(shop: Shop) -> None:
    answer = await shop.here.get("/")
    assert (answer.status_code, answer.headers["location"]) == (302, "/api/docs")


@pytest.mark.parametrize("path", ["/api", "/api/nowhere", "/api/tickets/a/b", "/api/docs/assets/../../x", "/%00"])
async def test_where_nothing_is_a_problem_says_so(shop: Shop, path: str) -> None:
    problem(await shop.here.get(path), 404)


# What operators and programs look at


async def test_metrics_count_requests_by_route_and_never_by_id(shop: Shop) -> None:
    ticket = await shop.ticket()
    order = await shop.order(ticket)
    await shop.here.get(f"/api/tickets/{ticket['id']}")
    await shop.here.get(f"/api/orders/{order['id']}", headers=ADA)
    await shop.here.get(f"/nowhere/{uuid4()}")
    await shop.here.get(f"/api/tickets/{'x' * 50}")
    answer = await shop.here.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    routes = set(re.findall(r'http_request_seconds_count\{.*?route="([^"]*)"', answer.text))
    assert {"/api/tickets/{ticket_id}", "/api/orders/{order_id}", "/api/tickets", "unmatched"} <= routes
    assert not [route for route in routes if re.search(r"\d|xxx|nowhere", route)]
    assert ticket["id"] not in answer.text
    assert order["id"] not in answer.text
    assert "boxoffice_events_appended_total" in answer.text


async def test_the_document_is_where_it_is_promised(shop: Shop) -> None:
    answer = await shop.here.get("/api/openapi.json")
    assert answer.status_code == 200
    assert "json" in answer.headers["content-type"]
    document = answer.json()
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == {
        "/api/tickets",
        "/api/tickets/mine",
        "/api/tickets/stream",
        "/api/tickets/{ticket_id}",
        "/api/orders",
        "/api/orders/{order_id}",
        "/api/orders/{order_id}/payment",
        "/api/orders/{order_id}/ticket.pdf",
    }
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    for path, operations in document["paths"].items():
        types = {"/stream": "text/event-stream", ".pdf": "application/pdf"}
        answer_type = next((each for end, each in types.items() if path.endswith(end)), JSON)
        for operation in operations.values():
            for status, response in operation["responses"].items():
                assert set(response["content"]) == {answer_type if status < "300" else "application/problem+json"}
    shown = document["paths"]["/api/tickets/{ticket_id}"]
    assert all("ETag" in shown[method]["responses"]["200"]["headers"] for method in ("get", "patch", "delete"))
    assert "order book" in document["components"]["schemas"]["OrderView"]["properties"]["version"]["description"]
    assert (await shop.here.get("/api/docs")).headers["content-type"].startswith("text/html")


async def test_it_is_live_and_ready(shop: Shop) -> None:
    assert (await shop.here.get("/health/live")).json() == {"status": "live"}
    assert (await shop.here.get("/health/ready")).json() == {"status": "ready", "problems": {}}


async def test_what_a_newer_version_wrote_is_left_to_it(platform: Platform, home: Path) -> None:
    """While that is rolled out, whoever asks an older process is told to try again: another may answer."""
    async with (
        ServiceProcess(ALL, platform.settings, home) as process,
        httpx.AsyncClient(base_url=process.url, timeout=30) as client,
    ):
        ticket = (await client.post("/api/tickets", json=SHOW, headers=SAM)).json()["id"]
        wanted = {"ticket_id": ticket, "quantity": 1}
        assert (await client.post("/api/orders", json=wanted, headers=ADA)).status_code == 201
        headers = {"ce-type": "order_postponed", "ce-id": str(uuid4())}
        js = platform.client.jetstream()
        await js.publish(f"orders.{ticket}", b'{"type":"order_postponed"}', headers=headers)
        refused = await client.post("/api/orders", json=wanted, headers=ADA)
        assert "newer version" in problem(refused, 503)["detail"]
        assert refused.headers["retry-after"] == "1"
        assert "deploy the code that knows this event" in process.tail()


async def test_it_says_what_is_away_and_goes_on_when_that_is_back(nats: NatsServer, home: Path) -> None:
    postgres = PostgresServer(home / "postgres")
    await postgres.start()
    await make_roles(postgres.url, PASSWORDS)
    settings = Settings(nats_url=nats.url, database_url=postgres.url, auth="dev")
    await system.migrate(settings, lambda _: None)
    async with (
        ServiceProcess(ALL, settings, home) as process,
        httpx.AsyncClient(base_url=process.url, timeout=30) as client,
    ):

        async def ready() -> int:
            return (await client.get("/health/ready")).status_code

        made = await client.post("/api/tickets", json=SHOW, headers=SAM)
        wanted = {"ticket_id": made.json()["id"], "quantity": 1}

        await nats.stop()
        await eventually(ready, 503)
        away = (await client.get("/health/ready")).json()
        assert (away["status"], away["problems"]["nats"]) == ("not ready", "not connected")
        assert (await client.get("/health/live")).status_code == 200
        assert (await client.get(made.headers["location"])).json() == made.json()  # what was written can be read
        refused = await client.post("/api/tickets", json=SHOW, headers=SAM)
        assert "event log" in problem(refused, 503)["detail"]
        assert refused.headers["retry-after"] == "1"
        await nats.start()
        await eventually(ready, 200)

        await postgres.stop()
        await eventually(ready, 503)
        away = (await client.get("/health/ready")).json()
        assert {"tickets.TICKETS", "tickets.ORDERS", "orders.ORDERS"} <= set(away["problems"])
        refused = await client.get(made.headers["location"])
        assert "read model" in problem(refused, 503)["detail"]
        assert refused.headers["retry-after"] == "1"
        placed = await client.post("/api/orders", json=wanted, headers=ADA)
        assert placed.status_code == 201  # what is in the log is sold
        await postgres.start()
        await eventually(ready, 200)

        async def shown() -> Any:
            return (await client.get(placed.headers["location"], headers=ADA)).json()

        await eventually(shown, placed.json())
    await postgres.stop()


async def test_a_frozen_database_is_told_soon(nats: NatsServer, home: Path) -> None:
    postgres = PostgresServer(home / "postgres")
    await postgres.start()
    await make_roles(postgres.url, PASSWORDS)
    settings = Settings(nats_url=nats.url, database_url=postgres.url, auth="dev")
    await system.migrate(settings, lambda _: None)
    async with (
        ServiceProcess("tickets", settings, home) as process,
        httpx.AsyncClient(base_url=process.url, timeout=10) as client,  # it would be 20 s
    ):
        assert (await client.get("/api/tickets")).status_code == 200  # on a connection that is there
        frozen = [psutil.Process(postgres.pid), *psutil.Process(postgres.pid).children(recursive=True)]
        try:
            for each in frozen:
                each.suspend()
            for _ in range(2):  # the second needs a new connection
                assert "read model" in problem(await client.get("/api/tickets"), 503)["detail"]
        finally:
            for each in frozen:
                each.resume()
    await postgres.stop()


async def test_what_nobody_thought_of_is_told_without_the_inside() -> None:
    @get("/broken", sync_to_thread=False)
    def broken() -> None:
        raise ZeroDivisionError("a secret")

    app = create_app([Service("broken", [broken])], Settings())
    async with AsyncTestClient(app, raise_server_exceptions=False) as client:
        answer = await client.get("/broken")
    assert "our mistake" in problem(answer, 500)["detail"]
    assert "secret" not in answer.text
