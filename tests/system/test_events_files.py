"""A whole system as a file, and the system that the file makes: everything is there, and nobody acts on it again."""

import asyncio
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import msgspec
import pytest

from common.event_log import Recorded
from common.events import UserRegistered, encode
from common.runtime import Platform, connect
from common.settings import Settings
from common.topology import CONSUMERS, HISTORY
from services.cli import system
from services.cli.embedded import make_roles
from services.cli.servers import NatsServer, PostgresServer, free_port
from services.notification.domain import inbox_id_of
from tests.facts import connected, whole
from tests.harness import ServiceProcess, eventually, logins, nats_in
from tests.receiver import Receiver

EVERYTHING = "tickets orders expiration batch notification identity history"
VARIABLES = {"BOXOFFICE_WEBHOOK_PRIVATE_ADDRESSES": "1", "BOXOFFICE_WEBHOOK_SECRET": "nobody-has-to-guess-this-secret-at-all"}
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
        process = await self.start(*arguments, **variables)
        output, errors = await asyncio.wait_for(process.communicate(stdin), 120)
        assert process.returncode is not None
        return process.returncode, output, " ".join(re.sub("[│╭╮╰╯─]", " ", errors.decode()).split())

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

    async def order(who: str, hold: int | None = None, **headers: str) -> str:
        wanted = {"ticket_id": ticket, "quantity": 2} | ({"hold_seconds": hold} if hold else {})
        return str((await ask("POST", "/api/orders", who, json=wanted, headers=headers))["id"])

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
        paid = await order(ADA, **{"Idempotency-Key": "zebra-key-1", "X-Correlation-ID": "zebra-key-2"})
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
        return sum(
            (info.num_pending or 0) + (0 if info.name in WAIT else info.num_ack_pending or 0)
            for info in infos
        )

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
