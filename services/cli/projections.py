"""`boxoffice projections`: read models, rebuilt and verified."""

from pathlib import Path

import rich_click as click

from common.telemetry import configure_logging
from services.cli.base import console, in_folder, progress_bars, run, settings_here


def known(name: str) -> None:
    """Raises BadParameter for a read model that there is none of."""
    from services.cli.system import READ_MODELS

    if name not in READ_MODELS:
        raise click.BadParameter(f"no read model {name}; there are {', '.join(READ_MODELS)}.")


@click.group()
def projections() -> None:
    """Read models: tables in Postgres that are made from the log."""


@projections.command()
@click.argument("name")
@in_folder
def rebuild(name: str, data: Path) -> None:
    """Make a read model anew beside the live one, then swap them."""
    from services.cli.system import rebuild as rebuild_read_model

    known(name)
    configure_logging("warning")
    with progress_bars(name) as progress:
        events = run(rebuild_read_model(name, settings_here(data), progress))
    console.print(f"rebuilt {name} from {events} events and swapped it in")


@projections.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@in_folder
def verify(names: tuple[str, ...], data: Path) -> None:
    """Compare every row of read models, of all by default, with what the log gives; exit code 1 if one differs."""
    from services.cli.system import READ_MODELS
    from services.cli.views import tell_compared
    from services.cli.views import verify as verify_read_model

    for name in names:
        known(name)
    configure_logging("warning")
    settings, wrong = settings_here(data), []
    with progress_bars() as progress:
        for name in dict.fromkeys(names or READ_MODELS):
            compared = run(verify_read_model(name, settings, progress))
            tell_compared(name, compared, console)
            if any(table.differing for table in compared):
                wrong.append(name)
    if wrong:
        mends = ", ".join(f"`boxoffice projections rebuild {name}`" for name in wrong)
        raise click.ClickException(f"The log says otherwise. Make it anew from there: {mends}.")
