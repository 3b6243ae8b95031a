"""What a listener gave up on: found, looked at, corrected, heard once more or dropped; over HTTP and in a terminal."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest

from common.aggregate import Aggregate
from common.clock import new_id, now
from common.event_log import JetStreamLog
from common.events import (
    BookListing,
    DeadLetterDropped,
    DeadLetterEdited,
    Event,
    EventRedelivered,
    ExpirationCompleted,
    OrderCancelled,
    OrderCreated,
    encode,
)
from common.runtime import Platform
from services.history.domain import letter_id_of
from services.orders.domain import ORDERS, KeepBook, Orders, PlaceOrder
from tests.facts import whole
from tests.harness import ServiceProcess, eventually
from tests.nursery import ran

OLGA = {"Authorization": "Bearer dev:olga:operator"}
SAM = {"Authorization": "Bearer dev:sam"}
DURABLE = "orders-cancel-expired"
DEAD = "/api/events/dead"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Ward:
    """The services of orders and of history, each a process of its own, with an order that was never cancelled."""

    def __init__(self, platform: Platform, home: Path) -> None:
        self.platform = platform
        self.log: JetStreamLog = platform.event_log
        self.orders = ServiceProcess("orders", platform.settings, home)
        self.history = ServiceProcess("history", platform.settings, home)
        self.books: Orders = Aggregate(ORDERS, platform.event_log)
        self.ticket_id = new_id()

    async def order(self) -> UUID:
        """One whose time is over, as soon as somebody says so."""
        listing = BookListing("Opening night", 2500, "EUR", 1000, 10, True, 1)
        await self.books.handle(self.ticket_id, KeepBook(self.ticket_id, listing, now()))
        order_id, at = new_id(), now()
        await self.books.handle(self.ticket_id, PlaceOrder(order_id, "ada", 1, at, at - timedelta(minutes=1)))
        return order_id

    def expiry(self, order_id: UUID) -> dict[str, Any]:
        """That the time of an order is over, as JSON."""
        told: dict[str, Any] = msgspec.json.decode(encode(ExpirationCompleted(order_id, self.ticket_id, now(), now())))
        return told

    async def tell(self, body: bytes, tag: str = "expiration_completed") -> int:
        """Publish that, as newer or broken code may have done; its sequence."""
        event_id = str(new_id())
        headers = {"ce-id": event_id, "ce-type": tag, "ce-source": "/expiration", "ce-time": now().isoformat()}
        headers |= {"correlation-id": "the-conversation", "causation-id": "c", "traceparent": TRACE}
        ack = await self.platform.client.jetstream().publish(f"expiration.{event_id}", body, headers=headers)
        return ack.seq

    async def bury(self, order_id: UUID) -> int:
        """Have the listener give up on the expiry of an order; the number of its letter."""
        before = (await self.log.end("DEAD")).sequence
        await self.tell(msgspec.json.encode(self.expiry(order_id) | {"at": "yesterday"}))

        async def buried() -> bool:
            return (await self.ask("GET", f"{DEAD}/{before + 1}")).status_code == 200

        await eventually(buried, True)
        return before + 1

    async def plant(self, listener: str, *errors: str) -> None:
        """Letters as a listener buries them."""
        end = (await self.log.end("DEAD")).sequence
        for number, error in enumerate(errors, end + 1):
            headers = {"ce-id": str(new_id()), "ce-type": "expiration_completed", "correlation-id": "c"}
            headers |= {"dead-listener": listener, "dead-subject": "expiration.x", "dead-stream": "EXPIRATION"}
            headers |= {"dead-sequence": str(number), "dead-attempts": "10", "dead-error": error}
            await self.platform.client.jetstream().publish(f"dead.{listener}", b"{}", headers=headers)

        async def known() -> int:
            return len((await self.ask("GET", DEAD, limit=1000)).json()["items"])

        await eventually(known, end + len(errors))

    async def ask(
        self, method: str, path: str, who: dict[str, str] = OLGA, json: Any = None, **params: Any
    ) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self.history.url, timeout=60) as http:
            return await http.request(method, path, headers=who, json=json, params=params)

    async def ends(self) -> list[OrderCancelled]:
        """The cancellations in the order book."""
        book = await self.log.read(f"orders.{self.ticket_id}")
        return [recorded.event for recorded in book if isinstance(recorded.event, OrderCancelled)]

    async def deeds(self) -> Sequence[Event]:
        """What operators did, as events without what differs at every run."""
        return [msgspec.structs.replace(recorded.event, at=AT) for recorded in await whole(self.log, "REPAIRS")]

    async def begin(self, *arguments: str, **variables: str) -> asyncio.subprocess.Process:
        """`boxoffice dead` as an operator, as a child."""
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.cli.main", "dead", "--url", self.history.url, *arguments),
            env={**os.environ, "COLUMNS": "200", **variables},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )

    async def boxoffice(self, *arguments: str, given: str | None = None, **variables: str) -> tuple[int, str]:
        """The same to its end: its exit code and what it says."""
        words = ("dead", "--url", self.history.url, *arguments)
        environment = {**os.environ, "COLUMNS": "200", **variables}
        code, said, _ = await ran(words, environment, given=(given or "").encode(), within=90)
        return code, said.decode()


AT = now()


@pytest.fixture
async def ward(platform: Platform, home: Path) -> AsyncIterator[Ward]:
    ward = Ward(platform, home)
    async with AsyncExitStack() as stack:
        for process in (ward.orders, ward.history):
            await stack.enter_async_context(process)
        yield ward


def refusal(answer: httpx.Response, status: int) -> str:
    """Why something is refused."""
    assert answer.status_code == status, answer.text
    return str(answer.json()["detail"])


async def test_a_dead_letter_is_corrected_and_heard_once_more_and_all_of_it_is_an_event(ward: Ward) -> None:
    order_id, unknown = await ward.order(), new_id()
    number = await ward.bury(order_id)

    found = (await ward.ask("GET", f"{DEAD}/{number}")).json()
    assert (found["listener"], found["state"], found["attempts"], found["edited"]) == (DURABLE, "open", 1, False)
    assert found["error"].startswith("UndecodableEvent: expiration_completed: Invalid RFC3339")
    assert (found["stream"], found["sequence"], found["type"]) == ("EXPIRATION", 1, "expiration_completed")
    assert found["subject"] == f"expiration.{found['event_id']}"
    assert (found["correlation_id"], found["headers"]["traceparent"]) == ("the-conversation", TRACE)
    assert not [name for name in found["headers"] if name.startswith(("dead-", "Nats-"))]
    assert (found["payload"]["order_id"], found["payload"]["at"]) == (str(order_id), "yesterday")
    assert (found["correction"], found["actions"]) == (None, [])

    assert "cannot be decoded" in refusal(await ward.ask("POST", f"{DEAD}/{number}/retry"), 422)
    for wrong, says in (
        ({"at": "yesterday"}, "at: "),
        ({"type": "order_created"}, "type: "),
        ({"order": "7"}, "order: Unknown; there are type, "),
    ):
        answer = await ward.ask("PUT", f"{DEAD}/{number}/body", json=ward.expiry(order_id) | wrong)
        assert refusal(answer, 422).startswith(says), answer.text
    refusal(await ward.ask("PUT", f"{DEAD}/{number}/body", json=[1]), 400)
    assert await ward.deeds() == []

    first, second = ward.expiry(unknown), ward.expiry(order_id)
    edited = (await ward.ask("PUT", f"{DEAD}/{number}/body", json=first)).json()
    assert (edited["edited"], edited["state"]) == (True, "open")
    again = await ward.ask("POST", f"{DEAD}/{number}/retry")
    why = f"{DURABLE} failed: NotFound: "
    assert refusal(again, 409).startswith(why)
    assert again.json()["error"] == refusal(again, 409).removeprefix(f"{DURABLE} failed: ")
    for _ in range(2):
        await ward.ask("PUT", f"{DEAD}/{number}/body", json=second)
    done = (await ward.ask("POST", f"{DEAD}/{number}/retry")).json()
    assert (done["state"], done["retries"], done["retry_error"]) == ("done", 2, None)

    (cancelled,) = await ward.ends()
    assert (cancelled.order_id, cancelled.reason) == (order_id, "expired")
    (told,) = [each for each in await ward.log.read(f"orders.{ward.ticket_id}") if each.event == cancelled]
    assert (told.cause.correlation_id, told.cause.causation_id) == ("the-conversation", found["event_id"])
    assert told.cause.traceparent == TRACE
    repairs = [
        DeadLetterEdited(number, msgspec.json.encode(first).decode(), "olga", AT, version=1),
        EventRedelivered(DURABLE, "EXPIRATION", 1, number, again.json()["error"], "olga", AT, version=2),
        DeadLetterEdited(number, msgspec.json.encode(second).decode(), "olga", AT, version=3),
        EventRedelivered(DURABLE, "EXPIRATION", 1, number, None, "olga", AT, version=4),
    ]
    assert await ward.deeds() == repairs
    log = (await ward.log.end("DEAD")).log
    assert {each.subject for each in await whole(ward.log, "REPAIRS")} == {f"repairs.{letter_id_of(log, number)}"}

    assert "is done" in refusal(await ward.ask("POST", f"{DEAD}/{number}/retry"), 409)
    assert "is done" in refusal(await ward.ask("POST", f"{DEAD}/{number}/drop"), 409)
    await ward.history.kill()
    await ward.history.start()
    found = (await ward.ask("GET", f"{DEAD}/{number}")).json()
    assert (found["state"], found["retries"], found["edited"], found["retry_error"]) == ("done", 2, True, None)
    assert found["payload"]["at"] == "yesterday"
    assert found["correction"] == second
    assert [(action["what"], action["by"]) for action in found["actions"]] == [
        *[("edited", "olga"), ("redelivered", "olga")] * 2
    ]
    assert len(await ward.ends()) == 1


async def test_while_its_service_is_down_nobody_knows_and_nothing_is_recorded(ward: Ward) -> None:
    order_id = await ward.order()
    number = await ward.bury(order_id)
    await ward.ask("PUT", f"{DEAD}/{number}/body", json=ward.expiry(order_id))
    await ward.orders.kill()
    (code, said), answer = await asyncio.gather(
        ward.boxoffice("retry", str(number)), ward.ask("POST", f"{DEAD}/{number}/retry")
    )
    assert refusal(answer, 503).startswith(f"It is not known whether {DURABLE} has done it: Nobody answers for orders")
    assert (code, "0 done, 0 failed, 1 unknown" in said) == (1, True), said
    assert [type(event) for event in await ward.deeds()] == [DeadLetterEdited]
    assert (await ward.ask("GET", f"{DEAD}/{number}")).json()["state"] == "open"

    retrying = asyncio.create_task(ward.ask("POST", f"{DEAD}/{number}/retry"))  # it waits for somebody to answer
    await ward.orders.start()
    assert (await retrying).json()["state"] == "done"
    assert [event.order_id for event in await ward.ends()] == [order_id]


async def test_dead_letters_are_told_by_listener_error_and_state_a_page_at_a_time(ward: Ward) -> None:
    missing = [f"NotFound: There is no order {new_id()}." for _ in range(5)]
    await ward.plant("orders-keep-book", *missing[:3])
    await ward.plant("batch-count", "Invalid: no", *missing[3:])
    groups = (await ward.ask("GET", f"{DEAD}/groups")).json()
    assert [(group["listener"], group["error"], group["count"], group["newest"]) for group in groups] == [
        ("batch-count", "NotFound: There is no order *.", 2, 6),
        ("batch-count", "Invalid: no", 1, 4),
        ("orders-keep-book", "NotFound: There is no order *.", 3, 3),
    ]
    assert all(group["first"] <= group["last"] for group in groups)
    assert groups[0]["first"] < groups[0]["last"]

    async def numbers(**params: Any) -> list[int]:
        return [item["number"] for item in (await ward.ask("GET", DEAD, **params)).json()["items"]]

    assert await numbers() == [6, 5, 4, 3, 2, 1]
    assert await numbers(listener="batch-count") == [6, 5, 4]
    assert await numbers(error="There is no order *.") == [6, 5, 3, 2, 1]
    assert await numbers(error=missing[1]) == [2]
    assert await numbers(error="no order", listener="orders-keep-book", limit=2) == [3, 2]
    pages: list[list[int]] = []
    cursor: dict[str, Any] = {}
    while True:
        page = (await ward.ask("GET", DEAD, limit=4, **cursor)).json()
        pages.append([item["number"] for item in page["items"]])
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert pages == [[6, 5, 4, 3], [2, 1]]

    for _ in range(2):
        assert (await ward.ask("POST", f"{DEAD}/4/drop")).json()["state"] == "dropped"
    assert "was dropped" in refusal(await ward.ask("POST", f"{DEAD}/4/retry"), 409)
    assert "was dropped" in refusal(await ward.ask("PUT", f"{DEAD}/4/body", json=ward.expiry(new_id())), 409)
    assert await numbers(state="dropped") == [4]
    assert await numbers(state="open") == [6, 5, 3, 2, 1]
    assert len((await ward.ask("GET", f"{DEAD}/groups", state="open")).json()) == 2
    assert await ward.deeds() == [DeadLetterDropped(4, "olga", AT, version=1)]
    for path in ("999", "0"):
        assert "There is no dead letter" in refusal(await ward.ask("GET", f"{DEAD}/{path}"), 404)
    assert "open, done or dropped" in refusal(await ward.ask("GET", DEAD, state="buried"), 400)
    refusal(await ward.ask("GET", DEAD, cursor="x"), 400)


async def test_only_operators_are_told_and_may_do_something(ward: Ward) -> None:
    number = await ward.bury(await ward.order())
    for method, path in (
        ("GET", DEAD),
        ("GET", f"{DEAD}/groups"),
        ("GET", f"{DEAD}/{number}"),
        ("POST", f"{DEAD}/{number}/retry"),
        ("PUT", f"{DEAD}/{number}/body"),
        ("POST", f"{DEAD}/{number}/drop"),
        ("POST", "/api/events/redeliveries"),
    ):
        assert "This is for operators" in refusal(await ward.ask(method, path, SAM), 403)
    assert await ward.deeds() == []
    code, said = await ward.boxoffice("--user", "sam", "ls")
    assert (code, "This is for operators, and you are seller" in said) == (1, True), said


async def test_any_event_of_the_past_is_heard_once_more_by_one_listener(ward: Ward) -> None:
    order_id = await ward.order()
    sequence = await ward.tell(msgspec.json.encode(ward.expiry(order_id)))

    async def ended() -> int:
        return len(await ward.ends())

    await eventually(ended, 1)
    wanted = {"listener": DURABLE, "stream": "EXPIRATION", "sequence": sequence}
    for _ in range(2):
        told = (await ward.ask("POST", "/api/events/redeliveries", json=wanted)).json()
        assert wanted.items() <= told.items()
        assert told["by"] == "olga"
    assert await ended() == 1
    heard = EventRedelivered(DURABLE, "EXPIRATION", sequence, None, None, "olga", AT)
    assert await ward.deeds() == [msgspec.structs.replace(heard, version=version) for version in (1, 2)]
    assert len({each.subject for each in await whole(ward.log, "REPAIRS")}) == 1

    unknown = await ward.tell(msgspec.json.encode(ward.expiry(new_id())))
    failed = await ward.ask("POST", "/api/events/redeliveries", json=wanted | {"sequence": unknown})
    assert refusal(failed, 409).startswith(f"{DURABLE} failed: NotFound: ")
    assert len(await ward.deeds()) == 3

    created = next(each.sequence for each in await whole(ward.log, "ORDERS") if isinstance(each.event, OrderCreated))
    for change, status, says in (
        ({"listener": "nobodys"}, 404, "listener: There is none of that name; there are orders-keep-book"),
        ({"sequence": 999}, 404, "There is no event 999 in a stream EXPIRATION."),
        ({"stream": "DEAD"}, 404, "There is no event 1 in a stream DEAD."),
        ({"stream": "NOWHERE"}, 404, "There is no event 1 in a stream NOWHERE."),
        ({"stream": "ORDERS", "sequence": created}, 422, f"{DURABLE} does not hear orders.{ward.ticket_id} of ORDERS"),
        (
            {"stream": "ORDERS", "sequence": created, "listener": "orders-settle-payments"},
            422,
            f"What is on orders.{ward.ticket_id} is order_created, and orders-settle-payments hears only order_cancel",
        ),
        ({"sequence": 0}, 400, "sequence: "),
        ({"sequence": 2**63}, 400, "sequence: "),
    ):
        refused = await ward.ask("POST", "/api/events/redeliveries", json=wanted | change)
        assert refusal(refused, status).startswith(says), refused.text
    assert len(await ward.deeds()) == 3


async def test_dead_letters_are_looked_at_mended_and_dropped_on_the_command_line(ward: Ward, tmp_path: Path) -> None:
    assert await ward.boxoffice("ls") == (0, "Nothing is given up on.\n")
    orders = [await ward.order() for _ in range(4)]
    letters = [await ward.bury(order_id) for order_id in orders]
    await ward.plant("orders-keep-book", f"NotFound: There is no order {new_id()}.", "Invalid: [no]")
    code, said = await ward.boxoffice("ls")
    assert code == 0
    assert [line.split()[:3] for line in said.splitlines()[1:]] == [
        ["orders-keep-book", "1", "6"],
        ["orders-keep-book", "1", "5"],
        [DURABLE, "4", "4"],
    ]
    assert "NotFound: There is no order *." in said
    assert "Invalid: [no]" in said
    _, said = await ward.boxoffice("ls", "--listener", DURABLE)
    assert [line.split()[0] for line in said.splitlines() if line.strip()[:1].isdigit()] == ["1", "2", "3", "4"]

    code, said = await ward.boxoffice("show", "1")
    assert code == 0
    for told in (
        str(orders[0]),
        '"at": "yesterday"',
        "UndecodableEvent",
        "boxoffice events trace the-conversation",
        TRACE,
    ):
        assert told in said, told
    code, said = await ward.boxoffice("show", "99")
    assert (code, "There is no dead letter 99." in said) == (1, True)

    code, said = await ward.boxoffice("edit", "1", "--body", "-", given="{not JSON")
    assert (code, "The payload is not JSON" in said) == (1, True), said
    code, said = await ward.boxoffice("edit", "1", "--body", "-", given='{"type": "expiration_completed"}')
    assert (code, "order_id: Required" in said) == (1, True), said
    file = tmp_path / "mended.json"
    file.write_bytes(msgspec.json.encode(ward.expiry(orders[0])))
    code, said = await ward.boxoffice("edit", "1", "--body", str(file), "--retry")
    assert code == 0, said
    assert '-  "at": "yesterday"' in said
    assert "1 done, 0 failed, 0 unknown" in said
    assert [event.order_id for event in await ward.ends()] == [orders[0]]
    code, said = await ward.boxoffice("edit", "1", "--body", str(file))
    assert (code, "Dead letter 1 is done." in said) == (1, True), said

    editor = tmp_path / "editor"  # as a person who corrects the time, after a first try that is none
    editor.write_text(
        '#!/bin/sh\ngrep -q tomorrow "$1" && sed -i "s/tomorrow/2030-01-01T00:00:00Z/" "$1"\n'
        'sed -i "s/yesterday/tomorrow/" "$1"\n'
    )
    editor.chmod(0o755)
    code, said = await ward.boxoffice("edit", "2", given="y\n", EDITOR=str(editor))
    assert (code, "at: " in said, "Edit it again?" in said) == (0, True, True), said
    assert (await ward.ask("GET", f"{DEAD}/2")).json()["correction"]["at"] == "2030-01-01T00:00:00Z"
    code, said = await ward.boxoffice("edit", "3", EDITOR="true")
    assert (code, "Nothing was changed." in said) == (0, True), said

    code, said = await ward.boxoffice("retry", "--listener", DURABLE, "--rate", "100/s")
    assert code == 1
    assert "1 done, 2 failed, 0 unknown" in said
    assert all(f"{number}: What is on expiration." in said for number in letters[2:]), said
    assert {event.order_id for event in await ward.ends()} == set(orders[:2])
    for arguments in ((), ("1", "--all"), ("--all", "--error", "x")):
        code, said = await ward.boxoffice("retry", *arguments)
        assert (code, "Which?" in said) == (2, True), said

    code, said = await ward.boxoffice("drop", "--listener", DURABLE, given="n\n")
    assert (code, "Drop 2 dead letters for good?" in said) == (1, True), said
    code, said = await ward.boxoffice("drop", "--listener", DURABLE, "--error", "Undecodable", given="y\n")
    assert (code, "2 dropped, 0 not dropped, 0 unknown" in said) == (0, True), said
    code, said = await ward.boxoffice("drop", "5", "6", "--yes")
    assert (code, "2 dropped" in said) == (0, True), said
    assert await ward.boxoffice("ls") == (0, "Nothing is given up on.\n")
    for number, why in ((1, "letter 1 is done."), (6, "letter 6 was dropped."), (99, "There is no dead letter 99.")):
        code, said = await ward.boxoffice("drop", str(number))
        assert (code, why in said, "for good" in said) == (1, True, False), said
    code, said = await ward.boxoffice("retry", "99")
    assert (code, said.splitlines()) == (1, ["99: There is no dead letter 99.", "0 done, 1 failed, 0 unknown"]), said
    _, said = await ward.boxoffice("ls", "--all", "--error", "Undecodable")
    assert [line.split()[1] for line in said.splitlines() if line.strip()[:1].isdigit()] == [
        *["done"] * 2,
        *["dropped"] * 2,
    ]
    assert [type(event) for event in await ward.deeds()] == [
        *[DeadLetterEdited, EventRedelivered, DeadLetterEdited, EventRedelivered],
        *[DeadLetterDropped] * 4,
    ]
    assert {event.by for event in await ward.deeds()} == {"operator"}  # type: ignore[attr-defined]  # all have one


async def test_a_retry_of_many_may_be_ended_at_any_moment_and_run_again(ward: Ward) -> None:
    orders = [await ward.order() for _ in range(3)]
    for order_id in orders:
        await ward.ask("PUT", f"{DEAD}/{await ward.bury(order_id)}/body", json=ward.expiry(order_id))
    process = await ward.begin("retry", "--all", "--rate", "1/min")

    async def ended() -> list[UUID]:
        return [event.order_id for event in await ward.ends()]

    await eventually(ended, orders[:1])
    process.send_signal(signal.SIGINT)
    said, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 130
    assert b"2 not tried" in said
    code, told = await ward.boxoffice("retry", "--all", "--rate", "100/s")
    assert code == 0, told
    assert await ended() == orders
