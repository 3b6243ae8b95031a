"""`boxoffice dead`: what was given up on, and what is done about it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import rich_click as click

from services.cli.base import FC, RATE, as_user, at_url, console, counted, in_folder, run, url_here, who_here


def choosing(command: FC) -> FC:
    """What chooses dead letters that are open."""
    command = click.option("--error", help="Those with this in their error.")(command)
    command = click.option("--listener", help="Those of this listener.")(command)
    return click.argument("numbers", nargs=-1, type=click.IntRange(1), metavar="[NUMBER]...")(command)


def require_choice(numbers: Sequence[int], listener: str | None, error: str | None, every: bool = False) -> None:
    """Raises UsageError unless dead letters are named in one way."""
    if sum(map(bool, (numbers, listener or error, every))) != 1:
        raise click.UsageError("Which? Name their numbers, or say --listener or --error, or both of these.")


@click.group()
@at_url
@as_user("operator")
@in_folder
@click.pass_context
def dead(context: click.Context, url: str | None, user: str | None, data: Path) -> None:
    """Events that a listener gave up on: look at them, retry them, correct them, drop them."""
    from services.cli.dead_letters import dead_letters_at

    address, who = url_here(url, data), who_here(user, "operator")
    context.obj = lambda: dead_letters_at(address, who, console)


@dead.command("ls")
@click.option("--listener", help="Those of this listener, each by itself.")
@click.option("--error", help="Those with this in their error, each by itself.")
@click.option("--all", "every", is_flag=True, help="Also those that are done or dropped.")
@click.pass_obj
def dead_ls(open_letters: Any, listener: str | None, error: str | None, every: bool) -> None:
    """Dead letters by listener and error; a * stands for the ids in it."""

    async def show() -> None:
        async with open_letters() as letters:
            await letters.tell_groups(listener, error, every=every)
            if listener or error:
                await letters.tell_each(listener, error, every=every)

    run(show())


@dead.command("show")
@click.argument("number", type=click.IntRange(1))
@click.pass_obj
def dead_show(open_letters: Any, number: int) -> None:
    """One dead letter: who gave up on what and why, its payload, and what was done about it."""

    async def show() -> None:
        async with open_letters() as letters:
            letters.tell(await letters.read(number))

    run(show())


@dead.command("retry")
@choosing
@click.option("--all", "every", is_flag=True, help="All that are open.")
@click.option("--rate", type=RATE, default="10/s", show_default=True, help="How many at most, such as 100/min.")
@click.pass_obj
def dead_retry(
    open_letters: Any, numbers: tuple[int, ...], listener: str | None, error: str | None, every: bool, rate: float
) -> None:
    """Have its listener hear each of them once more, in their order.

    It may be ended at any moment and run again: what is done is not retried, and listeners do nothing twice. Exit code
    1 if not all of them are done.
    """
    require_choice(numbers, listener, error, every)

    async def retry() -> bool:
        async with open_letters() as letters:
            return bool(await letters.retry(numbers or await letters.chosen(listener, error), rate))

    if not run(retry()):
        sys.exit(1)


@dead.command("edit")
@click.argument("number", type=click.IntRange(1))
@click.option("--body", type=click.File(encoding="utf-8"), help="A file with the corrected payload, or - for stdin.")
@click.option("--retry", is_flag=True, help="Then have it heard once more.")
@click.pass_obj
def dead_edit(open_letters: Any, number: int, body: TextIO | None, retry: bool) -> None:
    """Correct the payload of a dead letter, in your $EDITOR or from a file; the letter itself stays as it was."""
    from services.cli.dead_letters import payload_of, pretty

    async def read() -> Any:
        async with open_letters() as letters:
            return await letters.read_open(number)

    async def write(text: str) -> bool:
        async with open_letters() as letters:
            await letters.edit(before, text)
            return bool(await letters.retry([number], 1)) if retry else True

    before = run(read())
    payload = pretty(payload_of(before)) + "\n"
    text = body.read() if body else click.edit(payload, extension=".json")
    if text is None or text == payload:
        console.print("Nothing was changed.")
        return
    while True:
        try:
            done = run(write(text))
        except click.ClickException as refused:
            if body:
                raise
            refused.show()
            if not click.confirm("Edit it again?", default=True):
                sys.exit(1)
            text = click.edit(text, extension=".json") or text
        else:
            sys.exit(0 if done else 1)


@dead.command("drop")
@choosing
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def dead_drop(open_letters: Any, numbers: tuple[int, ...], listener: str | None, error: str | None, yes: bool) -> None:
    """Want nothing more done about them. They stay in the log."""
    require_choice(numbers, listener, error)

    async def choose() -> Any:
        async with open_letters() as letters:
            for number in numbers:
                await letters.read_open(number)
            return numbers or await letters.chosen(listener, error)

    async def drop() -> bool:
        async with open_letters() as letters:
            return bool(await letters.drop(chosen))

    chosen = run(choose())
    if chosen and not yes:
        click.confirm(f"Drop {counted(len(chosen), 'dead letter')} for good?", abort=True)
    if not run(drop()):
        sys.exit(1)
