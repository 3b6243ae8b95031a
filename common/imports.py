"""Events of a file into a log that has none: as they were, each in its place."""

from array import array
from bisect import bisect_right
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, suppress

import msgspec
from msgspec import inspect
from nats.aio.client import Client

from common.errors import Conflict, DomainError, Unavailable
from common.event_log import JetStreamLog, WrongSequence
from common.events import Event, encode, events_of, type_of
from common.events.base import PLACE
from common.exports import ExportFile, Progress
from common.group_commit import BATCH_LIMIT, Guarded
from common.topology import HISTORY, begin_behind

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

    @property
    def id(self) -> str:
        return self.message.headers["ce-id"]


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
    deliver: bool = False,
    progress: Progress = lambda _stream, _done, _total: None,
) -> Imported:
    """Append what a file holds that was checked (`counts`), if the log holds nothing else than the beginning of it.

    `client` is one of who may manage consumers and read; `writers` have the log of who may write each of these streams.
    Durable consumers begin behind what is taken in, so that nobody acts on it; with `deliver` they hear all of it.
    Raises Conflict, Invalid, Unavailable.
    """
    event_log = JetStreamLog(client)
    ends = {stream: (await event_log.end(stream)).sequence for stream in HISTORY}
    await _must_begin(file, counts, ends, event_log)
    left = sum(counts.values()) - sum(ends.values())
    if not left:
        return Imported(0, sum(ends.values()))
    await begin_behind(client, {} if deliver else counts)
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

    try:
        for each in placed(file):
            stream = each.stream
            if each.sequence <= ends[stream]:
                continue
            waiting[stream].append(each.message)
            size[stream] += len(each.message.body)
            if len(waiting[stream]) == BATCH_LIMIT or size[stream] >= BATCH_BYTES:
                await flush(stream)
        for stream in waiting:
            await flush(stream)
    except DomainError:
        if not deliver:  # whatever comes next is heard
            with suppress(Unavailable):
                await begin_behind(client, reached)
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
        ids = {
            stream: await stack.enter_async_context(aclosing(_ids(event_log, stream, end)))
            for stream, end in there.items()
        }
        for each in placed(file):
            if each.sequence <= ends[each.stream] and await anext(ids[each.stream]) != each.id:
                raise refusal


async def _ids(event_log: JetStreamLog, stream: str, until: int) -> AsyncGenerator[str, None]:
    async with aclosing(event_log.scan(stream, until=until)) as pages:
        async for page in pages:
            for stored in page:
                yield stored.headers.get("ce-id", "")
