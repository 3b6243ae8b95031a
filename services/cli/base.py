"""What commands share: how they run, whom and what they mean, and how they show progress."""

import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click
import uvloop
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from common.errors import DomainError
from common.settings import BadSetting, Settings, load, named
from common.telemetry import configure_logging

console = Console(highlight=False)

FC = TypeVar("FC", bound=Callable[..., Any])


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run to the end; what goes wrong is told in a line, with exit code 1."""
    from common.runtime import collect_garbage_rarely, open_many_files
    from services.cli.embedded import CannotStart
    from services.cli.servers import ServerFailed

    collect_garbage_rarely()
    open_many_files()
    try:
        return uvloop.run(work)
    except (BadSetting, CannotStart, ServerFailed, OSError) as error:
        raise click.ClickException(str(error)) from error
    except DomainError as error:
        raise click.ClickException(error.detail) from error


in_folder = click.option(
    "--data",
    default=".boxoffice",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The data folder of the system that is meant, where the environment names no servers.",
)


def settings_here(data: Path) -> Settings:
    """Settings from the environment, or of the embedded system that runs on this folder."""
    from common.rights import MIGRATE
    from services.cli.embedded import environment_here

    try:
        environment = environment_here(data=data)
        if not all(named(setting, environment, MIGRATE) for setting in ("nats_url", "database_url")):
            # Rather than change what happens to run at a default address.
            mend = "start it with `make up`, or set BOXOFFICE_NATS_URL and BOXOFFICE_DATABASE_URL"
            raise click.ClickException(f"Nothing runs in {data}: {mend}.")
        return load(Settings, environment, of=MIGRATE)
    except BadSetting as error:
        raise click.ClickException(str(error)) from error


def log_as(level: str, *, human: bool | None = None) -> None:
    """Log at the level that the environment names, or at this one."""
    try:
        configure_logging(load(Settings, {"BOXOFFICE_LOG_LEVEL": level, **os.environ}).log_level, human=human)
    except BadSetting as error:
        raise click.ClickException(str(error)) from error


at_url = click.option("--url", help="Where the system is; by default the one that runs here.")


def url_here(url: str | None, data: Path) -> str:
    """Where the system is that is meant."""
    from services.cli.embedded import find_running

    running = find_running(data)
    return url or (running.url if running and running.url else "http://127.0.0.1:8080")


def as_user(otherwise: str) -> Callable[[FC], FC]:
    """The option that says who one is. There is none for a key, as others could read it in the list of processes."""
    return click.option(
        "--user",
        help="Who you are, where names are believed (BOXOFFICE_AUTH=dev). Elsewhere set BOXOFFICE_API_KEY to an API "
        "key, or BOXOFFICE_API_KEY_FILE to the path of a file that holds one; no option shows a key to whoever lists "
        f"processes.  [default: {otherwise}]",
    )


def who_here(user: str | None, otherwise: str) -> Any:
    """Who asks. What is wrong with how they say it is told in a line."""
    from services.cli.who import who_asks

    try:
        return who_asks(user, otherwise)
    except (BadSetting, DomainError) as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def progress_bars(of: str = "", *, sizes: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Bars, one for each stream: call what is given with a stream, how far it has come and how far it is to go.

    `sizes`: these are bytes.
    """
    count = DownloadColumn() if sizes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(stream: str, done: int, total: int) -> None:
            if stream not in tasks:
                tasks[stream] = bar.add_task(f"{of} from {stream}" if of else stream)
            bar.update(tasks[stream], completed=done, total=total)

        yield progress
