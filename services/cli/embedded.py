"""`boxoffice up`: real servers and every service in one place, started, watched and stopped in order."""

import asyncio
import errno
import fcntl
import os
import secrets
import shlex
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from urllib.parse import quote

import asyncpg
import msgspec
from litestar import Litestar
from rich.console import Console

from common import rights, topology
from common.auth import is_here
from common.http import reasons_not_ready
from common.settings import PREFIX, BadSetting, Settings, addresses, load, named, variables, without_password
from services.cli.servers import INSTALL, NatsServer, PostgresServer, Server, ServerFailed
from services.cli.system import SERVICES, WebServer, app_of, listen, migrate, server_of, url_of
from services.identity.oidc import ProviderSettings
from services.identity.settings import IdentitySettings
from services.identity.tokens import new_signing_key

with suppress(ModuleNotFoundError):  # an image for a cluster has not the extra `embedded`, and starts no servers
    import psutil  # type: ignore[import-untyped]  # psutil ships no types

DATA = Path(".boxoffice")
PATIENCE_SECONDS = 3.0
"""After so long it says which servers it waits for."""
SLOW_SECONDS = 10.0
"""After so long a start says what it waits for."""
RUNNING = "running.json"
"""In the data folder while the system runs: how other commands find it."""
SECRETS = "secrets"
"""In the data folder: a file for each secret, for its owner's eyes."""
WEBHOOK_SECRET = "webhook"  # noqa: S105 (the name of a file)
"""The secret from which those of webhooks are derived, if the environment names none."""
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
        process = psutil.Process(running.pid)
        # The clock may have been corrected meanwhile.
        same = abs(process.create_time() - running.since) < 2 and process.status() != psutil.STATUS_ZOMBIE
        return running if same else None
    except (OSError, msgspec.MsgspecError):
        return None
    except psutil.Error:  # apart: where there is no psutil, nothing is running, and it has no name
        return None


def environment_here(environment: Mapping[str, str] = os.environ, data: Path = DATA) -> dict[str, str]:
    """The environment; where it names no servers, with those of the embedded system that runs here.

    For commands of an operator, who is the user `migrate`. Raises BadSetting.
    """
    found = dict(environment)
    if running := find_running(data):
        for setting, url in (("nats_url", running.nats_url), ("database_url", running.database_url)):
            if named(setting, environment, rights.MIGRATE) is None:
                found[variables(setting, rights.MIGRATE)[0]] = url
    return found


def as_service(service: str, environment: Mapping[str, str], data: Path = DATA) -> dict[str, str]:
    """The environment, with the address of NATS for a service: what is written in its name is written as that user.

    Where no variable names it, it is that of the embedded system that runs here. Raises BadSetting.
    """
    found = dict(environment)
    running, password = find_running(data), data / SECRETS / f"nats-{service}"
    if named("nats_url", environment, service) is None:
        variable = variables("nats_url", service)[0]
        if running is None or not password.exists():
            raise BadSetting(f"{variable}: Required, with user and password, as what {service} tells is written as it")
        found[variable] = with_login(running.nats_url, service, password.read_text().strip())
    return found


@contextmanager
def held(data: Path, *, fresh: bool) -> Iterator[None]:
    """Hold the data folder, empty if `fresh`, which nobody else can meanwhile.

    Raises CannotStart, also rather than delete what is not ours.
    """
    try:
        data.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise CannotStart(f"{data} is a file; name a folder with --data.") from error
    folder = os.open(data, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            running = find_running(data)
            where = f", as process {running.pid}, at {running.url or 'an address to be told'}" if running else ""
            raise CannotStart(f"It already runs{where}.") from None
        there = list(data.iterdir())
        if there and not (data / MARK).exists():
            told = (
                "is not a data folder of Boxoffice; --fresh does not delete it." if fresh else "holds something else;"
            )
            raise CannotStart(f"{data} {told} Choose an empty folder with --data.")
        for each in there if fresh else ():
            shutil.rmtree(each) if each.is_dir() else each.unlink()
        (data / MARK).touch()
        yield
    finally:
        os.close(folder)


def secret(data: Path, name: str, make: Callable[[], str] = lambda: secrets.token_urlsafe(32)) -> str:
    """The secret of that name of this data folder: what `make` makes when it is first asked for."""
    return kept(data / SECRETS / name, make)


def kept(path: Path, make: Callable[[], str]) -> str:
    """What a file for its owner's eyes holds: what `make` makes when it is first asked for."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        made = path.with_name(f"{path.name}.new")
        made.unlink(missing_ok=True)
        made.touch(mode=0o600)
        made.write_text(make())
        made.rename(path)  # it is there whole or not at all
    return path.read_text().strip()


def webhook_secret(data: Path) -> str:
    """From which the secrets of webhooks are derived here."""
    before = data / "webhook.secret"  # where it was kept until 2026-11-22
    value = secret(data, WEBHOOK_SECRET, lambda: before.read_text() if before.exists() else secrets.token_urlsafe(32))
    before.unlink(missing_ok=True)
    return value


def own_secrets(data: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of secrets that the services need, but for those that the environment names."""
    made: Mapping[tuple[str, str], Callable[[], str]] = {
        ("notification", "webhook_secret"): lambda: webhook_secret(data),
        ("identity", "signing_key"): lambda: secret(data, "signing-key", new_signing_key),
        ("identity", "encryption_secret"): lambda: secret(data, "encryption"),
    }
    return {
        PREFIX + setting.upper(): value()
        for (service, setting), value in made.items()
        if named(setting, environment, service) is None
    }


def passwords(data: Path, server: str) -> dict[str, str]:
    """The password of each user of a server of this folder: of `nats` or `postgres`."""
    return {user: secret(data, f"{server}-{user}") for user in rights.everybody()}


def own_servers(data: Path, environment: Mapping[str, str]) -> dict[str, Server]:
    """NATS and Postgres by setting, but for those that the environment names. Raises BadSetting."""
    own: dict[str, Server] = {}
    if named("nats_url", environment) is None:
        own["nats_url"] = NatsServer(data / "nats", users=rights.nats_users(passwords(data, "nats")))
    if named("database_url", environment) is None:
        own["database_url"] = PostgresServer(data / "postgres")
    return own


def with_login(urls: str, user: str, password: str) -> str:
    """An address, or each of several, with a user in place of whom it names."""
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    parts = [url.partition("://") for url in addresses(urls)]
    return ",".join(f"{scheme}://{login}@{rest.rpartition('@')[2]}" for scheme, _, rest in parts)


def logins(data: Path, setting: str, server: Server) -> dict[str, str]:
    """The address of a server for each of its users, by the variable that names it."""
    user_of = rights.role_of if setting == "database_url" else str
    return {
        variables(setting, user)[0]: with_login(server.url, user_of(user), password)
        for user, password in passwords(data, server.name).items()
    }


async def make_roles(database_url: str, given: Mapping[str, str]) -> None:
    """The roles of a database of our own, as its superuser, with these passwords; safe to repeat."""
    connection = await asyncpg.connect(database_url)
    statements = [rights.postgres_roles(), rights.postgres_take_over()]
    # Passwords are of A-Z a-z 0-9 _ -, as they are made here.
    statements += [f"alter role {rights.role_of(user)} password '{password}';" for user, password in given.items()]
    try:
        await connection.execute("".join(statements))  # one message is one transaction
        await connection.close()
    finally:
        connection.terminate()  # for a rollback whoever stops would wait, if the server does not answer


@asynccontextmanager
async def servers(
    own: Mapping[str, Server], data: Path, environment: dict[str, str], console: Console
) -> AsyncIterator[None]:
    """Run these as children; their addresses, of each user, go into the environment. Raises ServerFailed."""
    started: list[Server] = []
    try:
        for setting, server in own.items():
            began = perf_counter()
            await server.start()
            started.append(server)
            if isinstance(server, PostgresServer):
                await make_roles(server.url, passwords(data, server.name))
            environment |= logins(data, setting, server)
            console.print(f"  [green]✓[/] {server.name} [dim]{perf_counter() - began:.1f} s[/]")
        yield
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


def names_provider(environment: Mapping[str, str]) -> bool:
    """Whether anything is said of a provider, be it enough or not: then nobody is believed by their word."""
    prefixes = tuple(variables("oidc_", "identity"))
    return any(name.startswith(prefixes) for name in environment)


def warnings_of(settings: Settings, providers: Sequence[ProviderSettings], *, believed: bool) -> list[str]:
    """What one should know before it starts. Raises BadSetting.

    `believed`: it was asked for by name that whoever says who they are is believed.
    """
    if providers and not settings.public_url and not is_here(settings.host.lower()):
        why = (
            f"with a provider, as browsers come back to it and BOXOFFICE_HOST={settings.host!r} is no address for that"
        )
        raise BadSetting(f"BOXOFFICE_PUBLIC_URL: Required {why}")
    if settings.auth == "on":
        return [] if providers else ["nobody can log in: no provider is named (BOXOFFICE_OIDC_CLIENT_ID and so on)"]
    if is_here(settings.host.lower()):
        return []
    everybody = f"whoever reaches {settings.host} is whoever they say, also an operator"
    if not believed:
        mend = "name a provider to log in with, or set BOXOFFICE_AUTH=dev if that is what you want"
        raise BadSetting(f"BOXOFFICE_HOST={settings.host!r}: Refused, as {everybody}; {mend}")
    return [f"{everybody} (BOXOFFICE_AUTH is dev)"]


async def up(port: int | None, data: Path, *, fresh: bool, console: Console) -> None:
    """Run the whole system until Ctrl-C. Raises CannotStart, ServerFailed, BadSetting, Unavailable, OSError."""
    if find_spec("psutil") is None:
        raise CannotStart(f"The servers that this starts are not installed; {INSTALL}")
    environment = dict(os.environ)
    if (told_auth := named("auth", environment)) is None:
        environment[PREFIX + "AUTH"] = "on" if names_provider(environment) else "dev"
    for name, (_, settings) in SERVICES.items():
        load(settings, environment, of=name)  # what is wrong is told before anything is started
    identity = load(IdentitySettings, environment, of="identity")
    for line in warnings_of(identity, identity.providers, believed=told_auth is not None):
        console.print(f"  [yellow]![/] {line}", highlight=False, soft_wrap=True)
    listen(identity.host, 0).close()
    with held(data, fresh=fresh):
        environment |= own_secrets(data, environment)
        own = own_servers(data, environment)
        stop = asyncio.Event()
        work = asyncio.create_task(run(port, data, environment, own, console, stop))

        def end() -> None:
            console.print("stopping; Ctrl-C again to force it")
            on_signal(lambda: force(data, list(own.values()), console))
            stop.set()
            if not ((running := find_running(data)) and running.url):  # still starting
                work.cancel()

        on_signal(end)
        try:
            with suppress(asyncio.CancelledError):
                await work
        finally:
            (data / RUNNING).unlink(missing_ok=True)


def on_signal(act: Callable[[], object]) -> None:
    """What Ctrl-C and SIGTERM do from now on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, act)


def force(data: Path, children: Sequence[Server], console: Console) -> None:
    """End everything at once; the log is on disk."""
    for child in children:
        child.kill()
    (data / RUNNING).unlink(missing_ok=True)
    console.print("  [yellow]![/] forced: everything was killed; what was acknowledged is on disk")
    os._exit(130)


async def run(
    port: int | None,
    data: Path,
    environment: dict[str, str],
    own: Mapping[str, Server],
    console: Console,
    stop: asyncio.Event,
) -> None:
    """Start the servers, migrate, then serve every service until `stop`. When it is cancelled, all of it stops too."""
    began = psutil.Process().create_time()
    async with servers(own, data, environment, console), watched(list(own.values()), console):
        settings = load(Settings, environment, of=rights.MIGRATE)
        running = Running(os.getpid(), began, settings.nats_url, settings.database_url)
        running.tell(data)
        servers_at = f"{without_password(settings.nats_url)} and {without_password(settings.database_url)}"
        waiting = f"  [yellow]![/] still waiting for {servers_at}"
        hint = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, console.print, waiting)
        try:
            await migrated(settings, console)
        finally:
            hint.cancel()
        with closing(first_free(settings.host, port or settings.port, console)) as door:
            identity = load(IdentitySettings, environment, of="identity")
            if identity.providers and not identity.public_url:  # whoever logs in comes back here
                environment[PREFIX + "PUBLIC_URL"] = url_of(door)
                if door.getsockname()[1] != (port or settings.port):
                    tell_where_back(url_of(door), identity.providers, console)
            async with app_of(list(SERVICES), environment) as app:
                server = server_of(app)
                serving = asyncio.create_task(server.serve(sockets=[door]))
                try:
                    if await opened(server, serving, app, began, console):
                        running = msgspec.structs.replace(running, url=url_of(door))
                        running.tell(data)
                        seen = {setting: server.url for setting, server in own.items()}
                        greet(running, seen, data, console, time.time() - began, app.state.settings)
                        await stop.wait()
                finally:
                    server.should_exit = True
                    await serving
                    console.print("  [green]✓[/] services stopped")


async def migrated(settings: Settings, console: Console) -> None:
    """Migrate; where a restore or an import was cut off, which needs the servers, wait until it is done."""
    told = False
    while True:
        try:
            await migrate(settings, lambda line: console.print(f"  [green]✓[/] {line}", highlight=False))
        except topology.NotWhole as error:
            if not told:
                console.print(f"  [yellow]![/] {error.detail} Waiting for that.", highlight=False, soft_wrap=True)
            told = True
            await asyncio.sleep(1)
        else:
            return


def tell_where_back(url: str, providers: Sequence[ProviderSettings], console: Console) -> None:
    """That the port is another than the one that providers were told of, as far as one can know."""
    console.print("  [yellow]![/] so the redirect URI that is registered at the provider has to be:")
    for provider in providers:
        console.print(f"      {url}/api/auth/callback/{provider.name}", highlight=False, soft_wrap=True)


async def opened(server: WebServer, serving: asyncio.Task[None], app: Litestar, began: float, console: Console) -> bool:
    """Wait until every service is ready, and say what is waited for if that takes long; False if the server ended."""
    told = False
    while not serving.done() and (not server.started or reasons_not_ready(app.state)):
        await asyncio.sleep(0.02)
        if not told and time.time() - began > SLOW_SECONDS:
            told = True
            for name, reason in reasons_not_ready(app.state).items():
                console.print(f"  [yellow]![/] still waiting for {name}: {reason}")
    return server.started


def first_free(host: str, port: int, console: Console) -> socket.socket:
    """A socket on `port` or the next free one. Raises CannotStart, OSError for what is no matter of others."""
    for candidate in range(port, min(port + 100, 65536)):
        try:
            door = listen(host, candidate)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        if candidate != port:
            console.print(f"  [yellow]![/] port {port} is taken, so it is {candidate}")
        return door
    raise CannotStart(f"No port from {port} to {port + 99} is free; choose another with --port.")


def demo_of(data: Path) -> str:
    """The line that plays a sale against the system on this folder."""
    if data == DATA:
        return "make demo"
    options = f"--data {shlex.quote(str(data.absolute()))}"
    return f"make demo ARGS={shlex.quote(options)}"


def greet(
    running: Running, own: Mapping[str, str], data: Path, console: Console, seconds: float, settings: Settings
) -> None:
    """What a person needs to know first; `own` servers by setting, with the address that a person uses."""
    host, _, port = running.url.rpartition(":")
    addresses = {
        "Shop": running.url,
        "API": f"{running.url}/api/tickets",
        "Documentation": f"{running.url}/api/docs",
        "Health": f"{running.url}/health/ready",
        "Metrics": f"{host}:{settings.metrics_port or port}/metrics",
        "NATS": own.get("nats_url") or without_password(running.nats_url),
        "Postgres": own.get("database_url") or without_password(running.database_url),
        "Data": data,
    }
    console.print(f"\n[bold]Boxoffice is open[/] [dim]after {seconds:.1f} s[/]\n")
    for name, address in addresses.items():
        console.print(f"  [dim]{name:<15}[/] {address}", soft_wrap=True)  # a folded address cannot be copied
    if settings.auth == "dev":
        console.print(first_steps(running.url, data), highlight=False, markup=False, soft_wrap=True)
    else:
        console.print("\nPeople log in there, and make the keys by which their programs get in.\n")
    console.print("Ctrl-C stops it.")


def first_steps(url: str, data: Path) -> str:
    """What a developer may try."""
    as_json = "-H 'Content-Type: application/json'"
    return f"""
Try it, line by line (or `{demo_of(data)}` in another terminal):

curl -sw '\\n' {url}/api/tickets -H 'Authorization: Bearer dev:sam' {as_json} -D /tmp/listed \\
  -d '{{"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": 100}}'
TICKET=$(sed -n 's|^location: /api/tickets/||p' /tmp/listed | tr -d '\\r')
curl -sw '\\n' {url}/api/tickets/$TICKET
curl -sw '\\n' {url}/api/orders -H 'Authorization: Bearer dev:ada' {as_json} \\
  -d "{{\\"ticket_id\\": \\"$TICKET\\", \\"quantity\\": 2}}"
"""
