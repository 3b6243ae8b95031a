"""What programs are told: posted to them, signed, again and again until they take it."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from common.runtime import Platform
from tests.harness import ServiceProcess, eventually
from tests.receiver import Receiver

SAM, ADA, BOB = ({"Authorization": f"Bearer dev:{name}"} for name in ("sam", "ada", "bob"))
SHOW = {"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": 1_000, "max_per_order": 2}
SERVICES = "tickets orders expiration batch notification"
VARIABLES = {
    "BOXOFFICE_WEBHOOK_SECRET": "nobody can guess this, for there is no need to",
    "BOXOFFICE_WEBHOOK_PRIVATE_ADDRESSES": "1",
    "BOXOFFICE_WEBHOOK_RETRY_SECONDS": "0.001",
}
VARIABLES["BOXOFFICE_WEBHOOK_SECRET"] = VARIABLES["BOXOFFICE_WEBHOOK_SECRET"].replace(" ", "-")


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
