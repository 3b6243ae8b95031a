"""Events of a file into a log that has none: as they were, each in its place."""

import asyncio
from array import array
from bisect import bisect_right
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing

import msgspec
from msgspec import inspect
from nats.aio.client import Client

from common import snapshots
from common.errors import Conflict
from common.event_log import JetStreamLog, Stored, WrongSequence
from common.events import Event, encode, events_of, type_of
from common.events.base import PLACE
from common.exports import ExportFile
from common.group_commit import BATCH_LIMIT, Guarded
from common.progress import Progress, untold
from common.topology import HISTORY, begin_behind, require_whole

IMPORT = "boxoffice events import"
"""With what the command begins that brings a log back from a file."""

BATCH_BYTES = 4 * 1024 * 1024
"""Of bodies in one append, before it is sent."""


def places_in(event: type[Event]) -> tuple[str, ...]:
    """The fields of an event that are sequences of its own stream."""
    fields = ((field.name, inspect.type_info(field.type)) for field in msgspec.structs.fields(event))
    return tuple(name for name, told in fields if isinstance(told, inspect.Metadata) and PLACE in (told.extra or {}))


PLACES: Mapping[type[Event], tuple[str, ...]] = {
    event: places for stream in HISTORY for event in events_of(stream.lower()) if (places := places_in(event))
}
NUMBERED = {stream for stream in HISTORY if PLACES.keys() & set(events_of(stream.lower()))}
"""The streams whose events name sequences of them."""


class Placed(msgspec.Struct, frozen=True):
    """An event of a file, and the sequence that it has in the log which takes it in."""

    stream: str
    sequence: int
    message: Guarded

    def is_(self, stored: Stored) -> bool:
        """Whether this is what is stored, but for what the server alone has to know."""
        ours, theirs = (
            {name: value for name, value in headers.items() if not name.startswith("Nats-")}
            for headers in (self.message.headers, stored.headers)
        )
        return (self.message.subject, self.message.body, ours) == (stored.subject, stored.body, theirs)


def placed(file: ExportFile) -> Iterator[Placed]:
    """The events of a file, where they go: to the sequences that they had, or, of a part of a log, one after the other.

    Whatever names a sequence of its stream then names the one that this event has now, or the last before it.
    """
    counts: dict[str, int] = {}
    were = {stream: array("Q") for stream in NUMBERED}
    partial = file.head().partial
    for each in file.lines():
        line, body = each.line, each.body
        headers = line.headers | {"Nats-Msg-Id": line.headers["ce-id"]}
        counts[line.stream] = counts.get(line.stream, 0) + 1
        if partial and line.stream in were:
            were[line.stream].append(line.sequence)
            event = each.event.event
            if names := PLACES.get(type(event)):
                now = {name: bisect_right(were[line.stream], getattr(event, name)) for name in names}
                body = encode(msgspec.structs.replace(event, **now))
                headers["ce-type"] = type_of(type(event))  # what had an old shape has today's
        yield Placed(line.stream, counts[line.stream], Guarded(line.subject, body, headers, None))


class Imported(msgspec.Struct, frozen=True):
    """How many events were taken in, and how many were there already, as an earlier import was cut off."""

    events: int
    before: int


async def take_in(
    file: ExportFile,
    counts: Mapping[str, int],
    client: Client,
    writers: Mapping[str, JetStreamLog],
    *,
    again: str,
    deliver: bool = False,
    progress: Progress = untold,
) -> Imported:
    """Append what a file holds that was checked (`counts`), if the log holds nothing else than the beginning of it.

    `client` is one of who may manage consumers and read; `writers` have the log of who may write each of these streams.
    Durable consumers begin behind what is taken in, so that nobody acts on it; with `deliver` they hear all of it.
    Nobody else appends meanwhile; `again`: the command that goes on with it where it was killed. What ends it otherwise
    leaves a log to which one may append. Raises Conflict, Invalid, Unavailable.
    """
    await require_whole(client, but_for=IMPORT)
    event_log = JetStreamLog(client)
    ends = {stream: (await event_log.end(stream)).sequence for stream in HISTORY}
    await _must_begin(file, counts, ends, event_log)
    left = sum(counts.values()) - sum(ends.values())
    waiting: dict[str, list[Guarded]] = {stream: [] for stream in counts}
    size = dict.fromkeys(counts, 0)
    reached = dict(ends)

    async def flush(stream: str) -> None:
        messages, waiting[stream], size[stream] = waiting[stream], [], 0
        if messages:
            try:
                await writers[stream].take_in(stream, messages, after=reached[stream])
            except WrongSequence:
                told = f"Somebody else appended to {stream} meanwhile, after {reached[stream]}. Nothing more is written"
                raise Conflict(f"{told}: import into a system that nobody uses, from its beginning.") from None
            reached[stream] += len(messages)
            progress(stream, reached[stream], counts[stream])

    async def leave(*, answered: bool) -> None:
        """Have whatever comes next heard. `answered`: so was every append."""
        if not answered:
            reached.update({stream: (await writers[stream].end(stream)).sequence for stream in counts})
        await begin_behind(client, {} if deliver else reached)
        await snapshots.restored(client)

    async with snapshots.restoring(client, again):
        await snapshots.tell_restored(client)
        await begin_behind(client, {} if deliver else counts)
        try:
            for each in placed(file) if left else ():
                stream = each.stream
                if each.sequence <= ends[stream]:
                    continue
                waiting[stream].append(each.message)
                size[stream] += len(each.message.body)
                if len(waiting[stream]) == BATCH_LIMIT or size[stream] >= BATCH_BYTES:
                    await flush(stream)
            for stream in waiting:
                await flush(stream)
        except BaseException as error:  # also when it is interrupted: then only another task may ask something
            await asyncio.create_task(leave(answered=isinstance(error, Conflict)))
            raise
    return Imported(left, sum(ends.values()))


async def _must_begin(
    file: ExportFile, counts: Mapping[str, int], ends: Mapping[str, int], event_log: JetStreamLog
) -> None:
    """Raises Conflict unless the log holds the beginning of each stream of the file, and nothing else."""
    there = {stream: end for stream, end in ends.items() if end}
    held = ", ".join(f"{stream} {end:,}" for stream, end in there.items())
    refusal = Conflict(f"The log is not empty (events: {held}), nor what {file.name} begins with: use an empty system.")
    if any(end > counts.get(stream, 0) for stream, end in there.items()):
        raise refusal
    if not there:
        return
    async with AsyncExitStack() as stack:
        held_there = {
            stream: await stack.enter_async_context(aclosing(_stored(event_log, stream, end)))
            for stream, end in there.items()
        }
        for each in placed(file):
            if each.sequence <= ends[each.stream] and not each.is_(await anext(held_there[each.stream])):
                raise refusal


async def _stored(event_log: JetStreamLog, stream: str, until: int) -> AsyncGenerator[Stored, None]:
    async with aclosing(event_log.scan(stream, until=until)) as pages:
        async for page in pages:
            for stored in page:
                yield stored
