"""`boxoffice up`: real servers and every service in one place, started, watched and stopped in order."""

import asyncio
import os
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from time import perf_counter

import msgspec
import psutil  # type: ignore[import-untyped]  # psutil ships no types
from rich.console import Console

from common.http import reasons_not_ready
from common.settings import PREFIX, Settings, load, without_password
from services.cli.servers import NatsServer, PostgresServer, Server, ServerFailed
from services.cli.system import SERVICES, app_of, listen, migrate, server_of

DATA = Path(".boxoffice")
PATIENCE_SECONDS = 3.0
"""After so long it says which servers it waits for."""
SLOW_SECONDS = 10.0
"""After so long a start says what it waits for."""
RUNNING = "running.json"
"""In the data folder while the system runs: how other commands find it."""
MARK = "boxoffice-data"
"""In every data folder: what `--fresh` may delete."""


class CannotStart(Exception):
    """Why the system does not start, and what to do."""


class Running(msgspec.Struct, frozen=True):
    """Where a running embedded system is reached. `since` tells its process from a later one of the same number."""

    pid: int
    since: float
    nats_url: str
    database_url: str
    url: str = ""  # empty until it serves

    def tell(self, data: Path) -> None:
        """Write it into the data folder; for its owner's eyes, since addresses may hold passwords."""
        (data / RUNNING).touch(mode=0o600)
        (data / RUNNING).write_bytes(msgspec.json.encode(self))


def find_running(data: Path = DATA) -> Running | None:
    """The embedded system that runs on a data folder, if one does."""
    try:
        running = msgspec.json.decode((data / RUNNING).read_bytes(), type=Running)
        since = psutil.Process(running.pid).create_time()
        return running if abs(since - running.since) < 2 else None  # the clock may have been corrected meanwhile
    except (OSError, msgspec.MsgspecError, psutil.Error):
        return None


def environment_here(environment: Mapping[str, str] = os.environ, data: Path = DATA) -> dict[str, str]:
    """The environment; where it names no servers, with those of the embedded system that runs here."""
    found = dict(environment)
    if running := find_running(data):
        found.setdefault(PREFIX + "NATS_URL", running.nats_url)
        found.setdefault(PREFIX + "DATABASE_URL", running.database_url)
    return found


def prepare(data: Path, *, fresh: bool) -> None:
    """Make the data folder, empty if `fresh`. Raises CannotStart rather than delete what is not ours."""
    if running := find_running(data):
        raise CannotStart(f"It already runs, as process {running.pid}, at {running.url or 'an address to be told'}.")
    if fresh and data.exists():
        if any(data.iterdir()) and not (data / MARK).exists():
            raise CannotStart(f"{data} is not a data folder of Boxoffice; --fresh does not delete it.")
        shutil.rmtree(data)
    data.mkdir(parents=True, exist_ok=True)
    if any(data.iterdir()) and not (data / MARK).exists():
        raise CannotStart(f"{data} holds something else; choose an empty folder with --data.")
    (data / MARK).touch()


@asynccontextmanager
async def servers(data: Path, environment: dict[str, str], console: Console) -> AsyncIterator[Sequence[Server]]:
    """NATS and Postgres as children, but for those that the environment names; their addresses go into it.

    Raises ServerFailed.
    """
    own: list[tuple[str, Server]] = []
    if PREFIX + "NATS_URL" not in environment:
        own.append(("NATS_URL", NatsServer(data / "nats")))
    if PREFIX + "DATABASE_URL" not in environment:
        own.append(("DATABASE_URL", PostgresServer(data / "postgres")))
    started: list[Server] = []
    try:
        for variable, server in own:
            began = perf_counter()
            await server.start()
            started.append(server)
            environment[PREFIX + variable] = server.url
            console.print(f"  [green]✓[/] {server.name} [dim]{perf_counter() - began:.1f} s[/]")
        yield started
    finally:
        for server in reversed(started):
            await server.stop()
            console.print(f"  [green]✓[/] {server.name} stopped")


@asynccontextmanager
async def watched(children: Sequence[Server], console: Console) -> AsyncIterator[None]:
    """Start a child again whenever it ends by itself."""
    watchers = [asyncio.create_task(watch(child, console)) for child in children]
    try:
        yield
    finally:
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)


async def watch(server: Server, console: Console) -> None:
    """Start one child again whenever it ends, until cancelled."""
    while True:
        code = await server.wait()
        console.print(f"  [red]✗[/] {server.name} ended with {code}; starting it again")
        pause = 0.5
        while not server.running:
            try:
                await server.start()
            except ServerFailed as error:
                console.print(f"  [red]✗[/] {error}")
                await asyncio.sleep(pause)
                pause = min(pause * 2, 10)
        console.print(f"  [green]✓[/] {server.name} is back")


async def up(port: int | None, data: Path, *, fresh: bool, console: Console) -> None:
    """Run the whole system until Ctrl-C. Raises CannotStart, ServerFailed, BadSetting, Unavailable."""
    prepare(data, fresh=fresh)
    environment = {PREFIX + "AUTH": "dev", **os.environ}
    for _, settings in SERVICES.values():
        load(settings, environment)  # what is wrong is told before anything is started
    stop = asyncio.Event()
    on_signal(stop.set)
    async with servers(data, environment, console) as children, watched(children, console):
        asked = asyncio.create_task(stop.wait())
        work = asyncio.create_task(run(port, data, environment, console, stop))
        try:
            await asyncio.wait([asked, work], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                console.print("stopping; Ctrl-C again to force it")
                on_signal(lambda: force(children, console))
                if not ((running := find_running(data)) and running.url):  # still starting
                    work.cancel()
            with suppress(asyncio.CancelledError):
                await work
        finally:
            asked.cancel()
            (data / RUNNING).unlink(missing_ok=True)


def on_signal(act: Callable[[], object]) -> None:
    """What Ctrl-C and SIGTERM do from now on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, act)


def force(children: Sequence[Server], console: Console) -> None:
    """End everything at once; the log is on disk."""
    for child in children:
        child.kill()
    console.print("  [yellow]![/] forced: everything was killed; what was acknowledged is on disk")
    os._exit(130)


async def run(port: int | None, data: Path, environment: dict[str, str], console: Console, stop: asyncio.Event) -> None:
    """Migrate, then serve every service until `stop`."""
    settings = load(Settings, environment)
    began = psutil.Process().create_time()
    running = Running(os.getpid(), began, settings.nats_url, settings.database_url)
    running.tell(data)
    servers_at = f"{without_password(settings.nats_url)} and {without_password(settings.database_url)}"
    waiting = f"  [yellow]![/] still waiting for {servers_at}"
    hint = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, console.print, waiting)
    try:
        await migrate(settings, lambda line: console.print(f"  [green]✓[/] {line}", highlight=False))
    finally:
        hint.cancel()
    with closing(first_free(settings.host, port or settings.port, console)) as door:
        async with app_of(list(SERVICES), environment) as app:
            server = server_of(app)
            serving = asyncio.create_task(server.serve(sockets=[door]))
            told = False
            while not serving.done() and (not server.started or reasons_not_ready(app.state)):
                await asyncio.sleep(0.02)
                if not told and time.time() - began > SLOW_SECONDS:
                    told = True
                    for name, reason in reasons_not_ready(app.state).items():
                        console.print(f"  [yellow]![/] still waiting for {name}: {reason}")
            if server.started:
                running = msgspec.structs.replace(running, url="http://{}:{}".format(*door.getsockname()[:2]))
                running.tell(data)
                greet(running, data, console, time.time() - began)
                await stop.wait()
            server.should_exit = True
            await serving
            console.print("  [green]✓[/] services stopped")


def first_free(host: str, port: int, console: Console) -> socket.socket:
    """A socket on `port` or the next free one."""
    for candidate in range(port, min(port + 100, 65536)):
        try:
            door = listen(host, candidate)
        except OSError:
            continue
        if candidate != port:
            console.print(f"  [yellow]![/] port {port} is taken, so it is {candidate}")
        return door
    raise CannotStart(f"No port from {port} to {port + 99} is free; choose another with --port.")


def greet(running: Running, data: Path, console: Console, seconds: float) -> None:
    """What a person needs to know first."""
    addresses = {
        "API": f"{running.url}/api/tickets",
        "Documentation": f"{running.url}/api/docs",
        "Health": f"{running.url}/health/ready",
        "Metrics": f"{running.url}/metrics",
        "NATS": without_password(running.nats_url),
        "Postgres": without_password(running.database_url),
        "Data": data,
    }
    console.print(f"\n[bold]Boxoffice is open[/] [dim]after {seconds:.1f} s[/]\n")
    for name, address in addresses.items():
        console.print(f"  [dim]{name:<15}[/] {address}", soft_wrap=True)  # a folded address cannot be copied
    console.print("\nTry it (or `make demo` in another terminal):\n")
    console.print(
        f"""curl -s {running.url}/api/tickets -H 'Authorization: Bearer dev:sam' -H 'Content-Type: application/json' \\
  -d '{{"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": 100}}'
curl -s {running.url}/api/tickets
curl -s {running.url}/api/orders -H 'Authorization: Bearer dev:ada' -H 'Content-Type: application/json' \\
  -d '{{"ticket_id": "<id>", "quantity": 2}}'
""",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    console.print("Ctrl-C stops it.")
