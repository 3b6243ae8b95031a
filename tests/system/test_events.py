"""`boxoffice events` and `/api/events`, against a system that runs: what happened is found, shown and followed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest

from common.event_log import Draft
from common.events import OrderCreated
from common.runtime import Platform
from common.settings import Settings
from services.cli.system import DECIDERS
from services.history.finding import find
from services.history.following import Wanted, tail
from services.orders.domain import ORDERS
from tests.facts import AT
from tests.given import fold
from tests.harness import ServiceProcess, command, eventually, operator
from tests.nursery import ran

SAM, ADA, OLGA = ({"Authorization": f"Bearer dev:{who}"} for who in ("sam", "ada", "olga:operator"))
SHOW = {"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": 10}


class Shop:
    """A system with an order that has expired, and one that has not."""

    def __init__(self, http: httpx.AsyncClient, platform: Platform) -> None:
        self.http = http
        self.log = platform.event_log
        self.settings = platform.settings

    async def play(self) -> None:
        self.ticket_id = (await self.http.post("/api/tickets", json=SHOW, headers=SAM)).json()["id"]
        self.expired = await self.order(1, "with-a-key", hold_seconds=1)
        self.held = await self.order(2)
        await eventually(self.told, 1)

    async def told(self) -> int:
        """How many notifications there are of an order that was cancelled."""
        inbox = await self.http.get("/api/notifications/inbox", headers=ADA)
        return [each["notification"]["kind"] for each in inbox.json()["items"]].count("order.cancelled")

    async def order(self, quantity: int, key: str = "", **more: object) -> str:
        wanted = {"ticket_id": self.ticket_id, "quantity": quantity, **more}
        headers = ADA | ({"Idempotency-Key": key} if key else {})
        placed = await self.http.post("/api/orders", json=wanted, headers=headers)
        assert placed.status_code == 201, placed.text
        return str(placed.json()["id"])

    async def ask(self, path: str, status: int = 200, **parameters: object) -> Any:
        answer = await self.http.get(f"/api/events/{path}", params=parameters, headers=OLGA)  # type: ignore[arg-type]  # httpx wants literals
        assert answer.status_code == status, answer.text
        return answer.json()


@pytest.fixture
async def shop(platform: Platform, home: Path) -> AsyncIterator[Shop]:
    process = ServiceProcess("tickets orders expiration notification history", platform.settings, home)
    async with process, httpx.AsyncClient(base_url=process.url, timeout=30) as http:
        shop = Shop(http, platform)
        await shop.play()
        yield shop


async def boxoffice(settings: Settings, *arguments: str) -> tuple[int, str]:
    """Run the command; its exit code and what it says."""
    code, said, _ = await ran(arguments, operator(settings))
    return code, said.decode()


@asynccontextmanager
async def running(settings: Settings, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The command, while it runs."""
    process = await command(settings, *arguments)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def events_in(caused: list[dict[str, Any]]) -> list[Any]:
    """A trace as nested lists of types."""
    return [[each["type"], *events_in(each["caused"])] for each in caused]


async def test_the_id_of_an_order_finds_its_book_and_each_step_is_the_fold_so_far(shop: Shop) -> None:
    whole = await shop.log.read(f"orders.{shop.ticket_id}")
    for order_id in (shop.expired, shop.held):  # the first has an id that tells no time
        history = await shop.ask(f"history/orders/{order_id}")
        assert history["subject"] == f"orders.{shop.ticket_id}"
        naming = [each.sequence for each in whole if getattr(each.event, "order_id", None) == UUID(order_id)]
        assert [step["sequence"] for step in history["steps"]] == naming
    book = await shop.ask(f"history/orders/{shop.ticket_id}")
    assert [step["sequence"] for step in book["steps"]] == [each.sequence for each in whole]
    for number, recorded in enumerate(whole, start=1):
        so_far = fold(ORDERS, [each.event for each in whole[:number]])  # type: ignore[misc]  # a book's subject holds its events
        state = (await shop.ask(f"history/orders/{shop.ticket_id}", at=recorded.sequence))["state"]
        assert (state["taken"], len(state["orders"])) == (so_far.taken, len(so_far.orders))
        then = (await shop.ask(f"history/orders/{shop.ticket_id}", at_time=recorded.time.isoformat()))["state"]
        assert then == state
    both = await shop.ask(f"history/orders/{shop.ticket_id}", 422, at=1, at_time=whole[0].time.isoformat())
    assert both["detail"].startswith("at, at_time:")
    early = await shop.ask(f"history/orders/{shop.held}", 422, at=whole[0].sequence)
    assert "is named in" in early["detail"]


async def test_a_trace_is_what_one_click_caused_in_all_services(shop: Shop) -> None:
    (trace,) = await shop.ask(f"trace/{shop.expired}")
    (request,) = trace["roots"]
    assert request["causation_id"] == trace["correlation_id"]
    raised = ["notification_raised"]
    expired = ["expiration_completed", ["order_cancelled", raised]]
    placed = next(each for each in request["caused"] if each["type"] == "order_created")
    assert events_in(placed["caused"]) == [raised, expired]
    over = next(each for each in placed["caused"] if each["type"] == "expiration_completed")
    assert over["through"] == ["expiration-hold-orders"]
    assert over["waited"] >= 0.9
    assert over["caused"][0]["through"] == ["orders-cancel-expired"]
    # the same from any end of it
    for wanted in (trace["correlation_id"], over["event_id"], placed["event_id"]):
        assert await shop.ask(f"trace/{wanted}") == [trace]
    assert await shop.ask(f"trace/{uuid4()}", 404)


async def test_an_id_leads_to_what_it_is_the_id_of(shop: Shop) -> None:
    (trace,) = await shop.ask(f"trace/{shop.expired}")
    placed = next(each for each in trace["roots"][0]["caused"] if each["type"] == "order_created")
    book = {"id": shop.ticket_id, "service": "orders", "at": None}
    leads = {
        shop.ticket_id: [book | {"service": "tickets"}, book],
        f"orders.{shop.ticket_id}": [book],
        shop.expired: [book | {"id": shop.expired}],  # it tells no time
        shop.held: [book | {"id": shop.held}],
        placed["event_id"]: [book | {"at": placed["sequence"]}],
        trace["correlation_id"]: [{"id": trace["correlation_id"], "service": None, "at": None}],
    }
    for wanted, lead in leads.items():
        assert await shop.ask(f"find/{wanted}") == lead
    for nobodys in (str(uuid4()), "nothing", "orders.>", f"nowhere.{uuid4()}"):
        assert nobodys in (await shop.ask(f"find/{nobodys}", 404))["detail"]
    types = await shop.ask("types")
    assert types["expiration"] == ["expiration_completed"]
    assert "order_cancelled" in types["orders"]


async def test_a_dead_letter_is_in_the_trace_of_its_event(shop: Shop) -> None:
    placed = (await shop.log.read(f"orders.{shop.ticket_id}"))[1]
    letter = {**placed.headers, "Nats-Msg-Id": "dead", "dead-listener": "orders-keep-book", "dead-error": "Boom: no"}
    letter = {name: value for name, value in letter.items() if not name.startswith("Nats-Exp")}
    js = shop.log._js  # noqa: SLF001 (a letter as a listener leaves it)
    await js.publish("dead.orders-keep-book", b"{}", headers=letter)
    text = msgspec.json.encode(await shop.ask(f"trace/{placed.cause.correlation_id}")).decode()
    assert '"error":"Boom: no"' in text


async def test_the_command_line_shows_it_and_json_is_what_the_doors_say(shop: Shop) -> None:
    code, shown = await boxoffice(shop.settings, "events", "show", shop.expired)
    assert code == 0
    assert "order_created" in shown
    assert "status created → cancelled" in shown
    assert "book_opened" not in shown
    code, traced = await boxoffice(shop.settings, "events", "trace", shop.expired)
    assert code == 0
    order = [
        "order_created",
        "expiration_completed",
        "expiration-hold-orders",
        "order_cancelled",
        "notification_raised",
    ]
    places = [traced.index(each) for each in order[:4]]
    assert places == sorted(places)
    for path, words in (
        (f"history/orders/{shop.held}", ("show", "orders", shop.held)),
        (f"trace/{shop.expired}", ("trace", shop.expired)),
    ):
        _, told = await boxoffice(shop.settings, "events", *words, "--json")
        assert msgspec.json.decode(told) == await shop.ask(path)
    _, told = await boxoffice(shop.settings, "events", "show", "orders", shop.ticket_id, "--state", "--json")
    steps = msgspec.json.decode(told)["steps"]
    for step in steps:
        assert step["state"] == (await shop.ask(f"history/orders/{shop.ticket_id}", at=step["sequence"]))["state"]
    _, state = await boxoffice(shop.settings, "events", "show", "orders", shop.ticket_id, "--state")
    assert [line.strip() for line in state.splitlines() if '"taken":' in line] == [
        f'"taken": {step["state"]["taken"]},' for step in steps
    ]
    code, state = await boxoffice(shop.settings, "events", "show", shop.ticket_id, "--service", "x")
    assert code == 2
    code, state = await boxoffice(shop.settings, "events", "show", "orders", shop.ticket_id, "--at", "now")
    assert '"taken": 2' in state


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("show", "orders", "no-id"), "Expected a UUID"),
        (("show", "shoes", "01a204fe-0f84-721f-80f1-5c2dce3a97f3"), "There is no 'shoes'"),
        (("show", "01a204fe-0f84-721f-80f1-5c2dce3a97f3"), "Nothing in TICKETS, ORDERS"),
        (("trace", "01a204fe-0f84-721f-80f1-5c2dce3a97f3"), "2026-11-22 20:41 on, for 1 day."),
        (("tail", "--service", "shoes"), "There is no 'shoes'"),
        (("tail", "--type", "order_created", "--type", "nope"), "There is no event nope."),
    ],
    ids=["id", "service", "unknown", "trace", "tail", "type"],
)
async def test_what_cannot_be_found_is_told_in_a_line(
    platform: Platform, arguments: tuple[str, ...], told: str
) -> None:
    code, complained = await boxoffice(platform.settings, "events", *arguments)
    assert code == 1
    assert told in " ".join(complained.split())
    assert "Traceback" not in complained


async def test_an_event_that_this_code_does_not_know_is_told(platform: Platform) -> None:
    subject = f"orders.{uuid4()}"
    js = platform.client.jetstream()
    await js.publish(subject, b'{"type":"order_teleported"}', headers={"ce-type": "order_teleported", "ce-id": "x"})
    code, complained = await boxoffice(platform.settings, "events", "show", subject)
    assert code == 1
    assert "no event type 'order_teleported'" in " ".join(complained.split())
    subject = f"orders.{uuid4()}"
    await js.publish(subject, b'{"type":"order_created"}', headers={"ce-type": "order_created", "ce-id": "y"})
    code, complained = await boxoffice(platform.settings, "events", "show", subject)
    assert code == 1
    assert "Code that can decode it shows its history" in " ".join(complained.split())
    assert "knows" not in complained


async def test_a_tail_shows_what_is_appended_and_what_was_since_then(shop: Shop) -> None:
    async with running(
        shop.settings, "events", "tail", "--since", "1h", "--json", "--type", "order_created"
    ) as follower:
        assert follower.stdout

        async def line() -> dict[str, Any]:
            assert follower.stdout
            told: dict[str, Any] = msgspec.json.decode(await asyncio.wait_for(follower.stdout.readline(), 30))
            return told

        assert [(await line())["event"]["order_id"] for _ in range(2)] == [shop.expired, shop.held]
        coming = await shop.order(3)
        told = await line()
        assert (told["event"]["order_id"], told["stream"], told["type"]) == (coming, "ORDERS", "order_created")
        assert follower.returncode is None


async def test_pages_hear_the_same_and_may_choose_what(shop: Shop) -> None:
    async with shop.http.stream(
        "GET",
        "/api/events/stream",
        params={"service": "orders", "user": "ada", "aggregate": shop.ticket_id},
        headers=OLGA,
    ) as answer:
        lines = answer.aiter_lines()
        assert (await anext(lines)).startswith("retry:")
        assert (await shop.ask("stream", 422, type="nope"))["detail"] == "type: There is no event nope."
        other = (await shop.http.post("/api/tickets", json=SHOW, headers=SAM)).json()["id"]
        wanted = {"ticket_id": other, "quantity": 1}
        await shop.http.post("/api/orders", json=wanted, headers=ADA)
        placed = await shop.order(1)
        async with asyncio.timeout(30):
            async for text in lines:
                if text.startswith("data:"):
                    break
    told = msgspec.json.decode(text.removeprefix("data: "))
    assert told["event"]["order_id"] == placed


@asynccontextmanager
async def connected(shop: Shop, place: str = "", **parameters: str) -> AsyncIterator[AsyncIterator[tuple[str, Any]]]:
    """What a page hears that connects, as server-sent events: where to go on from, and the event, if it has one."""
    headers = OLGA | ({"Last-Event-ID": place} if place else {})

    async def heard(answer: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
        fields: dict[str, str] = {}
        async for line in answer.aiter_lines():
            name, _, value = line.partition(": ")
            if name:
                fields[name] = value
                continue
            yield fields.get("id", ""), msgspec.json.decode(fields["data"]) if "data" in fields else None
            fields = {}

    async with shop.http.stream("GET", "/api/events/stream", params=parameters, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        async with asyncio.timeout(60):
            yield heard(answer)


async def test_a_page_sees_the_last_events_at_once(shop: Shop) -> None:
    placed = [await shop.order(1) for _ in range(3)]
    wanted = {"type": "order_created", "aggregate": shop.ticket_id}
    async with connected(shop, last="2", **wanted) as pages:
        told = [await anext(pages) for _ in range(4)]
        assert [each and each["event"]["order_id"] for _, each in told[:3]] == [None, *placed[1:]]
        place, begun = told[3]
        assert (bool(place), begun) == (True, {})
        live = await shop.order(1)
        assert (await anext(pages))[1]["event"]["order_id"] == live
    async with connected(shop, place, last="2", **wanted) as pages:  # again: from there on
        await anext(pages)
        while (await anext(pages))[1]["event"]["order_id"] != live:
            pass


async def test_a_page_that_connects_again_has_lost_nothing(shop: Shop) -> None:
    async def placed(pages: AsyncIterator[tuple[str, Any]], wanted: set[str]) -> str:
        """Hear until all these orders have come; the place to go on from."""
        left, place = set(wanted), ""
        while left:
            place, told = await anext(pages)
            if told and told["type"] == "order_created":
                left.discard(told["event"]["order_id"])
        return place

    async with connected(shop) as pages:
        begin, told = await anext(pages)
        assert told is None
    early = await shop.order(1)  # while nobody is connected, as all others but one
    async with connected(shop, begin) as pages:
        await placed(pages, {early})
        live = await shop.order(1)
        place = await placed(pages, {live})
    missed = {await shop.order(1), await shop.order(1)}
    imported = {"ce-id": "of-old", "ce-type": "ticket_listed", "ce-time": "2020-01-01T00:00:00Z"}
    await shop.log._js.publish(f"tickets.{uuid4()}", b"{}", headers=imported)  # noqa: SLF001 (it carries another time)
    for since in ({}, {"since": "2030-01-01T00:00:00Z"}):
        async with connected(shop, place, **since) as pages:
            left = missed | {"of-old"}
            while left:
                _, told = await anext(pages)
                left -= {told["event_id"], told["event"].get("order_id")} if told else set()
            await placed(pages, {await shop.order(1)})
    async with connected(shop, since="2020-01-01T00:00:00Z") as pages:  # all of it, in the order of another time
        assert [place for place, _ in [await anext(pages) for _ in range(5)]] == [""] * 5
        await shop.order(1)
        while not (await anext(pages))[0]:
            pass
    refused = await shop.http.get("/api/events/stream", headers=OLGA | {"Last-Event-ID": "yesterday"})
    assert (refused.status_code, "Last-Event-ID" in refused.text) == (400, True), refused.text
    first = {"Last-Event-ID": "0001-01-01T00:00:00Z"}
    assert (await shop.http.get("/api/events/stream", headers=OLGA | first)).status_code == 422


async def test_a_tail_goes_on_over_a_server_that_is_killed(platform: Platform, nats: Any) -> None:
    log, aggregate = platform.event_log, uuid4()

    async def tell(version: int) -> None:
        event = OrderCreated(uuid4(), aggregate, "ada", "t", 1, 1, "EUR", AT, AT, version=version)
        await log.append(f"orders.{aggregate}", [Draft.of(event)], expected=version - 1)

    started = asyncio.Event()
    pages = tail(log, ["ORDERS", "TICKETS"], None, Wanted(aggregate=str(aggregate)), started=started.set)
    try:
        first = asyncio.ensure_future(anext(pages))
        await asyncio.wait_for(started.wait(), 20)
        await tell(1)
        assert [each.sequence for each in (await asyncio.wait_for(first, 20)).events] == [1]
        nats.kill()
        await nats.wait()
        await nats.start()
        for version in (2, 3):
            await tell(version)
        seen: list[int] = []
        async with asyncio.timeout(30):
            while len(seen) < 2:
                seen += [each.sequence for each in (await anext(pages)).events]
        assert seen == [2, 3]
    finally:
        await pages.aclose()
    assert len((await find(log, DECIDERS, str(aggregate))).events) == 3
