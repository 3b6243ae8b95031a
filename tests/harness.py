"""Services as processes of their own, which is how the cluster runs them and how faults are tried on them."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import asyncpg
import httpx
from prometheus_client.parser import text_string_to_metric_families

from common.projector import HOLD_WRITERS
from common.rights import MIGRATE, everybody, nats_users, role_of
from common.settings import Settings, variables
from services.cli.embedded import with_login
from services.cli.servers import NatsServer, free_port
from services.identity.tokens import new_signing_key
from tests.nursery import Files, Forked

READY_SECONDS = 90.0

BOXOFFICE = (sys.executable, "-m", "services.cli.main")
"""What is executed for the command `boxoffice`."""

SIGNING_KEY = new_signing_key()
"""With which identity signs in the processes of a test."""

UNLIMITED = dict.fromkeys(("login", "refused", "orders", "batches", "changes", "reads", "address"), "off")
"""Rates of a system that a few users may ask as much as tests and benchmarks want."""

T = TypeVar("T")
Fate = Literal["pass", "drop", "cut"] | bytes
"""What becomes of a frame; bytes: these go instead of it."""

Judge = Callable[[bytes], Fate]


async def eventually(look: Callable[[], Awaitable[T]], wanted: T, within: float = 20.0) -> None:
    """Look until what is seen is `wanted`, for `within` seconds at most; raises AssertionError with what was seen.

    The longer it lasts the less often it looks, because looking takes from what it waits for.
    """
    began = asyncio.get_running_loop().time()
    while (seen := await look()) != wanted:
        waited = asyncio.get_running_loop().time() - began
        assert waited < within, f"wanted {wanted!r}, still {seen!r} after {within:.0f} s"
        await asyncio.sleep(min(max(0.02, waited / 10), 0.2))


def figure(metrics: str, name: str, **labels: str) -> float:
    """A metric as `/metrics` has it: the sum of all of its series that have these labels; 0 where there is none."""
    found = [sample for family in text_string_to_metric_families(metrics) for sample in family.samples]
    return sum(each.value for each in found if each.name == name and labels.items() <= each.labels.items())


@asynccontextmanager
async def held(database_url: str, read_model: str) -> AsyncIterator[None]:
    """Nobody writes in a read model as long as this lasts."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(HOLD_WRITERS, read_model)
        yield
    finally:
        await connection.close()


PASSWORDS = {user: f"password-of-{user}" for user in everybody()}
"""Of the users of NATS and the roles of Postgres in tests."""


def nats_in(data: Path, port: int | None = None, kind: type[NatsServer] = NatsServer) -> NatsServer:
    """A NATS server, not started yet, whose users have their rights. Who names none, as tests do, may do everything."""
    test: dict[str, object] = {"user": "test", "password": "test"}
    return kind(data, port=port, users=[*nats_users(PASSWORDS), test], anybody="test")


def logins(settings: Settings) -> dict[str, str]:
    """The addresses of these servers for each service and for who migrates, as the variables that name them."""
    found = {}
    for user, password in PASSWORDS.items():
        found[variables("nats_url", user)[0]] = with_login(settings.nats_url, user, password)
        found[variables("database_url", user)[0]] = with_login(settings.database_url, role_of(user), password)
    return found


def unlimited() -> dict[str, str]:
    """The variables of such a system."""
    return {f"BOXOFFICE_RATE_{name.upper()}": rate for name, rate in UNLIMITED.items()}


def operator(settings: Settings) -> dict[str, str]:
    """The environment of who migrates."""
    database = variables("database_url", MIGRATE)[0]  # tests make schemas as whoever owns the database
    return {**os.environ, **logins(settings), database: settings.database_url, "COLUMNS": "200"}


async def command(settings: Settings, *words: str) -> asyncio.subprocess.Process:
    """`boxoffice` with these words, to NATS as whoever migrates; what it says is in its `stdout`."""
    return await asyncio.create_subprocess_exec(
        *(*BOXOFFICE, *words),
        env=operator(settings),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


class ServiceProcess:
    """`boxoffice serve <names>` as a child, each as its own user. It can be killed and started again on its port."""

    program: Sequence[str] = ()
    """What is executed. Where nothing is named it is forked, which is the same service in a third of the time."""
    options: Mapping[str, Any] = {}
    """More for whoever executes it: as which user, in which folder."""

    def __init__(self, names: str, settings: Settings, home: Path, **variables: str) -> None:
        self.names = names
        self.port = int(variables.get("BOXOFFICE_PORT", 0)) or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.nats_url = settings.nats_url
        self.log = home / f"{names.replace(' ', '+')}.log"
        if any(name.startswith("PYTHON") for name in variables):
            self.program = BOXOFFICE  # only a Python that starts obeys them
        self._process: asyncio.subprocess.Process | Forked | None = None
        self._environment = {
            **os.environ,
            **self.own(settings),
            "BOXOFFICE_AUTH": settings.auth,
            "BOXOFFICE_PORT": str(self.port),
            **unlimited(),
            **variables,
        }

    def own(self, settings: Settings) -> dict[str, str]:
        """The variables that tell it where its servers are and as whom, and with what it signs."""
        return {**logins(settings), "BOXOFFICE_SIGNING_KEY": SIGNING_KEY}

    async def start(self) -> None:
        """Return when it answers that it is ready; raises AssertionError with the end of its log."""
        self._process = await self._begun(("serve", *self.names.split()))
        deadline, said = asyncio.get_running_loop().time() + READY_SECONDS, "it ended"
        async with httpx.AsyncClient() as client:
            while asyncio.get_running_loop().time() < deadline and self._process.returncode is None:
                try:
                    answer = await client.get(f"{self.url}/health/ready")
                    if answer.status_code == 200:
                        return
                    said = answer.text
                except httpx.TransportError as error:
                    said = repr(error)
                await asyncio.sleep(0.05)
        raise AssertionError(f"{self.names} is not ready: {said}\n{self.tail()}")

    async def _begun(self, words: Sequence[str]) -> asyncio.subprocess.Process | Forked:
        if not self.program:
            files = Files(Path(os.devnull), self.log, self.log)
            return Forked(words, self._environment, files)
        with self.log.open("ab") as output:
            return await asyncio.create_subprocess_exec(
                *(*self.program, *words),
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                **self.options,
            )

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-4000:]

    async def kill(self) -> None:
        """SIGKILL, and gone."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        return await self._end(signal.SIGTERM)

    async def ended(self, within: float) -> int:
        """Wait until it has ended by itself; the exit code."""
        assert self._process, "it was started"
        return await asyncio.wait_for(self._process.wait(), within)

    async def _end(self, by: signal.Signals) -> int:
        if self._process is None:
            return 0
        if self._process.returncode is None:
            self._process.send_signal(by)
        return await asyncio.wait_for(self._process.wait(), 30)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()


class Proxy:
    """Stands between clients and NATS. `requests` and `answers` decide what becomes of each protocol frame."""

    def __init__(self, server: NatsServer) -> None:
        self.requests: Judge = lambda _: "pass"
        self.answers: Judge = lambda _: "pass"
        self._port = int(server.url.rpartition(":")[2])
        self._writers: set[asyncio.StreamWriter] = set()

    def lose(self, part: bytes) -> asyncio.Event:
        """Lose every request with this in it; set as soon as there was one."""
        lost = asyncio.Event()

        def judge(frame: bytes) -> Fate:
            if part not in frame:
                return "pass"
            lost.set()
            return "drop"

        self.requests = judge
        return lost

    async def __aenter__(self) -> Self:
        self._door = await asyncio.start_server(self._join, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self._door.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._door.close()
        for writer in self._writers:
            writer.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        both = {writer, far_writer}
        self._writers |= both
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await asyncio.gather(
                    self._carry(reader, far_writer, lambda frame: self.requests(frame)),
                    self._carry(far_reader, writer, lambda frame: self.answers(frame)),
                )
        finally:
            for each in both:
                each.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, judge: Judge) -> None:
        while True:
            frame = await reader.readuntil(b"\r\n")
            if frame.startswith((b"PUB", b"HPUB", b"MSG", b"HMSG")):
                frame += await reader.readexactly(int(frame.split()[-1]) + 2)
            match judge(frame):
                case "pass":
                    writer.write(frame)
                    await writer.drain()
                case "cut":
                    raise ConnectionResetError
                case bytes() as other:
                    writer.write(other)
                    await writer.drain()
