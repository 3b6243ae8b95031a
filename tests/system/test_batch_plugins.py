"""Kinds of operation from packages of their own, good ones and bad ones, with the commands and the service."""

import asyncio
import os
import sys
from pathlib import Path
from textwrap import dedent

import asyncpg
import httpx

from common.runtime import Platform
from tests.harness import ServiceProcess, eventually

ADA = {"Authorization": "Bearer dev:ada"}

SEATS = """
    import msgspec

    from services.batch.kinds import Done, Kind


    class Seat(msgspec.Struct):
        row: str


    class Reserve(Kind[Seat]):
        name = "seats.reserve"
        operation = Seat
        tables = "create table if not exists batch_data.seats (row text primary key)"

        async def execute_many(self, work, operations):
            return [Done()] * len(operations)


    class Release(Reserve):
        name = "seats.free"


    class Move(Reserve):
        name = "seats.move"
        tables = "create table if not exists batch_data.moves (row texd)"


    class Clear(Reserve):
        name = "seats.clear"
        tables = "-- none"


    class Count(Kind[Seat]):
        name = "seats.count"

        async def execute_many(self, work, operations):
            return [Done()] * len(operations)
"""


DEADLY = """
    import os

    import msgspec

    from services.batch.kinds import Done, Kind


    class Seat(msgspec.Struct):
        row: str


    class Break(Kind[Seat]):
        name = "seats.break"
        operation = Seat
        attempts = 2

        async def execute_many(self, work, operations):
            if any(task.what.row == "die" for task in operations):
                os._exit(9)  # as a crash of a C library, or the end of memory
            return [Done()] * len(operations)
"""


def install(home: Path, package: str, code: str, **points: str) -> dict[str, str]:
    """A package with entry points for kinds; the environment in which it is installed."""
    root = home / "plugins"
    about = root / f"{package}-1.0.dist-info"
    about.mkdir(parents=True)
    (root / f"{package}.py").write_text(dedent(code))
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"seats.{name} = {package}:{where}\n" for name, where in points.items()]
    (about / "entry_points.txt").write_text("".join(["[boxoffice.batch_kinds]\n", *lines]))
    return {"PYTHONPATH": str(root)}


async def boxoffice(*arguments: str, **variables: str) -> tuple[int, str]:
    """The exit code of a command and what it says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli.main", *arguments),
        env={**os.environ, **variables, "COLUMNS": "400"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_what_is_wrong_with_a_plugin_stops_nothing_else(platform: Platform, home: Path) -> None:
    settings = platform.settings
    plugins = install(
        home,
        "seats",
        SEATS,
        reserve="Reserve",
        release="Release",
        move="Move",
        clear="Clear",
        count="Count",
        ban="Ban",
    ) | install(home, "halls", "raise ImportError('no [such] package [/]')", halls="Hall")
    variables = plugins | {"BOXOFFICE_NATS_URL": settings.nats_url, "BOXOFFICE_DATABASE_URL": settings.database_url}
    wrong = {
        "halls": "no [such] package [/]",
        "seats.release = seats:Release": "'seats.free'",
        "seats.count = seats:Count": "`operation`",
        "seats.ban = seats:Ban": "AttributeError",
    }

    code, said = await boxoffice("migrate", **variables)
    assert code == 0, said
    assert "Traceback" not in said
    told = [line for line in said.splitlines() if "kind_left_out" in line]
    assert len(told) == len(wrong)
    for which, why in wrong.items():
        (line,) = [line for line in told if which in line and why in line]
        assert "or uninstall it" in line
    without_tables = {"seats.move": "texd", "seats.clear": ""}
    for which, why in without_tables.items():
        (line,) = [line for line in said.splitlines() if "kind_without_tables" in line and which in line]
        assert why in line
    assert "made tables of kind seats.reserve\n" in said
    connection = await asyncpg.connect(settings.database_url)
    assert await connection.fetchval("select to_regclass('batch_data.seats') is not null")
    await connection.close()
    assert "nothing to change" in (await boxoffice("migrate", **variables))[1]

    async with ServiceProcess("batch", settings, home, **plugins) as process, httpx.AsyncClient() as http:
        kinds = await http.get(f"{process.url}/api/batch-kinds", headers=ADA)
        assert kinds.status_code == 200
        names = {kind["name"] for kind in kinds.json()}
        assert {"records.insert", "seats.reserve", "seats.move"} <= names
        assert names.isdisjoint({"seats.free", "seats.release", "seats.count", "seats.ban"})
        log = process.log.read_text()
        assert log.count("kind_left_out") == len(wrong)
        assert "Traceback" not in log

    code, said = await boxoffice("doctor", **variables)
    assert (code, "things to do." in said) == (1, True)
    for which, why in wrong.items():
        assert any(which in line and why in line for line in said.splitlines())


async def test_what_ends_its_process_again_and_again_fails_and_nothing_else_does(
    platform: Platform, home: Path
) -> None:
    plugins = install(home, "seats", DEADLY, **{"break": "Break"})

    async def submit(rows: str) -> str:
        headers = ADA | {"Content-Type": "text/csv"}
        path = f"{process.url}/api/batches?kind=seats.break"
        answer = await http.post(path, content="row\n" + rows, headers=headers)
        assert answer.status_code == 202
        return str(answer.json()["id"])

    async def told(batch_id: str) -> str:
        return str((await http.get(f"{process.url}/api/batches/{batch_id}", headers=ADA)).json()["status"])

    async with (
        ServiceProcess("batch", platform.settings, home, **plugins, BOXOFFICE_BATCH_INTERVAL_MS="500") as process,
        httpx.AsyncClient() as http,
    ):
        good, bad = await asyncio.gather(submit("a\nb\n"), submit("c\ndie\n"))
        for _ in range(2):
            assert await process.ended(60) == 9
            await process.start()
        await eventually(lambda: told(bad), "FAILED", 60)
        await eventually(lambda: told(good), "COMPLETED", 60)
        found = await http.get(f"{process.url}/api/batches/{bad}/operations", headers=ADA)
        assert {each["error"] for each in found.json()["items"]} == {
            "The process that executed it, perhaps together with others, ended 2 times."
        }
