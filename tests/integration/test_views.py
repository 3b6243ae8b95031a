"""Read models at a past moment are what they were then, and one that differs from the log is found, row by row."""

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from common import projector, views
from common import verify as verification
from common.aggregate import Aggregate
from common.clock import new_id, now
from common.errors import Conflict, DomainError, Invalid, NotFound, Unavailable
from common.event_log import Draft, EventLog, Recorded
from common.events import (
    DeliveryGivenUp,
    DeliveryRepeated,
    Event,
    KeyCreated,
    KeyRevoked,
    KeyUsed,
    LoginsEnded,
    NotificationRaised,
    NotificationRead,
    NotificationsAcknowledged,
    NotificationsRead,
    PreferencesChanged,
    RoleChanged,
    SessionEnded,
    SessionOpened,
    SessionRefreshed,
    UserRegistered,
)
from common.projector import ReadModel
from common.rights import MIGRATE
from common.runtime import Platform, connect, running
from common.settings import Settings, load
from common.verify import Compared, Difference
from common.views import View
from services.batch.templates import (
    TEMPLATES,
    Content,
    CreateTemplate,
    DeleteTemplate,
    ReplaceTemplate,
    TemplateCommand,
)
from services.cli import system
from services.cli.system import READ_MODELS
from services.cli.views import RESERVED, described, verify, view
from services.notification.webhooks import (
    DELIVERIES,
    Answer,
    DeliveryCommand,
    ParkDelivery,
    RecordAttempt,
    Redeliver,
    SendNotification,
)
from services.orders.domain import PlaceOrder
from tests.facts import AT, STREAM, number_of, tell
from tests.harness import PASSWORDS, eventually, logins
from tests.integration.test_batch_read_models import Story
from tests.integration.test_read_models import History, projecting
from tests.nursery import ran

CUTS = 5
STEPS = 25
SCHEMAS = "select nspname::text from pg_namespace where nspname !~ '^pg_' order by nspname"
TABLES = """
select table_name::text from information_schema.tables
where table_schema = $1 and table_name <> 'checkpoint' order by table_name
"""

Rows = dict[str, list[str]]


def untold(_stream: str, _reached: int, _end: int) -> None:
    """Progress that nobody looks at."""


@pytest.fixture
def operator(settings: Settings) -> Settings:
    """These servers for an operator, who has the rights of whoever migrates and no others."""
    return load(Settings, logins(settings), of=MIGRATE)


@pytest.fixture
def migrated() -> None:
    """Nothing is migrated yet."""


@pytest.fixture
async def platform(operator: Settings, settings: Settings) -> AsyncIterator[Platform]:
    """Connected as somebody who may do everything, and migrated by the operator."""
    await system.migrate(operator, lambda _: None)
    async with connect(settings, "test") as platform:
        yield platform


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A look at the database, by its superuser."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def rows_in(database: asyncpg.Connection, schema: str) -> Rows:
    """Every row of a read model, as JSON."""
    found = {}
    for (table,) in await database.fetch(TABLES, schema):
        rows = await database.fetch(f'select to_jsonb(each.*)::text from "{schema}"."{table}" as each order by 1')  # noqa: S608 (names of ours)
        found[table] = [row for (row,) in rows]
    return found


async def schemas(database: asyncpg.Connection) -> list[str]:
    return [name for (name,) in await database.fetch(SCHEMAS)]


class Life:
    """Random things that happen in every service: the rules say which of sales, and of others they are just told."""

    def __init__(self, platform: Platform, seed: int) -> None:
        self.log: EventLog = platform.event_log
        self.random = random.Random(seed)  # noqa: S311 (a history, no secret)
        self.sales = History(platform, seed)
        self.deliveries = Aggregate(DELIVERIES, self.log)
        self.templates = Aggregate(TEMPLATES, self.log)
        self.posted: list[UUID] = []
        self.written: list[UUID] = []
        self.batch = Story(seed, one_by_one=False)
        self.lasts: dict[str, int] = {}
        self.raised: list[UUID] = []
        self.sessions: list[UUID] = []
        self.keys: list[UUID] = []
        self.users: list[str] = []

    async def happen(self, steps: int) -> None:
        """It ends with a listing, so that the last of TICKETS is the last of all that the read model of tickets has."""
        for _ in range(steps):
            await self.tell("identity.x", self.of_identity())
            await self.tell("notifications.x", self.of_notifications())
            with suppress(DomainError):  # refused: nothing happened
                await self.post()
                await self.write_template()
            if self.batch.events:
                await self.tell(f"batch.{self.batch.batch_id}", self.batch.events.pop(0))
        await self.sales.happen(steps)
        await self.sales.list_ticket()

    async def tell(self, subject: str, event: Event) -> None:
        if isinstance(event, UserRegistered):
            subject = f"identity.users.{uuid4()}"
        last = await self.log.append(subject, [Draft.of(event)], expected=self.lasts.get(subject, 0))
        self.lasts[subject] = last

    async def post(self) -> None:
        """A notification on its way to a webhook, or what becomes of one."""
        at, new = now(), new_id()
        if len(self.posted) < 3 or self.random.random() < 0.2:
            self.posted.append(new)
            due = SendNotification(new, UUID(int=1), "ada", new_id(), "order.created", "{}", at)
            await self.deliveries.handle(new, due)
            return
        delivery_id = self.random.choice(self.posted)
        attempts = (await self.deliveries.load(delivery_id)).state.attempts
        answer = self.random.choice([Answer(200, None), Answer(500, "it is broken"), Answer(None, "it is away")])
        possible: list[DeliveryCommand] = [
            RecordAttempt(attempts + 1, answer, 12, 5.0, at),
            ParkDelivery("disabled", at),
            Redeliver(UUID(int=1), "ada", new, at),
        ]
        await self.deliveries.handle(delivery_id, self.random.choices(possible, [4, 1, 3])[0])

    async def write_template(self) -> None:
        """A template, or what becomes of one."""
        at, new = now(), new_id()
        content = Content(f"report {self.random.randint(1, 9)}", "html", "text")
        if len(self.written) < 3 or self.random.random() < 0.2:
            self.written.append(new)
            await self.templates.handle(new, CreateTemplate(new, "ada", content, at))
            return
        template_id = self.random.choice(self.written)
        possible: list[TemplateCommand] = [
            ReplaceTemplate(template_id, "ada", content, None, at),
            DeleteTemplate(template_id, "ada", at),
        ]
        await self.templates.handle(template_id, self.random.choices(possible, [3, 1])[0])

    def of_identity(self) -> Event:
        at = now() - timedelta(milliseconds=self.random.randint(0, 50))  # clocks differ
        if len(self.users) < 3 or not (self.sessions and self.keys):
            new, user = new_id(), f"user{len(self.users)}"
            if len(self.users) < 3:
                self.users.append(user)
                return UserRegistered(user, "dev", user, "buyer", at)
            if not self.sessions:
                self.sessions.append(new)
                return SessionOpened(new, self.random.choice(self.users), "dev", at, at + timedelta(days=1))
            self.keys.append(new)
            return KeyCreated(new, self.random.choice(self.users), "mine", ["read", "write"], "digest", at, None)
        user, new = self.random.choice(self.users), new_id()
        session, key = self.random.choice(self.sessions), self.random.choice(self.keys)
        kind = self.random.randrange(8)
        if kind == 0:
            self.sessions.append(new)
        if kind == 1:
            self.keys.append(new)
        return [
            SessionOpened(new, user, "dev", at, at + timedelta(days=1)),
            KeyCreated(new, user, "mine", ["read"], "digest", at, at),
            SessionRefreshed(session, user, 2, at),
            SessionEnded(session, user, "logout", at),
            KeyUsed(key, user, at),
            KeyRevoked(key, user, at),
            RoleChanged(user, self.random.choice(["buyer", "seller", "operator"]), None, at),
            LoginsEnded(user, None, at),
        ][kind]

    def of_notifications(self) -> Event:
        at, user = now(), self.random.choice(["ada", "bob"])
        if len(self.raised) < 3 or self.random.random() < 0.4:
            self.raised.append(new_id())
            about: dict[str, str | int] = {"quantity": self.random.randint(1, 9), "title": 'Night of "quotes"'}
            return NotificationRaised(self.raised[-1], user, "order.created", new_id(), "Text", about, at)
        some = self.random.sample(self.raised, 2)
        cursor = self.random.randint(1, 1 + max(self.lasts.values()))
        return self.random.choice(
            [
                NotificationsAcknowledged(user, cursor, at),
                NotificationRead(user, some[0], at),
                NotificationsRead(user, cursor, at),
                DeliveryRepeated(user, "poll", some, self.random.randint(2, 5), at),
                DeliveryGivenUp(user, "sse", some, 5, at),
                PreferencesChanged(user, {"poll": ["order.created"]}, at),
            ]
        )


@pytest.fixture
def seed() -> int:
    """A new one each time; printed when the test fails."""
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"{seed=}")  # noqa: T201 (whoever reads a failure needs it)
    return seed


async def caught_up(platform: Platform, database: asyncpg.Connection) -> None:
    """Wait until every read model has come to the end of the log."""

    async def behind() -> str:
        found = []
        for model in READ_MODELS.values():
            for stream in model.sources:
                end = (await platform.event_log.end(stream)).sequence
                reached = f"select sequence from {model.name}.checkpoint where stream = $1"  # noqa: S608 (names of ours)
                if await database.fetchval(reached, stream) != end:
                    found.append(f"{model.name}.{stream}")
        return ", ".join(found)

    await eventually(behind, "")


async def sell(history: History, orders: int) -> None:
    """List a ticket and place orders for one of it each, 5 at most."""
    await history.list_ticket()
    ticket_id = history.listed[-1]
    for _ in range(orders):
        order_id, at = new_id(), now()
        await history.orders.handle(ticket_id, PlaceOrder(order_id, "ada", 1, at + timedelta(minutes=15), at, None))
        history.placed.append((ticket_id, order_id))


class Cut(msgspec.Struct):
    """What a read model held when the log ended at a sequence, just before a time."""

    model: str
    sequence: int
    time: datetime
    rows: Rows


async def test_they_are_what_they_were_when_the_log_ended_there_by_sequence_and_by_time(
    platform: Platform, operator: Settings, database: asyncpg.Connection, seed: int
) -> None:
    life, cuts = Life(platform, seed), []
    for _ in range(CUTS):
        await life.happen(STEPS)
        for name, model in READ_MODELS.items():
            await system.rebuild(name, operator, untold)
            own = next(iter(model.sources))
            sequence = (await platform.event_log.end(own)).sequence
            cuts.append(Cut(name, sequence, now(), await rows_in(database, name)))
    before = {name: await rows_in(database, name) for name in READ_MODELS}
    assert all(rows for cut in cuts[-len(READ_MODELS) :] for table, rows in cut.rows.items() if table in LIVELY)
    for cut in cuts:
        by_sequence = await view(cut.model, cut.sequence, None, operator, untold)
        by_time = await view(cut.model, cut.time, "a_moment", operator, untold)
        assert by_sequence.schema == f"{cut.model}_at_{cut.sequence}"
        assert await rows_in(database, by_sequence.schema) == cut.rows
        assert await rows_in(database, "a_moment") == cut.rows
        own = next(iter(READ_MODELS[cut.model].sources))
        assert by_time.reached[own] == by_sequence.reached[own] == cut.sequence
        assert by_time.rows == {table: len(rows) for table, rows in cut.rows.items()}
    assert {name: await rows_in(database, name) for name in READ_MODELS} == before


LIVELY = {
    *("tickets", "taken", "orders", "operations", "parts", "templates"),
    *("notifications", "inboxes", "deliveries", "users", "sessions", "keys"),
}
"""Tables in which there is something in the end."""


async def test_a_log_that_had_nothing_yet_makes_an_empty_one(
    platform: Platform, operator: Settings, database: asyncpg.Connection
) -> None:
    await History(platform, 1).happen(5)
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    nothing = View("tickets_at_0", {"TICKETS": 0, "ORDERS": 0}, None, {"taken": 0, "tickets": 0})
    assert await view("tickets", long_ago, None, operator, untold) == nothing
    assert await view("tickets", 0, None, operator, untold) == nothing
    assert await rows_in(database, "tickets_at_0") == {"taken": [], "tickets": []}


async def test_of_other_streams_it_has_what_was_appended_before_the_last_of_its_own(
    platform: Platform, operator: Settings
) -> None:
    history = History(platform, 1)
    await sell(history, 3)
    reached = (await platform.event_log.end("ORDERS")).sequence
    await sell(history, 1)
    found = await view("tickets", 2, None, operator, untold)
    second = await platform.event_log.stored("TICKETS", 2)
    assert second
    assert (found.reached, found.until) == ({"TICKETS": 2, "ORDERS": reached}, second.time)


async def test_no_service_may_look_at_a_scratch(
    platform: Platform, operator: Settings, database: asyncpg.Connection
) -> None:
    await History(platform, 1).happen(5)
    made = await view("orders", 1, None, operator, untold)
    may = "select has_schema_privilege($1, $2, 'usage')"
    assert not await database.fetchval(may, "boxoffice_orders", made.schema)
    assert await database.fetchval(may, "boxoffice_orders", "orders")


@pytest.mark.parametrize(
    "name",
    [
        "orders",
        "batch_report",
        "fake_gateway",
        "identity_data",
        "orders_rebuild",
        "orders_old",
        "orders_verify",
        "public",
        "information_schema",
        "pg_catalog",
        "pg_mine",
        "Mine",
        "1st",
        "",
        'a"; drop schema orders cascade; --',
        "a" * 64,
        "años",
    ],
)
def test_a_name_that_is_for_something_else_or_none_is_refused(name: str) -> None:
    with pytest.raises(Invalid, match=r"name another|no name for a schema"):
        views.check_name(name, RESERVED)


async def test_a_schema_that_somebody_else_has_made_stays_as_it_is(
    platform: Platform, operator: Settings, database: asyncpg.Connection
) -> None:
    await History(platform, 1).happen(5)
    await database.execute("create schema mine; create table mine.precious ()")
    before = await schemas(database), await rows_in(database, "orders")
    for name in ("mine", "orders"):
        with pytest.raises((Invalid, Conflict), match="name another"):
            await view("orders", 1, name, operator, untold)
    assert (await schemas(database), await rows_in(database, "orders")) == before
    assert await database.fetchval("select to_regclass('mine.precious') is not null")


async def test_a_moment_that_has_not_come_is_refused_and_nothing_is_made(
    platform: Platform, operator: Settings, database: asyncpg.Connection
) -> None:
    await History(platform, 1).list_ticket()
    before = await schemas(database)
    with pytest.raises(Invalid, match="Stream TICKETS ends at 1; name a sequence up to that, not 2"):
        await view("tickets", 2, None, operator, untold)
    with pytest.raises(Invalid, match="is still to come"):
        await view("tickets", now() + timedelta(hours=1), None, operator, untold)
    assert await schemas(database) == before


async def test_the_same_scratch_again_replaces_it_and_it_can_be_dropped_once(
    platform: Platform, operator: Settings, database: asyncpg.Connection
) -> None:
    await History(platform, 1).happen(10)
    before = await schemas(database)
    await view("tickets", 1, "then", operator, untold)
    await view("orders", 3, "then", operator, untold)
    assert list(await rows_in(database, "then")) == ["orders"]
    [scratch] = await views.scratches(operator.database_url)
    assert (scratch.schema, scratch.says) == ("then", "orders: ORDERS to 3")
    await views.drop("then", operator.database_url)
    assert await schemas(database) == before
    with pytest.raises(NotFound):
        await views.drop("then", operator.database_url)
    with pytest.raises(Conflict):
        await views.drop("orders", operator.database_url)
    assert await schemas(database) == before


async def test_an_event_that_is_not_understood_matters_from_its_place_on(
    platform: Platform, operator: Settings, database: asyncpg.Connection
) -> None:
    await History(platform, 1).list_ticket()
    headers = {"ce-type": "ticket_folded", "ce-id": "from the future"}
    await platform.client.jetstream().publish("tickets.folded", b"{}", headers=headers)
    await view("tickets", 1, "before", operator, untold)
    with pytest.raises(Unavailable, match="ticket_folded"):
        await view("tickets", 2, "after", operator, untold)
    with pytest.raises(Unavailable, match="ticket_folded"):
        await system.rebuild("tickets", operator, untold)
    made = await schemas(database)
    assert "before" in made
    assert "after" not in made


FACTS = ReadModel("facts", "create table facts (number bigint, times bigint)", {})
"""A read model without a primary key."""
INSERT_FACTS = "insert into facts (number, times) select number, 1 from unnest($1::bigint[]) as new (number)"


async def write_facts(connection: asyncpg.Connection, events: Sequence[Recorded]) -> None:
    await connection.execute(INSERT_FACTS, [number_of(recorded.event) for recorded in events])


class Halt:
    """A read model whose projection tells when it is in the middle, and stays there."""

    def __init__(self) -> None:
        self.inside = asyncio.Event()
        self.model = msgspec.structs.replace(FACTS, sources={STREAM: self.project})

    async def project(self, connection: asyncpg.Connection, events: Sequence[Recorded]) -> None:
        await write_facts(connection, events)
        self.inside.set()
        await asyncio.Event().wait()


async def test_one_that_died_in_the_middle_says_so_and_is_replaced_by_the_next(
    platform: Platform, operator: Settings, database: asyncpg.Connection
) -> None:
    await tell(platform.event_log, 1, 2, 3)
    halt, url = Halt(), operator.database_url
    making = asyncio.create_task(views.view(halt.model, 3, platform.event_log, url, into="then"))
    await halt.inside.wait()
    with pytest.raises(Unavailable, match="is being made by somebody else"):
        await views.view(halt.model, 3, platform.event_log, url, into="then")
    with pytest.raises(Unavailable, match="is being made by somebody else"):
        await views.drop("then", url)
    name = "boxoffice projector then"
    await database.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1", name)
    making.cancel()
    await asyncio.wait([making])
    assert [scratch.says for scratch in await views.scratches(url)] == ["facts, not finished"]
    model = msgspec.structs.replace(FACTS, sources={STREAM: write_facts})
    assert (await views.view(model, 2, platform.event_log, url, into="then")).rows == {"facts": 2}


async def test_one_that_is_stopped_in_the_middle_leaves_nothing(
    platform: Platform, operator: Settings, database: asyncpg.Connection
) -> None:
    before = await schemas(database)
    await tell(platform.event_log, 1, 2, 3)
    halt = Halt()
    making = asyncio.create_task(views.view(halt.model, 3, platform.event_log, operator.database_url))
    await halt.inside.wait()
    assert "facts_at_3" in await schemas(database)
    making.cancel()
    await asyncio.wait([making])
    assert await schemas(database) == before


def differing(compared: Sequence[Compared]) -> dict[str, int]:
    """How many rows differ, by table, where any does."""
    return {table.table: table.differing for table in compared if table.differing}


async def test_what_the_projectors_wrote_has_no_differences(
    platform: Platform, operator: Settings, database: asyncpg.Connection, seed: int
) -> None:
    before = await schemas(database)
    async with projecting(platform):
        await Life(platform, seed).happen(2 * STEPS)
        await caught_up(platform, database)
    for name in READ_MODELS:
        compared = await verify(name, operator, untold)
        assert differing(compared) == {}
        held = {table: len(rows) for table, rows in (await rows_in(database, name)).items()}
        assert {table.table: table.rows for table in compared} == held
    assert await schemas(database) == before


async def test_there_are_none_while_it_is_written(
    platform: Platform, operator: Settings, database: asyncpg.Connection, seed: int
) -> None:
    life = Life(platform, seed)
    async with projecting(platform):
        going_on = asyncio.create_task(life.happen(20 * STEPS))
        rounds = 0
        while not going_on.done():
            for name in READ_MODELS:
                assert differing(await verify(name, operator, untold)) == {}
            rounds += 1
        await going_on
        await caught_up(platform, database)
    assert rounds > 1


async def test_one_that_is_behind_is_compared_where_it_is(
    platform: Platform, operator: Settings, database: asyncpg.Connection
) -> None:
    history = History(platform, 1)
    async with projecting(platform):
        await history.happen(30)
        await caught_up(platform, database)
    held = await database.fetchval("select count(*) from orders.orders")
    await sell(history, 3)
    [compared] = await verify("orders", operator, untold)
    assert (compared.rows, compared.differing) == (held, 0)


async def test_a_changed_a_missing_and_a_surplus_row_are_named(
    platform: Platform, operator: Settings, database: asyncpg.Connection
) -> None:
    history = History(platform, 1)
    async with projecting(platform):
        await sell(history, 3)
        await caught_up(platform, database)
    changed, missing = [order_id for _, order_id in history.placed][:2]
    await database.execute("update orders.orders set status = 'lost', reason = 'no one' where id = $1", changed)
    await database.execute("delete from orders.orders where id = $1", missing)
    surplus = UUID(int=0)
    await database.execute("create temporary table one as select * from orders.orders limit 1")
    await database.execute("update one set id = $1", surplus)
    await database.execute("insert into orders.orders select * from one")
    [compared] = await verify("orders", operator, untold)
    assert (compared.key, compared.rows, compared.differing) == (["id"], 3, 3)
    assert {described(compared.key, difference) for difference in compared.differences} == {
        f'id {changed}: status lost -> created, reason "no one" -> null',
        f"id {missing}: missing",
        f"id {surplus}: too many, the log has no such row",
    }


async def test_of_many_that_differ_some_are_named_and_all_are_counted(
    platform: Platform, operator: Settings, database: asyncpg.Connection
) -> None:
    await tell(platform.event_log, *range(50))
    model = msgspec.structs.replace(FACTS, sources={STREAM: write_facts})
    keyed = msgspec.structs.replace(model, tables="create table facts (number bigint primary key, times bigint)")
    url = operator.database_url
    for each in (model, keyed):
        await projector.rebuild(each, platform.event_log, url)
        assert differing(await verification.verify(each, platform.event_log, url)) == {}
        await database.execute(
            "update facts.facts set times = 7 where number < 30; delete from facts.facts where number = 49"
        )
        [compared] = await verification.verify(each, platform.event_log, url)
        assert (compared.rows, len(compared.differences)) == (49, 20)
        if each is keyed:
            assert compared.differing == 31
            assert compared.differences[0] == Difference({"number": 0, "times": 7}, {"number": 0, "times": 1})
            assert described(compared.key, compared.differences[0]) == "number 0: times 7 -> 1"
        else:
            assert compared.differing == 30 + 30 + 1


async def test_rows_without_a_key_are_counted_as_often_as_they_are_there(
    platform: Platform, operator: Settings, database: asyncpg.Connection
) -> None:
    await tell(platform.event_log, 1)
    model = msgspec.structs.replace(FACTS, sources={STREAM: write_facts})
    await projector.rebuild(model, platform.event_log, operator.database_url)
    await database.execute("insert into facts.facts select * from facts.facts")
    [compared] = await verification.verify(model, platform.event_log, operator.database_url)
    assert (compared.rows, compared.differing) == (2, 1)
    assert described(compared.key, compared.differences[0]) == "times 1, number 1: too many, the log has no such row"


@asynccontextmanager
async def writers_held(database: asyncpg.Connection, model: str) -> AsyncIterator[None]:
    """Nobody may write a read model: whoever verifies it comes to a halt in the middle."""
    async with database.transaction():
        await database.execute(projector.MAY_WRITE.format(model))
        yield


async def test_only_one_may_verify_or_rebuild_at_a_time(
    platform: Platform, operator: Settings, settings: Settings, database: asyncpg.Connection
) -> None:
    await History(platform, 1).happen(5)
    before = await schemas(database)
    beside = await asyncpg.connect(settings.database_url)
    async with writers_held(beside, "orders"):
        first = asyncio.create_task(verify("orders", operator, untold))
        await eventually(lambda: schemas(database), sorted([*before, "orders_verify"]))
        with pytest.raises(Unavailable, match="is being rebuilt or verified by somebody else"):
            await verify("orders", operator, untold)
        with pytest.raises(Unavailable, match="is being rebuilt or verified by somebody else"):
            await system.rebuild("orders", operator, untold)
    await beside.close()
    assert differing(await first) == {}
    assert await schemas(database) == before


async def test_one_that_hangs_does_not_hold_up_the_projector_for_long(
    platform: Platform, operator: Settings, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "HELD_AT_MOST", "set idle_session_timeout = '1s'")
    url = platform.settings.database_url
    live = msgspec.structs.replace(FACTS, sources={STREAM: write_facts})
    await projector.create(live, platform.event_log, operator.database_url)
    hangs = asyncio.Event()
    reached = 0

    async def happens() -> None:
        nonlocal reached
        reached += 1
        await tell(platform.event_log, reached)
        await eventually(lambda: database.fetchval("select sequence from facts.checkpoint"), reached)

    async def meanwhile(_: asyncpg.Connection, __: Sequence[Recorded]) -> None:
        if reached == 3:  # it reads for the last time, and the live one waits for it
            hangs.set()
            await asyncio.Event().wait()
        await happens()

    halting = msgspec.structs.replace(FACTS, sources={STREAM: meanwhile})
    async with running([projector.Projector(live, STREAM, platform.event_log, url)]):
        await happens()
        verifying = asyncio.create_task(verification.verify(halting, platform.event_log, operator.database_url))
        await hangs.wait()
        await happens()
    verifying.cancel()
    await asyncio.wait([verifying])


async def test_one_that_was_killed_in_the_middle_leaves_nothing_in_the_way_of_the_next(
    platform: Platform, operator: Settings, settings: Settings, database: asyncpg.Connection
) -> None:
    await History(platform, 1).happen(5)
    before = await schemas(database)
    beside = await asyncpg.connect(settings.database_url)
    async with writers_held(beside, "orders"):
        process = await boxoffice(settings, "projections", "verify", "orders")
        await eventually(lambda: schemas(database), sorted([*before, "orders_verify"]))
        process.kill()
        await process.communicate()
    await beside.close()
    await eventually(lambda: database.fetchval("select count(*) from pg_locks where locktype = 'advisory'"), 0)
    assert differing(await verify("orders", operator, untold)) == {}
    assert await schemas(database) == before


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("update orders.checkpoint set event_id = 'another'", "is not the one that the read model has seen"),
        ("delete from orders.checkpoint", "has no checkpoint"),
        ("alter table orders.orders add column mine text", "changed the tables"),
        ("drop table orders.orders", "changed the tables"),
        ("comment on schema orders is 'older'", "run `boxoffice migrate`"),
    ],
    ids=["another log", "no checkpoint", "another column", "no table", "older code"],
)
async def test_what_cannot_be_compared_is_told_and_nothing_is_left(
    platform: Platform, operator: Settings, database: asyncpg.Connection, sql: str, says: str
) -> None:
    async with projecting(platform):
        await History(platform, 1).happen(5)
        await caught_up(platform, database)
    before = await schemas(database)
    await database.execute(sql)
    with pytest.raises(DomainError, match=says):
        await verify("orders", operator, untold)
    assert await schemas(database) == before


async def test_logins_that_were_ended_are_the_same_however_the_log_is_cut(
    platform: Platform, operator: Settings, database: asyncpg.Connection
) -> None:
    key, session = new_id(), new_id()
    day = timedelta(days=1)
    events = [
        KeyCreated(key, "ada", "mine", ["read"], "digest", AT, None),
        LoginsEnded("ada", None, AT + day),
        LoginsEnded("ada", None, AT + 2 * day),
        SessionOpened(session, "ada", "dev", AT, AT + day),  # by a clock that is behind
    ]
    async with projecting(platform):
        for last, event in enumerate(events):
            await platform.event_log.append("identity.x", [Draft.of(event)], expected=last)
            await caught_up(platform, database)
    assert await database.fetchval("select revoked_at from identity.keys") == AT + day
    assert await database.fetchval("select ended from identity.sessions") is None
    assert differing(await verify("identity", operator, untold)) == {}


async def boxoffice(settings: Settings, *arguments: str) -> asyncio.subprocess.Process:
    """The command, for an operator of these servers."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli.main", *arguments),
        env={**os.environ, **logins(settings), "COLUMNS": "200"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def told(settings: Settings, *arguments: str) -> tuple[int, str]:
    """What the command says, and its exit code."""
    code, output, _ = await ran(arguments, {**os.environ, **logins(settings), "COLUMNS": "200"})
    return code, output.decode()


async def test_the_commands_tell_what_they_made_and_what_differs(
    platform: Platform, settings: Settings, database: asyncpg.Connection
) -> None:
    history = History(platform, 1)
    async with projecting(platform):
        await sell(history, 1)
        await caught_up(platform, database)
    code, says = await told(settings, "replay", "projection", "orders", "--until", "now")
    assert code == 0, says
    assert "made orders as it was with ORDERS up to 2" in says
    assert "orders_at_2.orders  1 row\n" in says
    assert not any(password in says for password in PASSWORDS.values())
    assert "orders_at_2  orders: ORDERS to 2" in (await told(settings, "replay", "projections"))[1]
    assert await told(settings, "replay", "projections", "--drop", "orders_at_2") == (0, "dropped schema orders_at_2\n")
    assert "There are none" in (await told(settings, "replay", "projections"))[1]
    code, says = await told(settings, "replay", "projection", "orders", "--until", "9")
    assert (code, "ends at 2" in says) == (1, True), says
    code, says = await told(settings, "replay", "projection", "orders", "--until", "yesterday")
    assert (code, "is no moment" in says) == (2, True), says
    code, says = await told(settings, "replay", "projection", "others", "--until", "now")
    assert (code, "no read model others" in says) == (2, True), says
    code, says = await told(settings, "projections", "verify")
    assert (code, says.count("0 differences")) == (0, says.count("rows,") + says.count("row,")), says
    assert "orders.orders: 1 row, 0 differences" in says
    await database.execute("update orders.orders set quantity = 99")
    code, says = await told(settings, "projections", "verify", "tickets", "orders")
    assert code == 1
    assert "tickets.tickets: 1 row, 0 differences" in says
    assert "orders.orders: 1 row, 1 difference\n" in says
    assert "quantity 99 -> " in says
    assert "`boxoffice projections rebuild orders`" in says
