"""Connect, run and drain: what a service process does from its start to SIGTERM."""

import asyncio
import gc
import re
import resource
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import asyncpg
import msgspec
import nats.errors
import structlog
from litestar import Request, Response
from litestar.exceptions import NotFoundException
from litestar.types import ControllerRouterHandler
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.protocol.command import hpub_cmd

from common.errors import Unavailable
from common.event_log import RESTORATIONS, JetStreamLog, restorations
from common.live import Connections
from common.rights import inbox_of
from common.settings import Settings, addresses, without_password
from common.topology import RESTORED
from common.tracing import Tracers, acting_as

log = structlog.get_logger()

STOP_SECONDS = 10.0
"""Seconds in which workers stop; what still runs then is left to die with the process. The log forgets nothing."""


QUERY_SECONDS = 2.5
"""Seconds that a query of a door may take. Of a server that is frozen it costs twice as much: asyncpg 0.32 waits as
long again for the query to be cancelled."""


class Worker(Protocol):
    """Something that runs as long as its service: a subscription, a projector. Told to stop by cancellation."""

    name: str
    problem: str | None

    async def run(self) -> None:
        """Run until cancelled."""


class Service(msgspec.Struct, frozen=True):
    """What a service brings into a process: its HTTP doors and its workers.

    `nowhere`: how an address is answered that none of the process knows, by a service that has `/` too.
    """

    name: str
    routes: Sequence[ControllerRouterHandler] = ()
    workers: Sequence[Worker] = ()
    nowhere: Callable[[Request[Any, Any, Any], NotFoundException], Response[Any]] | None = None


class Platform(msgspec.Struct, frozen=True):
    """What a service stands on: NATS and Postgres as its own users, and the open connections of its process."""

    client: Client
    event_log: JetStreamLog
    settings: Settings
    connections: Connections

    @asynccontextmanager
    async def pool(
        self, schema: str, *, command_timeout: float | None = QUERY_SECONDS, max_size: int = 10
    ) -> AsyncIterator[asyncpg.Pool]:
        """Connections, `max_size` at most, for queries of `command_timeout` seconds; tables are found in `schema`."""
        pool = await asyncpg.create_pool(
            self.settings.database_url,
            min_size=0,  # connects when it is needed, so that a service starts whatever Postgres does
            max_size=max_size,
            timeout=5,
            command_timeout=command_timeout,
            server_settings={"search_path": schema, "application_name": f"boxoffice {schema}"},
        )
        try:
            yield pool
        finally:
            pool.terminate()


REFUSED = re.compile(r"permissions violation for (.*)")
MEND_RIGHTS = (
    "if it should be allowed, say so in common/topology.py and give NATS the new rights (`boxoffice rights nats`)"
)
MEND_USER = "correct the user and the password in BOXOFFICE_NATS_URL or BOXOFFICE_<SERVICE>_NATS_URL"

HEADER_LINES = re.compile(r"(?:[!#-'*+.0-9A-Z^-z|~-]+: [^\r\n]*\r\n)+")


class _Client(Client):
    """nats-py 2.16, but for four things of it.

    A `flush` (and so a `drain`) that was cancelled ends its read loop when the answer comes, and then it is deaf until
    its pings are missed. Its requests lose a cancellation that comes with the answer (`wait_for` before Python 3.12).
    It looks at every character of every header's name that comes: 12.7 us a message; this takes 4.6. And it checks and
    encodes each header that goes by itself: 17 us an event; this takes 4.
    """

    async def _send_publish(
        self, subject: str, reply: str, payload: bytes, payload_size: int, headers: dict[str, Any] | None
    ) -> None:
        given = headers or {}
        lines = "".join([f"{name}: {value}\r\n" for name, value in given.items()])
        one_line_each = lines.count("\n") == len(given)
        if not (subject and one_line_each and HEADER_LINES.fullmatch(lines)):  # what it mends or refuses
            await super()._send_publish(subject, reply, payload, payload_size, headers)
            return
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += payload_size
        await self._send_command(hpub_cmd(subject, reply, f"NATS/1.0\r\n{lines}\r\n".encode(), payload))
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        lines = (line.partition(":") for line in raw.decode("utf-8", "replace").split("\r\n") if line)
        return {name.strip(): value.strip() for name, _, value in lines}

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()  # for whoever gave up waiting
        await super()._process_pong()

    async def request(self, *args: Any, **kwargs: Any) -> Msg:
        try:
            return await super().request(*args, **kwargs)
        finally:
            if (task := asyncio.current_task()) and task.cancelling():
                raise asyncio.CancelledError


class NotLetIn(Unavailable):
    """NATS is there, but does not believe that we are whom we say we are."""


def user_in(nats_url: str) -> tuple[str | None, str | None]:
    """User and password of an address, or of the first of several; None for one that names none, or a token."""
    parts = urlsplit(addresses(nats_url)[0])
    if parts.username is None or parts.password is None:
        return None, None
    return unquote(parts.username), unquote(parts.password)


@asynccontextmanager
async def connect(
    settings: Settings, name: str, *, patience: float = 30, connections: Connections | None = None
) -> AsyncIterator[Platform]:
    """What the service of that name stands on. Waits `patience` seconds for NATS, then raises Unavailable or NotLetIn.

    `connections`: of its process, if there are other services in it.
    """
    client = _Client()
    user, password = user_in(settings.nats_url)
    closing = False
    told: set[str] = set()

    async def disconnected() -> None:
        if not closing:
            log.warning("nats_disconnected", client=name)

    async def reconnected() -> None:
        log.warning("nats_reconnected", client=name)

    async def restored(_: Msg) -> None:
        client.stats[RESTORATIONS] = restorations(client) + 1
        log.warning("log_restored", client=name)

    async def failed(error: Exception) -> None:
        passing = isinstance(error, (ConnectionError, nats.errors.UnexpectedEOF, TimeoutError))
        if passing or repr(error) in told:  # a host without an address is one every second
            return
        told.add(repr(error))
        if refused := REFUSED.search(str(error)):
            log.error("nats_refused", client=name, user=user, refused=refused[1], mend=MEND_RIGHTS)
        else:
            log.warning("nats_error", client=name, error=repr(error))

    try:
        async with asyncio.timeout(patience):  # nats-py itself tries for ever
            await client.connect(
                addresses(settings.nats_url),
                name=f"boxoffice {name}",
                user=user,  # also for servers of the cluster that it is told of later
                password=password,
                inbox_prefix=inbox_of(user) if user else "_INBOX",
                pending_size=0,  # nothing is published behind the caller's back
                connect_timeout=2,
                max_reconnect_attempts=-1,
                reconnect_time_wait=1,
                ping_interval=5,
                max_outstanding_pings=2,
                disconnected_cb=disconnected,
                reconnected_cb=reconnected,
                error_cb=failed,
            )
    except (OSError, nats.errors.Error) as error:  # a TimeoutError is an OSError
        reason = client.last_error or error
        if "authorization violation" in str(reason).lower():
            whom = user or "who names no user"
            raise NotLetIn(f"NATS at {without_password(settings.nats_url)} refuses {whom}: {MEND_USER}") from error
        raise Unavailable(f"NATS does not answer at {without_password(settings.nats_url)}: {reason!r}") from error
    try:
        await client.subscribe(RESTORED, cb=restored)
        shared = Connections(settings.connections) if connections is None else connections
        yield Platform(client, JetStreamLog(client), settings, shared)
    finally:
        closing = True
        with suppress(Exception):
            await asyncio.wait_for(client.close(), 2)  # drain() of nats-py may take 30 s; workers have drained already


def collect_garbage_rarely() -> None:
    """Have Python look for cyclic garbage less often than by default. For a process of ours, before it starts.

    Messages, books and holds live long, and make none; by default they were all looked through again and again. It was
    a fifth of the CPU of POST /api/orders, and half of its p99 (2026-11-22: 640 -> 515 us, 123 -> 55 ms).
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    gc.enable()


def open_many_files() -> None:
    """Let this process have as many files and sockets open as it may; by default that is often 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS names no limit and has one
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@asynccontextmanager
async def running(workers: Sequence[Worker]) -> AsyncIterator[None]:
    """Run workers in the background; one that fails is told and started again. On leaving, all of them stop."""
    async with _stopped([_started(worker) for worker in workers]):
        yield


@asynccontextmanager
async def serving(services: Sequence[Service], tracers: Tracers | None = None) -> AsyncIterator[None]:
    """The same with the workers of services, each as its own; `tracers` make spans of what they do."""
    tasks = []
    for service in services:
        with acting_as(service.name, tracers):
            tasks += [_started(worker) for worker in service.workers]
    async with _stopped(tasks):
        yield


def _started(worker: Worker) -> asyncio.Task[None]:
    return asyncio.create_task(_keep_running(worker), name=worker.name)


@asynccontextmanager
async def _stopped(tasks: Sequence[asyncio.Task[None]]) -> AsyncIterator[None]:
    """On leaving, all of these are stopped together."""
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=STOP_SECONDS)
            for task in late:
                log.error("worker_does_not_stop", worker=task.get_name())


async def _keep_running(worker: Worker) -> None:
    pause, loop = 0.5, asyncio.get_running_loop()
    while True:
        started = loop.time()
        try:
            await worker.run()
        except Unavailable as error:  # it goes on as soon as that is there again
            if worker.problem != error.detail:
                log.warning("worker_waits", worker=worker.name, problem=error.detail)
            worker.problem, pause = error.detail, 0.5
        except Exception as error:
            worker.problem = f"{type(error).__name__}: {error}"
            log.exception("worker_failed", worker=worker.name, again_in=pause)
        await asyncio.sleep(pause)
        pause = 0.5 if loop.time() - started > 60 else min(pause * 2, 15)
