"""NATS and Postgres from their official images, in place of the programs that wheels bring: `pytest --containers`.

They are the same servers to whoever uses them: in the same folder, at the same port of 127.0.0.1 over a restart. They
run in the network of this machine, so the engine has to be one of this machine, on Linux.
"""

import asyncio
import os
import shutil
import subprocess
from abc import abstractmethod
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from testcontainers.core.container import DockerContainer

from services.cli.servers import (
    STOP_SECONDS,
    NatsServer,
    PostgresServer,
    Server,
    ServerFailed,
    _postgres_install,
    free_port,
)

NATS = "nats:2.15-alpine"
POSTGRES = "postgres:18"


def engine_answers() -> bool:
    """Whether Docker's does."""
    return (
        shutil.which("docker") is not None
        and not subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    )


NO_ENGINE = "no Docker engine answers (`docker info` says why)"


class InContainer(Server):
    """A server whose process is that of a container: a new one at each start, and none once it was stopped."""

    _container: DockerContainer | None = None

    @abstractmethod
    def _described(self) -> DockerContainer:
        """What is to be started."""

    @property
    def pid(self) -> int:
        return int(self._state()["Pid"])

    @property
    def log_file(self) -> Path:
        if self._container is not None:
            self._log_file.write_bytes(self._container.get_wrapped_container().logs())
        return self._log_file

    @property
    def running(self) -> bool:
        return self._container is not None and bool(self._state()["Running"])

    async def stop(self) -> None:
        if self._container is not None:
            stop = self._container.get_wrapped_container().stop
            await asyncio.to_thread(stop, timeout=int(STOP_SECONDS))  # by the signal that the image names
        self.kill()

    def kill(self) -> None:
        if self._container is not None:
            self._container.stop()  # which is to remove it by force
            self._container = None
        super().kill()

    async def wait(self) -> int:
        return int(self._state()["ExitCode"])

    def _state(self) -> dict[str, Any]:
        assert self._container is not None, "it was started"
        container = self._container.get_wrapped_container()
        container.reload()
        state: dict[str, Any] = container.attrs["State"]
        return state

    def _spawn(self) -> None:
        self._container = self._described().start()

    def _failure(self, what: str) -> ServerFailed:
        assert self.log_file.exists()  # it has all of it now
        return super()._failure(what)


class NatsContainer(InContainer, NatsServer):
    """nats-server on its folder, which the container has under the same name, as whoever runs the tests."""

    def _described(self) -> DockerContainer:
        folder, whoever = str(self._data), f"{os.geteuid()}:{os.getegid()}"
        container = DockerContainer(NATS, command=f"--config {self._config_file}", volumes=[(folder, folder, "rw")])
        return container.with_kwargs(network_mode="host", user=whoever)

    def _listens(self) -> bool:
        return self.running


class PostgresContainer(InContainer, PostgresServer):
    """Postgres on a port; its data goes with the container. `programs` are those of the wheel."""

    def _prepare(self) -> None:
        self._bin, _ = _postgres_install()
        self._token = f"boxoffice-{uuid4().hex}"
        self._password = uuid4().hex
        self._port = free_port()
        self.url = f"postgresql://postgres:{self._password}@127.0.0.1:{self._port}/postgres?sslmode=disable"

    def _described(self) -> DockerContainer:
        settings = {"cluster_name": self._token, "listen_addresses": "127.0.0.1", "port": self._port}
        command = ["postgres", "-c", "max_connections=200"]
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        given = {
            "POSTGRES_PASSWORD": self._password,
            # Without the last it believes whoever comes from 127.0.0.1, as everybody does here.
            "POSTGRES_INITDB_ARGS": "--encoding=UTF8 --locale-provider=builtin --builtin-locale=C.UTF-8 "
            "--auth-host=scram-sha-256",
        }
        return DockerContainer(POSTGRES, command=" ".join(command), env=given).with_kwargs(network_mode="host")


class Kinds(NamedTuple):
    """What the servers of a test run are."""

    nats: type[NatsServer]
    postgres: type[PostgresServer]


WHEELS = Kinds(NatsServer, PostgresServer)
IMAGES = Kinds(NatsContainer, PostgresContainer)
