"""What the embedded servers promise: they answer, keep their data, report their end and leave nothing behind."""

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import asyncpg
import nats
import psutil  # type: ignore[import-untyped]  # psutil ships no types
import pytest
import uvloop
from nats.js.api import StreamConfig
from structlog.testing import capture_logs

from services.cli.embedded import make_roles
from services.cli.servers import NatsServer, PostgresServer, ServerFailed, free_port
from tests.harness import eventually

DEADLINE = 30.0
CONNECT = {"connect_timeout": 2, "allow_reconnect": False}

SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from services.cli.servers import NatsServer, PostgresServer

async def main():
    servers = [NatsServer(Path(sys.argv[1]) / "nats"), PostgresServer(Path(sys.argv[1]) / "postgres")]
    for server in servers:
        await server.start()
    print(*(server.pid for server in servers), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def after() -> Iterator[ExitStack]:
    """What is to be done after the test, however that goes."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def home(after: ExitStack) -> Path:
    """Not pytest's tmp_path: each new pytest closes root's to others again, also to the account of our Postgres."""
    return Path(after.enter_context(tempfile.TemporaryDirectory(prefix="boxoffice-test-")))


@pytest.fixture
def nats_server(home: Path, after: ExitStack) -> NatsServer:
    server = NatsServer(home / "nats", port=free_port())
    after.callback(server.kill)
    return server


@pytest.fixture
def postgres(home: Path, after: ExitStack) -> PostgresServer:
    server = PostgresServer(home / "postgres")
    after.callback(server.kill)
    return server


async def query(postgres: PostgresServer, sql: str) -> object:
    connection = await asyncpg.connect(postgres.url, timeout=DEADLINE)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def store_one(server: NatsServer) -> None:
    client = await nats.connect(server.url, **CONNECT)
    await client.jetstream().add_stream(StreamConfig(name="KEPT", subjects=["kept.*"]))
    await client.jetstream().publish("kept.1", b"an event")
    await client.close()


async def stored(server: NatsServer) -> int:
    client = await nats.connect(server.url, **CONNECT)
    info = await client.jetstream().stream_info("KEPT")
    await client.close()
    return info.state.messages


def family(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Without those that have ended but that init has not yet collected."""
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def files(directory: Path) -> set[str]:
    return {file.name for file in directory.rglob("*")}


async def test_both_start_and_answer_apart_from_our_terminal(nats_server: NatsServer, postgres: PostgresServer) -> None:
    await nats_server.start()
    await postgres.start()
    await store_one(nats_server)
    assert await stored(nats_server) == 1
    assert str(await query(postgres, "SHOW server_version")).startswith("18.")
    assert await query(postgres, "SHOW listen_addresses") == ""
    for server in (nats_server, postgres):
        assert server.running
        assert os.getsid(server.pid) != os.getsid(0)


async def test_events_survive_a_kill_and_the_address_stays(nats_server: NatsServer) -> None:
    await nats_server.start()
    url = nats_server.url
    client = await nats.connect(url, **CONNECT)
    await store_one(nats_server)
    nats_server.kill()
    assert not nats_server.running
    await client.close()
    await nats_server.start()
    assert nats_server.url == url
    assert await stored(nats_server) == 1


async def test_rows_survive_a_kill_in_the_middle_of_queries(postgres: PostgresServer) -> None:
    await postgres.start()
    url = postgres.url
    await query(postgres, "CREATE TABLE kept AS SELECT 1 AS row")
    busy = await asyncpg.connect(url)
    sleep = asyncio.create_task(busy.execute("SELECT pg_sleep(600)"))
    processes = family(postgres.pid)
    postgres.kill()
    assert alive(processes) == []
    with pytest.raises((asyncpg.PostgresError, OSError)):
        await sleep
    await postgres.start()
    assert postgres.url == url
    assert await query(postgres, "SELECT row FROM kept") == 1


async def test_whoever_makes_roles_can_be_stopped_while_postgres_says_nothing(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.rights.postgres_roles", lambda: "select pg_sleep(60);")
    await postgres.start()
    # In the loop that `boxoffice up` has, where a rollback waited for an answer.
    assert await asyncio.to_thread(uvloop.run, is_stopped(postgres)), "it waits for an answer"


async def is_stopped(postgres: PostgresServer) -> bool:
    """Whether making roles ends when it is cancelled while all of Postgres stands still."""
    connection = await asyncpg.connect(postgres.url)
    making = asyncio.create_task(make_roles(postgres.url, {}))
    await eventually(
        lambda: connection.fetchval("select count(*) from pg_stat_activity where wait_event = 'PgSleep'"), 1
    )
    server = psutil.Process(postgres.pid)
    processes = [server, *server.children()]
    for process in processes:
        process.suspend()
    making.cancel()
    done, _ = await asyncio.wait({making}, timeout=DEADLINE)
    for process in processes:
        process.resume()
    connection.terminate()
    await asyncio.wait({making})
    return bool(done)


async def test_a_crash_is_reported_and_repaired_by_a_start(nats_server: NatsServer, postgres: PostgresServer) -> None:
    for server in (nats_server, postgres):
        await server.start()
        crash = asyncio.create_task(server.wait())
        os.kill(server.pid, signal.SIGKILL)
        assert await asyncio.wait_for(crash, DEADLINE) == -signal.SIGKILL
        assert not server.running
        await server.start()
    await store_one(nats_server)
    assert await query(postgres, "SELECT 1") == 1


async def test_a_clean_stop_leaves_no_process_no_socket_and_no_pid_file(
    nats_server: NatsServer, postgres: PostgresServer, home: Path
) -> None:
    for server in (nats_server, postgres):
        await server.start()
    socket_dir = Path(str(await query(postgres, "SHOW unix_socket_directories")))
    assert files(socket_dir) == {".s.PGSQL.5432", ".s.PGSQL.5432.lock"}
    assert files(home) >= {"nats.pid", "postmaster.pid", "supervisor.lock"}
    processes = [*family(nats_server.pid), *family(postgres.pid)]
    for server in (nats_server, postgres):
        await server.stop()
        assert await server.wait() == 0
        await server.stop()
    assert alive(processes) == []
    assert files(socket_dir) == set()
    assert not files(home) & {"nats.pid", "postmaster.pid", "supervisor.lock"}


async def test_a_taken_port_is_refused_or_passed_over(home: Path, after: ExitStack) -> None:
    with socket.create_server(("127.0.0.1", free_port(4222))) as other:
        taken = other.getsockname()[1]
        asking = NatsServer(home / "asking", port=taken)
        after.callback(asking.kill)
        with pytest.raises(ServerFailed, match=f"port {taken} is taken"):
            await asking.start()
        choosing = NatsServer(home / "choosing")
        after.callback(choosing.kill)
        await choosing.start()
        assert int(choosing.url.rpartition(":")[2]) != taken
        await store_one(choosing)


async def test_what_a_dead_supervisor_left_running_is_stopped(
    nats_server: NatsServer, postgres: PostgresServer, home: Path
) -> None:
    supervisor = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SUPERVISOR, str(home), stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert supervisor.stdout is not None
    left: list[psutil.Process] = []
    try:
        line = await asyncio.wait_for(supervisor.stdout.readline(), DEADLINE)
        left = [psutil.Process(int(pid)) for pid in line.split()]
        assert len(left) == 2
        with pytest.raises(ServerFailed, match=f"in use by process {supervisor.pid}"):
            await nats_server.start()
        supervisor.kill()
        await supervisor.wait()
        assert alive(left) == left
        with capture_logs() as logs:
            await nats_server.start()
            await postgres.start()
        assert alive(left) == []
        stopped = {pid for entry in logs if entry["event"] == "leftover_stopped" for pid in entry["pids"]}
        assert stopped >= {process.pid for process in left}
        await store_one(nats_server)
        assert await query(postgres, "SELECT 1") == 1
    finally:
        if supervisor.returncode is None:
            supervisor.kill()
            await supervisor.wait()
        for process in alive(left):
            process.kill()


async def test_stale_files_do_not_hurt(nats_server: NatsServer, postgres: PostgresServer, home: Path) -> None:
    await postgres.start()
    await postgres.stop()
    ours = f"{os.getpid()}\n"
    (home / "postgres" / "pgdata" / "postmaster.pid").write_text(ours)
    (home / "postgres" / "supervisor.lock").write_text(ours)
    (home / "nats").mkdir()
    (home / "nats" / "nats.pid").write_text(ours)
    with capture_logs() as logs:
        await nats_server.start()
        await postgres.start()
    assert logs == []


async def test_an_interrupted_first_start_does_not_hurt(postgres: PostgresServer, home: Path) -> None:
    half_made = home / "postgres" / "initdb-interrupted"
    half_made.mkdir(parents=True)
    (half_made / "PG_VERSION").write_text("18\n")
    await postgres.start()
    assert not half_made.exists()
    assert await query(postgres, "SELECT 1") == 1


async def test_a_directory_that_let_everybody_in_does_not_any_more(postgres: PostgresServer) -> None:
    await postgres.start()
    connection = await asyncpg.connect(postgres.url)
    await connection.execute("create role sam login password 'secret'")
    await connection.close()
    await postgres.stop()
    door = postgres.log_file.with_name("pgdata") / "pg_hba.conf"
    door.write_text("local all all trust\n")
    await postgres.start()
    sams = postgres.url.replace("postgres@", "sam@")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(sams)
    await (await asyncpg.connect(sams, password="secret")).close()  # noqa: S106 (of this test)
    await (await asyncpg.connect(postgres.url)).close()


async def test_a_failed_start_shows_the_end_of_the_log(postgres: PostgresServer, home: Path, after: ExitStack) -> None:
    misconfigured = NatsServer(home / "nats", cluster_port=free_port(), routes=["nats://127.0.0.1:port"])
    after.callback(misconfigured.kill)
    with pytest.raises(ServerFailed, match=r"(?s)exit code 1 .*nats\.log.*error parsing route url.*Do not delete"):
        await misconfigured.start()
    await postgres.start()
    await postgres.stop()
    (home / "postgres" / "pgdata" / "PG_VERSION").write_text("9\n")
    with pytest.raises(ServerFailed, match=r"(?s)exit code 1 .*postgres\.log.*incompatible with server.*move"):
        await postgres.start()
    assert not postgres.running


async def test_an_unusable_directory_is_named(home: Path) -> None:
    (home / "file").write_text("")
    with pytest.raises(ServerFailed, match=str(home / "file")):
        await NatsServer(home / "file").start()


async def test_three_nodes_form_a_cluster_that_outlives_one_of_them(home: Path, after: ExitStack) -> None:
    cluster_ports = [free_port() for _ in range(3)]
    routes = [f"nats://127.0.0.1:{port}" for port in cluster_ports]
    nodes = [
        NatsServer(home / f"n{index}", port=free_port(), name=f"n{index}", cluster_port=port, routes=routes)
        for index, port in enumerate(cluster_ports)
    ]
    for node in nodes:
        after.callback(node.kill)
        await node.start()
    await replicated(nodes[0], "before", current=3)
    nodes[0].kill()
    await replicated(nodes[1], "during", current=2)
    await nodes[0].start()
    await replicated(nodes[0], "after", current=3)
    assert await stored(nodes[2]) == 3


async def replicated(node: NatsServer, event_id: str, current: int) -> None:
    """Publish to a stream of three replicas, through this node, and see it arrive in `current` of n0, n1, n2."""
    client = await nats.connect(node.url, **CONNECT)
    jetstream = client.jetstream(timeout=2)
    try:
        async with asyncio.timeout(DEADLINE):
            while True:  # there may be no leader yet
                with suppress(nats.errors.TimeoutError, nats.js.errors.Error):
                    await jetstream.add_stream(StreamConfig(name="KEPT", subjects=["kept.*"], num_replicas=3))
                    await jetstream.publish("kept.1", b"an event", headers={"Nats-Msg-Id": event_id})
                    cluster = (await jetstream.stream_info("KEPT")).cluster
                    assert cluster is not None
                    replicas = cluster.replicas or []
                    up_to_date = 1 + sum(bool(replica.current and not replica.offline) for replica in replicas)
                    if cluster.leader and up_to_date == current:
                        assert {cluster.leader, *(replica.name for replica in replicas)} == {"n0", "n1", "n2"}
                        break
                await asyncio.sleep(0.05)
    finally:
        await client.close()
