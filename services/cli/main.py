import rich_click as click

@click.group()
def cli() -> None:
    """Boxoffice: event-sourced ticket sales on NATS JetStream."""

