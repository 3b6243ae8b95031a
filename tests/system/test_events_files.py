"""A whole system as a file, and the system that the file makes: everything is there, and nobody acts on it again."""

import asyncio
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import reduce
from pathlib import Path
from typing import Any, get_args
from uuid import UUID, uuid4

import asyncpg
import httpx
import msgspec
import pytest

from common.event_log import Recorded
from common.events import Event, ExpirationCompleted, UserRegistered
from common.idempotency import request_id_of
from common.runtime import Platform, connect
from common.settings import Settings
from common.topology import CONSUMERS, HISTORY, NotWhole
from services.cli import system
from services.cli.embedded import make_roles, with_login
from services.cli.servers import NatsServer, PostgresServer, free_port
from services.notification.domain import inbox_id_of
from services.orders.domain import Book
from tests.facts import AT, tell, whole
from tests.harness import PASSWORDS, Fate, Proxy, ServiceProcess, eventually, logins, nats_in
from tests.nursery import ran
from tests.receiver import Receiver
from tests.unit.test_export_files import head, line, sealed

EVERYTHING = " ".join(name for name in system.SERVICES if name != "web")
VARIABLES = {
    "BOXOFFICE_WEBHOOK_PRIVATE_ADDRESSES": "1",
    "BOXOFFICE_WEBHOOK_SECRET": "nobody-has-to-guess-this-secret-at-all",
}
SHOW = {"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": 100}
ADA, BOB, EVE, SAM = "ada-lovelace", "bob-kahn", "eve-of-destruction", "sam-sellers"
PERSONAL = (ADA, BOB, EVE, SAM, "eve@example.org", "Mrs. Destruction", "zebra-key", "nightly zebra", "/hooks?of=ada")
"""What must not be in a masked file."""

WAIT = ("expiration-hold-orders", "batch-abandon")
TABLES = """
select format('%I.%I', schemaname, tablename) from pg_tables where schemaname = any($1) order by 1
"""


class Town:
    """A system of its own: a NATS, a database, and the services when they are asked to run."""

    def __init__(self, nats: NatsServer, platform: Platform, home: Path) -> None:
        self.nats = nats
        self.platform = platform
        self.home = home
        self.services = ServiceProcess(EVERYTHING, platform.settings, home, **VARIABLES)

    @property
    def environment(self) -> dict[str, str]:
        """Which servers are meant, and each user's login."""
        return {**os.environ, **logins(self.platform.settings)}

    async def command(self, *arguments: str, stdin: bytes = b"", **variables: str) -> tuple[int, bytes, str]:
        """What `boxoffice events` answers: exit code, stdout, stderr."""
        environment = {**self.environment, **variables}
        code, output, errors = await ran(
            ("events", *arguments), environment, given=stdin, apart=True, folder=self.home, within=120
        )
        return code, output, " ".join(re.sub("[│╭╮╰╯─]", " ", errors.decode()).split())

    async def start(self, *arguments: str, **variables: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.cli.main", "events", *arguments),
            env={**self.environment, **variables},
            cwd=self.home,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def ends(self) -> dict[str, int]:
        return {stream: (await self.platform.event_log.end(stream)).sequence for stream in HISTORY}

    async def events(self, stream: str) -> list[Recorded]:
        return await whole(self.platform.event_log, stream)

    async def log(self) -> dict[str, list[tuple[object, ...]]]:
        """All history: what is in it, but for what the server alone has to know."""
        found: dict[str, list[tuple[object, ...]]] = {}
        for stream in HISTORY:
            found[stream] = []
            async for page in self.platform.event_log.scan(stream):
                for each in page:
                    headers = {name: value for name, value in each.headers.items() if not name.startswith("Nats-")}
                    found[stream].append((each.sequence, each.subject, headers, each.body))
        return found

    async def rebuilt(self) -> dict[str, list[str]]:
        """Every row of every read model, made anew from the log."""
        for name in system.READ_MODELS:
            await system.rebuild(name, self.platform.settings, lambda _stream, _done, _total: None)
        connection = await asyncpg.connect(self.platform.settings.database_url)
        try:
            found = {}
            for (table,) in await connection.fetch(TABLES, list(system.READ_MODELS)):
                columns = "stream, sequence, event_id" if table.endswith(".checkpoint") else "*"
                query = f"select row::text from (select {columns} from {table}) as row order by 1"  # noqa: S608 (ours)
                found[table] = [row[0] for row in await connection.fetch(query)]
            return found
        finally:
            await connection.close()


@asynccontextmanager
async def town_in(postgres: PostgresServer) -> AsyncIterator[Town]:
    """A system with nothing in it."""
    async with AsyncExitStack() as stack:
        folder = tempfile.TemporaryDirectory(prefix="boxoffice-test-", ignore_cleanup_errors=True)
        home = Path(stack.enter_context(folder))
        nats = nats_in(home / "nats", free_port())
        await nats.start()
        stack.push_async_callback(nats.stop)
        connection = await asyncpg.connect(postgres.url)
        stack.push_async_callback(connection.close)
        name = f"test_{uuid4().hex}"
        await connection.execute(f"create database {name}")
        stack.push_async_callback(connection.execute, f"drop database {name} with (force)")
        url = postgres.url.replace("/postgres?", f"/{name}?")
        await make_roles(url, {})
        settings = Settings(nats_url=nats.url, database_url=url, auth="dev")
        await system.migrate(settings, lambda _: None)
        town = Town(nats, await stack.enter_async_context(connect(settings, "test")), home)
        stack.push_async_callback(town.services.kill)
        yield town


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer dev:{name}"}


async def play(town: Town) -> None:
    """A day in the life of a box office: something of every service, until nothing is under way any more."""

    async def ask(method: str, path: str, who: str, **request: Any) -> Any:
        headers = bearer(who) | request.pop("headers", {})
        answer = await http.request(method, path, headers=headers, **request)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    async def order(who: str, hold: int = 900, headers: dict[str, str] | None = None) -> str:
        wanted = {"ticket_id": ticket, "quantity": 2, "hold_seconds": hold}
        return str((await ask("POST", "/api/orders", who, json=wanted, headers=headers or {}))["id"])

    async def status(path: str, who: str) -> str:
        return str((await ask("GET", path, who))["status"])

    def is_status(path: str, who: str) -> Callable[[], Any]:
        return lambda: status(path, who)

    async with town.services, httpx.AsyncClient(base_url=town.services.url, timeout=30) as http, Receiver() as receiver:
        for name, role in ((ADA, "buyer"), (SAM, "seller")):
            login = {"name": name, "role": role}
            token = (await http.post("/api/auth/dev", json=login)).raise_for_status().json()["access_token"]
        made = {"name": "nightly zebra", "scopes": ["tickets:read"]}
        logged_in = {"Authorization": f"Bearer {token}"}
        (await http.post("/api/auth/keys", json=made, headers=logged_in)).raise_for_status()
        await ask("POST", "/api/webhooks", ADA, json={"url": receiver.url})

        ticket = (await ask("POST", "/api/tickets", SAM, json=SHOW))["id"]
        paid = await order(ADA, headers={"Idempotency-Key": "zebra-key-1", "X-Correlation-ID": "zebra-key-2"})
        await ask("POST", f"/api/orders/{paid}/payment", ADA, json={"token": "tok_ok"})
        lost = await order(BOB, hold=1)
        await order(BOB)  # is held to the end
        await eventually(is_status(f"/api/orders/{lost}", BOB), "cancelled")

        template = {"name": "Mrs. Destruction", "format": "html", "body": "<p>{{ eve_at }} eve@example.org</p>"}
        await ask("POST", "/api/templates", EVE, json=template)
        rows = "key,value\nzebra-key,eve@example.org\n,nothing\nzebra-key,Mrs. Destruction\n"
        kind, csv = {"kind": "records.insert"}, {"Content-Type": "text/csv"}
        batch = (await ask("POST", "/api/batches", EVE, params=kind, content=rows, headers=csv))["id"]
        await eventually(is_status(f"/api/batches/{batch}", EVE), "COMPLETED_WITH_ERRORS")

        async def inbox() -> list[str]:
            return sorted(each["notification"]["kind"] for each in (await newest())["items"])

        async def newest() -> Any:
            return await ask("GET", "/api/notifications/inbox", BOB)

        await eventually(inbox, ["order.cancelled", "order.created", "order.created"])
        cursor = {"cursor": (await newest())["items"][1]["notification"]["cursor"]}
        await ask("POST", "/api/notifications/ack", BOB, json=cursor)
        await ask("POST", "/api/notifications/read", BOB, json=cursor)
        await receiver.has(2)
        await quiet(town)


async def quiet(town: Town) -> None:
    """Wait until every listener has heard everything, but for what waits for its time."""
    js = town.platform.client.jetstream()

    async def left() -> int:
        infos = [await js.consumer_info(each.stream, each.durable) for each in CONSUMERS]
        return sum((info.num_pending or 0) + (0 if info.name in WAIT else info.num_ack_pending or 0) for info in infos)

    await eventually(left, 0)


class Played(msgspec.Struct, frozen=True):
    town: Town
    file: Path


@pytest.fixture(scope="module")
async def played(postgres: PostgresServer) -> AsyncIterator[Played]:
    """A system in which much has happened, and all of it as a file. Nothing runs there any more."""
    async with town_in(postgres) as town:
        await play(town)
        await town.services.stop()
        file = town.home / "sale.jsonl"
        code, _, errors = await town.command("export", "-o", str(file))
        assert code == 0, errors
        yield Played(town, file)


@pytest.fixture
async def empty(postgres: PostgresServer) -> AsyncIterator[Town]:
    """Another system, with nothing in it."""
    async with town_in(postgres) as town:
        yield town


NOTHING = dict.fromkeys(HISTORY, 0)


async def test_a_system_is_the_same_after_export_and_import(played: Played, empty: Town) -> None:
    told = await empty.command("import", str(played.file))
    ends = await played.town.ends()
    assert told == (0, b"", f"imported {sum(ends.values())} events")
    assert all(ends[stream] for stream in set(HISTORY) - {"REPAIRS"}), "something of every service"
    assert await empty.log() == await played.town.log()
    rebuilt = await empty.rebuilt()
    assert rebuilt == await played.town.rebuilt()
    assert sum(map(bool, rebuilt.values())) > 15, "tables with rows"
    again = await empty.command("export")
    assert again[1].splitlines()[1:] == played.file.read_bytes().splitlines()[1:-1] + again[1].splitlines()[-1:]


async def test_a_masked_file_names_nobody_and_makes_a_system_that_is_the_same_otherwise(
    played: Played, empty: Town
) -> None:
    code, content, errors = await played.town.command("export", "--mask")
    assert code == 0, errors
    as_it_is = played.file.read_text()
    made = [str(make(name)) for name in (ADA, BOB, EVE, SAM) for make in system.MADE_OF_USERS]
    guessable = [each for each in (*made, str(request_id_of(ADA, "zebra-key-1"))) if each in as_it_is]
    assert len(guessable) >= 8
    for personal in (*PERSONAL, *guessable):
        assert personal in as_it_is
        assert personal not in content.decode()
    refused = await empty.command("import", "--deliver", "-", stdin=content)
    assert refused == (1, b"", "Error stdin is masked: nobody can act on it. Import it without --deliver.")
    assert await empty.ends() == NOTHING
    code, _, told = await empty.command("import", "-", stdin=content)
    assert (code, "They are masked" in told) == (0, True)

    one, other = await played.town.rebuilt(), await empty.rebuilt()
    assert {table: len(rows) for table, rows in one.items()} == {table: len(rows) for table, rows in other.items()}
    for stream in HISTORY:
        as_it_was = [(type(each.event), each.sequence, each.time) for each in await played.town.events(stream)]
        assert [(type(each.event), each.sequence, each.time) for each in await empty.events(stream)] == as_it_was
    assert await outcomes(empty) == await outcomes(played.town) != []
    registered = (await empty.events("IDENTITY"))[0].event
    assert isinstance(registered, UserRegistered)
    assert await empty.platform.event_log.read(f"notifications.{inbox_id_of(registered.user_id)}")


async def outcomes(town: Town) -> list[tuple[object, ...]]:
    """How every order ended. On the way every aggregate is folded by its rules."""
    ended: list[tuple[object, ...]] = []
    for stream in HISTORY:
        histories: dict[str, list[Event]] = {}
        for each in await town.events(stream):
            histories.setdefault(each.subject, []).append(each.event)
        for events in histories.values():
            for decider in system.DECIDERS:
                if {*map(type, events)} <= {*(get_args(decider.events) or (decider.events,))}:
                    state = reduce(decider.evolve, events, decider.initial)
                    if isinstance(state, Book):
                        ended += [(order.quantity, order.status, order.reason) for order in state.orders.values()]
    return sorted(ended, key=str)


@asynccontextmanager
async def importing(town: Town, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """An import of 2,500 events that comes to a halt after 2,000 of them."""
    streams = {"EXPIRATION": {"created": AT, "last": 2_500}}
    told = [line("EXPIRATION", n, event, event.order_id) for n, event in enumerate(MANY, start=1)]
    file = town.home / "many.jsonl"
    file.write_bytes(sealed([head(streams=streams), *told]))
    commits = 0

    def first_two(frame: bytes) -> Fate:
        nonlocal commits
        commits += b"Nats-Batch-Commit" in frame
        return "pass" if commits <= 2 else "drop"

    async def written() -> int:
        return (await town.ends())["EXPIRATION"]

    async with Proxy(town.nats) as proxy:
        proxy.requests = first_two
        url = with_login(proxy.url, "expiration", PASSWORDS["expiration"])
        process = await town.start("import", str(file), *words, BOXOFFICE_EXPIRATION_NATS_URL=url)
        await eventually(written, 2_000, 60)
        proxy.requests = lambda frame: "drop" if b"Nats-Batch" in frame else "pass"
        yield process


MANY = [ExpirationCompleted(UUID(int=n), UUID(int=0), AT, AT) for n in range(1, 2_501)]


async def test_an_import_that_was_killed_goes_on_where_it_was(empty: Town) -> None:
    file = str(empty.home / "many.jsonl")
    async with importing(empty) as process:
        process.kill()
        await process.wait()
    not_whole = f"run `boxoffice events import {re.escape(file)}` again"
    with pytest.raises(NotWhole, match=not_whole):  # nobody would hear of it
        await tell(empty.platform.event_log, 2_501)
    with pytest.raises(NotWhole, match=not_whole):
        await system.migrate(empty.platform.settings, lambda _: None)
    assert await empty.command("import", file) == (0, b"", "imported 500 events (2,000 were there)")
    assert [each.event for each in await empty.events("EXPIRATION")] == MANY
    assert await empty.command("import", file) == (0, b"", "imported 0 events (2,500 were there)")
    await quiet(empty)
    assert await heard_of_one_more(empty) == 1


async def test_an_import_that_is_interrupted_says_so_and_what_comes_next_is_heard(empty: Town) -> None:
    async with importing(empty) as process:
        process.send_signal(signal.SIGINT)
        _, said = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 130
    assert b"Stopped: what was taken in until now stays, and nobody acts on it." in said
    assert (await empty.ends())["EXPIRATION"] == 2_000
    await quiet(empty)
    assert await heard_of_one_more(empty) == 1


async def heard_of_one_more(town: Town) -> int:
    """How many events wait for a listener when one more is told."""
    await tell(town.platform.event_log, 9_999)
    waiting = await town.platform.client.jetstream().consumer_info("EXPIRATION", "orders-cancel-expired")
    return waiting.num_pending or 0


async def test_an_import_does_not_go_on_with_another_file(empty: Town) -> None:
    """Whose events have the same ids, as those of a masked file have."""
    async with importing(empty) as process:
        process.send_signal(signal.SIGINT)
        await process.wait()
    before = await empty.log()
    lines = [msgspec.json.decode(each) for each in (empty.home / "many.jsonl").read_bytes().splitlines()[:-1]]
    body, headers = lines[7]["body"] | {"at": "2031-01-01T00:00:00Z"}, lines[7]["headers"] | {"correlation-id": "x"}
    for change in ({"body": body}, {"headers": headers}):
        other = sealed([*lines[:7], lines[7] | change, *lines[8:]])
        code, _, told = await empty.command("import", "-", stdin=other)
        assert (code, "nor what stdin begins with" in told) == (1, True), told
    assert await empty.log() == before


async def test_an_import_that_somebody_else_comes_between_writes_nothing_more(played: Played, empty: Town) -> None:
    """Somebody who does not look whether they may."""

    async def publish() -> None:
        await empty.platform.client.jetstream().publish("expiration.1", b"{}")

    async with Proxy(empty.nats) as proxy, asyncio.TaskGroup() as somebody:
        came = False

        def meanwhile(frame: bytes) -> Fate:
            nonlocal came
            if b"Nats-Expected-Last-Sequence" in frame and not came:
                came = True
                somebody.create_task(publish())
                return "drop"
            return "pass"

        proxy.requests = meanwhile
        url = with_login(proxy.url, "expiration", PASSWORDS["expiration"])
        code, _, told = await empty.command("import", str(played.file), BOXOFFICE_EXPIRATION_NATS_URL=url)
    assert (code, "Somebody else appended to EXPIRATION meanwhile, after 0." in told) == (1, True), told
    assert (await empty.ends())["EXPIRATION"] == 1
    heard = await empty.platform.client.jetstream().consumer_info("EXPIRATION", "orders-cancel-expired")
    assert (heard.config.opt_start_seq, heard.num_pending) == (None, 1), "what somebody else told is heard"


async def test_an_append_whose_answer_was_lost_is_not_made_twice(played: Played, empty: Town) -> None:
    lost = 0

    def lose_the_first(frame: bytes) -> Fate:
        nonlocal lost
        lost += b'"stream":"ORDERS", "seq"' in frame or b'"stream":"ORDERS","seq"' in frame
        return "drop" if lost == 1 and b'"stream":"ORDERS"' in frame else "pass"

    async with Proxy(empty.nats) as proxy:
        proxy.answers = lose_the_first
        url = with_login(proxy.url, "orders", PASSWORDS["orders"])
        code, _, told = await empty.command("import", str(played.file), BOXOFFICE_ORDERS_NATS_URL=url)
    assert (code, lost) == (0, 1), told
    assert await empty.log() == await played.town.log()


async def test_nobody_acts_on_what_is_imported_under_running_services(played: Played, empty: Town) -> None:
    async with empty.services:
        code, _, told = await empty.command("import", str(played.file))
        assert code == 0, told
        await quiet(empty)  # else the gateway would be asked again and again for a payment that it does not know
        async with httpx.AsyncClient(base_url=empty.services.url, headers=bearer(BOB), timeout=30) as http:
            orders = (await http.get("/api/orders")).json()["items"]
            assert sorted(order["status"] for order in orders) == ["cancelled", "created"]
            ticket = {"ticket_id": orders[0]["ticket_id"], "quantity": 1, "hold_seconds": 1}
            placed = await http.post("/api/orders", json=ticket)  # what happens from now on is heard again
            assert placed.status_code == 201, placed.text

            async def status() -> str:
                return str((await http.get(f"/api/orders/{placed.json()['id']}")).json()["status"])

            await eventually(status, "cancelled")
        await quiet(empty)
    ends, before = await empty.ends(), await played.town.ends()
    new = {stream: ends[stream] - before[stream] for stream in HISTORY}
    assert new == NOTHING | {"ORDERS": 2, "EXPIRATION": 1, "NOTIFICATIONS": 2}


async def test_consumers_that_begin_behind_an_import_can_still_be_migrated(
    played: Played, empty: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await empty.command("import", str(played.file)))[0] == 0
    changes: list[str] = []
    assert await system.migrate(empty.platform.settings, changes.append) == 0, changes
    slower = tuple(msgspec.structs.replace(each, ack_wait=each.ack_wait + 1) for each in CONSUMERS)
    monkeypatch.setattr("common.topology.CONSUMERS", slower)
    assert await system.migrate(empty.platform.settings, changes.append) == len(CONSUMERS)
    ends = await empty.ends()
    for consumer in CONSUMERS:
        info = await empty.platform.client.jetstream().consumer_info(consumer.stream, consumer.durable)
        assert (info.config.opt_start_seq or 1, info.num_pending) == (ends[consumer.stream] + 1, 0)
        assert info.config.ack_wait == consumer.ack_wait + 1


async def test_listeners_hear_all_of_it_when_they_are_asked_to(played: Played, empty: Town) -> None:
    code, _, told = await empty.command("import", "--deliver", str(played.file))
    assert code == 0, told
    before = await empty.ends()
    js = empty.platform.client.jetstream()

    async def under_way() -> list[int]:
        names = ("orders-settle-payments", "expiration-hold-orders")
        return [(await js.consumer_info("ORDERS", name)).num_ack_pending or 0 for name in names]

    async with empty.services:
        # The gateway here does not know the payment that is to be captured; and the time of two orders is not over.
        await eventually(under_way, [1, 2])
    assert await empty.ends() == before, "what was done before is not done twice"


async def test_a_part_of_a_log_holds_whole_aggregates_and_is_numbered_anew(played: Played, empty: Town) -> None:
    lines = [msgspec.json.decode(each) for each in played.file.read_bytes().splitlines()[1:-1]]
    books = [each for each in lines if each["body"]["type"] == "order_cancelled"]
    since = books[-1]["headers"]["ce-time"]
    code, content, errors = await played.town.command(
        "export", "--service", "orders", "--service", "notification", "--since", since
    )
    assert code == 0, errors
    recent = {each["subject"] for each in lines if each["headers"]["ce-time"] >= since}
    wanted = [each for each in lines if each["stream"] in ("ORDERS", "NOTIFICATIONS") and each["subject"] in recent]
    assert [msgspec.json.decode(each) for each in content.splitlines()[1:-1]] == wanted
    assert 0 < len(wanted) < len(lines)
    code, _, told = await empty.command("import", "-", stdin=content)
    assert (code, "other sequence numbers" in told) == (0, True), told
    assert sum((await empty.ends()).values()) == len(wanted)
    await empty.rebuilt()

    ticket = (
        lines[0] if lines[0]["stream"] == "TICKETS" else next(each for each in lines if each["stream"] == "TICKETS")
    )
    one = await played.town.command("export", "--aggregate", ticket["subject"])
    assert {msgspec.json.decode(each)["subject"] for each in one[1].splitlines()[1:-1]} == {ticket["subject"]}
    both = await played.town.command("export", "--aggregate", ticket["body"]["ticket_id"])
    assert {msgspec.json.decode(each)["stream"] for each in both[1].splitlines()[1:-1]} == {"TICKETS", "ORDERS"}
    past = await played.town.command("export", "--until", lines[2]["headers"]["ce-time"])
    assert [msgspec.json.decode(each) for each in past[1].splitlines()[1:-1]] == lines[:2]


async def test_an_import_goes_nowhere_else_than_into_an_empty_log(played: Played, empty: Town) -> None:
    await tell(empty.platform.event_log, 1)
    before = await empty.log()
    code, _, told = await empty.command("import", str(played.file))
    assert (code, "The log is not empty (events: EXPIRATION 1)" in told) == (1, True), told
    assert await empty.log() == before


async def test_an_import_does_not_go_on_where_somebody_else_went_on(played: Played, empty: Town) -> None:
    assert (await empty.command("import", str(played.file)))[0] == 0
    await tell(empty.platform.event_log, 1)
    before = await empty.log()
    code, _, told = await empty.command("import", str(played.file))
    assert (code, f"nor what {played.file} begins with" in told) == (1, True), told
    assert await empty.log() == before


async def test_of_a_file_with_one_wrong_line_nothing_is_written(played: Played, empty: Town) -> None:
    lines = played.file.read_bytes().splitlines(keepends=True)
    files = {
        "cut short": lines[:-1],
        "damaged": [*lines[:-2], lines[-2].replace(b"-", b"+", 1), lines[-1]],
        "a gap": [lines[0], *lines[2:]],
    }
    for name, content in files.items():
        code, _, told = await empty.command("import", "-", stdin=b"".join(content))
        assert (code, "Error stdin, line" in told) == (1, True), f"{name}: {told}"
    code, _, told = await empty.command("import", str(empty.home / "nothing.jsonl"))
    assert (code, "cannot be read: No such file or directory" in told) == (1, True), told
    assert await empty.ends() == NOTHING
    js = empty.platform.client.jetstream()
    assert not (await js.consumer_info("ORDERS", "orders-settle-payments")).config.opt_start_seq


async def test_without_the_passwords_of_the_services_nothing_is_written(played: Played, empty: Town) -> None:
    mine = {name: value for name, value in empty.environment.items() if not re.fullmatch("BOXOFFICE_.*_NATS_URL", name)}
    mine["BOXOFFICE_MIGRATE_NATS_URL"] = empty.environment["BOXOFFICE_MIGRATE_NATS_URL"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli.main", "events", "import", str(played.file)),
        env=mine,
        cwd=empty.home,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert b"_NATS_URL: Required, with user and password" in errors
    assert await empty.ends() == NOTHING


async def test_what_this_code_does_not_understand_is_exported_with_a_warning_and_never_masked(empty: Town) -> None:
    await tell(empty.platform.event_log, 1)
    await empty.platform.client.jetstream().publish(
        "expiration.future", b'{"type":"later"}', headers={"ce-type": "later"}
    )
    await empty.platform.client.jetstream().publish("expiration.none", b"\xff\n")
    file = empty.home / "some.jsonl"
    code, _, told = await empty.command("export", "-o", str(file))
    assert (code, "there is no event type 'later'" in told, "exported 3 events of 3 aggregates" in told) == (
        0,
        True,
        True,
    )
    *_, future, none, _ = (msgspec.json.decode(each) for each in file.read_bytes().splitlines())
    assert (future["body"], none["base64"]) == ({"type": "later"}, "/wo=")
    code, _, told = await empty.command("export", "--mask", "-o", str(empty.home / "masked.jsonl"))
    assert (code, "what is personal in it is not known" in told) == (1, True), told
    assert [each.name for each in empty.home.glob("*.jsonl*")] == ["some.jsonl"]
    assert not list(empty.home.glob(".masked*"))
    code, content, told = await empty.command("export", "--since", "1d", "--aggregate", "future")
    assert (code, content.count(b"later")) == (0, 2), told
    code, _, told = await empty.command("export", "--aggregate", "nobody")
    assert (code, "There is no aggregate nobody" in told) == (1, True), told
