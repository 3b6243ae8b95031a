"""`boxoffice events`: what is in the log, as a person reads it."""

import rich_click as click

from services.cli.events_files import export_events, import_events


@click.group()
def events() -> None:
    """The log: what happened, why, and what it made of things."""


events.add_command(export_events)
events.add_command(import_events)
