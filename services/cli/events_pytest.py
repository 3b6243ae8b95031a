"""`boxoffice events pytest`: a failing test, written from a history."""

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from common.telemetry import configure_logging
from services.cli.base import console, in_folder, run, service_and_id, settings_here

if TYPE_CHECKING:
    from services.cli.given_when_then import Decided


@click.command("pytest")
@click.argument("place", nargs=-1, required=True, metavar="[SERVICE] ID")
@click.option("--at", type=click.IntRange(1), metavar="SEQUENCE", help="The event to ask about.  [default: the last]")
@click.option("--recorded", is_flag=True, help="Expect what was recorded: a test that keeps it so.")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="A file instead of the terminal.")
@in_folder
def pytest(place: tuple[str, ...], at: int | None, recorded: bool, output: Path | None, data: Path) -> None:
    """Write a failing test from a history: that of an aggregate, or of the one that holds what has this ID.

    Given what happened before, when the command comes that led to the event, then nothing follows yet: write what
    should, and mend the rules until it passes. It holds what the log holds, also of people.
    """
    from common.runtime import connect
    from services.cli.given_when_then import decision_in, module_of, outlook
    from services.cli.system import DECIDERS
    from services.history.finding import find
    from services.history.timeline import naming

    service, wanted = service_and_id(place)
    configure_logging("warning")
    settings = settings_here(data)

    async def look() -> "Decided":
        async with connect(settings, "events pytest") as platform:
            found = await find(platform.event_log, DECIDERS, wanted, service)
            return decision_in(found.events, at or naming(found.events, found.about)[-1].sequence)

    decision = run(look())
    text = module_of(decision, recorded=recorded)
    if output is None:
        click.echo(text, nl=False)
    else:
        try:
            with output.open("x") as file:
                file.write(text)
        except OSError as error:  # also for one that is there: somebody may have written in it what should follow
            raise click.ClickException(f"{output} cannot be written: {error.strerror}.") from error
        console.print(f"wrote {output}: {outlook(decision, recorded=recorded)}", soft_wrap=True)
