"""`boxoffice replay listener`: past events for one listener again, to see what it would do or to have it done."""

import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import rich_click as click

from common.telemetry import configure_logging
from services.cli.base import (
    MOMENT,
    RATE,
    as_user,
    at_url,
    console,
    in_folder,
    progress_bars,
    run,
    settings_here,
    url_here,
    who_here,
)


@click.command()
@click.argument("name")
@click.option(
    "--since",
    type=MOMENT,
    help="Events appended from a time on (2030-01-31T19:30:00Z, or 2030-01-31, or 15m, 2h, 1d ago), or from a sequence "
    "of its stream on.  [default: the first]",
)
@click.option("--until", type=MOMENT, help="Events appended before a time, or up to a sequence.  [default: the last]")
@click.option("--aggregate", metavar="ID", help="Events of this aggregate only: with what their subject ends.")
@click.option("--limit", type=click.IntRange(1), help="So many events at most.")
@click.option("--dry-run", is_flag=True, help="Show what it would do as things are now. Nothing is done or told.")
@click.option("--confirm", is_flag=True, help="Have the running system do it: each event is delivered to it once more.")
@click.option(
    "--rate", type=RATE, default="10/s", show_default=True, help="With --confirm: how many at most: 10/s, 100/min."
)
@click.option("--json", "as_json", is_flag=True, help="An object on each line, for programs.")
@at_url
@as_user("operator")
@in_folder
def listener(
    name: str,
    since: datetime | int | None,
    until: datetime | int | None,
    aggregate: str | None,
    limit: int | None,
    dry_run: bool,
    confirm: bool,
    rate: float,
    as_json: bool,
    url: str | None,
    user: str | None,
    data: Path,
) -> None:
    """Have listener NAME, such as orders-cancel-expired, hear past events again: --dry-run or --confirm.

    A dry run shows what a redelivery would do now: by the state as it is, with what the dry run did before on top of
    it, not by the state of back then. Nothing is appended, no payment is touched, nothing is posted; where what follows
    hangs on an answer from there, it says so. With --confirm each event is redelivered to this listener alone, one
    after the other; exit code 1 if not every one was done.
    """
    from common.topology import CONSUMER

    if name not in CONSUMER:
        raise click.BadParameter(f"no listener {name}; there are {', '.join(CONSUMER)}.", param_hint="NAME")
    if dry_run == confirm:
        detail = "Say --dry-run, to see what it would do, or --confirm, to have the running system do it"
        raise click.UsageError(f"{detail}; not both." if dry_run else f"{detail}.")
    from services.cli import redeliver, rehearse

    configure_logging("error")
    settings, chosen = settings_here(data), rehearse.Selection(since, until, aggregate, limit)
    progressing = nullcontext(lambda *_: None) if as_json else progress_bars(name)
    if dry_run:
        say = as_records(rehearse.record_of) if as_json else as_lines(rehearse.lines_of)
        with progressing as progress:
            summary = run(rehearse.rehearse(name, chosen, settings, say, progress))
        if not as_json:
            show(rehearse.told(name, summary))
        return
    tell = as_records(redeliver.record_of) if as_json else as_lines(redeliver.lines_of)
    redelivery = redeliver.Redelivery(url_here(url, data), who_here(user, "operator"), rate, tell)
    try:
        with progressing as progress:
            well = run(redelivery.run(name, chosen, settings, progress))
    finally:  # also when it is interrupted
        if not as_json:
            show(redelivery.told(name))
    if not well:
        sys.exit(1)


def as_records(record_of: Callable[[Any, Any], dict[str, Any]]) -> Callable[[Any, Any], None]:
    """Print what there is to say of an event as an object on a line."""
    return lambda stored, came: click.echo(msgspec.json.encode(record_of(stored, came)))


def as_lines(lines_of: Callable[[Any, Any], Iterable[str]]) -> Callable[[Any, Any], None]:
    """Print what there is to say of an event for people."""
    return lambda stored, came: show(lines_of(stored, came))


def show(lines: Iterable[str]) -> None:
    """Print lines as they are: a folded id cannot be copied."""
    for line in lines:
        console.print(line, soft_wrap=True)
