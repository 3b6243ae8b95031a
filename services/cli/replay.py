"""`boxoffice replay`: what was, made again from the log."""

from datetime import datetime
from pathlib import Path

import rich_click as click

from common.telemetry import configure_logging
from services.cli.base import MOMENT, console, in_folder, progress_bars, run, settings_here
from services.cli.decide import decide
from services.cli.projections import known
from services.cli.replay_listener import listener


@click.group()
def replay() -> None:
    """What was, made again from the log, beside what is."""


@replay.command()
@click.argument("name")
@click.option(
    "--until",
    type=MOMENT,
    required=True,
    help="What was appended before a time (2030-01-31T19:30:00Z, or 2030-01-31, or 15m, 2h, 1d ago, or now), or up to "
    "a sequence of the stream of that service.",
)
@click.option("--into", metavar="SCHEMA", help="The schema to make.  [default: NAME_at_SEQUENCE]")
@in_folder
def projection(name: str, until: datetime | int, into: str | None, data: Path) -> None:
    """Make read model NAME as it was at a moment, in a scratch schema beside the live one."""
    from services.cli.views import tell_view, view

    known(name)
    configure_logging("warning")
    with progress_bars(name) as progress:
        made = run(view(name, until, into, settings_here(data), progress))
    tell_view(name, made, console)


@replay.command()
@click.option("--drop", metavar="SCHEMA", help="Drop this one.")
@in_folder
def projections(drop: str | None, data: Path) -> None:
    """List the scratch schemas that `replay projection` has made, or drop one."""
    from services.cli.views import drop_scratch, tell_scratches

    configure_logging("warning")
    if drop is None:
        run(tell_scratches(settings_here(data), console))
    else:
        run(drop_scratch(drop, settings_here(data)))
        console.print(f"dropped schema {drop}")


replay.add_command(decide)
replay.add_command(listener)
