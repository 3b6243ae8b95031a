"""What `boxoffice replay projection` and `boxoffice projections verify` do, and how they tell of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

import msgspec
from rich.console import Console
from rich.markup import escape

from common import verify as verification
from common import views
from common.errors import Unavailable
from common.postgres import POSTGRES_FAILED, told
from common.progress import Progress
from common.runtime import connect
from common.settings import Settings
from common.verify import Compared, Difference, Row
from common.views import View
from services.cli.base import counted
from services.cli.system import READ_MODELS, SIDE_SCHEMAS, START_IT, as_it_was

RESERVED = {
    *READ_MODELS,
    *SIDE_SCHEMAS,
    *(f"{name}_{use}" for name in READ_MODELS for use in ("rebuild", "old", "verify")),
}
"""Names of schemas that are for other things, also before they are there."""


async def view(name: str, until: datetime | int, into: str | None, settings: Settings, progress: Progress) -> View:
    """Make a read model as it was in a scratch schema. Raises Invalid, Conflict, Unavailable."""
    model = READ_MODELS[name]
    async with connect(settings, "replay") as platform:
        with postgres_asked(), as_it_was(name):
            return await views.view(
                model,
                until,
                platform.event_log,
                settings.database_url,
                into=into,
                reserved=RESERVED,
                progress=progress,
            )


async def verify(name: str, settings: Settings, progress: Progress) -> list[Compared]:
    """Compare every row of a read model with what the log gives. Raises Conflict, Unavailable."""

    def of_this(stream: str, reached: int, end: int) -> None:
        progress(f"{name} from {stream}", reached, end)

    async with connect(settings, "verify") as platform:
        with postgres_asked(), as_it_was(name):
            return await verification.verify(READ_MODELS[name], platform.event_log, settings.database_url, of_this)


async def tell_scratches(settings: Settings, console: Console) -> None:
    """List the scratch schemas. Raises Unavailable."""
    with postgres_asked():
        found = await views.scratches(settings.database_url)
    for each in found:
        console.print(f"{each.schema}  [dim]{escape(each.says)}[/]")
    if not found:
        console.print("There are none; `boxoffice replay projection NAME --until MOMENT` makes one.")


async def drop_scratch(schema: str, settings: Settings) -> None:
    """Drop one. Raises NotFound, Conflict, Unavailable."""
    with postgres_asked():
        await views.drop(schema, settings.database_url)


@contextmanager
def postgres_asked() -> Iterator[None]:
    """Tells of a Postgres that does not do what it is asked. Raises Unavailable."""
    try:
        yield
    except POSTGRES_FAILED as error:
        raise Unavailable(f"{told(error, if_away=START_IT)}.") from error


def tell_view(name: str, view: View, console: Console) -> None:
    """What was made, up to where, and how to look at it."""
    reached = ", ".join(f"{stream} up to {sequence}" for stream, sequence in view.reached.items())
    console.print(f"made {name} as it was with {reached}")
    if view.until:
        console.print(f"the last event of {next(iter(view.reached))} in it is of {view.until:%Y-%m-%dT%H:%M:%S.%fZ}")
    for table, rows in view.rows.items():
        console.print(f"  {view.schema}.{table}  {counted(rows, 'row')}")
    table = next(iter(view.rows))
    console.print(f'look at it in psql:  table "{view.schema}".{table};')
    console.print(f"drop it:  boxoffice replay projections --drop {view.schema}")


def tell_compared(name: str, compared: Sequence[Compared], console: Console) -> None:
    """Each table with what differs in it: as it is live, then as the log has it."""
    for table in compared:
        sign = "[red]✗[/]" if table.differing else "[green]✓[/]"
        told = f"{counted(table.rows, 'row')}, {counted(table.differing, 'difference')}"
        console.print(f"{sign} {name}.{table.table}: {told}")
        for difference in table.differences:
            console.print(f"    {escape(described(table.key, difference))}")
        if table.differing > len(table.differences):
            console.print(f"    [dim]and {table.differing - len(table.differences):,} more[/]")


def described(key: Sequence[str], difference: Difference) -> str:
    """In what a row differs, in a line: which it is, and of each column what it is and what it should be."""
    live, rebuilt = difference.live, difference.rebuilt
    if rebuilt is None:
        assert live is not None, "it is in one of the two"
        return f"{which(key, live)}: too many, the log has no such row"
    if live is None:
        return f"{which(key, rebuilt)}: missing"
    changes = (
        f"{column} {shown(live.get(column))} -> {shown(rebuilt.get(column))}"
        for column in dict.fromkeys([*rebuilt, *live])
        if live.get(column) != rebuilt.get(column)
    )
    return f"{which(key, rebuilt)}: {', '.join(changes)}"


def which(key: Sequence[str], row: Row) -> str:
    """Its primary key; all of it, if there is none."""
    return ", ".join(f"{column} {shown(row[column])}" for column in key or row)


def shown(value: object) -> str:
    """A value as JSON has it; a text as it is, where one can tell where it ends."""
    text = msgspec.json.encode(value).decode()
    return text[1:-1] if isinstance(value, str) and text[1:-1] == value and " " not in value else text
