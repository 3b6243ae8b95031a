"""Who is let in to notifications, how many, and what becomes of who takes nothing."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from common.aggregate import Aggregate
from common.clock import new_id
from common.events import NotificationRaised
from common.runtime import Platform
from services.notification.domain import INBOXES_DECIDER, Inboxes, Raise, inbox_id_of
from tests.facts import whole
from tests.harness import ServiceProcess, eventually, figure

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
LARGE = "x" * 20_000
MANY = 700
"""Large ones that fit into no buffer on the way."""
LATER = 10**12


class Desk:
    """The notification service in a process of its own, and a pen to write into its log."""

    def __init__(self, process: ServiceProcess, http: httpx.AsyncClient, inboxes: Inboxes) -> None:
        self.process = process
        self.http = http
        self._inboxes = inboxes

    async def raised(self, user: str, text: str = "You hold 2.") -> tuple[UUID, int]:
        """Somebody is told something: its id and cursor."""
        notification_id = new_id()
        command = Raise(notification_id, user, "order.created", UUID(int=1), text, {}, NOON)
        return notification_id, (await self._inboxes.handle(inbox_id_of(user), command)).sequence

    async def poll(self, user: str, after: int, wait: int = 0) -> dict[str, Any]:
        answer = await self.http.get(
            "/api/notifications", params={"after": after, "wait": wait}, headers=bearer(user), timeout=30
        )
        assert answer.status_code == 200, answer.text
        news: dict[str, Any] = answer.json()
        return news

    async def post(self, user: str, path: str, cursor: int | None = None) -> int:
        body = None if cursor is None else {"cursor": cursor}
        return (await self.http.post(f"/api/notifications{path}", json=body, headers=bearer(user))).status_code

    async def newest(self, user: str) -> dict[str, Any]:
        """What stands in an inbox of the newest."""
        inbox = await self.http.get("/api/notifications/inbox", headers=bearer(user))
        item: dict[str, Any] = inbox.json()["items"][0]
        return item

    def socket(self, user: str, after: int, **more: Any) -> connect:
        address = f"ws{self.process.url.removeprefix('http')}/api/notifications/ws?after={after}"
        return connect(address, additional_headers=bearer(user), **more)

    @asynccontextmanager
    async def stream(self, user: str, after: int) -> AsyncIterator[AsyncGenerator[dict[str, Any], None]]:
        """What a stream says, once it is open."""
        headers = bearer(user) | {"Last-Event-ID": str(after)}
        async with self.http.stream("GET", "/api/notifications/stream", headers=headers) as stream:
            assert stream.status_code == 200
            async with aclosing(events(stream)) as said:
                yield said

    async def open_connections(self) -> int:
        return int(figure((await self.http.get("/metrics")).text, "boxoffice_open_connections"))


async def events(stream: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
    async for line in stream.aiter_lines():
        if line.startswith("data: "):
            yield msgspec.json.decode(line.removeprefix("data: "))


def bearer(user: str) -> dict[str, str]:
    return {"Authorization": f"Bearer dev:{user}"}


async def heard(socket: ClientConnection) -> dict[str, Any]:
    """The next message."""
    message: dict[str, Any] = msgspec.json.decode(await asyncio.wait_for(socket.recv(), 20))
    return message


@asynccontextmanager
async def desk_of(platform: Platform, home: Path, **variables: str) -> AsyncIterator[Desk]:
    process = ServiceProcess("notification", platform.settings, home, **variables)
    async with process, httpx.AsyncClient(base_url=process.url, timeout=30) as http:
        yield Desk(process, http, Aggregate(INBOXES_DECIDER, platform.event_log))


@pytest.fixture
async def desk(platform: Platform, home: Path) -> AsyncIterator[Desk]:
    async with desk_of(platform, home) as desk:
        yield desk


async def test_who_knows_a_cursor_of_somebody_else_sees_and_changes_nothing_of_theirs(desk: Desk) -> None:
    first, _ = await desk.raised("ada")
    second, cursor = await desk.raised("ada")
    assert [item["id"] for item in (await desk.poll("ada", 0, wait=20))["items"]] == [str(first), str(second)]
    async with desk.socket("bob", cursor - 1) as socket, desk.stream("bob", cursor - 1) as stream:
        beginning = await heard(socket)
        assert beginning == {"type": "resumed", "recovered": True, "cursor": cursor - 1, "log": beginning["log"]}
        del beginning["type"]
        assert await anext(stream) == {"type": "resumed"} | beginning
        assert await desk.poll("bob", cursor - 1) == {"items": []} | beginning
        await socket.send(msgspec.json.encode({"ack": cursor}).decode())
        assert (await heard(socket))["type"] == "wrong"
        assert await desk.post("bob", f"/{second}/read") == 404
        assert [await desk.post("bob", path, cursor) for path in ("/ack", "/read")] == [204, 204]
        await desk.raised("ada")
        own, _ = await desk.raised("bob")
        assert (await heard(socket))["notification"]["id"] == str(own)
        assert (await anext(stream))["notification"]["id"] == str(own)
    theirs = await desk.newest("ada")
    assert (theirs["read"], theirs["acknowledged"]) == (False, False)


async def test_nobody_is_let_in_who_is_not_known(desk: Desk) -> None:
    for path in ("", "/stream", "/inbox", "/preferences"):
        assert (await desk.http.get(f"/api/notifications{path}")).status_code == 401
    for path in ("/ack", "/read", f"/{UUID(int=1)}/read"):
        assert (await desk.http.post(f"/api/notifications{path}", json={"cursor": 1})).status_code == 401


async def test_a_cursor_of_the_future_is_not_recovered_and_nothing_can_be_done_up_to_it(desk: Desk) -> None:
    _, cursor = await desk.raised("ada")
    assert (await desk.poll("ada", 0, wait=20))["cursor"] == cursor  # so it is no news any more
    async with desk.socket("ada", LATER) as socket, desk.stream("ada", LATER) as stream:
        assert [(await each)["recovered"] for each in (heard(socket), anext(stream), desk.poll("ada", LATER))] == 3 * [
            False
        ]
        assert [await desk.post("ada", path, LATER) for path in ("/ack", "/read")] == [422, 422]
        await desk.raised("ada")
        assert (await heard(socket))["notification"]["cursor"] > cursor
        assert not (await desk.newest("ada"))["read"]


@pytest.mark.parametrize(
    ("limit", "other", "status", "why"),
    [
        ("BOXOFFICE_CONNECTIONS_PER_USER", "ada", 429, "You have 1 connections open here"),
        ("BOXOFFICE_CONNECTIONS", "bob", 503, "All 1 connections"),
    ],
)
async def test_one_connection_too_many_is_refused_with_a_reason_and_there_is_room_again_afterwards(
    platform: Platform, home: Path, limit: str, other: str, status: int, why: str
) -> None:
    async with desk_of(platform, home, **{limit: "1"}) as desk:
        async with desk.socket("ada", 0) as socket:
            await heard(socket)
            for path in ("", "/stream"):
                refused = await desk.http.get(f"/api/notifications{path}", headers=bearer(other))
                assert (refused.status_code, why in refused.json()["detail"]) == (status, True)
            with pytest.raises(InvalidStatus, match=f"HTTP {status}") as closed:
                async with desk.socket(other, 0):
                    pass
            assert why.encode() in (closed.value.response.body or b"")
        for _ in range(3):
            await eventually(desk.open_connections, 0)
            async with desk.stream(other, 0) as stream:
                assert (await anext(stream))["recovered"]
            await eventually(desk.open_connections, 0)
            async with desk.socket(other, 0) as socket:
                assert (await heard(socket))["recovered"]
            await eventually(desk.open_connections, 0)
            assert (await desk.poll(other, 0))["recovered"]


async def test_who_takes_nothing_is_closed_and_misses_nothing_when_they_come_back(
    desk: Desk, platform: Platform
) -> None:
    by_socket: list[int] = []
    by_stream: list[int] = []
    async with desk.socket("ada", 0, ping_interval=None, max_queue=1) as socket, desk.stream("ada", 0) as stream:
        for _ in range(0, MANY, 50):
            await asyncio.gather(*(desk.raised("ada", LARGE) for _ in range(50)))
        await eventually(desk.open_connections, 0, within=40)
        await take(messages(socket), by_socket, LATER)
        assert (socket.close_code, "connect again" in (socket.close_reason or "").lower()) == (1013, True)
        await take(stream, by_stream, LATER)
    recorded = await whole(platform.event_log, "NOTIFICATIONS")
    raised = [each.sequence for each in recorded if isinstance(each.event, NotificationRaised)]
    assert 0 < len(by_socket) < len(raised) == MANY, "it was slow, and not all of it fitted anywhere"
    assert 0 < len(by_stream) < len(raised)
    while by_socket[-1] < raised[-1]:
        async with desk.socket("ada", by_socket[-1], ping_interval=None) as socket:
            await take(messages(socket), by_socket, raised[-1])
    while by_stream[-1] < raised[-1]:
        async with desk.stream("ada", by_stream[-1]) as stream:
            await take(stream, by_stream, raised[-1])
    assert by_socket == raised
    assert by_stream == raised


async def messages(socket: ClientConnection) -> AsyncGenerator[dict[str, Any], None]:
    while True:
        yield await heard(socket)


async def take(said: AsyncGenerator[dict[str, Any], None], cursors: list[int], last: int) -> None:
    """The cursors of what is told, each once, up to the last or until the connection ends."""
    with suppress(ConnectionClosed, httpx.RemoteProtocolError):
        async with aclosing(said):
            async for message in said:
                assert message.get("recovered", True)
                if "notification" in message and (cursor := message["notification"]["cursor"]) > (cursors or [0])[-1]:
                    cursors.append(cursor)
                if cursors[-1:] == [last]:
                    return
