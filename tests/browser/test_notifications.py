"""The module that pages listen with, in a real browser, on connections that are bad in every way."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

import httpx
import msgspec
import pytest
from playwright.async_api import Browser

from common.events import NotificationRaised, OrderCreated
from common.runtime import Platform
from services.identity.tokens import new_signing_key
from tests.browser.person import Person
from tests.facts import whole
from tests.harness import ServiceProcess, eventually, figure

SAM, ADA = ({"Authorization": f"Bearer dev:{name}"} for name in ("sam", "ada"))
SHOW = {"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": 1000, "max_per_order": 2}

SEED = 11
FAULTS = 20

Fate = Literal["pass", "refuse", "cut"]
Judge = Callable[[str], Fate]

CLIENT = "/api/notifications/client.js"

CUT = ("WebSocket", "ERR_")
"""What the console says of connections that are refused and cut."""

LISTEN = """
(async () => {
    const { listen } = await import("/api/notifications/client.js");
    const told = globalThis.told = { cursors: [], states: [], resumed: [], errors: [] };
    globalThis.heard = listen({
        token: "dev:ada",
        onNotification: ({ cursor }) => { told.cursors.push(cursor); },
        onState: (state) => told.states.push(state),
        onResumed: (resumed) => told.resumed.push(resumed),
        onError: (error) => told.errors.push(String(error)),
        ...OPTIONS,
    });
})()
"""


def everything(_: str) -> Fate:
    return "pass"


def nothing(_: str) -> Fate:
    return "refuse"


def no_upgrade(head: str) -> Fate:
    return "refuse" if "upgrade: websocket" in head.lower() else "pass"


def no_stream(head: str) -> Fate:
    return "cut" if "/stream" in head.partition("\r\n")[0] else no_upgrade(head)


def no_tickets(head: str) -> Fate:
    return "refuse" if "/auth/ticket" in head.partition("\r\n")[0] else "pass"


def cut_streams(head: str) -> Fate:
    return "cut" if "/stream" in head.partition("\r\n")[0] else "pass"


class Doorman:
    """Stands before a service. `judge` decides by the head of a request what becomes of it and of its connection."""

    def __init__(self, port: int) -> None:
        self.judge: Judge = everything
        self.seen: list[str] = []  # the first lines of requests
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._frozen: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._door = await asyncio.start_server(self._join, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._door.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._door.close()
        self.hang_up()

    def hang_up(self) -> None:
        """Cut all connections."""
        for writer in self._writers:
            writer.close()

    def freeze(self) -> None:
        """Nothing more comes over the connections that there are, and they do not end."""
        self._frozen |= self._writers

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.seen.append(head.decode("latin-1").splitlines()[0])
            fate = self.judge(head.decode("latin-1"))
            if fate == "refuse":
                writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            else:
                await self._pass(head, fate, reader, writer)
        writer.close()

    async def _pass(self, head: bytes, fate: Fate, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, far_writer}
        far_writer.write(head.replace(b"Connection: keep-alive", b"Connection: close"))  # one request, one judgement
        there = asyncio.create_task(self._carry(reader, far_writer))
        back = asyncio.create_task(self._carry(far_reader, writer, fate))
        try:
            await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
        finally:
            there.cancel()
            back.cancel()
            far_writer.close()
            self._writers -= {writer, far_writer}

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fate: Fate = "pass") -> None:
        """All that comes; cut: up to the first event."""
        with suppress(OSError):
            while data := await reader.read(65536):
                if writer not in self._frozen:
                    writer.write(data)
                    await writer.drain()
                if fate == "cut" and b"resumed" in data:
                    return


class Office:
    """A shop, and a notification service of its own that can be killed."""

    def __init__(self, shop: httpx.AsyncClient, teller: ServiceProcess, platform: Platform) -> None:
        self.shop = shop
        self.teller = teller
        self._event_log = platform.event_log

    async def ticket(self) -> str:
        made = await self.shop.post("/api/tickets", json=SHOW, headers=SAM)
        assert made.status_code == 201, made.text
        return str(made.json()["id"])

    async def order(self, ticket_id: str, count: int = 1) -> None:
        for _ in range(count):
            made = await self.shop.post("/api/orders", json={"ticket_id": ticket_id, "quantity": 1}, headers=ADA)
            assert made.status_code == 201, made.text

    async def placed(self) -> int:
        """How many orders there are."""
        return sum(isinstance(each.event, OrderCreated) for each in await whole(self._event_log, "ORDERS"))

    async def raised(self) -> list[int]:
        """The cursors of all that Ada is told."""
        return [
            recorded.sequence
            for recorded in await whole(self._event_log, "NOTIFICATIONS")
            if isinstance(recorded.event, NotificationRaised) and recorded.event.user_id == "ada"
        ]

    async def acknowledged(self) -> list[bool]:
        async with httpx.AsyncClient(base_url=self.teller.url) as http:
            items = (await http.get("/api/notifications/inbox", headers=ADA)).json()["items"]
        return [item["acknowledged"] for item in items]

    async def open_connections(self) -> int:
        async with httpx.AsyncClient(base_url=self.teller.url) as http:
            return int(figure((await http.get("/metrics")).text, "boxoffice_open_connections"))


@pytest.fixture
async def office(platform: Platform, home: Path) -> AsyncIterator[Office]:
    shop = ServiceProcess("tickets orders expiration", platform.settings, home)
    teller = ServiceProcess("notification identity", platform.settings, home, BOXOFFICE_SIGNING_KEY=new_signing_key())
    async with httpx.AsyncClient(base_url=shop.url, timeout=30) as http:
        try:
            await asyncio.gather(shop.start(), teller.start())
            yield Office(http, teller, platform)
        finally:
            await asyncio.gather(shop.kill(), teller.kill())


@pytest.fixture
async def ada(browser: Browser, office: Office) -> AsyncIterator[Person]:
    async with Person.enters(browser, office.teller.url) as ada:
        yield ada


async def listen(ada: Person, options: str = "{}") -> None:
    """Open a page that listens; `options` in JavaScript are those of the module.

    The page is the module itself, as text: that has the policy which a page needs that listens.
    """
    await ada.page.goto(CLIENT)
    await ada.page.evaluate(LISTEN.replace("OPTIONS", options))


async def cursors(ada: Person) -> list[int]:
    """What the page was told, in this order."""
    told: list[int] = await ada.page.evaluate("told.cursors")
    return told


async def transport(ada: Person) -> Any:
    """On what the page listens now."""
    state = await ada.page.evaluate("told.states.at(-1)") or {}
    return state["transport"] if state.get("state") == "open" else None


async def hears_all(ada: Person, office: Office, count: int, before: int = 0) -> None:
    """Wait until the page was told so many; it has to be all there is, in order, and each once.

    `before`: how many there were at first, which it is not told.
    """

    async def so_many() -> tuple[int, int]:
        return len(await office.raised()) - before, len(await cursors(ada))

    await eventually(so_many, (count, count), within=60)
    assert await cursors(ada) == (await office.raised())[before:]


async def test_a_page_is_told_over_a_websocket_once_and_acknowledges(office: Office, ada: Person) -> None:
    ticket_id = await office.ticket()
    await office.order(ticket_id, 2)
    await listen(ada)
    await hears_all(ada, office, 2)
    await office.order(ticket_id, 3)
    await hears_all(ada, office, 5)
    assert await transport(ada) == "websocket"
    assert await ada.page.evaluate("told.resumed") == [
        {"recovered": True, "cursor": 0, "log": await ada.page.evaluate("heard.log")}
    ]
    await eventually(office.acknowledged, [True] * 5)
    assert await ada.page.evaluate("heard.cursor") == (await cursors(ada))[-1]
    await ada.page.goto(CLIENT)
    await ada.page.evaluate(LISTEN.replace("OPTIONS", "{}"))
    await eventually(lambda: transport(ada), "websocket")
    assert await cursors(ada) == [], "it was acknowledged"


@pytest.mark.parametrize(("judge", "used"), [(no_upgrade, "sse"), (no_tickets, "sse"), (no_stream, "poll")])
async def test_where_a_transport_is_not_possible_a_lesser_one_tells_the_same(
    office: Office, browser: Browser, judge: Judge, used: str
) -> None:
    ticket_id = await office.ticket()
    async with Doorman(office.teller.port) as doorman, Person.enters(browser, doorman.url) as ada:
        ada.allow(*CUT, "403")
        doorman.judge = judge
        await office.order(ticket_id, 2)
        await listen(ada)
        await eventually(lambda: transport(ada), used)
        await office.order(ticket_id, 3)
        await hears_all(ada, office, 5)
        doorman.hang_up()
        await office.order(ticket_id, 2)
        await hears_all(ada, office, 7)
        if used == "sse":  # a poll acknowledges with the next one
            await eventually(office.acknowledged, [True] * 7)
        doorman.judge = everything
        await ada.page.evaluate("dispatchEvent(new Event('online'))")
        await eventually(lambda: transport(ada), "websocket")
        await office.order(ticket_id)
        await hears_all(ada, office, 8)
        assert await ada.page.evaluate("told.errors") == []


async def test_a_page_misses_nothing_while_the_server_is_killed_and_started_again(office: Office, ada: Person) -> None:
    ada.allow(*CUT, "503")
    ticket_id = await office.ticket()
    await listen(ada)
    for turn in range(3):
        await eventually(lambda: transport(ada), "websocket")
        await office.order(ticket_id)
        await office.teller.kill()
        await office.order(ticket_id, 2)
        await office.teller.start()
        await hears_all(ada, office, 3 * (turn + 1))
        await ada.page.evaluate(
            "dispatchEvent(new Event('online'))"
        )  # a slow start may have led it to a lesser connection
    assert all(resumed["recovered"] for resumed in await ada.page.evaluate("told.resumed"))


async def test_a_page_hears_all_whatever_becomes_of_its_connections(office: Office, browser: Browser) -> None:
    rng = random.Random(SEED)  # noqa: S311
    ticket_id = await office.ticket()
    async with Doorman(office.teller.port) as doorman, Person.enters(browser, doorman.url) as ada:
        ada.allow(*CUT, "503")
        await listen(ada, "{ pingSeconds: 0.5 }")

        async def fault() -> None:
            doorman.judge = rng.choice([everything, no_upgrade, no_stream, cut_streams])
            match rng.randrange(6):
                case 0:
                    doorman.freeze()
                case 1:
                    await ada.page.evaluate("dispatchEvent(new Event('online'))")
                case 2:
                    await office.teller.kill()
                    await office.teller.start()
                case _:
                    doorman.hang_up()

        for _ in range(FAULTS):
            await asyncio.gather(fault(), office.order(ticket_id, rng.randrange(1, 6)))
        doorman.judge = everything
        await hears_all(ada, office, await office.placed())
        states = await ada.page.evaluate("told.states")
        used = {state["transport"] for state in states if state["state"] == "open"}
        assert len(used) > 1, "the faults were none"
        assert await ada.page.evaluate("told.errors") == []
        assert all(resumed["recovered"] for resumed in await ada.page.evaluate("told.resumed"))


async def test_a_page_comes_back_when_the_server_that_stops_has_said(office: Office, ada: Person) -> None:
    ada.allow(*CUT, "503")
    await listen(ada)
    await eventually(lambda: transport(ada), "websocket")
    assert await office.teller.stop() == 0
    await office.teller.start()
    await office.order(await office.ticket())
    await hears_all(ada, office, 1)
    waited = await ada.page.evaluate("told.states.find(({ state }) => state === 'waiting')")
    assert waited["reason"] == f"Stopping: connect again in {waited['milliseconds']} ms."


async def test_a_connection_that_has_gone_silent_is_given_up(office: Office, browser: Browser) -> None:
    ticket_id = await office.ticket()
    async with Doorman(office.teller.port) as doorman, Person.enters(browser, doorman.url) as ada:
        ada.allow(*CUT)
        await listen(ada, "{ pingSeconds: 1 }")
        await eventually(lambda: transport(ada), "websocket")
        doorman.freeze()
        await office.order(ticket_id, 2)
        await hears_all(ada, office, 2)
        assert "The connection was silent for too long." in await ada.page.evaluate(
            "told.states.map(({ reason }) => reason)"
        )


async def test_a_page_that_was_asleep_hears_what_it_slept_through(office: Office, browser: Browser) -> None:
    ticket_id = await office.ticket()
    async with Doorman(office.teller.port) as doorman, Person.enters(browser, doorman.url) as ada:
        ada.allow(*CUT)
        await listen(ada, "{ pingSeconds: 1, url: '/api/notifications', after: null }")
        await eventually(lambda: transport(ada), "websocket")
        await ada.session.send("Page.setWebLifecycleState", {"state": "frozen"})
        doorman.freeze()  # as when a laptop sleeps: nobody hangs up
        await office.order(ticket_id, 2)

        async def raised() -> int:
            return len(await office.raised())

        await eventually(raised, 2)
        await ada.session.send("Page.setWebLifecycleState", {"state": "active"})
        await hears_all(ada, office, 2)


async def test_what_a_page_fails_to_take_is_not_acknowledged_and_given_to_it_again(office: Office, ada: Person) -> None:
    ticket_id = await office.ticket()
    failing = """{ onNotification: ({ cursor }) => {
        told.cursors.push(cursor);
        if (told.cursors.length === 1) throw new Error("no room");
    } }"""
    await listen(ada, failing)
    await office.order(ticket_id, 3)

    async def taken() -> list[int]:
        return await cursors(ada)

    async def raised() -> int:
        return len(await office.raised())

    await eventually(raised, 3)
    first, second, third = await office.raised()
    await eventually(taken, [first, second, third, first])
    assert await ada.page.evaluate("told.errors") == ["Error: no room"]
    await eventually(office.acknowledged, [True] * 3)


async def test_nothing_is_acknowledged_past_what_a_page_never_takes(office: Office, ada: Person) -> None:
    ticket_id = await office.ticket()
    await listen(
        ada,
        """{ onNotification: ({ cursor }) => {
            told.cursors.push(cursor);
            if (told.cursors[1] === cursor) throw new Error("never");
        } }""",
    )
    await office.order(ticket_id, 3)

    async def given_again() -> bool:
        told = await cursors(ada)
        return told.count(told[1]) > 2 if len(told) > 2 else False

    await eventually(given_again, True)
    assert await office.acknowledged() == [False, False, True], "the newest first"
    first, second, third = await office.raised()
    assert (await ada.page.evaluate("heard.cursor")) == second - 1
    assert [each for each in await cursors(ada) if each != second] == [first, third]


COUNTED = """
(() => {
    const open = globalThis.open = { timers: new Set(), sockets: new Set(), requests: 0 };
    const { setTimeout: set, clearTimeout: clear, WebSocket: Socket, fetch: ask } = globalThis;
    globalThis.setTimeout = (callback, ...rest) => {
        const timer = set(() => { open.timers.delete(timer); callback(); }, ...rest);
        open.timers.add(timer);
        return timer;
    };
    globalThis.clearTimeout = (timer) => { open.timers.delete(timer); clear(timer); };
    globalThis.WebSocket = class extends Socket {
        constructor(...given) {
            super(...given);
            open.sockets.add(this);
            this.addEventListener("close", () => open.sockets.delete(this));
        }
    };
    globalThis.fetch = (...given) => {
        open.requests += 1;
        return ask(...given).finally(() => { open.requests -= 1; });
    };
})()
"""


@pytest.mark.parametrize("judge", [everything, no_upgrade, no_stream, nothing])
async def test_a_page_that_has_closed_keeps_nothing(office: Office, browser: Browser, judge: Judge) -> None:
    listeners_before = 0
    async with Doorman(office.teller.port) as doorman, Person.enters(browser, doorman.url) as ada:
        ada.allow(*CUT, "403")
        await ada.page.goto(CLIENT)
        listeners_before = await listeners(ada)
        await ada.page.evaluate(COUNTED)
        await ada.page.evaluate(f"import('{CLIENT}').then(() => 0)")
        doorman.judge = judge
        await office.order(await office.ticket())
        await ada.page.evaluate(LISTEN.replace("OPTIONS", "{ onNotification() { throw new Error('keep a timer') } }"))
        if judge is nothing:
            await eventually(lambda: ada.page.evaluate("told.states.some(({ state }) => state === 'waiting')"), True)
        else:
            await eventually(lambda: ada.page.evaluate("told.errors.length > 0"), True)
        assert await ada.page.evaluate("open.timers.size") > 0
        assert await listeners(ada) > listeners_before
        await ada.page.evaluate("heard.close(); heard.close()")
        assert await ada.page.evaluate("[open.timers.size, told.states.at(-1).why]") == [0, "closed"]
        assert await listeners(ada) == listeners_before
        await eventually(lambda: ada.page.evaluate("[open.sockets.size, open.requests]"), [0, 0])
        seen = len(doorman.seen)
        count = await ada.page.evaluate("told.states.length")
        await ada.page.evaluate(
            "dispatchEvent(new Event('online')); document.dispatchEvent(new Event('visibilitychange'))"
        )
        await office.order(await office.ticket())

        async def raised() -> int:
            return len(await office.raised())

        await eventually(raised, 2)
        assert (len(doorman.seen), await ada.page.evaluate("told.states.length")) == (seen, count)


async def listeners(ada: Person) -> int:
    """How many listeners the window and the document have."""
    count = 0
    for thing in ("globalThis", "document"):
        found = await ada.session.send("Runtime.evaluate", {"expression": thing})
        told = await ada.session.send("DOMDebugger.getEventListeners", {"objectId": found["result"]["objectId"]})
        count += len(told["listeners"])
    return count


async def test_the_server_keeps_no_connection_of_a_page_that_has_closed(office: Office, browser: Browser) -> None:
    async with Doorman(office.teller.port) as doorman, Person.enters(browser, doorman.url) as ada:
        ada.allow(*CUT)
        cases: list[tuple[Judge, str]] = [(everything, "websocket"), (no_upgrade, "sse")]
        for doorman.judge, used in cases:
            await listen(ada)
            await eventually(lambda: transport(ada), used)
            assert await office.open_connections() == 1
            await ada.page.evaluate("heard.close()")
            await eventually(office.open_connections, 0)


@pytest.mark.parametrize("judge", [everything, no_upgrade, no_stream])
async def test_a_page_with_the_cursor_of_another_log_is_told_so_and_hears_what_comes(
    office: Office, browser: Browser, judge: Judge
) -> None:
    ticket_id = await office.ticket()
    async with Doorman(office.teller.port) as doorman, Person.enters(browser, doorman.url) as ada:
        ada.allow(*CUT)
        doorman.judge = judge
        await listen(ada, "{ after: 1e12 }")
        await eventually(lambda: ada.page.evaluate("told.resumed.map(({ recovered }) => recovered)[0]"), False)
        await office.order(ticket_id, 2)
        await hears_all(ada, office, 2)


@pytest.mark.parametrize("judge", [everything, no_upgrade, no_stream])
async def test_a_page_hands_back_of_which_log_its_cursor_is_and_is_told_when_it_was_replaced(
    office: Office, browser: Browser, judge: Judge
) -> None:
    ticket_id = await office.ticket()
    async with Doorman(office.teller.port) as doorman, Person.enters(browser, doorman.url) as ada:
        ada.allow(*CUT)
        doorman.judge = judge
        await office.order(ticket_id, 2)
        await listen(ada)
        await hears_all(ada, office, 2)
        log = await ada.page.evaluate("heard.log")
        doorman.hang_up()
        await office.order(ticket_id)
        await hears_all(ada, office, 3)
        assert {(told["recovered"], told["log"]) for told in await ada.page.evaluate("told.resumed")} == {(True, log)}
        assert any(f"log={log}" in line for line in doorman.seen)
        await ada.page.evaluate("heard.close()")
        await listen(ada, "{ after: 1, log: 'another' }")
        await eventually(lambda: ada.page.evaluate("told.resumed[0]?.recovered"), False)
        assert await ada.page.evaluate("[told.resumed[0].log, heard.log]") == [log, log]
        await office.order(ticket_id)
        await hears_all(ada, office, 1, before=3)


async def test_a_token_that_is_not_believed_is_the_end(ada: Person) -> None:
    ada.allow("401")
    await listen(ada, "{ token: 'nobody' }")

    async def end() -> Any:
        return await ada.page.evaluate("told.states.at(-1)?.why")

    await eventually(end, "unauthorized")
    assert "Bearer dev:<name>" in await ada.page.evaluate("told.states.at(-1).reason")


LOGGED_IN = """
(async () => {
    const headers = { "Content-Type": "application/json" };
    const body = JSON.stringify({ name: "ada", page: true });
    return (await fetch("/api/auth/dev", { method: "POST", headers, body })).status;
})()
"""
AS_LOGGED_IN = "{ token: undefined }"


async def forget(ada: Person, *cookies: str) -> None:
    """Take cookies from the browser, as time does."""
    for name in cookies:
        await ada.context.clear_cookies(name=f"boxoffice-{name}")


@pytest.mark.parametrize(("judge", "used"), [(everything, "websocket"), (no_upgrade, "sse"), (no_stream, "poll")])
async def test_a_page_on_which_somebody_is_logged_in_needs_no_token(
    office: Office, browser: Browser, judge: Judge, used: str
) -> None:
    ticket_id = await office.ticket()
    async with Doorman(office.teller.port) as doorman, Person.enters(browser, doorman.url) as ada:
        ada.allow(*CUT, "401")
        await ada.page.goto(CLIENT)
        assert await ada.page.evaluate(LOGGED_IN) == 200
        doorman.judge = judge
        await forget(ada, "session")  # what is believed for some minutes only: it is renewed
        await listen(ada, AS_LOGGED_IN)
        await eventually(lambda: transport(ada), used)
        assert any("/api/auth/refresh" in line for line in doorman.seen)
        await office.order(ticket_id, 2)
        await hears_all(ada, office, 2)
        await forget(ada, "session")
        doorman.hang_up()
        await office.order(ticket_id)
        await hears_all(ada, office, 3)
        if used == "sse":
            await eventually(office.acknowledged, [True] * 3)
        assert await ada.page.evaluate("told.errors") == []


async def test_a_page_on_which_nobody_is_logged_in_any_more_is_told_so(ada: Person) -> None:
    ada.allow("401")
    await ada.page.goto(CLIENT)
    assert await ada.page.evaluate(LOGGED_IN) == 200
    await listen(ada, AS_LOGGED_IN)
    await eventually(lambda: transport(ada), "websocket")
    await forget(ada, "session", "refresh")
    await ada.page.evaluate("heard.close()")
    await listen(ada, AS_LOGGED_IN)

    async def end() -> Any:
        return await ada.page.evaluate("told.states.at(-1)?.why")

    await eventually(end, "unauthorized")
    assert "Log in" in await ada.page.evaluate("told.states.at(-1).reason")


async def test_a_server_that_refuses_for_good_is_not_asked_for_ever(office: Office, browser: Browser) -> None:
    async with Doorman(office.teller.port) as doorman, Person.enters(browser, doorman.url) as ada:
        ada.allow(*CUT, "403")
        await ada.page.goto(CLIENT)
        await ada.page.evaluate(f"import('{CLIENT}').then(() => 0)")
        doorman.judge = nothing
        await ada.page.evaluate(LISTEN.replace("OPTIONS", "{}"))

        async def end() -> Any:
            return await ada.page.evaluate("told.states.at(-1)?.why")

        await eventually(end, "refused")


async def test_a_server_with_no_room_says_when_to_come_again(platform: Platform, home: Path, browser: Browser) -> None:
    few = {"BOXOFFICE_CONNECTIONS_PER_USER": "1", "BOXOFFICE_SIGNING_KEY": new_signing_key()}
    async with (
        ServiceProcess("notification identity", platform.settings, home, **few) as teller,
        Person.enters(browser, teller.url) as ada,
    ):
        ada.allow("WebSocket", "429")
        await listen(ada)
        await eventually(lambda: transport(ada), "websocket")
        await ada.page.evaluate("globalThis.first = heard")
        await ada.page.evaluate(LISTEN.replace("OPTIONS", "{}"))

        async def busy() -> Any:
            return await ada.page.evaluate(
                "told.states.some(({ reason }) => reason?.startsWith('You have 1 connections'))"
            )

        await eventually(busy, True)
        waits = await ada.page.evaluate("told.states.flatMap(({ reason, milliseconds }) => [[reason, milliseconds]])")
        asked = next(milliseconds for reason, milliseconds in waits if reason and reason.startswith("You have"))
        assert asked >= 1000, "Retry-After is 1"
        await ada.page.evaluate("first.close()")
        await eventually(lambda: transport(ada), "websocket")


STREAM = (
    b'\xef\xbb\xbf: a comment\r\n\r\nid: 7\nevent: notification\ndata: {"text": "Op\xc3\xa9ra \xf0\x9f\x8e\xab"}\n\n'
    b"data: one\rdata:two\r\ndata\r\n\r\nevent: nothing\n\nretry: 250\nretry: soon\nid: 8\0\ndata:  two spaces\n\n"
    b": ping\n\nunknown: x\nid\ndata: last\r\r\ndata: never ended\n"
)
EVENTS = [
    {"event": "notification", "data": '{"text": "Opéra 🎫"}', "id": "7"},
    {"event": "message", "data": "one\ntwo\n", "id": "7"},
    {"event": "message", "data": " two spaces", "id": "7", "retry": 250},
    {"event": "message", "data": "last", "id": "", "retry": 250},
]


async def test_events_are_the_same_wherever_their_bytes_are_cut(ada: Person) -> None:
    await ada.page.goto(CLIENT)
    script = """
    (async () => {
        const { EventStreamParser } = await import("/api/notifications/client.js");
        const bytes = Uint8Array.from(BYTES);
        const parsed = (...cuts) => {
            const parser = new EventStreamParser();
            const ends = [...cuts, bytes.length];
            return JSON.stringify(ends.flatMap((end, i) => parser.push(bytes.slice(ends[i - 1] ?? 0, end))));
        };
        const found = new Set([parsed(), parsed(...bytes.keys())]);
        for (const one of bytes.keys()) for (const two of bytes.keys()) if (one <= two) found.add(parsed(one, two));
        return [...found];
    })()
    """
    found = await ada.page.evaluate(script.replace("BYTES", str(list(STREAM))))
    assert [msgspec.json.decode(each) for each in found] == [EVENTS]
