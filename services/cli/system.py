"""Every service, and what is done with all of them: serve, migrate, rebuild. The only place that knows them all."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any
from uuid import UUID

import asyncpg
import structlog
import uvicorn
from litestar import Litestar

import services.batch.app
import services.expiration.app
import services.history.app
import services.identity.app
import services.notification.app
import services.orders.app
import services.tickets.app
import services.web.app
from common import projector, rights, topology
from common.aggregate import Decider
from common.credentials import IssuedCredentials
from common.doors import Door, proxies
from common.errors import Unavailable
from common.events import UndecodableEvent
from common.headers import headers_for
from common.http import create_app
from common.listener import Listener, Subscription
from common.live import Connections, WebSockets
from common.metrics import scraped_at
from common.postgres import POSTGRES_FAILED, UNSTORABLE, told
from common.projector import Projector, ReadModel
from common.rehearsal import Rehearsal
from common.requests import Requester, Responder, redelivery
from common.runtime import Platform, Service, Worker, connect
from common.settings import Settings, load
from common.status import ServiceStats
from common.telemetry import BUILD
from common.tracing import acting_as, collecting
from services.batch import engine
from services.batch.domain import BATCHES, KINDS, OPERATION_REQUESTS, WORKS
from services.batch.kinds import installed
from services.batch.read_model import READ_MODEL as BATCH
from services.batch.report import READ_MODEL as BATCH_REPORT
from services.batch.settings import BatchSettings
from services.batch.templates import TEMPLATES
from services.history.domain import REPAIRS
from services.identity import people
from services.identity.domain import KEYRINGS, KEYS, SESSIONS, USERS
from services.identity.domain import place_id_of as user_place_id_of
from services.identity.read_model import READ_MODEL as IDENTITY
from services.identity.settings import IdentitySettings
from services.notification.domain import INBOXES_DECIDER, inbox_id_of
from services.notification.domain import place_id_of as notification_place_id_of
from services.notification.read_model import READ_MODEL as NOTIFICATIONS
from services.notification.settings import NotificationSettings
from services.notification.webhooks import DELIVERIES, WEBHOOKS, registry_id_of
from services.orders import payments
from services.orders.domain import ORDER_REQUESTS
from services.orders.domain import ORDERS as ORDER_BOOKS
from services.orders.read_model import READ_MODEL as ORDERS
from services.orders.settings import OrdersSettings
from services.tickets.domain import TICKETS as LISTINGS
from services.tickets.read_model import READ_MODEL as TICKETS

log = structlog.get_logger()

BACKLOG = 2048
"""Connections that wait to be taken; what is more is refused."""

WS_LARGEST = 64 * 1024
"""Bytes in one message of a WebSocket that comes."""

MAY_MIGRATE = "select pg_advisory_lock(hashtextextended('boxoffice.migrate', 0))"
SPENT = next(stream for stream in topology.STREAMS if stream.name == "SPENT")
START_IT = "start it, or correct BOXOFFICE_DATABASE_URL"
PATIENCE_SECONDS = 3.0
"""After so long, one that waits for another migration says so."""

DECIDERS: Sequence[Decider[Any, Any, Any]] = (
    LISTINGS,
    ORDER_BOOKS,
    ORDER_REQUESTS,
    BATCHES,
    *WORKS.values(),
    KINDS,
    OPERATION_REQUESTS,
    TEMPLATES,
    INBOXES_DECIDER,
    WEBHOOKS,
    DELIVERIES,
    USERS,
    SESSIONS,
    KEYRINGS,
    KEYS,
    REPAIRS,
)
"""The rules of every kind of aggregate."""

MADE_OF_USERS: Sequence[Callable[[str], UUID]] = (
    inbox_id_of,
    notification_place_id_of,
    registry_id_of,
    user_place_id_of,
)
"""The ids under which the log has what is a user's."""

READ_MODELS: Mapping[str, ReadModel] = {
    model.name: model for model in (TICKETS, ORDERS, BATCH, BATCH_REPORT, NOTIFICATIONS, IDENTITY)
}
"""Every read model by name."""

LISTENERS: Sequence[type[Listener[Any]]] = [
    thing
    for module in (import_module(f"services.{service}.listeners") for service in topology.LISTENS)
    for thing in vars(module).values()
    if isinstance(thing, type) and issubclass(thing, Listener) and thing.__module__ == module.__name__
]
"""The class of each listener, from the room of its service where they all are."""

SERVICES: Mapping[str, tuple[Callable[[Platform, Any], AbstractAsyncContextManager[Service]], type[Settings]]] = {
    "tickets": (services.tickets.app.create_service, Settings),
    "orders": (services.orders.app.create_service, OrdersSettings),
    "expiration": (services.expiration.app.create_service, Settings),
    "history": (
        partial(
            services.history.app.create_service,
            deciders=DECIDERS,
            listeners=LISTENERS,
            read_models=[*READ_MODELS.values()],
        ),
        Settings,
    ),
    "batch": (services.batch.app.create_service, BatchSettings),
    "identity": (services.identity.app.create_service, IdentitySettings),
    "notification": (services.notification.app.create_service, NotificationSettings),
    "web": (services.web.app.create_service, Settings),
}
"""Each service by name: how it is made, and from which settings."""

REHEARSALS: Mapping[str, Callable[[Rehearsal], Sequence[Listener[Any]]]] = {
    "orders": services.orders.app.rehearsed,
    "expiration": services.expiration.app.rehearsed,
    "batch": services.batch.app.rehearsed,
    "identity": services.identity.app.rehearsed,
    "notification": services.notification.app.rehearsed,
}
"""The listeners of each service that has some, made to learn what they would do."""

SIDE_SCHEMAS: Mapping[str, tuple[str, str]] = {
    "fake_gateway": ("orders", payments.CREATE),
    "batch_data": ("batch", engine.CREATE),
    "identity_data": ("identity", people.CREATE),
}
"""Schemas that are no read models, which no rebuild touches: whose each is, and how its tables are made."""

COLUMNS = """
select count(*) from pg_attribute join pg_class on pg_class.oid = attrelid
where relpersistence <> 't' and not attisdropped
"""
"""How many columns there are; more when a table was made."""

RELATIONS = "select coalesce(array_agg(oid), '{}') from pg_class"
NEW_RELATIONS = """
select relation.relname as relation, schema.nspname as schema
from pg_class as relation join pg_namespace as schema on schema.oid = relation.relnamespace
where relation.relkind in ('r', 'p', 'v', 'm') and relation.relpersistence <> 't' and relation.oid <> all($1::oid[])
"""


@asynccontextmanager
async def app_of(names: Sequence[str], environment: Mapping[str, str]) -> AsyncIterator[Litestar]:
    """One app with the doors and workers of these services, connected.

    Raises BadSetting, Unavailable, OSError (the port for metrics is taken).
    """
    settings = process_settings(names, environment)
    connections = Connections(settings.connections)
    own = {name: load(SERVICES[name][1], environment, of=name) for name in names}
    async with AsyncExitStack() as stack:
        tracers = await stack.enter_async_context(collecting(settings))
        platforms, made = {}, []
        for name in names:  # each is its own user, of NATS and of Postgres
            with acting_as(name, tracers):
                platforms[name] = await stack.enter_async_context(connect(own[name], name, connections=connections))
                service = await stack.enter_async_context(SERVICES[name][0](platforms[name], own[name]))
            beside = [*redelivering(service, platforms[name])]
            tell_read_models([*service.workers, *beside])
            made += [service, Service(name, workers=beside)]
            BUILD.labels(version("boxoffice"), name).set(1)
        # Tickets for WebSockets are spent by a service that may: there are no others at its doors.
        spending = next((name for name in names if name in SPENT.writers), names[0])
        credentials = IssuedCredentials(platforms[spending].event_log, Requester(platforms[spending].client))
        made.append(Service(spending, workers=[credentials]))
        connected = lambda: all(platform.client.is_connected for platform in platforms.values())  # noqa: E731
        app = create_app(
            made,
            settings,
            connected=connected,
            connections=connections,
            credentials=credentials,
            tracers=tracers,
        )
        if settings.metrics_port:
            stack.enter_context(scraped_at(settings.host, settings.metrics_port, app.state.metrics))
        yield app


def rehearsed(durable: str, rehearsal: Rehearsal) -> Listener[Any]:
    """The listener of that name, made for a rehearsal."""
    made = REHEARSALS[topology.CONSUMER[durable].service](rehearsal)
    return next(listener for listener in made if listener.durable == durable)


def redelivering(service: Service, platform: Platform) -> Iterator[Responder]:
    """Who answers for a service that has listeners, when one of them is to hear an event once more.

    Whoever answers for it anyway does that too.
    """
    if subscriptions := [worker for worker in service.workers if isinstance(worker, Subscription)]:
        answering = [redelivery.answering(service.name, subscriptions)]
        if responder := next((worker for worker in service.workers if isinstance(worker, Responder)), None):
            responder.also(answering)
        else:
            yield Responder(service.name, answering, platform.client)


def tell_read_models(workers: Sequence[Worker]) -> None:
    """Have whoever answers for a service tell how far its read models are."""
    projectors = [worker for worker in workers if isinstance(worker, Projector)]
    for worker in workers:
        if isinstance(worker, Responder):
            worker.tells(lambda: ServiceStats([projector.stats for projector in projectors]))


def process_settings(names: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """The settings of a process that runs these services: of the one, or what is for all. Raises BadSetting."""
    return load(Settings, environment, of=names[0] if len(names) == 1 else "")


def url_of(door: socket.socket) -> str:
    """The address of what listens there."""
    host, port = door.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class WebServer(uvicorn.Server):
    """A web server that leaves the signals to whoever runs it: set `should_exit` to stop it.

    It ends the connections that stay open before it waits for all others to be done.
    """

    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config)
        self._connections = connections

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._connections.close()
        await super().shutdown(sockets)


def server_of(app: Litestar, door: type[Door] = Door) -> WebServer:
    """The web server for an app; `serve(sockets=[...])` runs it. Raises BadSetting."""
    settings: Settings = app.state.settings
    trusted = proxies(settings.trusted_proxies)
    config = uvicorn.Config(
        app,
        http=type("Door", (door,), {"sockets": settings.sockets, "headers_of_all": headers_for(settings.public_url)}),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(trusted),  # what anybody else says of its clients is not believed
        forwarded_allow_ips=trusted,
        timeout_graceful_shutdown=5,
        ws=WebSockets,
        ws_per_message_deflate=False,  # it would hold 20 KB of each connection for messages of 0.4
        ws_max_size=WS_LARGEST,
        lifespan="on",
    )
    return WebServer(config, app.state.connections)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError when the port is taken, and says which."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise OSError(error.errno, f"{error.strerror}: {host}:{port}") from error
    return bound


async def serve(names: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run services until SIGTERM or SIGINT; then drain. Raises BadSetting, Unavailable, OSError (the port is taken)."""
    settings = process_settings(names, environment)
    with acting_as(names[0] if len(names) == 1 else "boxoffice", None):  # for what is no service's own
        with contextlib.closing(listen(settings.host, settings.port)) as door:
            async with app_of(names, environment) as app:
                server = server_of(app)
                for number in (signal.SIGTERM, signal.SIGINT):
                    asyncio.get_running_loop().add_signal_handler(number, setattr, server, "should_exit", True)
                log.info("serving", services=names, url=url_of(door))
                await server.serve(sockets=[door])
                log.info("stopping", services=names)
        log.info("stopped", services=names)


async def migrate(settings: Settings, report: Callable[[str], None]) -> int:
    """Create or change streams, durable consumers and read models as the code has them; safe to repeat.

    `report` is told each change, and that it waits, for several wait for each other. Returns how many changes there
    were. Raises Unavailable, NotWhole.
    """
    changes = 0

    def count(change: str) -> None:
        nonlocal changes
        changes += 1
        report(change)

    async with connect(settings, "migrate") as platform:
        try:
            async with alone(settings.database_url, report) as connection:
                await topology.require_whole(platform.client)  # else it would make an empty log of it
                await topology.migrate(platform.client, replicas=settings.replicas, report=count)
                for schema, (service, tables) in SIDE_SCHEMAS.items():
                    await connection.execute(tables)
                    await connection.execute(rights.granted(schema, service))
                for name, tables in installed(lambda kind: kind.tables).items():
                    if tables:
                        await make_tables(connection, name, tables, count)
                for model in READ_MODELS.values():
                    with as_it_was(model.name):
                        await projector.create(model, platform.event_log, settings.database_url, count)
        except POSTGRES_FAILED as error:
            raise Unavailable(f"{told(error, if_away=START_IT)}.") from error
    return changes


async def make_tables(connection: asyncpg.Connection, kind: str, tables: str, report: Callable[[str], None]) -> None:
    """Make the tables of a kind of operation. What is wrong with them is logged: the others are not to lack theirs.

    The batch service, which executes it, may use them, in whichever schema they are.

    `report` is told if they were not there.
    """
    before = await connection.fetchval(COLUMNS)
    there = await connection.fetchval(RELATIONS)
    try:
        await connection.execute(tables)
        for row in await connection.fetch(NEW_RELATIONS, there):
            await connection.execute(rights.granted(row["schema"], "batch", row["relation"]))
    except engine.BLAMELESS:
        raise
    except Exception as error:
        mend = "correct its `tables`, and migrate again; until then its operations fail"
        log.error("kind_without_tables", kind=kind, wrong=f"{type(error).__name__}: {error}", mend=mend)
    else:
        if await connection.fetchval(COLUMNS) != before:
            report(f"made tables of kind {kind}")


@asynccontextmanager
async def alone(database_url: str, report: Callable[[str], None]) -> AsyncIterator[asyncpg.Connection]:
    """A connection of whoever migrates now. One at a time: the next waits for it to end, and tells after a while."""
    connection = await asyncpg.connect(database_url, timeout=10)
    try:
        waiting = asyncio.get_running_loop().call_later(
            PATIENCE_SECONDS, report, "waiting for another `boxoffice migrate` to end"
        )
        try:
            await connection.execute(MAY_MIGRATE)
        finally:
            waiting.cancel()
        yield connection
    finally:
        await connection.close()


async def rebuild(name: str, settings: Settings, progress: Callable[[str, int, int], None]) -> int:
    """Rebuild a read model beside the live one and swap; how many events it was made from. Raises Unavailable."""
    async with connect(settings, "rebuild") as platform:
        try:
            with as_it_was(name):
                return await projector.rebuild(READ_MODELS[name], platform.event_log, settings.database_url, progress)
        except POSTGRES_FAILED as error:
            raise Unavailable(f"{told(error, if_away=START_IT)}.") from error


@contextmanager
def as_it_was(name: str) -> Iterator[None]:
    """Tells of an event that a read model cannot be made from. Raises Unavailable."""
    try:
        yield
    except UNSTORABLE as error:
        detail = f"An event cannot be stored in read model {name}: {error}. Run code that can; it is as it was."
        raise Unavailable(detail) from error
    except UndecodableEvent as error:
        raise Unavailable(f"{error}. Run code that knows it; read model {name} is as it was.") from error
