"""How events, histories and causes are shown on a terminal."""

import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.text import Text
from rich.tree import Tree

from common.event_log import JetStreamLog, Stored
from common.progress import Progress
from common.runtime import connect
from common.settings import Settings
from services.cli.base import counted
from services.cli.system import DECIDERS
from services.history.causes import Caused, Trace, trace
from services.history.finding import find, streams_of
from services.history.following import Line, Wanted, known_types, tail
from services.history.following import shown as shown_body
from services.history.timeline import WHO, Change, Step, history_of, opened, plain

console = Console(highlight=False, width=None if sys.stdout.isatty() else 10_000)  # nothing is cut off in a pipe

COLOURS = ("cyan", "green", "magenta", "blue", "yellow", "bright_cyan", "bright_magenta", "bright_blue")
ENDS = {"cancelled": "yellow", "refused": "yellow", "failed": "red", "given_up": "red", "completed": "green"}
"""How types of event are coloured that say how something ended."""

ASIDE = ("type", "version", "at", *WHO)
"""Fields that a line shows elsewhere, if at all."""

ALIKE = 10
"""Events of a type that one cause has in a tree that people read."""

LONGEST = 120
"""Characters of a value that is shown in a line."""


@asynccontextmanager
async def log_of(settings: Settings) -> AsyncIterator[JetStreamLog]:
    """The log of the system that is meant. Raises Unavailable."""
    async with connect(settings, "events", patience=5) as platform:
        yield platform.event_log


async def follow(
    settings: Settings, service: str | None, wanted: Wanted, since: datetime | None, *, as_json: bool
) -> None:
    """Print events as they are appended, until cancelled. Raises Invalid, Unavailable."""
    streams = streams_of(service)
    known_types(wanted.types)

    def started() -> None:
        if not as_json:
            Console(stderr=True).print(f"[dim]{', '.join(streams)}; Ctrl-C ends it[/]", soft_wrap=True)

    async with log_of(settings) as log, aclosing(tail(log, streams, since, wanted, started=started)) as pages:
        async for page in pages:
            for stored in page.events:
                if as_json:
                    print_json(Line.of(stored))
                else:
                    console.print(line_of(stored), soft_wrap=True)


async def show_history(
    settings: Settings,
    wanted: str,
    service: str | None,
    at: datetime | int | None,
    last: int,
    progress: Progress,
    *,
    whole: bool,
    as_json: bool,
) -> None:
    """Print an aggregate's history. Raises Invalid, NotFound, Unavailable."""
    async with log_of(settings) as log:
        place = await find(log, DECIDERS, wanted, service, progress=progress)
    history = history_of(DECIDERS, place.events, at=at, about=place.about, last=last, whole=whole)
    if as_json:
        print_json(history)
        return
    about = f" [dim]({len(history.steps)} of its events name {place.about})[/]" if place.about else ""
    console.print(f"[bold]{history.subject}[/]{about}", soft_wrap=True)
    if history.earlier:
        console.print(f"[dim]{history.earlier:,} before; --last {history.earlier + last} shows them[/]")
    for step in history.steps:
        console.print(head_of(step), soft_wrap=True)
        for change in step.changes:
            console.print(change_of(change), soft_wrap=True)
        if whole:
            print_state(step.state)
    if at is not None and not whole:
        console.print("[bold]state[/]")
        print_state(history.state)


async def show_trace(
    settings: Settings, wanted: str, since: datetime | None, within: timedelta, progress: Progress, *, as_json: bool
) -> None:
    """Print what belongs together. Raises NotFound, Unavailable."""
    async with log_of(settings) as log:
        traces = await trace(log, wanted, since=since, within=within, progress=progress)
    if as_json:
        print_json(traces)
        return
    for each in traces:
        console.print(tree_of(each), soft_wrap=True)


def print_json(value: Any) -> None:
    """A line of JSON, whatever the width of the terminal."""
    console.file.write(msgspec.json.encode(value, enc_hook=opened).decode() + "\n")
    console.file.flush()


def print_state(state: Any) -> None:
    """A state on many lines, without colours: to find these in a book of thousands takes rich 100 times as long."""
    console.file.write(msgspec.json.format(msgspec.json.encode(plain(state))).decode() + "\n")


def colour_of(conversation: str) -> str:
    """Each conversation has a colour of its own, the same in every line."""
    return COLOURS[sum(conversation.encode()) % len(COLOURS)]


def style_of(type_: str) -> str:
    """How a type of event is shown."""
    return next((style for end, style in ENDS.items() if type_.endswith(end)), "bold")


def line_of(stored: Stored) -> Text:
    """One event: when, in which conversation, where, what, who, and what else it says."""
    body = shown_body(stored.body)
    conversation = stored.headers.get("correlation-id", "")
    line = Text(f"{stored.time:%H:%M:%S.%f}"[:-3] + " ", style="dim")
    line.append(f"{conversation[-6:]:6} ", style=colour_of(conversation))
    line.append(f"{stored.stream.lower():13} {stored.sequence:<7}", style="dim")
    line.append(f"{stored.type or '?':22} ", style=style_of(stored.type))
    line.append(short_id(stored.subject.rpartition(".")[2]) + " ", style="cyan")
    line.append(" ".join(facts_of(body)))
    line.append(f"  in {conversation}", style="dim")
    return line


def facts_of(body: Any) -> Iterator[str]:
    """What an event says, in short: who first, then the rest."""
    if not isinstance(body, dict):
        yield shown(body)
        return
    yield from (f"{name}={body[name]}" for name in WHO if body.get(name))
    yield from (
        f"{name}={shown(value)}" for name, value in body.items() if name not in ASIDE and value not in (None, [])
    )


def short_id(text: str) -> str:
    """An id as far as people compare it: its end, since UUIDs of one time begin alike."""
    return f"…{text[-8:]}" if len(text) == 36 and text.count("-") == 4 else text


def shown(value: Any) -> str:
    """A value in a line."""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    text = short_id(text)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def head_of(step: Step) -> Text:
    """An event of a history."""
    line = Text(f"{step.sequence:>7} ", style="dim")
    line.append(f"{step.time:%Y-%m-%d %H:%M:%S.%f}"[:-3] + " ")
    line.append(f"{'+' + waited(step.waited) if step.waited is not None else '':>10} ", style="dim")
    line.append(step.type, style=style_of(step.type))
    line.append(f" v{step.version}", style="dim")
    if step.who:
        line.append(f" {'by' if step.event.get('by') else 'of'} {step.who}")
    line.append("  in ", style="dim")
    line.append(step.correlation_id, style=colour_of(step.correlation_id))
    if step.causation_id != step.correlation_id:
        line.append(f" after {short_id(step.causation_id)}", style="dim")
    return line


def change_of(change: Change) -> Text:
    """A part of the state that an event changed."""
    line = Text("          ")
    path = ".".join(map(short_id, change.path.split(".")))
    if change.before is msgspec.UNSET:
        line.append(f"+ {path} ", style="green")
        line.append(" ".join(facts_of(change.after)))
    elif change.after is msgspec.UNSET:
        line.append(f"- {path} ", style="red")
        line.append(" ".join(facts_of(change.before)))
    else:
        line.append(f"~ {path} ", style="yellow")
        line.append(f"{shown(change.before)} → {shown(change.after)}")
    return line


def waited(seconds: float) -> str:
    """How long something took."""
    if abs(seconds) < 1:
        return f"{seconds * 1000:.0f} ms"
    if abs(seconds) < 120:
        return f"{seconds:.2f} s"
    return str(timedelta(seconds=round(seconds)))


def tree_of(told: Trace) -> Tree:
    """A conversation as a tree."""
    tree = Tree(f"[bold]{escape(told.correlation_id)}[/]", guide_style="dim")
    for root in told.roots[:ALIKE]:
        at = f" {root.time:%Y-%m-%d %H:%M:%S.%f}"[:-3] if root.time else ""
        what = "event" if root.is_event else "request" if at else "cause"
        branch = tree.add(f"{what} [dim]{escape(root.causation_id)}{at}[/]")
        add_all(branch, root.caused)
    if roots := len(told.roots[ALIKE:]):
        tree.add(f"[dim]and {counted(roots, 'more cause')}, such as operations of a batch; --json has them[/]")
    if told.more:
        tree.add(f"[dim]and {counted(told.more, 'more event')} of this conversation, which are later[/]")
    return tree


def add_to(branch: Tree, event: Caused) -> None:
    """An event and all that it caused."""
    style = "red" if event.error else style_of(event.type)
    label = Text(f"+{waited(event.waited)} " if event.waited is not None else "", style="dim")
    label.append(f"dead letter of {event.type}" if event.error else event.type, style=style)
    label.append(f" {event.stream.lower()} {event.sequence} {short_id(event.subject.rpartition('.')[2])}", style="dim")
    if len(event.through) == 1:
        label.append(f"  {event.through[0]}", style="dim italic")
    if event.error:
        label.append(f"  {event.error}", style="red")
    add_all(branch.add(label), event.caused)


def add_all(branch: Tree, caused: Sequence[Caused]) -> None:
    """Events side by side; of many that are alike the first ones."""
    alike: dict[str, int] = {}
    for each in caused:
        alike[each.type] = alike.get(each.type, 0) + 1
        if alike[each.type] <= ALIKE:
            add_to(branch, each)
    for type_, count in alike.items():
        if count > ALIKE:
            branch.add(f"[dim]and {count - ALIKE:,} more {type_}; --json has them[/]")
