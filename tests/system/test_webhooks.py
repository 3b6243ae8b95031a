"""What programs are told: posted to them, signed, again and again until they take it."""

import asyncio
import functools
import signal
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from common.events import WebhookAttempted, WebhookParked, encode
from common.runtime import Platform
from common.settings import BadSetting, load
from services.cli import system
from services.cli.embedded import SECRETS, webhook_secret
from services.notification.settings import NotificationSettings
from tests.facts import whole
from tests.harness import ServiceProcess, eventually
from tests.receiver import Receiver
from tests.system.test_up import Up

SAM, ADA, BOB = ({"Authorization": f"Bearer dev:{name}"} for name in ("sam", "ada", "bob"))
SHOW = {"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": 1_000, "max_per_order": 2}
SERVICES = "tickets orders expiration batch notification"
VARIABLES = {
    "BOXOFFICE_WEBHOOK_SECRET": "nobody-can-guess-this-for-there-is-no-need-to",
    "BOXOFFICE_WEBHOOK_PRIVATE_ADDRESSES": "1",
    "BOXOFFICE_WEBHOOK_RETRY_SECONDS": "0.00001",
}


class Office:
    """The whole system in one process, and its webhooks."""

    def __init__(self, process: ServiceProcess, http: httpx.AsyncClient) -> None:
        self.process = process
        self.http = http
        self.ticket_id = ""

    async def order(self, who: dict[str, str] = ADA) -> str:
        """Something to be told of."""
        if not self.ticket_id:
            self.ticket_id = (await self.http.post("/api/tickets", json=SHOW, headers=SAM)).json()["id"]
        made = await self.http.post("/api/orders", json={"ticket_id": self.ticket_id, "quantity": 1}, headers=who)
        assert made.status_code == 201, made.text
        return str(made.json()["id"])

    async def register(self, url: str, who: dict[str, str] = ADA, **more: object) -> dict[str, Any]:
        made = await self.http.post("/api/webhooks", json={"url": url, **more}, headers=who)
        assert made.status_code == 201, made.text
        assert made.headers["location"] == f"/api/webhooks/{made.json()['id']}"
        webhook: dict[str, Any] = made.json()
        return webhook

    async def ask(self, method: str, path: str, who: dict[str, str] = ADA, **more: Any) -> dict[str, Any]:
        answer = await self.http.request(method, f"/api/webhooks/{path}", headers=who, **more)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def delivery(self, webhook: dict[str, Any]) -> dict[str, Any]:
        """The newest, if there is one."""
        items = (await self.ask("GET", f"{webhook['id']}/deliveries"))["items"]
        return items[0] if items else {"status": "none", "attempts": []}

    async def is_now(self, status: str, webhook: dict[str, Any], within: float = 20) -> dict[str, Any]:
        """Wait until the newest delivery has come so far."""

        async def look() -> str:
            return str((await self.delivery(webhook))["status"])

        await eventually(look, status, within)
        return await self.delivery(webhook)


def fails_ten_times(delivery: dict[str, Any], first: int = 1) -> None:
    """It was tried ten times, and each is told."""
    assert (delivery["status"], delivery["reason"]) == ("parked", "attempts")
    numbers = [attempt["attempt"] for attempt in delivery["attempts"]]
    assert numbers == list(range(1, first + 10))
    assert {attempt["status"] for attempt in delivery["attempts"][first - 1 :]} == {503}


@pytest.fixture
async def strict(platform: Platform, home: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A system that asks public addresses only."""
    secret = {"BOXOFFICE_WEBHOOK_SECRET": VARIABLES["BOXOFFICE_WEBHOOK_SECRET"]}
    process = ServiceProcess("notification", platform.settings, home, **secret)
    async with process, httpx.AsyncClient(base_url=process.url, timeout=30) as http:
        yield http


@pytest.fixture
async def office(platform: Platform, home: Path) -> AsyncIterator[Office]:
    process = ServiceProcess(SERVICES, platform.settings, home, **VARIABLES)
    async with process, httpx.AsyncClient(base_url=process.url, timeout=30) as http:
        yield Office(process, http)


def failing(times: int) -> Callable[[int], str]:
    """Fails so often, and then takes what comes."""
    return lambda n: "503 Service Unavailable\r\n\r\nnot now" if n <= times else "200 OK"


async def test_a_receiver_that_fails_three_times_is_told_at_last_and_can_check_every_signature(office: Office) -> None:
    async with Receiver(failing(3)) as receiver:
        webhook = await office.register(receiver.url)
        order_id = await office.order()
        delivery = await office.is_now("delivered", webhook)
        posts = await receiver.has(4)
    assert {post.line for post in posts} == {"POST /hooks?of=ada HTTP/1.1"}
    assert {post.id for post in posts} == {delivery["id"]}
    assert all(post.signed_by(webhook["secret"]) for post in posts)
    assert not posts[0].signed_by("whsec_" + "A" * 43 + "=")
    assert len({post.body for post in posts}) == 1
    message = posts[0].json()
    assert (message["type"], message["data"]["about"]) == ("order.created", order_id)
    assert posts[0].headers["content-type"] == "application/json"
    tried = [(attempt["attempt"], attempt["status"], attempt["error"]) for attempt in delivery["attempts"]]
    refusal = "Answered 503 Service Unavailable: not now"
    assert tried == [(1, 503, refusal), (2, 503, refusal), (3, 503, refusal), (4, 200, None)]
    assert (delivery["reason"], delivery["again_at"]) == (None, None)


async def test_what_is_refused_ten_times_is_parked_and_posted_anew_when_its_user_asks(office: Office) -> None:
    async with Receiver(failing(20)) as receiver:
        webhook = await office.register(receiver.url)
        await office.order()
        delivery = await office.is_now("parked", webhook, within=60)
        fails_ten_times(delivery)
        await receiver.has(10)
        metrics = (await office.http.get("/metrics")).text
        assert 'boxoffice_webhook_attempts_total{outcome="failed"} 10.0' in metrics
        assert 'boxoffice_webhooks_parked_total{reason="attempts"} 1.0' in metrics
        redeliver = f"{webhook['id']}/deliveries/{delivery['id']}/redeliver"
        key = {"Idempotency-Key": "again"}
        assert (await office.ask("POST", redeliver, ADA | key))["status"] == "pending"
        fails_ten_times(await office.is_now("parked", webhook, within=60), first=11)
        assert (await office.ask("POST", redeliver, ADA | key))["status"] == "parked"  # that was asked before
        await receiver.has(20)
        await office.ask("POST", redeliver)
        await office.ask("POST", redeliver)  # it is under way, or has arrived and goes once more
        await office.is_now("delivered", webhook)
        assert {post.id for post in receiver.posts} == {delivery["id"]}
        page = await office.ask("GET", f"{webhook['id']}/deliveries", params={"status": "parked"})
        assert page == {"items": [], "next_cursor": None}


async def test_deliveries_are_listed_newest_first_page_by_page_and_the_same_after_a_rebuild(
    office: Office, platform: Platform
) -> None:
    async with Receiver(lambda n: "410 Gone" if n == 4 else "503 Oh" if n == 1 else "204 No Content") as receiver:
        webhook = await office.register(receiver.url)
        for posts, outcome in ((2, "delivered"), (3, "delivered"), (4, "parked")):
            await office.order()
            await receiver.has(posts)
            await office.is_now(outcome, webhook)
    path = f"{webhook['id']}/deliveries"
    whole_list = await office.ask("GET", path)
    first = await office.ask("GET", path, params={"limit": 2})
    rest = await office.ask("GET", path, params={"limit": 2, "cursor": first["next_cursor"]})
    assert (first["items"] + rest["items"], rest["next_cursor"]) == (whole_list["items"], None)
    times = [item["created_at"] for item in whole_list["items"]]
    assert (times, len(times)) == (sorted(times, reverse=True), 3)
    assert [item["status"] for item in whole_list["items"]] == ["parked", "delivered", "delivered"]
    assert (await office.ask("GET", path, params={"status": "parked"}))["items"] == whole_list["items"][:1]
    await system.rebuild("notifications", platform.settings, lambda *_: None)
    assert await office.ask("GET", path) == whole_list


async def test_attempts_are_ten_however_often_the_process_is_killed(office: Office, platform: Platform) -> None:
    def say(number: int) -> str:
        return "" if number == 4 else "503 Service Unavailable"

    async with Receiver(say) as receiver:
        webhook = await office.register(receiver.url)
        await office.order()
        await receiver.has(4)  # it is under way, and nobody will know
        await office.process.kill()
        await office.process.start()

        async def past_seven() -> bool:
            return len(receiver.posts) >= 7

        await eventually(past_seven, True, 60)
        await office.process.kill()
        await office.process.start()
        fails_ten_times(await office.is_now("parked", webhook, within=120))
        assert len(receiver.posts) in (11, 12)  # one was not recorded for sure, another perhaps
    events = [recorded.event for recorded in await whole(platform.event_log, "NOTIFICATIONS")]
    assert [event.attempt for event in events if isinstance(event, WebhookAttempted)] == list(range(1, 11))
    assert len([event for event in events if isinstance(event, WebhookParked)]) == 1


async def test_after_a_rotation_both_secrets_sign_and_only_the_newer_is_shown(office: Office) -> None:
    async with Receiver() as receiver:
        webhook = await office.register(receiver.url)
        key = {"Idempotency-Key": "rotate"}
        rotated = await office.ask("POST", f"{webhook['id']}/rotate", ADA | key)
        assert rotated["secret"] != webhook["secret"]
        assert await office.ask("POST", f"{webhook['id']}/rotate", ADA | key) == rotated
        await office.order()
        [post] = await receiver.has(1)
        assert post.signed_by(webhook["secret"])
        assert post.signed_by(rotated["secret"])
        assert post.headers["webhook-signature"].count("v1,") == 2
        first, second = webhook["secret"], rotated["secret"]
        newest = await office.ask("POST", f"{webhook['id']}/rotate")
        assert (await office.ask("POST", f"{webhook['id']}/rotate", ADA | key))["secret"] == second
        await office.order()
        post = next(each for each in await receiver.has(2) if each.headers["webhook-signature"].count("v1,") == 3)
        assert all(post.signed_by(secret) for secret in (first, second, newest["secret"]))
        rotated = newest
        shown = await office.ask("GET", webhook["id"])
        assert {**shown, "secret": rotated["secret"]} == rotated
        assert await office.ask("GET", "") == {"items": [shown]}


async def test_no_secret_is_in_the_log_of_events_or_of_the_process(office: Office, platform: Platform) -> None:
    async with Receiver(failing(1)) as receiver:
        webhook = await office.register(receiver.url)
        rotated = await office.ask("POST", f"{webhook['id']}/rotate")
        await office.order()
        await office.is_now("delivered", webhook)
    told = office.process.log.read_text()
    told += "".join(encode(each.event).decode() for each in await whole(platform.event_log, "NOTIFICATIONS"))
    for secret in (webhook["secret"], rotated["secret"], VARIABLES["BOXOFFICE_WEBHOOK_SECRET"]):
        assert secret.removeprefix("whsec_") not in told


async def test_a_receiver_that_hangs_holds_up_nobody_else(office: Office) -> None:
    async with Receiver(lambda _: "") as hanging, Receiver() as quick:
        await office.register(hanging.url, BOB)
        for _ in range(12):
            await office.order(BOB)
        await hanging.has(4)
        webhook = await office.register(quick.url)
        await office.order()
        await office.is_now("delivered", webhook)
        assert hanging.busiest == 4
        assert len(quick.posts) == 1


async def test_who_answers_gone_is_not_asked_again_until_enabled(office: Office) -> None:
    async with Receiver(lambda n: "410 Gone" if n == 1 else "200 OK") as receiver:
        webhook = await office.register(receiver.url)
        await office.order()
        delivery = await office.is_now("parked", webhook)
        assert (delivery["reason"], len(delivery["attempts"])) == ("gone", 1)
        shown = await office.ask("GET", webhook["id"])
        assert (shown["enabled"], shown["disabled_because"]) == (False, "gone")
        redeliver = f"/api/webhooks/{webhook['id']}/deliveries/{delivery['id']}/redeliver"
        assert (await office.http.post(redeliver, headers=ADA)).status_code == 409
        shown = await office.ask("PATCH", webhook["id"], json={"enabled": True})
        assert (shown["enabled"], shown["disabled_because"]) == (True, None)
        assert (await office.http.post(redeliver, headers=ADA)).status_code == 200
        await office.is_now("delivered", webhook)


async def test_what_is_on_its_way_to_a_webhook_that_is_disabled_is_parked(office: Office) -> None:
    async with Receiver(lambda _: "503 Service Unavailable\r\nRetry-After: 2") as receiver:
        webhook = await office.register(receiver.url)
        await office.order()
        await receiver.has(1)
        assert not (await office.ask("PATCH", webhook["id"], json={"enabled": False}))["enabled"]
        assert (await office.is_now("parked", webhook))["reason"] == "disabled"
        assert len(receiver.posts) < 10


async def test_nothing_more_is_posted_to_a_webhook_that_is_removed(office: Office, platform: Platform) -> None:
    async with Receiver(lambda _: "503 Service Unavailable\r\nRetry-After: 2") as receiver:
        webhook = await office.register(receiver.url)
        await office.order()
        await receiver.has(1)
        for _ in range(2):
            assert (await office.http.delete(f"/api/webhooks/{webhook['id']}", headers=ADA)).status_code == 204

        async def reasons() -> list[str]:
            events = [each.event for each in await whole(platform.event_log, "NOTIFICATIONS")]
            return [event.reason for event in events if isinstance(event, WebhookParked)]

        await eventually(reasons, ["removed"])
    for path in ("", "/deliveries", f"/deliveries/{uuid4()}"):
        assert (await office.http.get(f"/api/webhooks/{webhook['id']}{path}", headers=ADA)).status_code == 404
    assert await office.ask("GET", "") == {"items": []}


async def test_a_webhook_is_told_the_kinds_that_it_names_and_of_its_user_only(office: Office) -> None:
    async with Receiver() as all_kinds, Receiver() as cancellations, Receiver() as bobs:
        await office.register(all_kinds.url)
        await office.register(cancellations.url, kinds=["order.cancelled"])
        await office.register(bobs.url, BOB)
        order_id = await office.order()
        await office.http.delete(f"/api/orders/{order_id}", headers=ADA)
        posts = await all_kinds.has(2)
        assert {post.json()["type"] for post in posts} == {"order.created", "order.cancelled"}
        [post] = await cancellations.has(1)
        assert post.json()["type"] == "order.cancelled"
        assert bobs.posts == []


async def test_webhooks_of_others_answer_like_absent_ones(office: Office) -> None:
    async with Receiver() as receiver:
        webhook = await office.register(receiver.url)
        await office.order()
        delivery = await office.is_now("delivered", webhook)
        bobs = await office.register(receiver.url, BOB)
    mine, absent, theirs = f"/api/webhooks/{webhook['id']}", f"/api/webhooks/{uuid4()}", f"/api/webhooks/{bobs['id']}"
    doors: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "", {}),
        ("PATCH", "", {"json": {"enabled": False}}),
        ("DELETE", "", {}),
        ("POST", "/rotate", {}),
        ("GET", "/deliveries", {}),
        ("GET", f"/deliveries/{delivery['id']}", {}),
        ("POST", f"/deliveries/{delivery['id']}/redeliver", {}),
    ]
    for method, path, more in doors:
        foreign = await office.http.request(method, mine + path, headers=BOB, **more)
        nothing = await office.http.request(method, absent + path, headers=BOB, **more)
        assert (foreign.status_code, foreign.json()) == (404, nothing.json()), (method, path)
        assert (await office.http.request(method, mine + path, **more)).status_code == 401
    for method, path in (("GET", ""), ("POST", "/redeliver")):  # somebody else's, by one's own webhook
        found = await office.http.request(method, f"{theirs}/deliveries/{delivery['id']}{path}", headers=BOB)
        assert found.status_code == 404
    assert (await office.ask("GET", webhook["id"]))["enabled"]
    assert await office.ask("GET", f"{webhook['id']}/deliveries/{delivery['id']}") == delivery


async def test_a_registration_is_made_once_for_a_key(office: Office) -> None:
    wanted = {"url": "http://127.0.0.1:9/", "kinds": ["order.created"]}
    ask = functools.partial(office.http.post, "/api/webhooks", headers=ADA | {"Idempotency-Key": "one"})
    first, second = await asyncio.gather(ask(json=wanted), ask(json=wanted))
    assert (first.status_code, first.json()) == (201, second.json())
    assert len((await office.ask("GET", ""))["items"]) == 1
    other = await ask(json={"url": "http://127.0.0.1:9/other"})
    assert (other.status_code, other.json()["errors"][0]["field"]) == (422, "Idempotency-Key")
    for _ in range(9):
        await office.register("http://127.0.0.1:9/")
    eleventh = await office.http.post("/api/webhooks", json=wanted, headers=ADA)
    assert eleventh.status_code == 409
    assert (await ask(json=wanted)).json() == first.json()


WRONG: list[tuple[dict[str, object], int, str]] = [
    ({}, 400, "url"),
    ({"url": ""}, 400, "url"),
    ({"url": "https://example.org/\n"}, 400, "url"),
    ({"url": "https://example.org/", "kinds": ["no.such"]}, 400, "kinds.0"),
    ({"url": "https://example.org/", "kinds": []}, 400, "kinds"),
    ({"url": "https://example.org/", "secret": "mine"}, 400, "secret"),
    ({"url": "ftp://example.org/"}, 422, "url"),
    ({"url": "https://ada:hunter2@example.org/"}, 422, "url"),
    ({"url": "http://127.0.0.1/"}, 422, "url"),
    ({"url": "https://127.0.0.1/"}, 422, "url"),
    ({"url": "https://localhost/"}, 422, "url"),
    ({"url": "https://[::1]/"}, 422, "url"),
    ({"url": "https://169.254.169.254/latest/meta-data/"}, 422, "url"),
    ({"url": "https://2130706433/"}, 422, "url"),
]


async def test_what_may_not_be_registered_is_told_where_it_is_wrong(strict: httpx.AsyncClient) -> None:
    for body, status, field in WRONG:
        refused = await strict.post("/api/webhooks", json=body, headers=ADA)
        told = (refused.status_code, [each["field"] for each in refused.json()["errors"]])
        assert told == (status, [field]), body
        assert "hunter2" not in refused.text
    assert (await strict.get("/api/webhooks", headers=ADA)).json() == {"items": []}


async def test_a_change_is_checked_like_a_registration(strict: httpx.AsyncClient) -> None:
    made = await strict.post("/api/webhooks", json={"url": "https://8.8.8.8/hooks"}, headers=ADA)
    assert made.status_code == 201, made.text
    path = made.headers["location"]
    for body in ({"url": "https://10.0.0.1/"}, {"url": "http://8.8.8.8/"}):
        assert (await strict.patch(path, json=body, headers=ADA)).status_code == 422
    changed = await strict.patch(path, json={"url": "https://8.8.4.4/", "kinds": ["batch.failed"]}, headers=ADA)
    shown = {"url": "https://8.8.4.4/", "kinds": ["batch.failed"], "enabled": True}
    assert shown.items() <= changed.json().items()
    assert (await strict.patch(path, json={}, headers=ADA)).json() == changed.json()


async def test_without_its_secret_a_system_says_what_is_missing_and_all_else_goes_on(
    platform: Platform, home: Path
) -> None:
    process = ServiceProcess(SERVICES, platform.settings, home)
    async with process, httpx.AsyncClient(base_url=process.url, timeout=30) as http:
        refused = await http.post("/api/webhooks", json={"url": "https://8.8.8.8/"}, headers=ADA)
        assert refused.status_code == 503
        assert "BOXOFFICE_WEBHOOK_SECRET" in refused.json()["detail"]
        assert (await http.get("/api/webhooks", headers=ADA)).json() == {"items": []}
        await Office(process, http).order()
        told = await http.get("/api/notifications", params={"wait": 20}, headers=ADA)
        assert [item["kind"] for item in told.json()["items"]] == ["order.created"]


async def test_make_up_has_webhooks_to_public_addresses_and_the_same_secrets_after_a_restart(home: Path) -> None:
    wanted, key = {"url": "https://8.8.8.8/hooks"}, ADA | {"Idempotency-Key": "one"}
    async with Up(home) as up, httpx.AsyncClient(timeout=30) as http:
        await up.start()
        first = await http.post(f"{up.url}/api/webhooks", json=wanted, headers=key)
        assert first.status_code == 201, first.text
        refused = await http.post(f"{up.url}/api/webhooks", json={"url": "http://127.0.0.1/"}, headers=ADA)
        assert refused.status_code == 422
        up.send(signal.SIGINT)
        assert await up.ended() == 0
        await up.start()
        again = await http.post(f"{up.url}/api/webhooks", json=wanted, headers=key)
        assert (again.status_code, again.json()) == (201, first.json())


def test_a_data_folder_has_one_secret_that_only_its_owner_reads(tmp_path: Path) -> None:
    secret = webhook_secret(tmp_path)
    assert webhook_secret(tmp_path) == secret
    assert load(NotificationSettings, {"BOXOFFICE_WEBHOOK_SECRET": secret}).webhook_secret == secret
    [kept] = (tmp_path / SECRETS).iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_a_secret_that_is_too_short_is_refused_and_not_shown() -> None:
    with pytest.raises(BadSetting, match="32 visible") as refused:
        load(NotificationSettings, {"BOXOFFICE_WEBHOOK_SECRET": "hunter2"})
    assert "hunter2" not in str(refused.value)
