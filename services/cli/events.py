"""`boxoffice events`: what happened."""

import rich_click as click

from services.cli.events_pytest import pytest


@click.group()
def events() -> None:
    """What happened, as the log has it."""


events.add_command(pytest)
