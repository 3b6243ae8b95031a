"""The system as it is deployed: what is in deploy/, with processes in place of containers."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Self

import httpx
import nats.errors
from nats.aio.client import Client

from common import topology
from common.rights import MIGRATE
from common.settings import FILE, PREFIX, Settings
from services.cli.embedded import with_login
from services.cli.secrets import CLUSTER_USER, for_compose, secrets_in
from services.cli.servers import NatsServer, PostgresServer, free_port
from services.cli.system import SERVICES
from tests.harness import BOXOFFICE, ServiceProcess, eventually

DEPLOY = Path(__file__).parent.parent / "deploy"
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
NO_NGINX = "there is no nginx here; on Debian: apt-get install nginx-light"
NODES = 3
START_SECONDS = 60.0
STARTING = 4
"""Processes that start at a time: each has to be ready within so long."""


def free_ports(count: int) -> list[int]:
    """So many, all different."""
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return list(found)


@asynccontextmanager
async def three_nodes(home: Path, users: Sequence[Mapping[str, object]] = ()) -> AsyncIterator[dict[str, NatsServer]]:
    """Three nodes of one cluster, by name, each configured as `boxoffice up` does it; killed in the end."""
    ports = free_ports(2 * NODES)
    routes = [f"nats://127.0.0.1:{port}" for port in ports[:NODES]]
    nodes = {
        name: NatsServer(home / name, port=port, name=name, cluster_port=cluster_port, routes=routes, users=users)
        for name, port, cluster_port in zip(("n0", "n1", "n2"), ports[NODES:], ports[:NODES], strict=True)
    }
    try:
        for node in nodes.values():
            await node.start()
        yield nodes
    finally:
        for node in nodes.values():
            node.kill()


async def migrate_cluster(client: Client) -> None:
    """Make streams of three replicas, once there is somebody who leads."""
    async with asyncio.timeout(START_SECONDS):
        while True:
            with suppress(nats.errors.Error):
                await client.jetstream(timeout=0.5).account_info()  # answered once there is a leader
                break
        await topology.migrate(client, replicas=NODES)


def variables_in(file: Path) -> dict[str, str]:
    """What an `env_file` of compose gives a container."""
    return dict(line.split("=", 1) for line in file.read_text().splitlines())


def own_files(secrets: Path, user: str) -> dict[str, str]:
    """The variables that name the files with the secrets of a user, as a container has them."""
    return {f"{PREFIX}{path.name.upper()}{FILE}": str(path) for path in (secrets / user).iterdir()}


class Node(NatsServer):
    """nats-server as deploy/nats/ configures it. What listens where, and its folder, are told beside that."""

    def __init__(
        self, data: Path, name: str, ports: tuple[int, int, int], variables: Mapping[str, str], cluster: str
    ) -> None:
        """`ports`: for clients, for monitoring, for the other nodes; `cluster`: the password of the nodes."""
        client, monitoring, nodes = ports
        super().__init__(data, port=client, name=name)
        self.url = f"nats://127.0.0.1:{client}"
        self.monitoring = f"http://127.0.0.1:{monitoring}"
        self._variables = {**variables, "NATS_SERVER_NAME": name, "NATS_MAX_FILE_STORE": "1G"}
        self._options = ["--addr", "127.0.0.1", "--port", str(client), "--http_port", str(monitoring)]
        self._options += ["--cluster", f"nats://{CLUSTER_USER}:{cluster}@127.0.0.1:{nodes}"]

    def _prepare(self) -> None:
        self._port = self._wanted
        shutil.copy(DEPLOY / "nats" / "users.conf", self._data)
        configuration = (DEPLOY / "nats" / "nats.conf").read_text()
        assert "store_dir: /data\n" in configuration
        self._config_file.write_text(configuration.replace("store_dir: /data\n", f"store_dir: {self._data}\n"))

    def _command(self) -> list[str]:
        return [*super()._command(), *self._options, "--pid", str(self._pid_file)]

    def _environment(self) -> Mapping[str, str]:
        return {**super()._environment(), **self._variables}

    async def healthy(self) -> bool:
        """Whether it says so, as a probe asks: it knows its leader, and has caught up."""
        async with httpx.AsyncClient() as client:
            with suppress(httpx.TransportError):
                return (await client.get(f"{self.monitoring}/healthz")).status_code == 200
        return False


class DeployedService(ServiceProcess):
    """A service with the secrets that a container has, in files; executed, as its container does."""

    program = BOXOFFICE

    def __init__(self, name: str, number: int, settings: Settings, home: Path, **variables: str) -> None:
        self._files = own_files(home / "secrets", name)
        super().__init__(name, settings, home, **variables)
        self.log = home / f"{name}-{number}.log"

    def own(self, _: Settings) -> dict[str, str]:
        return self._files


class Gateway:
    """nginx as deploy/gateway/ configures it, in front of these addresses (`host:port`) of each service."""

    def __init__(self, folder: Path, addresses: Mapping[str, Iterable[str]]) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "gateway.log"
        self._folder = folder
        configuration = (DEPLOY / "gateway" / "nginx.conf").read_text()
        for stands_there, here in (
            ("listen 8080;", f"listen 127.0.0.1:{port};"),
            (" /tmp/", f" {folder}/"),
            (" /dev/stdout ", f" {folder}/access.log "),  # which may be no file that nginx's own user may open
        ):
            assert stands_there in configuration
            configuration = configuration.replace(stands_there, here)
        (folder / "nginx.conf").write_text(configuration)
        upstreams = [
            f"upstream {service} {{ zone {service} 64k; {' '.join(f'server {each};' for each in there)} }}\n"
            for service, there in addresses.items()
        ]
        (folder / "upstreams.conf").write_text("".join(upstreams))

    async def __aenter__(self) -> Self:
        assert NGINX, NO_NGINX
        command = (NGINX, "-p", str(self._folder), "-c", str(self._folder / "nginx.conf"), "-g", "daemon off;")
        with self.log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output)
        async with httpx.AsyncClient() as client, asyncio.timeout(START_SECONDS):
            while True:
                assert self._process.returncode is None, self.log.read_text()
                with suppress(httpx.TransportError):
                    if (await client.get(f"{self.url}/gateway/live")).status_code == 200:
                        return self
                await asyncio.sleep(0.05)

    async def __aexit__(self, *_: object) -> None:
        self._process.terminate()
        await self._process.wait()


class Cluster:
    """Three nodes, Postgres, and each service in so many replicas; behind nginx, where there is one."""

    def __init__(self, nodes: Mapping[str, Node], settings: Settings) -> None:
        self.nodes = nodes
        self.settings = settings
        """Of an operator: `migrate` on NATS, the superuser of Postgres."""
        self.services: Mapping[str, Sequence[ServiceProcess]] = {}
        self.gateway: Gateway | None = None


async def finished(*command: str | Path, **variables: str) -> str:
    """What a command said that ended well; raises AssertionError with it otherwise."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**environment, **variables},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


def nodes_in(home: Path, secrets: Path, ports: Sequence[int]) -> dict[str, Node]:
    """Three nodes that know each other, by name; three ports for each."""
    cluster = secrets_in(secrets).cluster
    routes = [f"nats://{CLUSTER_USER}:{cluster}@127.0.0.1:{port}" for port in ports[2::3]]
    variables = {**variables_in(secrets / "nats.env"), "NATS_ROUTES": f"[{','.join(routes)}]"}
    return {
        name: Node(home / name, name, (ports[3 * n], ports[3 * n + 1], ports[3 * n + 2]), variables, cluster)
        for n, name in enumerate(f"nats-{n}" for n in range(NODES))
    }


@asynccontextmanager
async def deployed(home: Path, replicas: Mapping[str, int], **variables: str) -> AsyncIterator[Cluster]:
    """All of it, ready; `replicas` of services of which there is not one, `variables` of all services."""
    secrets, postgres, ports = home / "secrets", PostgresServer(home / "postgres"), free_ports(3 * NODES)
    urls = ",".join(f"nats://127.0.0.1:{port}" for port in ports[0::3])
    await postgres.start()
    try:
        for_compose(secrets, urls, postgres.url)
        await finished(
            *(postgres.programs / "psql", "-X", postgres.url, "-f", DEPLOY / "postgres" / "roles.sql"),
            **variables_in(secrets / "roles.env"),
        )
        nodes = nodes_in(home, secrets, ports)
        operator = with_login(urls, MIGRATE, secrets_in(secrets).nats[MIGRATE])
        cluster = Cluster(nodes, Settings(nats_url=operator, database_url=postgres.url, auth="dev", replicas=NODES))
        async with AsyncExitStack() as stack:
            for node in nodes.values():
                await node.start()
                stack.callback(node.kill)
            for node in nodes.values():
                await eventually(node.healthy, wanted=True, within=START_SECONDS)
            await finished(*BOXOFFICE, "migrate", **own_files(secrets, MIGRATE), BOXOFFICE_REPLICAS=str(NODES))
            trusted = {"BOXOFFICE_TRUSTED_PROXIES": "127.0.0.1"}
            cluster.services = {
                service: [
                    DeployedService(service, number, cluster.settings, home, **trusted, **variables)
                    for number in range(replicas.get(service, 1))
                ]
                for service in SERVICES
            }
            processes = [process for each in cluster.services.values() for process in each]
            for process in processes:
                stack.push_async_callback(process.kill)
            some = asyncio.Semaphore(STARTING)

            async def start(process: ServiceProcess) -> None:
                async with some:
                    await process.start()

            async with asyncio.TaskGroup() as starting:
                for process in processes:
                    starting.create_task(start(process))
            if NGINX:
                at = {
                    service: [f"127.0.0.1:{process.port}" for process in replicas]
                    for service, replicas in cluster.services.items()
                }
                gateway = home / "gateway"
                gateway.mkdir(mode=0o755)
                cluster.gateway = await stack.enter_async_context(Gateway(gateway, at))
            yield cluster
    finally:
        await postgres.stop()
