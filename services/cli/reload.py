"""`boxoffice serve --reload`: the services again, whenever a file of the code has changed. For development."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import rich_click as click
import structlog

import common
import services

log = structlog.get_logger()


def serve_again(names: Sequence[str]) -> None:
    """Serve as a child until SIGTERM or Ctrl-C; end it in order and begin anew after each change.

    Raises ClickException where the extra `dev` is not installed.
    """
    try:
        from watchfiles import run_process
    except ImportError as error:
        raise click.ClickException(
            '--reload needs watchfiles; install it with: pip install "boxoffice[dev]"'
        ) from error
    code = [Path(package.__path__[0]) for package in (common, services)]
    command = shlex.join([sys.executable, "-m", "services.cli.main", "serve", *names])
    run_process(
        *code,
        target=command,
        target_type="command",
        callback=lambda changes: log.info("code_changed", files=sorted(path for _, path in changes)),
        sigint_timeout=20,  # it is asked to stop by SIGINT, and drains
    )
