"""Everything that one click caused, as a tree: from the headers of the log alone."""

from collections.abc import Iterable, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta

from msgspec import Struct

from common.errors import NotFound
from common.event_log import JetStreamLog, Stored
from common.progress import Progress, untold
from common.topology import CONSUMERS, HISTORY, STREAMS
from services.history.finding import born, quoted, since_birth
from services.history.letters import DEAD

WITHIN = timedelta(days=1)
"""For so long after its beginning what a click caused is looked for, unless somebody says otherwise."""

MOST = 10_000
"""Events of a conversation that are told; a batch of a million rows is one."""

DEEPEST = 100
"""Events below each other in one tree, as whoever reads JSON may take a few hundred levels; then another one begins."""

WRITERS = {stream.name: stream.writers for stream in STREAMS}


class Caused(Struct, frozen=True):
    """An event in a trace. `waited`: seconds since what caused it; `through`: the listeners that may have made it of
    that; `error`: why a listener gave up on it, for a dead letter.
    """

    stream: str
    sequence: int
    subject: str
    type: str
    time: datetime
    event_id: str
    waited: float | None
    through: Sequence[str] = ()
    error: str | None = None
    caused: Sequence["Caused"] = ()


class Root(Struct, frozen=True):
    """What is no event itself: a request, or a wish of the system's own. `time` is told by its id, if that does.

    Or it `is_event` that stands elsewhere in the trace: where events caused each other, or are too many in a row.
    """

    causation_id: str
    time: datetime | None
    caused: Sequence[Caused]
    is_event: bool = False


class Trace(Struct, frozen=True):
    """A conversation: everything with the same correlation id; the first MOST events of it, and how many `more`."""

    correlation_id: str
    roots: Sequence[Root]
    more: int = 0


async def trace(
    log: JetStreamLog,
    wanted: str,
    *,
    since: datetime | None = None,
    within: timedelta = WITHIN,
    progress: Progress = untold,
) -> Sequence[Trace]:
    """The conversations of an id: of a correlation, a request, an event, or whatever an event names, such as an order.

    It is looked for from the time that the id tells on (or `since`; else from the beginning), for as long as `within`.
    Raises NotFound, Unavailable.
    """
    streams = (*HISTORY, DEAD)
    places = {stream: await window(log, stream, wanted, since, within) for stream in streams}
    named = quoted(wanted)
    conversations: dict[str, None] = {}
    for stream, (after, until) in places.items():
        async with aclosing(log.scan(stream, after, until=until)) as pages:
            async for page in pages:
                for stored in page:
                    place = (stored.subject, stored.subject.rpartition(".")[2])
                    if named in stored.body or wanted in place or wanted in stored.headers.values():
                        conversations[stored.headers.get("correlation-id", "")] = None
                progress(stream, page[-1].sequence, until)
    conversations.pop("", None)
    if not conversations:
        begin = since or born(wanted)
        from_then = f" from {begin:%Y-%m-%d %H:%M} on, for {lasting(within)}" if begin else ""
        raise NotFound(f"Nothing in the log belongs to {wanted}{from_then}.")
    found: dict[str, list[Stored]] = {conversation: [] for conversation in conversations}
    for stream, (after, until) in places.items():
        async with aclosing(log.scan(stream, after, until=until)) as pages:
            async for page in pages:
                for stored in page:
                    if (conversation := stored.headers.get("correlation-id")) in found:
                        found[conversation].append(stored)
    return [tree_of(conversation, events) for conversation, events in found.items()]


def lasting(time: timedelta) -> str:
    """How long it is, in the largest unit of which it is a whole number."""
    seconds = round(time.total_seconds())
    units = (("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1))
    unit, length = next((unit, length) for unit, length in units if seconds % length == 0)
    count = seconds // length
    return f"{count:,} {unit}{'' if count == 1 else 's'}"


async def window(
    log: JetStreamLog, stream: str, wanted: str, since: datetime | None, within: timedelta
) -> tuple[int, int]:
    """Between which sequences of a stream a conversation is."""
    end = (await log.end(stream)).sequence
    if stream == DEAD:  # its letters have the times of the events, which come in no order
        return 0, end
    begin = since or born(wanted)
    after = await log.sequence_before(stream, since) if since else await since_birth(log, stream, wanted)
    return after, max(after, await log.sequence_before(stream, begin + within)) if begin else end


def tree_of(conversation: str, events: Iterable[Stored]) -> Trace:
    """Each event under the one that its `causation-id` names, and exactly once.

    What no request leads to (a cycle, or what is more than DEEPEST below its root) has the event that it names as a
    root of its own.
    """
    ordered = sorted(events, key=lambda stored: (stored.time, stored.sequence))
    ordered, more = ordered[:MOST], len(ordered[MOST:])
    told: dict[str, Stored] = {}
    effects: dict[str, list[Stored]] = {}
    for stored in sorted(ordered, key=lambda stored: stored.stream == DEAD):
        effects.setdefault(cause_of(stored), []).append(stored)
        if stored.stream != DEAD:
            told.setdefault(stored.headers.get("ce-id", ""), stored)
    placed: set[tuple[str, int]] = set()

    def all_of(cause: str, by: Stored | None, at: datetime | None, depth: int) -> list[Caused]:
        return [caused(each, by, at, depth) for each in effects.get(cause, ()) if place_of(each) not in placed]

    def caused(stored: Stored, by: Stored | None, at: datetime | None, depth: int) -> Caused:
        placed.add(place_of(stored))
        if stored.stream == DEAD:
            return letter_of(stored)
        event_id = stored.headers.get("ce-id", "")
        return Caused(
            stored.stream,
            stored.sequence,
            stored.subject,
            stored.type,
            stored.time,
            event_id,
            (stored.time - at).total_seconds() if at else None,
            through(by, stored),
            caused=all_of(event_id, stored, stored.time, depth + 1) if depth < DEEPEST else (),
        )

    roots = [Root(cause, born(cause), all_of(cause, None, born(cause), 1)) for cause in effects if cause not in told]
    for stored in ordered:
        if place_of(stored) not in placed:
            cause = cause_of(stored)
            by = told[cause]
            roots.append(Root(cause, by.time, all_of(cause, by, by.time, 1), is_event=True))
    return Trace(conversation, roots, more)


def cause_of(stored: Stored) -> str:
    """The id of what led to an event; for a dead letter, that of the event that was given up on."""
    return stored.headers.get("ce-id" if stored.stream == DEAD else "causation-id", "")


def place_of(stored: Stored) -> tuple[str, int]:
    """Where it is in the log."""
    return stored.stream, stored.sequence


def letter_of(stored: Stored) -> Caused:
    """A dead letter, under the event that a listener gave up on."""
    headers = stored.headers
    listener = headers.get("dead-listener", stored.subject)
    waited = (stored.stored_at - stored.time).total_seconds()
    return Caused(
        stored.stream,
        stored.sequence,
        stored.subject,
        stored.type,
        stored.stored_at,
        headers.get("ce-id", ""),
        waited,
        (listener,),
        headers.get("dead-error", "given up"),
    )


def through(cause: Stored | None, effect: Stored) -> Sequence[str]:
    """The listeners that hear the cause, and are of the service that told the effect."""
    if cause is None or cause.subject == effect.subject:
        return ()
    writers = WRITERS.get(effect.stream, ())
    return [each.durable for each in CONSUMERS if each.stream == cause.stream and each.service in writers]
