"""Records in bulk, from the upload of a CSV to committed with results, against COPY of the same rows."""

import asyncio
import io
from collections.abc import AsyncIterator
from datetime import timedelta
from statistics import median
from time import perf_counter

import asyncpg
import httpx

from common.clock import now
from tests.benchmarks.process import Served, serving
from tests.benchmarks.row import Measured, Row, Scene, alternate, at_least

MODULE = ("services.cli.main", "serve", "batch")
WITHIN = 300.0
ONE_BY_ONE = 2_000
COPIED = "create table if not exists copied (owner text, key text, value text, primary key (owner, key))"
INSERTED = "create table if not exists inserted (owner text, key text, value text, primary key (owner, key))"
ADA = {"Authorization": "Bearer dev:ada"}


def rows_of(turn: int, count: int) -> list[tuple[str, str]]:
    """Records that no other turn has."""
    return [(f"{turn}-{number}", f"some text {number}") for number in range(count)]


async def submit(served: Served, kind: str, lines: list[str], *, bad: int = 0) -> float:
    """Seconds from the first byte of a CSV until every operation has its result where it can be read.

    `bad`: how many of them are to fail. Raises RuntimeError if others do.
    """
    body = "\n".join(lines).encode()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}", headers=ADA, timeout=WITHIN) as http:
        began = perf_counter()
        answer = await http.post(
            "/api/batches", params={"kind": kind}, content=body, headers={"Content-Type": "text/csv"}
        )
        answer.raise_for_status()
        path = answer.headers["location"]
        async with asyncio.timeout(WITHIN):
            while True:
                batch = (await http.get(path)).json()
                if batch["completed_at"] and min(batch["written"].values()) == batch["counts"]["operations"]:
                    break
                await asyncio.sleep(0.1)  # an answer costs the service what 200 rows do
        took = perf_counter() - began
    counts = batch["counts"]
    if (counts["succeeded"], counts["failed"]) != (len(lines) - 1 - bad, bad):
        raise RuntimeError(f"not what was to come of them: {counts}")
    return took


def records(rows: list[tuple[str, str]]) -> list[str]:
    """The lines of a CSV of `records.insert`."""
    return ["key,value", *(f"{key},{value}" for key, value in rows)]


async def memory_of_upload(served: Served, count: int) -> float:
    """Megabytes that the service has at most while so many rows are uploaded."""
    most = 0.0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, served.memory / 1e6)
            await asyncio.sleep(0.02)

    async def blocks() -> AsyncIterator[bytes]:
        yield b"key,value\n"
        for start in range(0, count, 1000):
            yield b"".join(b"%d,some text %d\n" % (n, n) for n in range(start, start + 1000))

    watching = asyncio.create_task(watch())
    later = (now() + timedelta(days=1)).isoformat()  # only its upload is looked at
    options = {"kind": "records.insert", "run_at": later}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}", headers=ADA, timeout=WITHIN) as http:
        answer = await http.post("/api/batches", params=options, content=blocks(), headers={"Content-Type": "text/csv"})
        answer.raise_for_status()
    watching.cancel()
    return most


async def measure(scene: Scene) -> Measured:
    """Rows per second."""
    count = scene.size(200_000, 10_000)
    turns = iter(range(100))
    async with (
        scene.system() as platform,
        serving(MODULE, platform.settings, scene.home) as served,
        asyncpg.create_pool(platform.settings.database_url, min_size=1, max_size=1) as pool,
    ):
        await pool.execute(COPIED)
        await pool.execute(INSERTED)
        cpu: list[float] = []

        async def ours() -> float:
            rows, used = rows_of(next(turns), count), served.cpu_seconds
            took = await submit(served, "records.insert", records(rows))
            cpu.append((served.cpu_seconds - used) / count * 1e6)
            return count / took

        async def copy() -> float:
            turn = next(turns)
            source = io.BytesIO("".join(f"ada,{key},{value}\n" for key, value in rows_of(turn, count)).encode())
            began = perf_counter()
            async with pool.acquire() as connection:
                await connection.copy_to_table("copied", source=source, format="csv")
            return count / (perf_counter() - began)

        figures = await alternate(scene, ours, copy)
        scene.tell("one statement each")
        began = perf_counter()
        for key, value in rows_of(next(turns), ONE_BY_ONE):
            await pool.execute("insert into inserted (owner, key, value) values ('ada', $1, $2)", key, value)
        alone = ONE_BY_ONE / (perf_counter() - began)
        scene.tell("memory")
        uploaded = scene.size(1_000_000, 20_000)
        memory = await memory_of_upload(served, uploaded)
    details = {
        "rows": count,
        "cpu_us_per_row": median(cpu),
        "one_statement_each_per_second": alone,
        "times_one_statement_each": median(figures[0]) / alone,
        "rows_uploaded_at_once": uploaded,
        "memory_mb_meanwhile": memory,
    }
    return Measured("/s", *figures, details=details)


BULK = Row("bulk", "records.insert, CSV upload to results", "Postgres COPY of the same rows", at_least(0.2), measure)
