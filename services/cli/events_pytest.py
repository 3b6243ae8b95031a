"""`boxoffice events pytest`: a failing test, written from a history."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import rich_click as click

from common.telemetry import configure_logging
from services.cli.base import console, in_folder, run, settings_here

if TYPE_CHECKING:
    from services.cli.given_when_then import Decided


def subject_of(words: Sequence[str]) -> str:
    """The subject that `orders <id>` or `orders.<id>` means; empty if it means none."""
    subject = ".".join(words)
    prefix, _, last = subject.rpartition(".")
    try:
        return f"{prefix}.{UUID(last)}" if prefix else ""
    except ValueError:
        return ""


@click.command("pytest")
@click.argument("aggregate", nargs=-1, required=True)
@click.option("--at", type=click.IntRange(1), metavar="SEQUENCE", help="The event to ask about.  [default: the last]")
@click.option("--recorded", is_flag=True, help="Expect what was recorded: a test that keeps it so.")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="A file instead of the terminal.")
@in_folder
def pytest(aggregate: tuple[str, ...], at: int | None, recorded: bool, output: Path | None, data: Path) -> None:
    """Write a failing test from the history of an AGGREGATE (`orders <id>`, or its subject `orders.<id>`).

    Given what happened before, when the command comes that led to the event, then nothing follows yet: write what
    should, and mend the rules until it passes. It holds what the log holds, also of people.
    """
    from common.runtime import connect
    from services.cli.given_when_then import decided, module_of, outlook

    if not (subject := subject_of(aggregate)):
        raise click.BadParameter(f"{' '.join(aggregate)!r} is no aggregate: give `orders <id>` or `orders.<id>`.")
    configure_logging("warning")
    settings = settings_here(data)

    async def find() -> "Decided":
        async with connect(settings, "events pytest") as platform:
            return await decided(platform.event_log, subject, at)

    decision = run(find())
    text = module_of(decision, recorded=recorded)
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text)
        console.print(f"wrote {output}: {outlook(decision, recorded=recorded)}", soft_wrap=True)
