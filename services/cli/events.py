"""`boxoffice events`: what is in the log, as a person reads it."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import rich_click as click

from common.telemetry import configure_logging
from services.cli.base import DURATION, MOMENT, TIME, in_folder, progress_bars, run, service_and_id, settings_here
from services.cli.events_files import export_events, import_events
from services.cli.events_pytest import pytest
from services.cli.events_schema import compatible, schema


@click.group()
def events() -> None:
    """The log: what happened, why, and what it made of things."""


as_json = click.option("--json", "as_json", is_flag=True, help="JSON, for programs.")


@events.command()
@click.option("--service", help="Only what this service tells.")
@click.option(
    "--type", "types", multiple=True, help="Only events of this type, such as order_created; may be repeated."
)
@click.option("--aggregate", default="", help="Only what is of an id, or names it.")
@click.option("--user", default="", help="Only what names this person.")
@click.option("--since", type=TIME, help="Begin with what was appended since then.")
@as_json
@in_folder
def tail(
    service: str | None,
    types: Sequence[str],
    aggregate: str,
    user: str,
    since: datetime | None,
    as_json: bool,
    data: Path,
) -> None:
    """Events as they are appended, a line for each."""
    from services.cli.looking import follow
    from services.history.following import Wanted

    configure_logging("warning")
    run(follow(settings_here(data), service, Wanted(types, aggregate, user), since, as_json=as_json))


@events.command()
@click.argument("place", nargs=-1, required=True, metavar="[SERVICE] ID")
@click.option("--at", type=MOMENT, help="Stop there: the state is the one of that moment.")
@click.option("--state", is_flag=True, help="Show the whole state after each event, not only what changed.")
@click.option("--last", type=click.IntRange(min=1), default=1000, show_default=True, help="So many events, at most.")
@as_json
@in_folder
def show(place: tuple[str, ...], at: datetime | int | None, state: bool, last: int, as_json: bool, data: Path) -> None:
    """An aggregate event by event: what led to it, what it changed, and how long after the one before.

    The ID of an order is enough: it finds its book, and shows what happened to the order.
    """
    from services.cli.looking import show_history

    service, wanted = service_and_id(place)
    configure_logging("warning")
    with progress_bars("looking", transient=True) as progress:
        run(show_history(settings_here(data), wanted, service, at, last, progress, whole=state, as_json=as_json))


@events.command()
@click.argument("wanted", metavar="ID")
@click.option("--since", type=TIME, help="Look from then on, for an id that does not tell its time.")
@click.option("--within", type=DURATION, default="1d", show_default=True, help="Look for so long after it: 15m, 3d.")
@as_json
@in_folder
def trace(wanted: str, since: datetime | None, within: timedelta, as_json: bool, data: Path) -> None:
    """Everything that one click caused, in all services, with the times between.

    ID is a correlation, a request, an event, or what events name: an order, a ticket, a batch.
    """
    from services.cli.looking import show_trace

    configure_logging("warning")
    with progress_bars("looking", transient=True) as progress:
        run(show_trace(settings_here(data), wanted, since, within, progress, as_json=as_json))


for command in (export_events, import_events, pytest, schema, compatible):
    events.add_command(command)
