"""The official images take what deploy/ gives them, and what tests do to servers, where an engine runs them."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from common import topology
from common.event_log import JetStreamLog
from common.rights import MIGRATE
from common.runtime import connect
from common.settings import Settings
from services.cli.embedded import with_login
from services.cli.secrets import NODES, for_compose, secrets_in
from services.cli.servers import free_port
from tests.cluster import DEPLOY, finished, own_files, variables_in
from tests.containers import NATS, NO_ENGINE, POSTGRES, NatsContainer, engine_answers
from tests.facts import draft, numbers
from tests.harness import ServiceProcess, eventually, nats_in

START_SECONDS = 120.0


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    """Docker's, which has to answer."""
    if not engine_answers():
        pytest.skip(NO_ENGINE)


def at(container: DockerContainer, port: int) -> str:
    """Where a port of a container is reached from here."""
    return f"{container.get_container_host_ip()}:{container.get_exposed_port(port)}"


@pytest.fixture
def secrets(home: Path) -> Path:
    """The folder that `boxoffice secrets` fills."""
    for_compose(home / "secrets")
    return home / "secrets"


@pytest.fixture
def nodes(secrets: Path) -> Iterator[dict[str, DockerContainer]]:
    """nats:2.15 three times, as compose has it."""
    with ExitStack() as stack:
        network = stack.enter_context(Network())
        found = {}
        for name in NODES:
            given = {**variables_in(secrets / "nats.env"), "NATS_SERVER_NAME": name, "NATS_MAX_FILE_STORE": "1G"}
            container = DockerContainer(NATS, command="--config /etc/nats/nats.conf", env=given)
            container.with_network(network).with_network_aliases(name).with_exposed_ports(4222, 8222)
            container.with_volume_mapping(str(DEPLOY / "nats"), "/etc/nats", "ro")
            found[name] = stack.enter_context(container)
        yield found


@pytest.fixture
def database_url(secrets: Path) -> Iterator[str]:
    """postgres:18, whose roles are made as it starts for the first time; for its superuser."""
    given = {**variables_in(secrets / "roles.env"), "POSTGRES_DB": "boxoffice"}
    given["POSTGRES_PASSWORD"] = given.pop("PGPASSWORD")
    container = DockerContainer(POSTGRES, env=given).with_exposed_ports(5432)
    container.with_volume_mapping(str(DEPLOY / "postgres"), "/docker-entrypoint-initdb.d", "ro")
    with container:
        yield with_login(f"postgresql://{at(container, 5432)}/boxoffice", "postgres", given["POSTGRES_PASSWORD"])


@pytest.fixture
async def deployed(secrets: Path, nodes: dict[str, DockerContainer], database_url: str) -> Settings:
    """All of them ready, and migrated as whoever migrates."""
    urls = ",".join(f"nats://{at(node, 4222)}" for node in nodes.values())
    for_compose(secrets, urls, database_url)  # the same secrets, where they are reached from here

    async def healthy() -> bool:
        async with httpx.AsyncClient() as client:
            with suppress(httpx.TransportError):
                found = [await client.get(f"http://{at(node, 8222)}/healthz") for node in nodes.values()]
                return all(each.status_code == 200 for each in found)
        return False

    await eventually(healthy, wanted=True, within=START_SECONDS)
    migrate = (sys.executable, "-m", "services.cli.main", "migrate")

    async def migrated() -> bool:
        with suppress(AssertionError):  # Postgres is not there yet
            await finished(*migrate, **own_files(secrets, MIGRATE), BOXOFFICE_REPLICAS="3")
            return True
        return False

    await eventually(migrated, wanted=True, within=START_SECONDS)
    return Settings(nats_url=urls, database_url=database_url, auth="dev")


async def test_the_log_keeps_its_promises(secrets: Path, deployed: Settings) -> None:
    made = secrets_in(secrets)
    url = with_login(deployed.nats_url, "expiration", made.nats["expiration"])
    async with connect(Settings(nats_url=url), "test") as platform:
        log: JetStreamLog = platform.event_log
        assert await log.append("expiration.a", [draft(1)], expected=0) == 1
        assert numbers(await log.read("expiration.a")) == [1]


async def test_services_are_ready_with_what_they_may(secrets: Path, deployed: Settings, home: Path) -> None:
    class Deployed(ServiceProcess):
        def own(self, _: Settings) -> dict[str, str]:
            return own_files(secrets, self.names)

    for service in ("tickets", "orders", "expiration"):
        async with Deployed(service, deployed, home):
            pass  # it is ready


async def test_what_is_killed_has_its_events_and_its_address_when_it_starts_again(home: Path) -> None:
    nats = nats_in(home / "nats", free_port(), NatsContainer)
    try:
        await nats.start()
        settings = Settings(nats_url=nats.url)
        async with connect(settings, "before") as platform:
            await topology.migrate(platform.client)
            await platform.event_log.append("expiration.a", [draft(1)], expected=0)
        nats.kill()
        assert not nats.running
        await nats.start()
        async with connect(settings, "after") as platform:
            assert numbers(await platform.event_log.read("expiration.a")) == [1]
    finally:
        nats.kill()
