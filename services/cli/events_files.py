"""`boxoffice events export` and `import`: a log, or some of it, as a file."""

import asyncio
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import rich_click as click
from rich.console import Console
from rich.markup import escape

from common.clock import now
from common.progress import Progress
from common.telemetry import configure_logging
from services.cli.base import TIME, counted, in_folder, progress_bars, run, settings_here

STDOUT = Path("-")


@click.command("export")
@click.option("--since", type=TIME, help="Only aggregates that have an event since then.")
@click.option("--until", type=TIME, help="As the log was then.")
@click.option("--service", "services", multiple=True, help="Only what this service tells; may be repeated.")
@click.option(
    "--aggregate", help="Only this one: its subject such as orders.<id>, or an id; that of an order is its book's."
)
@click.option("--mask", is_flag=True, help="Without what is personal; who is the same person stays the same person.")
@click.option("--output", "-o", type=click.Path(path_type=Path, allow_dash=True), default=STDOUT, help="A file.")
@in_folder
def export_events(
    since: datetime | None,
    until: datetime | None,
    services: tuple[str, ...],
    aggregate: str | None,
    mask: bool,
    output: Path,
    data: Path,
) -> None:
    """Write the log as lines of JSON, for `boxoffice events import` and for whoever reads them.

    Aggregates are exported with all their history, as nothing could be made of a part of it. Without options it is the
    whole log, which an import makes again with the same sequence numbers.
    """
    from common.exports import Selection

    configure_logging("warning")
    stderr = Console(stderr=True, highlight=False)
    if since and since > now():
        raise click.BadParameter("That is still to come.", param_hint="--since")
    if since and until and since >= until:
        raise click.BadParameter("That is not after --since.", param_hint="--until")
    selection = Selection(since, until, services, aggregate)
    with progress_bars("exporting") as progress, written(output) as file:
        told = run(write_events(settings_here(data), file, selection, progress, stderr, masked=mask))
    unknown = f"; this code does not understand {told.unknown:,} of them" if told.unknown else ""
    of = counted(told.aggregates, "aggregate")
    stderr.print(f"exported {counted(told.events, 'event')} of {of}{unknown}", soft_wrap=True)


@contextmanager
def written(output: Path) -> Iterator[BinaryIO]:
    """What is written goes to stdout, or into a file that is there whole or not at all."""
    if output == STDOUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        with tempfile.NamedTemporaryFile(dir=output.parent, prefix=f".{output.name}.", delete=False) as file:
            part = Path(file.name)
            try:
                yield file  # type: ignore[misc]  # a wrapper of a BinaryIO
                file.flush()
                os.fsync(file.fileno())
                part.rename(output)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise click.ClickException(f"{output} cannot be written: {error.strerror}.") from error


async def write_events(
    settings: Any, file: BinaryIO, selection: Any, progress: Progress, stderr: Console, *, masked: bool
) -> Any:
    """Write a selection of the log. Raises Invalid, NotFound, Unavailable."""
    from msgspec.structs import replace

    from common.errors import DomainError
    from common.exports import export
    from common.masking import Masking
    from common.runtime import connect
    from services.cli.system import DECIDERS, MADE_OF_USERS
    from services.history.finding import find

    def warn(told: str) -> None:
        stderr.print(f"[yellow]![/] {escape(told)}", soft_wrap=True)

    masking = Masking(MADE_OF_USERS) if masked else None
    async with connect(settings, "export") as platform:
        if selection.aggregate:
            with suppress(DomainError):  # what nobody here knows is looked for as it is called
                found = await find(platform.event_log, DECIDERS, selection.aggregate)
                if found.about:
                    selection = replace(selection, aggregate=found.events[0].subject.rpartition(".")[2])
        return await export(platform.event_log, file.write, selection, masking=masking, progress=progress, warn=warn)


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--deliver",
    is_flag=True,
    help="Have all services act on it as if it happened now: expire orders, capture payments, tell people.",
)
@in_folder
def import_events(file: Path, deliver: bool, data: Path) -> None:
    """Make a log of a FILE that `boxoffice events export` wrote (- is stdin), in a system that has none.

    All of it is checked before anything is written. One that was cut off goes on when it is run again. Nobody acts on
    what is imported: an order that was held stays so, nothing is paid or posted.
    """
    from common.exports import ExportFile

    configure_logging("error")
    stderr = Console(stderr=True, highlight=False)
    with opened(file) as content:
        export = ExportFile(content, "stdin" if file == STDOUT else str(file))
        with progress_bars("checking", transient=True) as progress:
            head, counts = run(check(export, progress, deliver=deliver))
        with progress_bars("importing") as progress:
            place = shlex.quote(str(file if file == STDOUT else file.absolute()))
            told = run(read_events(export, place, counts, data, progress, stderr, deliver=deliver))
    before = f" ({told.before:,} were there)" if told.before else ""
    stderr.print(f"imported {told.events:,} events{before}")
    if head.partial and told.events:
        stderr.print("They have other sequence numbers than they had, as it is a part of a log.")
    if head.masked:
        stderr.print("They are masked: people, what they wrote, and ids made from it are not what they were.")


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """A file that can be read more than once: stdin is kept meanwhile."""
    if file == STDOUT:
        with tempfile.TemporaryFile() as kept:
            shutil.copyfileobj(sys.stdin.buffer, kept)
            yield kept
        return
    try:
        with file.open("rb") as content:
            yield content
    except OSError as error:
        raise click.ClickException(f"{file} cannot be read: {error.strerror}.") from error


async def check(file: Any, progress: Progress, *, deliver: bool) -> tuple[Any, dict[str, int]]:
    """Look at all of a file: its first line, and how many events of each stream there are. Raises Invalid."""
    from common.errors import Invalid

    head = file.head()
    if head.masked and deliver:
        raise Invalid(f"{file.name} is masked: nobody can act on it. Import it without --deliver.")
    return head, file.check(progress)


async def read_events(
    file: Any, place: str, counts: dict[str, int], data: Path, progress: Progress, stderr: Console, *, deliver: bool
) -> Any:
    """Take in a file that was checked, to a shell `place`. Raises BadSetting, Conflict, Invalid, Unavailable."""
    from common.imports import IMPORT, take_in
    from common.runtime import connect
    from common.settings import Settings, load
    from common.topology import STREAMS
    from services.cli.embedded import as_service

    settings = settings_here(data)
    own = {
        stream.name: load(Settings, as_service(stream.writers[0], os.environ, data), of=stream.writers[0])
        for stream in STREAMS
        if stream.name in counts
    }
    async with AsyncExitStack() as stack:
        platform = await stack.enter_async_context(connect(settings, "import"))
        writers = {
            stream: (await stack.enter_async_context(connect(as_owner, f"import {stream}"))).event_log
            for stream, as_owner in own.items()
        }
        try:
            return await take_in(
                *(file, counts, platform.client, writers),
                again=f"{IMPORT} {place}",
                deliver=deliver,
                progress=progress,
            )
        except asyncio.CancelledError:
            stays = "Stopped: what was taken in until now stays, and nobody acts on it"
            stderr.print(f"{stays}. Run the same again to go on, before anybody uses the system.", soft_wrap=True)
            raise
