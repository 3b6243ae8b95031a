"""What people are told of what happened to them: over WebSocket, server-sent events and long-polling."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import msgspec
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

from common.live import PING_SECONDS
from common.runtime import Platform
from tests.harness import ServiceProcess, eventually, figure

SAM, ADA, BOB = ({"Authorization": f"Bearer dev:{name}"} for name in ("sam", "ada", "bob"))
SHOW = {"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": 2, "max_per_order": 2}


class Office:
    """The whole system in one process, and its notifications."""

    def __init__(self, process: ServiceProcess, http: httpx.AsyncClient) -> None:
        self.process = process
        self.http = http

    async def ticket(self) -> str:
        made = await self.http.post("/api/tickets", json=SHOW, headers=SAM)
        assert made.status_code == 201, made.text
        return str(made.json()["id"])

    async def order(self, ticket_id: str, quantity: int = 1, **more: object) -> str:
        wanted = {"ticket_id": ticket_id, "quantity": quantity, **more}
        made = await self.http.post("/api/orders", json=wanted, headers=ADA)
        assert made.status_code == 201, made.text
        return str(made.json()["id"])

    async def poll(
        self, after: int | None = None, wait: int = 0, who: dict[str, str] = ADA, **more: str
    ) -> dict[str, Any]:
        params = {"wait": wait} | ({} if after is None else {"after": after}) | more
        answer = await self.http.get("/api/notifications", params=params, headers=who)
        assert answer.status_code == 200, answer.text
        news: dict[str, Any] = answer.json()
        return news

    async def inbox(self, who: dict[str, str] = ADA, **params: int) -> dict[str, Any]:
        answer = await self.http.get("/api/notifications/inbox", params=params, headers=who)
        assert answer.status_code == 200, answer.text
        page: dict[str, Any] = answer.json()
        return page

    async def sse(self, after: int | None = None, **params: str) -> AsyncGenerator[dict[str, Any], None]:
        """What a stream says."""
        headers = ADA | ({} if after is None else {"Last-Event-ID": str(after)})
        async with self.http.stream("GET", "/api/notifications/stream", params=params, headers=headers) as stream:
            assert stream.status_code == 200
            async for line in stream.aiter_lines():
                if line.startswith("data: "):
                    yield msgspec.json.decode(line.removeprefix("data: "))

    def socket(self, after: int | None = None, who: dict[str, str] = ADA, **params: str) -> connect:
        place = "?" + urlencode(({} if after is None else {"after": after}) | params)
        return connect(f"ws{self.process.url.removeprefix('http')}/api/notifications/ws{place}", additional_headers=who)


async def heard(socket: ClientConnection, within: float = 20) -> dict[str, Any]:
    """The next message."""
    message: dict[str, Any] = msgspec.json.decode(await asyncio.wait_for(socket.recv(), within))
    return message


@pytest.fixture
async def office(platform: Platform, home: Path) -> AsyncIterator[Office]:
    process = ServiceProcess("tickets orders expiration batch notification", platform.settings, home)
    async with process, httpx.AsyncClient(base_url=process.url, timeout=30) as http:
        yield Office(process, http)


async def test_a_buyer_is_told_of_an_order_over_a_socket_as_it_happens(office: Office) -> None:
    ticket_id = await office.ticket()
    async with office.socket() as socket:
        beginning = await heard(socket)
        assert beginning == {"type": "resumed", "recovered": True, "cursor": 0, "log": beginning["log"]}
        order_id = await office.order(ticket_id)
        told = await heard(socket)
        notification = told["notification"]
        assert (told["type"], told["attempt"]) == ("notification", 1)
        assert (notification["kind"], notification["about"]) == ("order.created", order_id)
        assert "Opening night" in notification["text"]
        await office.http.delete(f"/api/orders/{order_id}", headers=ADA)
        told = await heard(socket)
        assert (told["notification"]["kind"], told["notification"]["facts"]["reason"]) == ("order.cancelled", "buyer")


async def test_what_is_sent_and_who_came_with_a_cursor_of_another_log_is_measured(office: Office) -> None:
    await office.order(await office.ticket())
    assert len((await office.poll(0, wait=20))["items"]) == 1
    async with office.socket(10**12) as socket:
        assert (await heard(socket))["recovered"] is False
    lines = (await office.http.get("/metrics")).text.splitlines()
    assert 'boxoffice_notifications_sent_total{again="no",channel="poll"} 1.0' in lines
    assert "boxoffice_notification_sessions_not_recovered_total 1.0" in lines


async def test_the_same_cursors_lead_on_over_every_transport(office: Office) -> None:
    ticket_id = await office.ticket()
    first = await office.order(ticket_id)
    news = await office.poll(wait=20)
    assert [item["about"] for item in news["items"]] == [first]
    second = await office.order(ticket_id)
    async with office.socket(news["cursor"]) as socket:
        assert (await heard(socket))["cursor"] == news["cursor"]
        told = (await heard(socket))["notification"]
        assert told["about"] == second
    await office.http.delete(f"/api/orders/{first}", headers=ADA)
    async with aclosing(office.sse(told["cursor"])) as stream:
        assert (await anext(stream))["cursor"] == told["cursor"]
        told = (await anext(stream))["notification"]
        assert (told["about"], told["kind"]) == (first, "order.cancelled")
    nothing = {"items": [], "cursor": told["cursor"], "recovered": True, "log": news["log"]}
    assert await office.poll(told["cursor"]) == nothing


async def test_what_was_missed_while_nobody_listened_is_told_and_not_again_once_acknowledged(office: Office) -> None:
    ticket_id = await office.ticket()
    order_id = await office.order(ticket_id)

    async def unread() -> int:
        return int((await office.inbox())["unread"])

    await eventually(unread, 1)
    async with office.socket() as socket:
        await heard(socket)
        told = (await heard(socket))["notification"]
        assert told["about"] == order_id
        await socket.send(msgspec.json.encode({"ack": told["cursor"]}).decode())

        async def acknowledged() -> bool:
            return bool((await office.inbox())["items"][0]["acknowledged"])

        await eventually(acknowledged, True)
    async with office.socket() as socket:
        beginning = await heard(socket)
        assert (beginning["recovered"], beginning["cursor"]) == (True, told["cursor"])
        await office.http.delete(f"/api/orders/{order_id}", headers=ADA)
        assert (await heard(socket))["notification"]["kind"] == "order.cancelled"


async def test_a_seller_is_told_when_all_is_paid(office: Office) -> None:
    ticket_id = await office.ticket()
    for _ in range(2):
        order_id = await office.order(ticket_id)
        paid = await office.http.post(f"/api/orders/{order_id}/payment", json={"token": "tok_ok"}, headers=ADA)
        assert paid.status_code == 200, paid.text
    (item,) = (await office.poll(wait=20, who=SAM))["items"]
    assert (item["kind"], item["about"], item["facts"]) == ("ticket.sold_out", ticket_id, {"capacity": 2})


async def test_somebody_who_hands_in_a_batch_is_told_when_it_is_over(office: Office) -> None:
    batch = {"kind": "records.insert", "operations": [{"key": "a", "value": "1"}]}
    made = await office.http.post("/api/batches", json=batch, headers=BOB)
    (item,) = (await office.poll(wait=20, who=BOB))["items"]
    assert (item["kind"], item["about"]) == ("batch.completed", made.json()["id"])
    assert item["facts"]["succeeded"] == 1


async def test_nobody_is_told_what_happened_to_others(office: Office) -> None:
    async with office.socket(who=BOB) as bobs, office.socket() as adas:
        await heard(bobs)
        await heard(adas)
        await office.order(await office.ticket())
        assert (await heard(adas))["type"] == "notification"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(bobs.recv(), 0.3)
    assert (await office.inbox(BOB))["items"] == []


async def test_notifications_are_read_one_by_one_or_all(office: Office) -> None:
    ticket_id = await office.ticket()
    for _ in range(2):
        await office.http.delete(f"/api/orders/{await office.order(ticket_id)}", headers=ADA)

    async def unread() -> int:
        return int((await office.inbox())["unread"])

    await eventually(unread, 4)
    first = await office.inbox(limit=3)
    rest = await office.inbox(limit=3, cursor=int(first["next_cursor"]))
    cursors = [item["notification"]["cursor"] for item in (*first["items"], *rest["items"])]
    assert (cursors, len(cursors), rest["next_cursor"]) == (sorted(cursors, reverse=True), 4, None)
    one = first["items"][1]["notification"]["id"]
    for _ in range(2):
        assert (await office.http.post(f"/api/notifications/{one}/read", headers=ADA)).status_code == 204
    assert await unread() == 3
    assert (await office.http.post(f"/api/notifications/{one}/read", headers=BOB)).status_code == 404
    everything = {"cursor": cursors[0]}
    assert (await office.http.post("/api/notifications/read", json=everything, headers=ADA)).status_code == 204
    assert await unread() == 0


async def test_a_cursor_of_another_log_is_told_to_be_none(office: Office) -> None:
    async with office.socket(10**12) as socket:
        resumed = await heard(socket)
        assert not resumed["recovered"]
        await office.order(await office.ticket())
        assert (await heard(socket))["type"] == "notification"


async def test_the_log_of_a_cursor_is_told_on_every_transport_and_of_another_log_it_is_no_place(office: Office) -> None:
    ticket_id = await office.ticket()
    await office.order(ticket_id)
    (told,) = (news := await office.poll(wait=20))["items"]
    before, ours = told["cursor"] - 1, news["log"]
    await office.order(ticket_id)
    for log, recovered in ((ours, True), ("another", False)):
        async with office.socket(before, log=log) as socket, aclosing(office.sse(before, log=log)) as stream:
            for beginning in (await heard(socket), await anext(stream), await office.poll(before, log=log)):
                assert (beginning["recovered"], beginning["log"]) == (recovered, ours)
                assert (beginning["cursor"] > told["cursor"]) or recovered
    assert await refused(office.socket(before, log="x" * 65)) == 400


async def test_whoever_has_no_place_in_the_log_is_told_so_without_waiting(office: Office) -> None:
    places: list[tuple[int, dict[str, Any]]] = [(10**12, {}), (0, {"log": "another"})]
    for after, log in places:
        async with asyncio.timeout(30):
            assert not (await office.poll(after, wait=60, **log))["recovered"]


async def test_what_is_no_acknowledgement_is_told(office: Office) -> None:
    async with office.socket() as socket:
        await heard(socket)
        for wrong in ("{", '{"ack": -1}', '{"ack": 1000}', '{"nack": 1}'):
            await socket.send(wrong)
            assert (await heard(socket))["type"] == "wrong"


async def test_a_kind_that_is_muted_on_a_channel_is_in_the_inbox_only(office: Office) -> None:
    muted = {"muted": {"websocket": ["order.created"]}}
    assert (await office.http.put("/api/notifications/preferences", json=muted, headers=ADA)).json() == muted
    assert (await office.http.get("/api/notifications/preferences", headers=ADA)).json() == muted
    async with office.socket() as socket, aclosing(office.sse()) as stream:
        await heard(socket)
        await anext(stream)
        order_id = await office.order(await office.ticket())
        assert (await anext(stream))["notification"]["kind"] == "order.created"
        await office.http.delete(f"/api/orders/{order_id}", headers=ADA)
        assert (await heard(socket))["notification"]["kind"] == "order.cancelled"


async def test_a_kind_may_be_muted_for_those_who_ask_and_their_cursor_moves_past_it(office: Office) -> None:
    muted = {"muted": {"poll": ["order.created"]}}
    assert (await office.http.put("/api/notifications/preferences", json=muted, headers=ADA)).json() == muted
    await office.order(await office.ticket())

    async def unread() -> int:
        return int((await office.inbox())["unread"])

    await eventually(unread, 1)
    cursor = (await office.inbox())["items"][0]["notification"]["cursor"]
    answer = await office.poll(0)
    assert (answer["items"], answer["cursor"], answer["recovered"]) == ([], cursor, True)
    for wrong, field, allowed in (
        ({"smoke": ["order.created"]}, "muted", "poll, sse, websocket"),
        ({"poll": ["no.such"]}, "muted.0", "batch.completed, batch.failed"),
    ):
        refused = await office.http.put("/api/notifications/preferences", json={"muted": wrong}, headers=ADA)
        (error,) = refused.json()["errors"]
        assert (refused.status_code, error["field"], allowed in error["message"]) == (400, field, True), error


async def test_sockets_close_with_a_reason_when_the_service_stops(office: Office) -> None:
    async with office.socket() as socket:
        await heard(socket)
        stopping = asyncio.create_task(office.process.stop())
        ending = await heard(socket)
        assert (ending["type"], 500 <= ending["retry_ms"] < 3_500) == ("ended", True)
        await asyncio.wait_for(socket.wait_closed(), 20)
        assert (socket.close_code, "connect again in" in (socket.close_reason or "")) == (1012, True)
        assert await stopping == 0


async def test_nobody_gets_in_without_a_name(office: Office) -> None:
    for path in ("", "/stream", "/inbox", "/preferences"):
        assert (await office.http.get(f"/api/notifications{path}")).status_code == 401
    assert await refused(office.socket(who={})) == 401
    assert await refused(office.socket(who={"Authorization": "Bearer ada"})) == 401


async def refused(socket: connect) -> int:
    """With which status a socket is refused before it is one; there has to be a problem that says why."""
    with pytest.raises(InvalidStatus) as error:
        async with socket:
            pass
    answer = error.value.response
    problem = msgspec.json.decode(answer.body or b"")
    assert (answer.headers["Content-Type"], problem["status"]) == ("application/problem+json", answer.status_code)
    assert problem["detail"]
    return answer.status_code


@pytest.mark.parametrize("origin", ["http://127.0.0.1", "https://elsewhere.example", "null", "http://127.0.0.1:1"])
async def test_a_page_of_somebody_else_opens_no_socket(office: Office, origin: str) -> None:
    address = f"ws{office.process.url.removeprefix('http')}/api/notifications/ws"
    assert await refused(connect(address, origin=Origin(origin), additional_headers=ADA)) == 403


async def test_a_socket_that_cannot_be_is_refused_as_http_refuses(office: Office) -> None:
    address = f"ws{office.process.url.removeprefix('http')}/api/notifications"
    assert await refused(connect(f"{address}/ws?after=soon", additional_headers=ADA)) == 400
    assert await refused(connect(f"{address}/nowhere/at/all", additional_headers=ADA)) == 404
    assert "Traceback" not in office.process.tail()
    assert "without completing handshake" not in office.process.log.read_text()


async def test_one_connection_too_many_is_refused_and_not_broken_off(platform: Platform, home: Path) -> None:
    few = {"BOXOFFICE_CONNECTIONS": "3", "BOXOFFICE_CONNECTIONS_PER_USER": "2"}
    process = ServiceProcess("notification", platform.settings, home, **few)
    async with process, httpx.AsyncClient(base_url=process.url, timeout=20) as http:
        office = Office(process, http)
        async with office.socket() as first, aclosing(office.sse()) as second, office.socket(who=SAM) as third:
            assert {(await heard(first))["type"], (await anext(second))["type"], (await heard(third))["type"]} == {
                "resumed"
            }
            for who, status, why in ((ADA, 429, "You have 2"), (BOB, 503, "All 3")):
                assert await refused(office.socket(who=who)) == status
                for path in ("", "/stream"):
                    answer = await http.get(f"/api/notifications{path}", headers=who)
                    assert (answer.status_code, answer.headers["Retry-After"]) == (status, "1")
                    assert why in answer.json()["detail"]
        assert "Traceback" not in process.tail()


async def test_whoever_gives_up_waiting_takes_no_place(office: Office) -> None:
    async def open_connections() -> int:
        return int(figure((await office.http.get("/metrics")).text, "boxoffice_open_connections", transport="poll"))

    waiting = asyncio.create_task(office.poll(wait=60))
    await eventually(open_connections, 1)
    waiting.cancel()
    await eventually(open_connections, 0)
    assert "Traceback" not in office.process.tail()


async def test_something_is_sent_in_a_silence_on_every_connection_that_stays_open(office: Office) -> None:
    url = f"{office.process.url}/api/notifications/stream"
    async with office.socket() as socket, office.http.stream("GET", url, headers=ADA) as stream:
        assert (await heard(socket))["type"] == "resumed"
        lines = stream.aiter_lines()
        async with asyncio.timeout(PING_SECONDS + 10):
            assert await heard(socket, PING_SECONDS + 10) == {"type": "ping"}
            assert ": ping" in [await anext(lines) for _ in range(5)]


async def test_the_module_for_pages_is_there_for_everybody_and_sent_once(office: Office) -> None:
    first = await office.http.get("/api/notifications/client.js")
    assert (first.status_code, first.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
    assert (first.headers["cache-control"], "export function listen" in first.text) == ("no-cache", True)
    known = {"If-None-Match": first.headers["etag"]}
    again = await office.http.get("/api/notifications/client.js", headers=known)
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    other = await office.http.get("/api/notifications/client.js", headers={"If-None-Match": '"other"'})
    assert other.status_code == 200
