"""`boxoffice batch`: hand in a file of operations, watch it, look at what became of it; over HTTP."""

import asyncio
import csv
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from common.clock import new_id
from common.errors import Invalid, Unavailable
from services.batch.upload import MediaType, rows_as_sent
from services.cli.who import Refusal, Who

MEDIA_TYPES: Mapping[str, MediaType] = {
    ".csv": "text/csv",
    ".ndjson": "application/x-ndjson",
    ".jsonl": "application/x-ndjson",
}
BLOCK = 64 * 1024
TRIES = 10
PAUSE = 1.0
"""How often an upload is asked for whose answer is lost, and seconds between."""
ERRORS_SHOWN = 10
COLOURS = {"COMPLETED": "green", "COMPLETED_WITH_ERRORS": "yellow", "FAILED": "red", "CANCELLED": "yellow"}


class Batches:
    """The batches of one user, at one address."""

    def __init__(self, http: httpx.AsyncClient, console: Console) -> None:
        self._http = http
        self._console = console

    async def submit(self, file: Path, kind: str, options: Mapping[str, str]) -> dict[str, Any]:
        """Upload a file, with a bar. What became of one whose answer is lost is asked for with the same key.

        Raises Invalid, Refusal.
        """
        headers = {"Content-Type": media_type_of(file), "Idempotency-Key": str(new_id())}
        columns = (TextColumn("uploading"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task("", total=size_of(file))
            for left in reversed(range(TRIES)):
                bar.reset(task)
                try:
                    answer = await self._http.post(
                        "/api/batches",
                        params={"kind": kind, **options},
                        content=blocks_of(file, lambda sent: bar.update(task, advance=sent)),
                        headers=headers,
                        timeout=600,
                    )
                except httpx.TransportError as error:
                    if left == 0 or isinstance(error, httpx.ConnectError):
                        raise
                else:
                    if answer.status_code != 409 or left == 0:  # 409: the upload that broke off, or is thought to go on
                        break
                    if (await self.read(answer.json()["batch_id"]))["status"] == "FAILED":  # and nothing of it ran
                        headers["Idempotency-Key"] = str(new_id())
                await asyncio.sleep(PAUSE)
        return told(answer)

    async def watch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Show a batch's progress until it is over."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task(batch["status"].lower(), total=batch["counts"]["operations"])
            while True:
                done = batch["counts"]["operations"] - batch["counts"]["pending"]
                bar.update(task, completed=done, description="paused" if batch["paused"] else batch["status"].lower())
                written = batch["written"]
                if batch["completed_at"] and min(written.values()) >= done:
                    return batch
                await asyncio.sleep(0.2)
                batch = await self.read(batch["id"])

    async def read(self, batch_id: str) -> dict[str, Any]:
        """One batch. Raises Refusal."""
        return told(await self._http.get(f"/api/batches/{batch_id}"))

    async def newest(self) -> list[dict[str, Any]]:
        """The newest batches."""
        items: list[dict[str, Any]] = told(await self._http.get("/api/batches", params={"limit": "20"}))["items"]
        return items

    async def failed(self, batch_id: str, limit: int) -> list[dict[str, Any]]:
        """The first operations that failed."""
        path = f"/api/batches/{batch_id}/operations"
        answer = await self._http.get(path, params={"status": "failed", "limit": str(limit)})
        items: list[dict[str, Any]] = told(answer)["items"]
        return items

    async def act(self, batch_id: str, what: str) -> dict[str, Any]:
        """Cancel it or try again what failed. Raises Refusal."""
        return told(await self._http.post(f"/api/batches/{batch_id}/{what}"))

    async def kinds(self) -> list[dict[str, Any]]:
        """The kinds of operation that are installed."""
        kinds: Any = told(await self._http.get("/api/batch-kinds"))
        return list(kinds)

    async def pause_or_resume(self, kind: str, what: str) -> dict[str, Any]:
        """Begin nothing of a kind any more, or go on with it. Raises Refusal, also for who is no operator."""
        return told(await self._http.post(f"/api/batch-kinds/{quote(kind, safe='')}/{what}"))

    async def report(self, batch_id: str) -> AsyncIterator[bytes]:
        """The lines of its report."""
        async with self._http.stream("GET", f"/api/batches/{batch_id}/report.csv") as answer:
            if answer.status_code != 200:
                await answer.aread()
                told(answer)
            async for block in answer.aiter_bytes():
                yield block

    async def bad_rows(self, batch: dict[str, Any]) -> set[int]:
        """The rows of a batch that is over that were refused, have failed or were not run. Raises Refusal."""
        if batch["detail"]:
            raise Refusal(f"{batch['detail']} Mend the file, and hand in all of it again.")
        if not batch["completed_at"]:
            raise Refusal(f"The batch is still {batch['status']}: which of its rows are bad is known when it is over.")
        bad = set[int]()
        async for row in rows_of(self.report(batch["id"])):  # the latest run of a row comes last
            (bad.discard if row["status"] == "succeeded" else bad.add)(int(row["row"]))
        counts = batch["counts"]
        if len(bad) != counts["failed"] + counts["refused"] + counts["cancelled"]:
            raise Unavailable("The report of the batch is not written to its end yet: try again in a moment.")
        return bad

    async def tell(self, batch: dict[str, Any]) -> None:
        """Show a batch, and the first things that went wrong with it."""
        counts, colour = batch["counts"], COLOURS.get(batch["status"], "cyan")
        say = self._console.print
        say(f"[bold {colour}]{batch['status']}[/] {batch['kind']} [dim]{batch['id']}[/]", soft_wrap=True)
        if batch["detail"]:
            say(f"  {batch['detail']}", markup=False, soft_wrap=True)
        if trouble := batch["trouble"]:
            times = "once" if trouble["attempts"] == 1 else f"{trouble['attempts']} times"
            waiting = f"{trouble['operations']:,} to be tried again, after {times}"
            say(f"  {waiting}: {trouble['error']}", markup=False, soft_wrap=True)
        if batch["paused"]:
            say(f"  paused until an operator says: boxoffice batch resume {batch['kind']}", soft_wrap=True)
        ends = "  ".join(f"{counts[end]:,} {end}" for end in ("succeeded", "failed", "cancelled", "pending", "refused"))
        say(f"  {ends}" + (f"  [dim]{batch['rate']:,.0f}/s[/]" if batch["rate"] else ""))
        wrong = await self.wrong(batch)
        for row, error in wrong:
            say(f"  row {row}: {error}", markup=False, soft_wrap=True)
        more = counts["failed"] + counts["refused"] - len(wrong)
        if more > 0:
            say(f"  [dim]and {more:,} more: boxoffice batch report {batch['id']}[/]", soft_wrap=True)

    async def wrong(self, batch: dict[str, Any]) -> list[tuple[int, str]]:
        """The first rows of a batch with which something is wrong now, and what; not what a retry has mended."""
        counts, wrong = batch["counts"], list[tuple[int, str]]()
        if counts["failed"]:
            wrong += [(failed["row"], failed["error"]) for failed in await self.failed(batch["id"], ERRORS_SHOWN)]
        if left := min(counts["refused"], ERRORS_SHOWN):
            async for row in rows_of(self.report(batch["id"])):  # they come first in it
                if row["status"] == "refused":
                    wrong.append((int(row["row"]), row["error"]))
                    left -= 1
                if not left:
                    break
        return sorted(wrong)[:ERRORS_SHOWN]


def media_type_of(file: Path) -> MediaType:
    """What is in a file, by its name. Raises Invalid."""
    media_type = MEDIA_TYPES.get(file.suffix.lower())
    if media_type is None:
        raise Invalid(f"{file}: What is it? Its name must end in {', '.join(MEDIA_TYPES)}.")
    return media_type


def size_of(file: Path) -> int:
    """Bytes of a file."""
    return file.stat().st_size


async def blocks_of(file: Path, sent: Callable[[int], None]) -> AsyncIterator[bytes]:
    """A file in blocks; `sent` is told each block's size."""
    with file.open("rb") as source:
        while block := source.read(BLOCK):
            yield block
            sent(len(block))


async def rows_of(blocks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, str]]:
    """The rows of a report, as they come."""
    names: list[str] = []
    row = rest = b""
    async for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            row += line + b"\n"
            if row.count(b'"') % 2:
                continue  # a cell in quotes goes on in the next line
            (cells,) = csv.reader([row.decode()])
            row = b""
            if names:
                yield dict(zip(names, cells, strict=True))
            else:
                names = cells


def told(answer: httpx.Response) -> dict[str, Any]:
    """What an answer holds. Raises Refusal for a problem."""
    if answer.is_success:
        held: dict[str, Any] = answer.json()
        return held
    try:
        problem = answer.json()
        raise Refusal(f"{problem['title']}: {problem['detail']}")
    except (ValueError, KeyError):
        raise Refusal(f"{answer.status_code}: {answer.text[:200]}") from None


@asynccontextmanager
async def batches_at(url: str, who: Who, console: Console) -> AsyncIterator[Batches]:
    """Somebody's batches at `url`. Raises Unavailable when nobody answers there, Refusal."""
    hooks = {"response": [who.refuse]}
    async with httpx.AsyncClient(base_url=url, timeout=30, headers=who.headers, event_hooks=hooks) as http:
        try:
            yield Batches(http, console)
        except httpx.TransportError as error:
            raise Unavailable(f"{url} does not answer ({type(error).__name__}). Is it running?") from error


async def submit(
    batches: Batches, console: Console, file: Path, kind: str, options: Mapping[str, str], *, watch: bool
) -> bool:
    """Hand in a file and watch it; whether all of it went well."""
    batch = await batches.submit(file, kind, options)
    if watch:
        console.print(
            f"taken in as {batch['id']}", soft_wrap=True
        )  # to find it again, whatever becomes of this command
        batch = await batches.watch(batch)
    await batches.tell(batch)
    return went_well(batch)


async def retry(batches: Batches, batch_id: str) -> bool:
    """Try again what failed of a batch and watch it; whether all of it has gone well now."""
    batch = await batches.watch(await batches.act(batch_id, "retry"))
    await batches.tell(batch)
    return went_well(batch)


def went_well(batch: dict[str, Any]) -> bool:
    """Whether nothing has gone wrong with a batch: no row of it is refused, failed or cancelled."""
    return batch["status"] in ("PENDING", "RUNNING", "COMPLETED")


async def listed(batches: Batches, console: Console) -> None:
    """Show the newest batches."""
    line = "{:<36}  {:<18} {:<21} {:>10} {:>7} {:>7}  {}"
    found = await batches.newest()
    titles = line.format("batch", "kind", "status", "operations", "failed", "refused", "created")
    console.print(f"[dim]{titles}[/]", soft_wrap=True)  # a folded id cannot be copied
    for batch in found:
        counts, status = batch["counts"], batch["status"]
        told = line.format(
            batch["id"],
            batch["kind"],
            status,
            f"{counts['operations']:,}",
            f"{counts['failed']:,}",
            f"{counts['refused']:,}",
            batch["created_at"][:19],
        )
        console.print(told.replace(status, f"[{COLOURS.get(status, 'cyan')}]{status}[/]"), soft_wrap=True)


def tell_kinds(console: Console, kinds: Sequence[dict[str, Any]]) -> None:
    """Show kinds of operation: which are paused, and what their rows hold."""
    for kind in kinds:
        columns = ",".join(kind["fields"]["$defs"][kind["fields"]["$ref"].rpartition("/")[2]]["properties"])
        state = "[yellow]paused [/]" if kind["paused"] else "[green]running[/]"
        console.print(
            f"{kind['name']:<18} {state}  {columns}\n  [dim]{kind['about']}[/]", soft_wrap=True, highlight=False
        )


async def write_report(batches: Batches, batch_id: str, to: Path | None) -> None:
    """Write a batch's report to a file or to stdout."""
    with to.open("wb") if to else nullcontext(sys.stdout.buffer) as target:
        async for block in batches.report(batch_id):
            target.write(block)
        target.flush()


async def write_bad_rows(batches: Batches, batch_id: str, file: Path, to: Path | None) -> None:
    """Write the header and the bad rows of the file that a batch was handed in as. Raises Invalid, Refusal."""
    media_type = media_type_of(file)
    batch = await batches.read(batch_id)
    bad = await batches.bad_rows(batch)
    header = media_type == "text/csv"
    total, rows = 0, list[bytes]()
    with file.open("rb") as source:
        for total, row in enumerate(rows_as_sent(source, media_type), 0 if header else 1):
            if total == 0 or total in bad:
                rows.append(row if row.endswith(b"\n") else row + b"\n")
    if total != (there := batch["counts"]["operations"] + batch["counts"]["refused"]):
        raise Invalid(f"{file} has {total:,} rows and the batch {there:,}: it is not the file that was handed in.")
    if not bad:
        raise Invalid("Every row of the batch has succeeded.")
    with to.open("wb") if to else nullcontext(sys.stdout.buffer) as target:
        target.writelines(rows)
        target.flush()
