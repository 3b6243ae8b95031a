"""What a listener would do with past events, shown and not done."""

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from datetime import datetime
from typing import Any

import msgspec
from rich.markup import escape

from common.errors import Invalid
from common.event_log import JetStreamLog, Stored
from common.events import Event
from common.listener import Listener
from common.progress import Progress
from common.rehearsal import Appended, Effect, Heard, Outcome, Rehearsal, Summary, is_heard
from common.runtime import connect
from common.settings import Settings
from common.topology import CONSUMER
from services.cli.base import counted
from services.cli.system import rehearsed

SHOWN = 60
"""Characters of a field that are shown at most."""

WORDS: dict[Outcome, str] = {
    "done": "with effects",
    "nothing": "for which nothing is to do",
    "again": "put back for later",
    "open": "that hang on an answer",
    "failed": "at which it fails",
}


class Selection(msgspec.Struct, frozen=True):
    """Which events of its stream a listener is to hear: times or sequences, one aggregate, so many at most."""

    since: datetime | int | None = None
    until: datetime | int | None = None
    aggregate: str | None = None
    limit: int | None = None

    async def of(self, log: JetStreamLog, listener: Listener[Any], progress: Progress) -> AsyncGenerator[Stored, None]:
        """Those that it hears, in order. Raises Invalid for a sequence past the end, Unavailable."""
        stream = CONSUMER[listener.durable].stream
        after, until = await self._bounds(log, stream)
        left = self.limit
        async with aclosing(log.scan(stream, after, until=max(after, until))) as pages:
            async for page in pages:
                for stored in page:
                    if self._means(stored) and is_heard(listener, stored):
                        progress(stream, stored.sequence - 1 - after, until - after)
                        yield stored
                        if left is not None and (left := left - 1) == 0:
                            return
                progress(stream, page[-1].sequence - after, until - after)

    async def _bounds(self, log: JetStreamLog, stream: str) -> tuple[int, int]:
        """Past which sequence it begins, and up to which it goes."""
        end = (await log.end(stream)).sequence
        after, until = 0, end
        if isinstance(self.since, int):
            after = max(0, self.since - 1)
        elif self.since:
            after = await log.sequence_before(stream, self.since)
        if isinstance(self.until, int):
            until = self.until
        elif self.until:
            until = await log.sequence_before(stream, self.until)
        for option, sequence in (("--since", after), ("--until", until)):
            if sequence > end:
                raise Invalid(f"{option}: Stream {stream} ends at {end}; give a sequence up to that, or a time.")
        return after, until

    def _means(self, stored: Stored) -> bool:
        return self.aggregate is None or self.aggregate.lower() == aggregate_of(stored)


def aggregate_of(stored: Stored) -> str:
    """The id of whose event it is: with what its subject ends."""
    return stored.subject.rpartition(".")[2]


async def rehearse(
    name: str, selection: Selection, settings: Settings, say: Callable[[Stored, Heard], None], progress: Progress
) -> Summary:
    """Tell `say` what listener `name` would do with each of these events. Raises Invalid, Unavailable."""
    summary = Summary()
    async with connect(settings, "rehearsal") as platform:
        rehearsal = Rehearsal(platform.event_log)
        listener = rehearsed(name, rehearsal)
        async with aclosing(selection.of(platform.event_log, listener, progress)) as events:
            async for stored in events:
                heard = await rehearsal.hear(listener, stored)
                summary.count(heard)
                say(stored, heard)
    return summary


def head_of(stored: Stored) -> str:
    """An event in a line: its place, time, type and aggregate."""
    at, aggregate = f"{stored.time:%Y-%m-%d %H:%M:%S}", escape(aggregate_of(stored))
    return f"{stored.sequence:>8}  [dim]{at}[/]  {escape(stored.type)}  [dim]{aggregate}[/]"


def lines_of(stored: Stored, heard: Heard) -> Iterator[str]:
    """An event, and what the listener would do with it."""
    yield head_of(stored) + ("  [dim]nothing[/]" if heard.outcome == "nothing" else "")
    for effect in heard.effects:
        yield f"          [green]→[/] {escape(in_words(effect))}"
    match heard.outcome:
        case "again":
            yield f"          [yellow]→ put back: again in {heard.after:,.1f} s[/]"
        case "open":
            yield f"          [yellow]→ the rest hangs on {escape(heard.why)}[/]"
        case "failed":
            yield f"          [red]→ it fails: {escape(heard.why)}[/]"


def in_words(effect: Effect) -> str:
    """What would be done."""
    if not isinstance(effect, Appended):
        return f"would {effect.what}"
    return f"would append {effect.kind} to {effect.subject}: {fields_of(effect.event)}"


def fields_of(event: Event) -> str:
    """What an event says, short."""
    body: dict[str, Any] = msgspec.to_builtins(event)
    fields = ((name, msgspec.json.encode(value).decode()) for name, value in body.items())
    return ", ".join(
        f"{name} {text.strip(chr(34)) if len(text) <= SHOWN else text[:SHOWN] + '…'}"
        for name, text in fields
        if name not in ("type", "version", "at") and text not in ("null", "[]", "{}")
    )


def record_of(stored: Stored, heard: Heard) -> dict[str, Any]:
    """The same for programs."""
    effects = [
        {"kind": effect.kind, "subject": effect.subject, "event": effect.event}
        if isinstance(effect, Appended)
        else {"kind": effect.kind, "what": effect.what}
        for effect in heard.effects
    ]
    told = {"outcome": heard.outcome, "effects": effects, "why": heard.why or None, "again_in": heard.after or None}
    return event_of(stored) | told


def event_of(stored: Stored) -> dict[str, Any]:
    """Which event it is, for programs."""
    place = {"stream": stored.stream, "sequence": stored.sequence, "subject": stored.subject}
    return place | {"time": stored.time, "type": stored.type, "id": stored.headers.get("ce-id")}


def told(name: str, summary: Summary) -> Iterator[str]:
    """What the listener would do with all of them."""
    events = counted(times, "event") if (times := summary.outcomes.total()) else "no event"
    yield f"[bold]{name}[/] would hear {events}, as things are now; nothing was done."
    for outcome, words in WORDS.items():
        if times := summary.outcomes[outcome]:
            yield f"{times:>8,}  {words}"
    if summary.effects:
        yield "  effects: " + ", ".join(f"{times:,} {kind}" for kind, times in sorted(summary.effects.items()))
