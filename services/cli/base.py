"""What commands share: how they run, whom and what they mean, and how they show progress."""

import os
import re
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
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

from common.clock import now
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
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor is anything said at the end
        sys.exit(128 + signal.SIGPIPE)
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
    """Where the system is that is meant; not another one, where a data folder is named on which nothing runs."""
    from services.cli.embedded import DATA, find_running

    running = find_running(data)
    if not url and not running and data != DATA:
        raise click.ClickException(f"Nothing runs in {data}: start it there, or say with --url where the system is.")
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


def service_and_id(place: Sequence[str]) -> tuple[str | None, str]:
    """What `[SERVICE] ID` names. Raises BadParameter."""
    if len(place) > 2:
        raise click.BadParameter("Give one service and one id, or an id alone.", param_hint="'[SERVICE] ID'")
    return (place[0], place[1]) if len(place) == 2 else (None, place[0])


def counted(count: int, what: str) -> str:
    """So many of something."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


AGO = re.compile(r"([0-9]{1,6})([smhd])")
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Duration(click.ParamType[timedelta]):
    """How long: `90s`, `15m`, `2h`, `3d`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        if (told := AGO.fullmatch(value)) is None:
            self.fail(f"{value!r} is no duration: give 90s, 15m, 2h or 3d.", param, ctx)
        return timedelta(**{UNITS[told[2]]: int(told[1])})


class Moment(click.ParamType[datetime | int]):
    """A moment of the log: a time (datetime, in UTC) or, where `sequences` are one, a sequence of a stream (int)."""

    def __init__(self, *, sequences: bool) -> None:
        self.name = "time|sequence" if sequences else "time"
        self._sequences = sequences

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime | int:
        if isinstance(value, (datetime, int)):
            return value
        try:
            moment = moment_of(value)
        except (ValueError, OverflowError):
            moment = None
        if moment is None or not (self._sequences or isinstance(moment, datetime)):
            self.fail(
                f"{value!r} is no moment: give a time as 2030-01-31T19:30:00Z, with its offset, or a date for its "
                "midnight in UTC; `15m`, `2h` or `1d` for so long ago; `now`"
                + ("; or a sequence, such as 120." if self._sequences else "."),
                param,
                ctx,
            )
        return moment


def moment_of(text: str) -> datetime | int:
    """What `MOMENT` takes: a time, how long ago, or a sequence. Raises ValueError, OverflowError."""
    if text == "now":
        return now()
    if re.fullmatch("[0-9]{1,18}", text):
        return int(text)
    if ago := AGO.fullmatch(text):
        return now() - timedelta(**{UNITS[ago[2]]: int(ago[1])})
    if re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        text += "T00:00:00Z"
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without its offset")
    return moment.astimezone(UTC)


DURATION = Duration()
MOMENT = Moment(sequences=True)
TIME = Moment(sequences=False)


@contextmanager
def progress_bars(
    of: str = "", *, sizes: bool = False, transient: bool = False
) -> Iterator[Callable[[str, int, int], None]]:
    """Bars, one for each stream: call what is given with a stream, how far it has come and how far it is to go.

    They are on stderr, so that what a command prints can be piped. `sizes`: these are bytes. `transient`: the bars go
    when it is done.
    """
    stderr = Console(stderr=True)
    count = DownloadColumn() if sizes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=transient, disable=not stderr.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(stream: str, done: int, total: int) -> None:
            if stream not in tasks:
                tasks[stream] = bar.add_task(f"{of} from {stream}" if of else stream)
            bar.update(tasks[stream], completed=done, total=total)

        yield progress


RATES = re.compile(r"([0-9]{1,9})/(s|min|h)")
SECONDS = {"s": 1, "min": 60, "h": 3600}
FASTEST = 1000
"""Of what is done one after the other, at most so many a second."""


class Rate(click.ParamType[float]):
    """How many may be done in a second."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        said = RATES.fullmatch(value)
        a_second = int(said[1]) / SECONDS[said[2]] if said else 0
        if not 0 < a_second <= FASTEST:
            self.fail(f"{value!r} is no rate: give one as 10/s, 100/min or 500/h, at most {FASTEST}/s.", param, ctx)
        return a_second


RATE = Rate()
