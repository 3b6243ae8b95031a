"""What is measured runs in processes of its own."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import httpx
import psutil  # type: ignore[import-untyped]  # psutil ships no types

from common.settings import Settings
from services.cli.servers import free_port
from tests.harness import unlimited

HERE = Path(__file__).parents[2]
STOP_SECONDS = 20.0
RUN_SECONDS = 300.0


class Child:
    """A program that runs, with its output in a file."""

    def __init__(self, process: asyncio.subprocess.Process, output: Path) -> None:
        self._process = process
        self._output = output

    @classmethod
    async def start(cls, command: Sequence[str | Path], output: Path, environment: Mapping[str, str]) -> Self:
        with output.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                *map(str, command),
                env={**os.environ, **environment},
                cwd=HERE,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        return cls(process, output)

    @property
    def cpu_seconds(self) -> float:
        """Seconds of a core that it has used."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    @property
    def memory(self) -> int:
        """Bytes that it holds."""
        return int(psutil.Process(self._process.pid).memory_info().rss)

    async def kill(self) -> None:
        """SIGKILL, and gone."""
        self._process.kill()
        await self._process.wait()

    def check(self) -> None:
        """Raises RuntimeError, with the end of its output, if it has ended."""
        if self._process.returncode is not None:
            told = self._output.read_text(errors="replace")[-4000:]
            raise RuntimeError(f"{self._output.stem} ended with exit code {self._process.returncode}:\n{told}")

    async def end(self) -> None:
        """SIGTERM; SIGKILL when that takes too long."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()


class Served(Child):
    """A service, and the port it answers on."""

    port: int = 0


@asynccontextmanager
async def serving(module: Sequence[str], settings: Settings, home: Path, **variables: str) -> AsyncIterator[Served]:
    """A service of this repository as a process of its own, once it is ready."""
    child = await started(module, settings, home, free_port(), **variables)
    try:
        yield child
        child.check()
    finally:
        await child.end()


async def started(module: Sequence[str], settings: Settings, home: Path, port: int, **variables: str) -> Served:
    """The same; whoever starts it has to end it."""
    environment = {
        "BOXOFFICE_NATS_URL": settings.nats_url,
        "BOXOFFICE_DATABASE_URL": settings.database_url,
        "BOXOFFICE_AUTH": settings.auth,
        "BOXOFFICE_PORT": str(port),
        "BOXOFFICE_LOG_LEVEL": "warning",
        **unlimited(),
    }
    output = home / f"{module[-1]}-{port}.log"
    child = await Served.start([sys.executable, "-m", *module], output, environment | variables)
    child.port = port
    try:
        async with asyncio.timeout(30), httpx.AsyncClient() as client:
            while not await is_ready(client, port):
                child.check()
                await asyncio.sleep(0.05)
    except BaseException:
        await child.end()
        raise
    return child


async def is_ready(client: httpx.AsyncClient, port: int) -> bool:
    """Whether the service on `port` can serve requests."""
    try:
        return (await client.get(f"http://127.0.0.1:{port}/health/ready")).status_code == 200
    except httpx.TransportError:
        return False


async def run(*command: str | Path, cwd: Path = HERE, told: bytes = b"") -> bytes:
    """What a program prints when it is `told` something. Raises RuntimeError with what it complains about."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*map(str, command), cwd=cwd, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        printed, complaint = await asyncio.wait_for(process.communicate(told), RUN_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with exit code {process.returncode}:\n{complaint.decode()[-2000:]}")
    return printed
