"""What the users of NATS and the roles of Postgres may not do: everything that is not their own. Tables of attempts."""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

import asyncpg
import msgspec
import pytest
from nats.aio.client import Client
from structlog.testing import capture_logs

from common import rights, topology
from common.errors import Unavailable
from common.event_log import JetStreamLog
from common.group_commit import BATCH_LIMIT
from common.requests import Responder
from common.rights import MIGRATE, VERBS, everybody, inbox_of, role_of
from common.runtime import NotLetIn, connect, running
from common.settings import Settings
from common.status import Roll, status_of_consumer, status_of_stream
from common.topology import (
    ANSWERS,
    CONSUMER,
    CONSUMERS,
    LISTENS,
    OVERSEES,
    REDELIVER,
    REDELIVERS,
    SERVICES,
    STREAMS,
    Consumer,
    Stream,
)
from services.cli import doctor, system
from services.cli.embedded import make_roles, with_login
from services.cli.servers import NatsServer, PostgresServer, free_port
from services.cli.system import READ_MODELS, SIDE_SCHEMAS
from tests.containers import Kinds
from tests.facts import draft, numbers
from tests.harness import PASSWORDS, eventually, logins


def one_of(subject: str) -> str:
    """A literal subject under one with wildcards."""
    return subject.replace("*", "x").replace(">", "x")


Attempt = tuple[str, str]
"""A deed as the server calls it, and the subject."""


def of_stream(user: str, stream: Stream) -> Iterator[Attempt]:
    """What this user may not do with a stream."""
    name, literal = stream.name, one_of(stream.subjects[0])
    if user not in stream.writers:
        yield from (("Publish", one_of(subject)) for subject in stream.subjects)
    if user == MIGRATE:
        return
    yield from (("Subscription", subject) for subject in (*stream.subjects, literal))
    for verb in ("CREATE", "UPDATE", "DELETE", "PURGE", "SNAPSHOT", "RESTORE", "MSG.DELETE", "LEADER.STEPDOWN"):
        yield "Publish", f"$JS.API.STREAM.{verb}.{name}"
    for verb in ("CREATE", "NAMES", "LIST"):
        yield "Publish", f"$JS.API.CONSUMER.{verb}.{name}"
    yield "Publish", f"$JS.API.CONSUMER.CREATE.{name}.x.{literal}"
    if stream not in rights.reads(user):
        for what in ("CONSUMER.CREATE", "STREAM.INFO", "STREAM.MSG.GET", "DIRECT.GET"):
            if what == "STREAM.INFO" and user == OVERSEES:
                continue
            yield "Publish", f"$JS.API.{what}.{name}" + (".x" if what == "CONSUMER.CREATE" else "")
        yield "Publish", f"$JS.API.DIRECT.GET.{name}.{literal}"
        yield "Publish", f"$JS.FC.{name}.x.y"


def of_consumer(user: str, consumer: Consumer) -> Iterator[Attempt]:
    """What this user may not do with a durable consumer."""
    name = f"{consumer.stream}.{consumer.durable}"
    if user != consumer.service:
        yield "Publish", f"dead.{consumer.durable}"
        yield "Publish", f"$JS.ACK.{name}.1.1.1.1.1"
    if user == MIGRATE:
        return
    yield from (
        ("Publish", f"$JS.API.CONSUMER.{verb}.{name}") for verb in ("CREATE", "DURABLE.CREATE", "DELETE", "PAUSE")
    )
    if user != consumer.service:
        yield "Publish", f"$JS.API.CONSUMER.MSG.NEXT.{name}"
        if user != OVERSEES:
            yield "Publish", f"$JS.API.CONSUMER.INFO.{name}"


def of_user(user: str, other: str) -> Iterator[Attempt]:
    """What this user may not do with another."""
    yield "Publish", f"{inbox_of(other)}.x"
    yield from (("Publish", f"$SRV.{verb}.{other}") for verb in VERBS)
    if user not in ANSWERS.get(other, ()):
        yield "Publish", f"requests.{other}.x"
    if other in LISTENS and user != REDELIVERS:
        yield "Publish", f"requests.{other}.{REDELIVER}"
    for name in ("*", "x", REDELIVER):
        yield "Subscription", f"requests.{other}.{name}"
    for subject in (f"{inbox_of(other)}.>", f"$SRV.PING.{other}"):
        yield "Subscription", subject


def of_server(user: str) -> Iterator[Attempt]:
    """What this user may not do with all of it."""
    for subject in (
        ">",
        "*",
        "_INBOX.>",
        "_INBOX.*",
        "requests.>",
        "$JS.>",
        "$JS.ACK.>",
        "$JS.API.>",
        "$SRV.>",
        "$SYS.>",
    ):
        yield "Subscription", subject
    yield from (("Publish", subject) for subject in ("_INBOX.x", "dead.x", "x", "$SYS.REQ.SERVER.PING"))
    if user in LISTENS:
        yield "Publish", f"requests.{user}.{REDELIVER}"
    yield from (("Publish", f"$SRV.{verb}") for verb in VERBS if (user, verb) != (OVERSEES, "STATS"))
    if user != MIGRATE:
        for verb in ("INFO", "STREAM.NAMES", "STREAM.LIST", "STREAM.CREATE.MINE", "META.LEADER.STEPDOWN"):
            yield "Publish", f"$JS.API.{verb}"


def table() -> Iterator[tuple[str, str, list[Attempt]]]:
    """Who tries things on what; none of it is allowed."""
    for user in everybody():
        yield from ((user, stream.name, list(of_stream(user, stream))) for stream in STREAMS)
        yield from ((user, consumer.durable, list(of_consumer(user, consumer))) for consumer in CONSUMERS)
        yield from ((user, other, list(of_user(user, other))) for other in everybody() if other != user)
        yield user, "server", list(of_server(user))


TABLE = [row for row in table() if row[2]]


class Guarded:
    """A NATS whose users have their rights, with a connection of each."""

    def __init__(self, server: NatsServer) -> None:
        self.server = server
        self.clients: dict[str, Client] = {}
        self.told: dict[str, asyncio.Queue[str]] = {user: asyncio.Queue() for user in everybody()}

    async def connected(self, user: str) -> Client:
        """A connection of this user; what it is told of refusals is collected."""
        if user not in self.clients:

            async def tell(error: Exception) -> None:
                self.told[user].put_nowait(str(error))

            client = self.clients[user] = Client()
            await client.connect(self.url(user), error_cb=tell, inbox_prefix=inbox_of(user))
        return self.clients[user]

    def url(self, user: str) -> str:
        return with_login(self.server.url, user, PASSWORDS[user])

    def logged(self) -> str:
        """What the server has logged up to now."""
        return self.server.log_file.read_text()

    async def ask(self, user: str, subject: str, question: Mapping[str, object]) -> str:
        """The answer of the server."""
        client = await self.connected(user)
        return (await client.request(subject, json.dumps(question).encode(), timeout=5)).data.decode()


@asynccontextmanager
async def guarding(kind: type[NatsServer]) -> AsyncIterator[Guarded]:
    with tempfile.TemporaryDirectory(prefix="boxoffice-test-", ignore_cleanup_errors=True) as folder:
        server = kind(Path(folder) / "nats", port=free_port(), users=rights.nats_users(PASSWORDS))
        await server.start()
        guarded = Guarded(server)
        try:
            async with connect(Settings(nats_url=guarded.url(MIGRATE)), MIGRATE) as platform:
                await topology.migrate(platform.client)
            yield guarded
        finally:
            for client in guarded.clients.values():
                await client.close()
            await server.stop()


@pytest.fixture(scope="module")
async def guarded(kinds: Kinds) -> AsyncIterator[Guarded]:
    """One for the whole table; in the end nothing of it may have changed."""
    async with guarding(kinds.nats) as guarded:
        yield guarded
        async with connect(Settings(nats_url=guarded.url(MIGRATE)), MIGRATE) as platform:
            assert [trouble async for _, trouble in topology.inspect(platform.client) if trouble] == []
            for stream in STREAMS:
                assert (await platform.event_log.end(stream.name)).sequence == 0
                info = await platform.client.jetstream().stream_info(stream.name)
                assert info.state.consumer_count == sum(each.stream == stream.name for each in CONSUMERS)


@pytest.fixture
async def open_to_all(kinds: Kinds) -> AsyncIterator[Guarded]:
    """One of its own, for tests that write."""
    async with guarding(kinds.nats) as guarded:
        yield guarded


@pytest.mark.parametrize(
    ("user", "attempts"), [pytest.param(user, attempts, id=f"{user}-{what}") for user, what, attempts in TABLE]
)
async def test_what_is_not_a_users_own_is_refused_and_logged(
    guarded: Guarded, user: str, attempts: list[Attempt]
) -> None:
    client, told = await guarded.connected(user), guarded.told[user]
    for deed, subject in attempts:
        await (client.publish(subject, b"{}") if deed == "Publish" else client.subscribe(subject))
    async with asyncio.timeout(10):
        refused = {await told.get() for _ in attempts}
    assert refused == {f'nats: permissions violation for {deed} to "{subject}"'.lower() for deed, subject in attempts}

    async def logged() -> set[Attempt]:
        said = guarded.logged()
        return {each for each in attempts if f'user:{user}" - {each[0]} Violation - Subject "{each[1]}"' in said}

    await eventually(logged, set(attempts))


def test_the_table_has_every_service_against_everything() -> None:
    assert len(TABLE) > 200
    for service in SERVICES:
        tried = {attempt for user, _, attempts in TABLE if user == service for attempt in attempts}
        for stream in STREAMS:
            assert ("Subscription", stream.subjects[0]) in tried
            assert (("Publish", one_of(stream.subjects[0])) in tried) == (service not in stream.writers)
        assert tried.isdisjoint(("Publish", subject) for subject in rights.rights_of(service).publish)


def test_every_service_is_known_to_the_topology() -> None:
    writers = {service for stream in STREAMS for service in (*stream.writers, *stream.readers)}
    assert writers | {consumer.service for consumer in CONSUMERS} == set(SERVICES)
    assert set(system.SERVICES) <= set(SERVICES)
    assert set(ANSWERS) | {asker for askers in ANSWERS.values() for asker in askers} <= set(SERVICES)
    assert {model.service for model in READ_MODELS.values()} <= {
        *ANSWERS,
        *LISTENS,
    }  # else nobody tells how far they are


def test_one_service_alone_may_have_listeners_hear_an_event_once_more() -> None:
    allowed = {(user, subject) for user in SERVICES for subject in rights.rights_of(user).publish}
    assert {user for user, subject in allowed if subject.endswith(f".{REDELIVER}")} == {REDELIVERS}
    for service in LISTENS:
        assert (REDELIVERS, f"requests.{service}.{REDELIVER}") in allowed
        assert f"requests.{service}.{REDELIVER}" not in rights.rights_of(REDELIVERS).never
        assert rights.rights_of(service).answers


async def test_one_service_alone_may_ask_how_all_others_are_and_each_answers_once(open_to_all: Guarded) -> None:
    allowed = {(user, subject) for user in SERVICES for subject in rights.rights_of(user).publish}
    assert {user for user, subject in allowed if subject.startswith("$SRV.")} == {OVERSEES}
    async with AsyncExitStack() as stack:
        for user in LISTENS:
            platform = await stack.enter_async_context(connect(Settings(nats_url=open_to_all.url(user)), user))
            await stack.enter_async_context(running([Responder(user, [], platform.client)]))
        platform = await stack.enter_async_context(connect(Settings(nats_url=open_to_all.url(OVERSEES)), OVERSEES))

        async def answering() -> list[str]:
            return sorted(stats.name for stats, answers in await Roll(platform.client).call() if answers)

        await eventually(answering, sorted(LISTENS))
        for stream in STREAMS:
            assert await status_of_stream(platform.client, stream)
        for consumer in CONSUMERS:
            assert await status_of_consumer(platform.client, consumer)
    assert " Violation - " not in open_to_all.logged()


async def test_a_durable_consumer_is_not_changed_under_another_name(guarded: Guarded) -> None:
    durable = CONSUMER["orders-settle-payments"]
    changed = {"ack_policy": "explicit", "max_ack_pending": 1}
    for name in ({"durable_name": durable.durable}, {"durable_name": durable.durable, "name": "x"}):
        question = {"stream_name": "ORDERS", "config": {**changed, **name}}
        answer = await guarded.ask("tickets", "$JS.API.CONSUMER.CREATE.ORDERS.x", question)
        assert "does not match" in answer


async def test_who_names_no_user_or_a_wrong_password_is_not_let_in(guarded: Guarded) -> None:
    for url, who in (
        (guarded.server.url, "who names no user"),
        (with_login(guarded.server.url, "orders", PASSWORDS["tickets"]), "orders"),
    ):
        with pytest.raises(NotLetIn, match=f" refuses {who}: correct the user") as refused:
            async with connect(Settings(nats_url=url), "orders", patience=1):
                pass
        assert PASSWORDS["tickets"] not in str(refused.value)
    assert 'authentication error - User "orders"' in guarded.logged()


async def test_a_service_can_do_with_its_own_log_all_that_it_must(open_to_all: Guarded) -> None:
    async with connect(Settings(nats_url=open_to_all.url("expiration")), "expiration") as platform:
        log = platform.event_log
        assert await log.append("expiration.a", [draft(0)], expected=0) == 1
        together = [draft(n) for n in range(1, BATCH_LIMIT + 1)]
        last = await log.append("expiration.a", together, expected=1)  # as an atomic batch
        assert numbers(await log.read("expiration.a")) == list(range(BATCH_LIMIT + 1))
        assert (await log.end("EXPIRATION")).sequence == last
        assert await log.event_id("EXPIRATION", last) == together[-1].id
        followed: list[int] = []
        async with aclosing(log.follow("EXPIRATION")) as batches:
            async for batch in batches:
                followed += numbers(batch)
                if len(followed) > BATCH_LIMIT:
                    break
        assert followed == list(range(BATCH_LIMIT + 1))
        with pytest.raises(Unavailable), capture_logs() as told:
            await JetStreamLog(platform.client, timeout=0.2).append("orders.a", [draft(1)], expected=0)
        assert [(each["event"], each["user"], each["refused"]) for each in told] == [
            ("nats_refused", "expiration", 'publish to "orders.a"')
        ]
    assert '"$G/user:expiration" - Publish Violation - Subject "orders.a"' in open_to_all.logged()
    assert open_to_all.logged().count(" Violation - ") == open_to_all.logged().count('"orders.a"')


async def test_the_server_answers_wherever_it_is_told_to(open_to_all: Guarded) -> None:
    """A limit of nats-server 2.15, told in common/README.md: when this fails, tell it no more."""
    tickets, migrate = await open_to_all.connected("tickets"), await open_to_all.connected(MIGRATE)
    await tickets.request("tickets.a", b"", timeout=5)
    for elsewhere in ("orders.a", "$JS.API.STREAM.DELETE.EXPIRATION"):
        await tickets.publish("$JS.API.DIRECT.GET.TICKETS", b'{"seq": 1}', reply=elsewhere)
    await tickets.flush()

    async def streams() -> dict[str, int]:
        return {str(info.config.name): info.state.messages for info in await migrate.jetstream().streams_info()}

    there = {stream.name: 0 for stream in STREAMS if stream.name != "EXPIRATION"}
    await eventually(streams, there | {"TICKETS": 1, "ORDERS": 1})


async def test_who_may_read_a_stream_may_make_consumers_that_stay_and_doctor_tells(open_to_all: Guarded) -> None:
    """A limit of nats-server 2.15, told in common/README.md: it looks at the name of a consumer, not at the request."""
    wanted: Mapping[str, dict[str, object]] = {
        "passing": {"deliver_subject": f"{inbox_of('tickets')}.x", "inactive_threshold": 600 * 10**9},
        "lasting": {"durable_name": "lasting"},
        "heard": {"durable_name": "heard", "deliver_subject": f"{inbox_of('tickets')}.y"},
        "elsewhere": {"deliver_subject": "tickets.x", "inactive_threshold": 600 * 10**9},
        "idle": {"inactive_threshold": 86_400 * 10**9},
        "a;b": {"durable_name": "a;b"},
        **{f"many-{number}": {"durable_name": f"many-{number}"} for number in range(300)},  # more than one page of them
    }
    for name, config in wanted.items():
        question = {"stream_name": "ORDERS", "config": {"name": name, "ack_policy": "none", **config}}
        answer = await open_to_all.ask("tickets", f"$JS.API.CONSUMER.CREATE.ORDERS.{name}", question)
        assert "error" not in json.loads(answer), answer
    async with connect(Settings(nats_url=open_to_all.url(MIGRATE)), MIGRATE) as platform:
        found = {each.what: each.mend async for each in doctor.log(platform) if each.state == "wrong"}
        assert len(found) == len(wanted) - 1
        for name, why in (
            ("lasting", "it is durable"),
            ("heard", "it is durable"),
            ("elsewhere", "it delivers to tickets.x"),
            ("idle", "it stays for 86,400 s after nobody listens"),
            ("many-299", "it is durable"),
        ):
            told = found[f"consumer {name} on ORDERS is not in common/topology.py, and {why}"]
            assert f"`nats consumer rm ORDERS {name}`" in told
        assert any("`nats consumer rm ORDERS 'a;b'`" in mend for mend in found.values())
        for name in wanted:
            await platform.client.jetstream().delete_consumer("ORDERS", name)
        assert [each async for each in doctor.log(platform) if each.state == "wrong"] == []


SCHEMAS = {**{model.name: model.service for model in READ_MODELS.values()}} | {
    schema: service for schema, (service, _) in SIDE_SCHEMAS.items()
}
"""Every schema, and whose it is."""

TABLES = "select relname from pg_class where relnamespace = $1::text::regnamespace and relkind in ('r', 'v')"
COLUMN = "select attname from pg_attribute where attrelid = $1::text::regclass and attnum = 1"


class Ledger:
    """A database that was migrated by its role, with a connection of each role."""

    def __init__(self, settings: Settings, admin: asyncpg.Connection, stack: AsyncExitStack) -> None:
        self.settings = settings
        self.admin = admin
        self._stack = stack
        self._connections: dict[str, asyncpg.Connection] = {}

    async def connected(self, user: str) -> asyncpg.Connection:
        if user not in self._connections:
            connection = await asyncpg.connect(logins(self.settings)[f"BOXOFFICE_{user.upper()}_DATABASE_URL"])
            self._stack.push_async_callback(connection.close)
            self._connections[user] = connection
        return self._connections[user]

    async def tables(self, schema: str) -> list[str]:
        return [f'"{schema}"."{row["relname"]}"' for row in await self.admin.fetch(TABLES, f'"{schema}"')]


@pytest.fixture(scope="module")
async def ledger(guarded: Guarded, postgres: PostgresServer) -> AsyncIterator[Ledger]:
    async with AsyncExitStack() as stack:
        server = await asyncpg.connect(postgres.url)
        stack.push_async_callback(server.close)
        name = f"test_{uuid4().hex}"
        await server.execute(f"create database {name}")
        stack.push_async_callback(server.execute, f"drop database {name} with (force)")
        url = postgres.url.replace("/postgres?", f"/{name}?")
        await make_roles(url, PASSWORDS)
        migrating = logins(Settings(nats_url=guarded.server.url, database_url=url))["BOXOFFICE_MIGRATE_DATABASE_URL"]
        await system.migrate(Settings(nats_url=guarded.url(MIGRATE), database_url=migrating), lambda _: None)
        admin = await asyncpg.connect(url)
        stack.push_async_callback(admin.close)
        yield Ledger(Settings(nats_url=guarded.server.url, database_url=url), admin, stack)


async def refused(connection: asyncpg.Connection, statement: str) -> None:
    """Whether Postgres does not let them, whatever else is wrong with it."""
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match=r"permission denied|must be (owner|superuser)"):
        await connection.execute(statement)


async def logged(postgres: PostgresServer, *deeds: str, after: int = 0) -> bool:
    """Whether the server's log tells of them all behind so many bytes. That of a container comes a little later."""
    told = postgres.log_file.read_bytes()[after:].decode()
    return all(f"STATEMENT:  {deed}\n" in told for deed in deeds)


def deeds(table: str, column: str) -> list[str]:
    """What can be done with a table, as SQL."""
    some = (
        'select "{column}" from {table}',
        "insert into {table} default values",
        'update {table} set "{column}" = null',
        "delete from {table}",
        "truncate {table}",
        "alter table {table} add mine text",
        "drop table {table}",
    )
    return [each.format(table=table, column=column) for each in some]


@pytest.mark.parametrize("schema", sorted(SCHEMAS))
@pytest.mark.parametrize("service", SERVICES)
async def test_a_role_of_postgres_has_its_own_schemas_and_no_other(
    ledger: Ledger, postgres: PostgresServer, service: str, schema: str
) -> None:
    connection = await ledger.connected(service)
    tables = await ledger.tables(schema)
    assert tables
    for table in tables:
        column = await ledger.admin.fetchval(COLUMN, table)
        before = postgres.log_file.stat().st_size
        all_deeds = deeds(table, column)
        if SCHEMAS[schema] == service:
            *own, truncate, alter, drop = all_deeds
            for deed in own:
                await connection.execute(f"explain {deed}")  # which asks whether it is allowed, and does nothing
            all_deeds = [truncate, alter, drop]
        for deed in all_deeds:
            await refused(connection, deed)
        await eventually(partial(logged, postgres, *all_deeds, after=before), wanted=True)
    await refused(connection, f'create table "{schema}".mine (a int)')
    await refused(connection, f'drop schema "{schema}" cascade')
    await refused(connection, f'alter schema "{schema}" rename to mine')


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize(
    "deed",
    [
        "create schema mine",
        "create table public.mine (a int)",
        "create temporary table mine (a int)",
        "create role mine",
        "create database mine",
        f"set role {role_of(MIGRATE)}",
        "set role postgres",
        f"alter role {role_of(MIGRATE)} password 'mine'",
        f"grant {role_of(MIGRATE)} to current_user",
        "select pg_read_file('postgresql.conf')",
        "select rolpassword from pg_authid",
        "copy (select 1) to program 'true'",
        "alter system set log_statement = 'all'",
    ],
)
async def test_a_role_of_postgres_makes_nothing_and_becomes_nobody_else(
    ledger: Ledger, postgres: PostgresServer, service: str, deed: str
) -> None:
    connection = await ledger.connected(service)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute(deed)
    await eventually(partial(logged, postgres, deed), wanted=True)


async def test_a_role_of_postgres_needs_its_password(ledger: Ledger) -> None:
    for user in everybody():
        for password in ("", "wrong"):
            with pytest.raises(asyncpg.InvalidPasswordError):
                await asyncpg.connect(with_login(ledger.settings.database_url, role_of(user), password))


async def test_a_schema_that_was_made_anew_is_still_its_services_own(ledger: Ledger) -> None:
    urls = logins(ledger.settings)
    settings = msgspec.structs.replace(
        ledger.settings,
        nats_url=urls["BOXOFFICE_MIGRATE_NATS_URL"],
        database_url=urls["BOXOFFICE_MIGRATE_DATABASE_URL"],
    )
    await system.rebuild("orders", settings, lambda _stream, _done, _total: None)
    assert await (await ledger.connected("orders")).fetchval("select count(*) from orders.orders") == 0
    await refused(await ledger.connected("tickets"), "select from orders.orders")


async def test_the_tables_of_a_kind_are_the_batch_services_wherever_they_are(ledger: Ledger) -> None:
    made: list[str] = []
    tables = """
    create schema if not exists seats;
    create table if not exists seats.seats (number bigserial primary key, row text);
    create or replace view seats.rows as select distinct row from seats.seats;
    """
    migrating = await ledger.connected(MIGRATE)
    for _ in range(2):
        await system.make_tables(migrating, "seats.reserve", tables, made.append)
    assert made == ["made tables of kind seats.reserve"]
    batch = await ledger.connected("batch")
    await batch.execute("insert into seats.seats (row) values ('a')")
    assert await batch.fetchval("select row from seats.rows") == "a"
    await refused(batch, "drop table seats.seats")
    for service in SERVICES:
        if service != "batch":
            await refused(await ledger.connected(service), "select from seats.seats")


async def test_what_was_made_before_there_were_roles_is_taken_over(guarded: Guarded, database_url: str) -> None:
    admin = await asyncpg.connect(database_url)
    await admin.execute("create schema orders; create table orders.orders (id int); create schema elsewhere")
    await make_roles(database_url, PASSWORDS)
    await admin.execute("drop schema orders cascade")
    await admin.execute("create schema batch_data; create table batch_data.records (key text, value text)")
    await make_roles(database_url, PASSWORDS)
    migrating = logins(Settings(nats_url=guarded.server.url, database_url=database_url))
    settings = Settings(nats_url=guarded.url(MIGRATE), database_url=migrating["BOXOFFICE_MIGRATE_DATABASE_URL"])
    assert await system.migrate(settings, lambda _: None)
    batch = await asyncpg.connect(migrating["BOXOFFICE_BATCH_DATABASE_URL"])
    assert await batch.fetchval("select count(*) from batch_data.records") == 0
    await batch.close()
    await admin.close()


async def test_the_rights_that_are_printed_are_understood_and_hold_no_password(home: Path) -> None:
    nats_told, postgres_told = rights.nats_configuration(), rights.postgres_configuration()
    for user in everybody():
        assert f'"password": $NATS_PASSWORD_{user.upper()},' in nats_told
        assert f"alter role {role_of(user)} password" in postgres_told
    (home / "rights.conf").write_text(nats_told)
    given = {f"NATS_PASSWORD_{user.upper()}": f'"1-{user}"' for user in everybody()}
    for environment, understood in ((given, True), ({}, False)):
        server = await asyncio.create_subprocess_exec(
            *(Path(sys.executable).with_name("nats-server"), "-t", "-c", home / "rights.conf"),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await server.communicate()
        assert (b"is valid" in said) == understood, said


async def test_the_roles_that_are_printed_get_their_passwords_as_often_as_one_likes(
    postgres: PostgresServer, home: Path, database_url: str
) -> None:
    (home / "roles.sql").write_text(rights.postgres_configuration())
    one, *others = everybody()

    async def give(**passwords: str) -> None:
        server = await asyncio.create_subprocess_exec(
            *(postgres.programs / "psql", "-X", "-q", database_url, "-f", home / "roles.sql"),
            env={**os.environ, **passwords},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await server.communicate()
        assert (server.returncode, said) == (0, b"")

    async def is_let_in(user: str, password: str) -> bool:
        try:
            connection = await asyncpg.connect(with_login(database_url, role_of(user), password))
        except asyncpg.InvalidPasswordError:
            return False
        await connection.close()
        return True

    try:
        await give(**{rights.password_variable(one): "it's \\ new"})
        assert await is_let_in(one, "it's \\ new")
        assert all([await is_let_in(other, PASSWORDS[other]) for other in others])
    finally:
        await give(**{rights.password_variable(one): PASSWORDS[one]})
    assert await is_let_in(one, PASSWORDS[one])
