"""Real servers for tests: a NATS of its own for each test that asks (0.05 s), one Postgres with a database for each.

With `--containers` both are the official images.
"""

import gc
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import asyncpg
import msgspec
import pytest

from common import topology
from common.event_log import EventLog, JetStreamLog
from common.memory_log import MemoryLog
from common.runtime import Platform, collect_garbage_rarely, connect
from common.settings import Settings
from services.cli import system
from services.cli.embedded import make_roles
from services.cli.servers import NatsServer, PostgresServer, free_port
from tests.containers import IMAGES, NO_ENGINE, WHEELS, Kinds, engine_answers
from tests.harness import PASSWORDS, UNLIMITED, Proxy, nats_in

pytest.register_assert_rewrite("tests.given")  # so that a test of rules shows what followed instead
gc.disable()  # until all tests are found: what that makes is there to stay, and was looked through again and again


def pytest_collection_finish() -> None:
    """Look for garbage only in what tests make."""
    collect_garbage_rarely()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--containers", action="store_true", help="NATS and Postgres from their official images")


@pytest.fixture(scope="session")
def kinds(request: pytest.FixtureRequest) -> Kinds:
    """From wheels, or from images where that is asked for and an engine answers."""
    if not request.config.getoption("--containers"):
        return WHEELS
    if not engine_answers():
        pytest.skip(NO_ENGINE)
    return IMAGES


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that Postgres' own account can reach, which pytest's tmp_path is not when root runs the tests."""
    with tempfile.TemporaryDirectory(prefix="boxoffice-test-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


class Migrated(msgspec.Struct, frozen=True):
    """A system as `boxoffice migrate` leaves it, to be copied: the data of its NATS, the name of its database."""

    nats: Path
    database: str


@pytest.fixture(scope="session")
async def migrated(postgres: PostgresServer, kinds: Kinds) -> AsyncIterator[Migrated]:
    """What every test that wants a `platform` begins with; to migrate each anew took twice as long.

    Where a module has a `platform` of its own, it says that there is none.
    """
    with tempfile.TemporaryDirectory(prefix="boxoffice-test-", ignore_cleanup_errors=True) as folder:
        server = nats_in(Path(folder) / "nats", kind=kinds.nats)
        await server.start()
        async with database_in(postgres) as (name, url):
            await system.migrate(Settings(nats_url=server.url, database_url=url), lambda _: None)
            await server.stop()
            yield Migrated(Path(folder) / "nats", name)


@pytest.fixture
async def nats(
    request: pytest.FixtureRequest, home: Path, migrated: Migrated | None, kinds: Kinds
) -> AsyncIterator[NatsServer]:
    """A NATS server with nothing in it, or with what the `platform` of the same test has."""
    if migrated and "platform" in request.fixturenames:
        shutil.copytree(migrated.nats / "jetstream", home / "nats" / "jetstream")
    server = nats_in(home / "nats", free_port(), kinds.nats)  # one that nobody takes while a test has it down
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def proxy(nats: NatsServer) -> AsyncIterator[Proxy]:
    """What stands between that NATS server and whoever connects through it."""
    async with Proxy(nats) as proxy:
        yield proxy


@pytest.fixture(scope="session")
async def postgres(kinds: Kinds) -> AsyncIterator[PostgresServer]:
    """The Postgres server of this test run."""
    with tempfile.TemporaryDirectory(prefix="boxoffice-test-", ignore_cleanup_errors=True) as folder:
        server = kinds.postgres(Path(folder) / "postgres")
        await server.start()
        await make_roles(server.url, PASSWORDS)
        yield server
        await server.stop()


@asynccontextmanager
async def database_in(postgres: PostgresServer, template: str = "template1") -> AsyncIterator[tuple[str, str]]:
    """A new database like another: its name, and its address for its superuser."""
    name = f"test_{uuid4().hex}"
    connection = await asyncpg.connect(postgres.url)
    try:
        await connection.execute(f"create database {name} template {template}")
        url = postgres.url.replace("/postgres?", f"/{name}?")
        await make_roles(url, {})  # which have their passwords
        yield name, url
        await connection.execute(f"drop database {name} with (force)")
    finally:
        await connection.close()


@asynccontextmanager
async def copied(postgres: PostgresServer, migrated: Migrated, home: Path) -> AsyncIterator[Settings]:
    """Servers that are migrated, for several tests together; their data is in `home`."""
    shutil.copytree(migrated.nats / "jetstream", home / "nats" / "jetstream")
    nats = nats_in(home / "nats", free_port())
    await nats.start()
    async with database_in(postgres, migrated.database) as (_, url):
        yield Settings(nats_url=nats.url, database_url=url, auth="dev")
    await nats.stop()


@pytest.fixture
async def database_url(
    request: pytest.FixtureRequest, postgres: PostgresServer, migrated: Migrated | None
) -> AsyncIterator[str]:
    """A database with nothing in it, or with what the `platform` of the same test has; for its superuser.

    The services may connect to it, each as its own role.
    """
    template = migrated.database if migrated and "platform" in request.fixturenames else "template1"
    async with database_in(postgres, template) as (_, url):
        yield url


@pytest.fixture
def settings(nats: NatsServer, database_url: str) -> Settings:
    """Settings that name these servers."""
    rates = {f"rate_{name}": rate for name, rate in UNLIMITED.items()}
    settings = Settings(nats_url=nats.url, database_url=database_url, auth="dev")
    return msgspec.structs.replace(settings, **rates)


@pytest.fixture
async def platform(settings: Settings) -> AsyncIterator[Platform]:
    """Connected and migrated."""
    async with connect(settings, "test") as platform:
        yield platform


@pytest.fixture
def event_log(platform: Platform) -> JetStreamLog:
    """The log of a migrated system."""
    return platform.event_log


@pytest.fixture
async def streams(nats: NatsServer) -> AsyncIterator[Platform]:
    """Connected to a NATS with the streams and consumers of the system; there is no Postgres."""
    async with connect(Settings(nats_url=nats.url), "test") as platform:
        await topology.migrate(platform.client)
        yield platform


@pytest.fixture(params=["memory", "jetstream"])
def any_log(request: pytest.FixtureRequest) -> EventLog:
    """Each of the two event logs, with nothing in it."""
    if request.param == "memory":
        return MemoryLog()
    platform: Platform = request.getfixturevalue("streams")
    return platform.event_log
