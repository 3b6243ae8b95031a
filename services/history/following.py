"""What is appended, as it happens, on all streams at once; and who wants to see which of it."""

from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any

import msgspec

from common.errors import Invalid
from common.event_log import JetStreamLog, Stored, merged
from common.events import EVENTS
from services.history.finding import quoted
from services.history.timeline import WHO


class Wanted(msgspec.Struct, frozen=True):
    """Which events somebody wants to see: of these types, on these subjects or of this id, that name this user."""

    types: Sequence[str] = ()
    aggregate: str = ""
    user: str = ""

    def __call__(self, stored: Stored) -> bool:
        if self.types and stored.type not in self.types:
            return False
        place = (stored.subject, stored.subject.rpartition(".")[2])
        if self.aggregate and self.aggregate not in place and quoted(self.aggregate) not in stored.body:
            return False
        return not self.user or self.user in people_in(stored)


def known_types(types: Sequence[str]) -> Sequence[str]:
    """Raises Invalid for a type of event that there is not."""
    if unknown := sorted(set(types) - EVENTS.keys()):
        raise Invalid(f"type: There is no event {', '.join(unknown)}.", field="type", got=unknown)
    return types


class Line(msgspec.Struct, frozen=True):
    """An event as a line has it."""

    stream: str
    sequence: int
    subject: str
    type: str
    time: datetime
    event_id: str
    correlation_id: str
    causation_id: str
    event: Any

    @classmethod
    def of(cls, stored: Stored) -> "Line":
        headers = stored.headers
        event_id = headers.get("ce-id", "")
        return cls(
            stored.stream,
            stored.sequence,
            stored.subject,
            stored.type,
            stored.time,
            event_id,
            headers.get("correlation-id", ""),
            headers.get("causation-id", ""),
            shown(stored.body),
        )


def shown(body: bytes) -> Any:
    """A body as JSON, or as text where it is none."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body.decode("utf-8", "backslashreplace")


def people_in(stored: Stored) -> set[str]:
    """The people whom an event names."""
    body = shown(stored.body)
    return {str(body[name]) for name in WHO if name in body} if isinstance(body, dict) else set()


class Page(msgspec.Struct, frozen=True):
    """Events as they come. Whoever resumes from `place` misses nothing that comes after these; None while those of the
    past come, which are in another order than the one in which they were stored.
    """

    events: Sequence[Stored]
    place: datetime | None = None


OVERLAP = timedelta(seconds=10)
"""So much earlier than the place that is named a tail resumes: what streams hold is not looked at in one moment."""


async def tail(
    log: JetStreamLog,
    streams: Sequence[str],
    since: datetime | None = None,
    wanted: Callable[[Stored], bool] = lambda _: True,
    *,
    last: int | None = None,
    resume: datetime | None = None,
    started: Callable[[], None] = lambda: None,
) -> AsyncGenerator[Page, None]:
    """What is appended from now on, or since a moment, as it comes, for ever. What was since then is in order of time.

    `last`: first, in one page, so many of those of before, as far as they are among the last of their streams.
    `resume`: a `place` to go on from, instead; what was stored up to OVERLAP before it comes again. `started` is called
    when nothing that is appended from then on is missed. Raises Unavailable.
    """
    if resume is not None:
        ends = {stream: await stored_before(log, stream, resume) for stream in streams}
    else:
        ends = {stream: (await log.end(stream)).sequence for stream in streams}
    started()
    if since is not None and resume is None:
        after = {stream: await log.sequence_before(stream, since) for stream in streams}
        scans = {stream: log.scan(stream, after[stream], until=end) for stream, end in ends.items()}
        async with aclosing(merged(scans)) as past:
            async for stored in past:
                if wanted(stored):
                    yield Page([stored])
    elif last is not None and resume is None:
        yield Page(await recent(log, ends, wanted, last))
    async with aclosing(log.watch(ends)) as coming:
        async for page in coming:
            if seen := [stored for stored in page if wanted(stored)]:
                # Of a stream with more to come the rest is later than the first of these, if not than the last.
                yield Page(seen, page[0].stored_at)


LOOKED_AT = 1_000
"""So many of the last events of a stream are looked at for those that are wanted."""


async def recent(
    log: JetStreamLog, ends: Mapping[str, int], wanted: Callable[[Stored], bool], last: int
) -> Sequence[Stored]:
    """The last of the last events of these streams that are wanted, in order of time."""
    scans = {stream: log.scan(stream, max(0, end - LOOKED_AT), until=end) for stream, end in ends.items()}
    async with aclosing(merged(scans)) as past:
        return deque([stored async for stored in past if wanted(stored)], maxlen=last)


async def stored_before(log: JetStreamLog, stream: str, place: datetime) -> int:
    """The last sequence of a stream that was stored OVERLAP before a place, or earlier; 0 for none."""
    low, high = 0, (await log.end(stream)).sequence
    while low < high:
        middle = (low + high + 1) // 2
        there = await log.stored(stream, middle)
        low, high = (middle, high) if there and there.stored_at + OVERLAP < place else (low, middle - 1)
    return low
