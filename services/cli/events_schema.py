"""`boxoffice events schema` and `compatible`: how events are written, and whether what was recorded can be read."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import rich_click as click

from services.cli.base import counted

RELEASED = Path(__file__).parents[2] / "common" / "events" / "released.json"
SHOWN = 20
"""Lines that cannot be read are told up to so many."""


@click.command()
def schema() -> None:
    """Print how every event is written: its stream and fields, as JSON Schema.

    What is printed is kept with a release (`> common/events/released.json`), for later code to be held against.
    """
    from common.schemas import shapes, written

    click.echo(written(shapes()), nl=False)


@click.command()
@click.argument("released", type=click.Path(path_type=Path, dir_okay=False), default=RELEASED)
@click.option(
    "--recorded",
    "recorded",
    type=click.Path(path_type=Path, exists=True),
    multiple=True,
    help="Events to be read: a file of `events export`, or a folder of such (*.jsonl); may be repeated.",
)
def compatible(released: Path, recorded: Sequence[Path]) -> None:
    """Hold this code against events as a release wrote them; exit code 1 if it would read one otherwise, or not at all.

    RELEASED is what `boxoffice events schema` printed then. Told beside that, and no failure: what code of that release
    could not read of what this code writes, if it were rolled back to.
    """
    from common.compatibility import breaks, news, unread, unread_before
    from common.schemas import Shapes, shapes

    try:
        was = msgspec.json.decode(released.read_bytes(), type=Shapes)
    except OSError as error:
        mend = "give the file that `boxoffice events schema` printed when it was released"
        raise click.ClickException(f"{released} cannot be read ({error.strerror}): {mend}.") from error
    except msgspec.MsgspecError as error:
        raise click.ClickException(f"{released} is not what `boxoffice events schema` prints: {error}.") from error
    try:
        now = shapes()
    except TypeError as error:
        raise click.ClickException(f"An event cannot be written: {error}.") from error
    wrong = [str(each) for each in (*breaks(was, now), *unread(was))]
    read = 0
    for path in recorded:
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not files:
            raise click.ClickException(f"There is no *.jsonl in {path}.")
        lines = [why for file in files for why in _read(file)]
        read += len(lines)
        wrong += [why for why in lines if why]
    for each in wrong[:SHOWN]:
        click.echo(f"✗ {each}")
    if wrong:
        more = f" {len(wrong) - SHOWN:,} more are not shown." if len(wrong) > SHOWN else ""
        raise click.ClickException(f"{counted(len(wrong), 'break')} with what was recorded; events are for ever.{more}")
    told = f" and {counted(read, 'recorded event')}" if recorded else ""
    click.echo(f"✓ {counted(len(was.events), 'type')} of event{told} can be read as before")
    if fresh := news(was, now):
        click.echo(f"  not in {released} yet: {', '.join(fresh)}")
    if ahead := unread_before(was, now):
        click.echo("! a rollback to it cannot read, once it is written:")
        for each in ahead:
            click.echo(f"  {each}")
    else:
        click.echo("✓ a rollback to it reads all that this code writes")


class _Recorded(msgspec.Struct):
    """A line of an export, or of the corpus, where the body is the text that was on the wire."""

    subject: str
    headers: dict[str, str]
    body: msgspec.Raw = msgspec.Raw(b"")
    base64: bytes = b""

    def wire(self) -> bytes:
        """What was on the wire."""
        text = bytes(self.body) or self.base64
        return msgspec.json.decode(text, type=str).encode() if self.body and text.startswith(b'"') else text


def _read(file: Path) -> Iterator[str]:
    """Of each event in a file why it cannot be read; empty if it can. Raises ClickException: these are no events."""
    from common.compatibility import wrong_with

    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            if "headers" not in msgspec.json.decode(line, type=dict[str, msgspec.Raw]):
                continue  # the first and the last line of an export
            event = msgspec.json.decode(line, type=_Recorded)
            body = event.wire()
        except msgspec.MsgspecError as error:
            raise click.ClickException(f"{file}, line {number}: this is no event of an export: {error}.") from error
        stream = event.subject.partition(".")[0].upper()
        wrong = wrong_with(event.headers.get("ce-type", ""), stream, body)
        yield f"{file}, line {number}, {event.subject}: {wrong}." if wrong else ""
