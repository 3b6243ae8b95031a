"""What is appended, as it happens, on all streams at once; and who wants to see which of it."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any

import msgspec

from common.errors import Unavailable
from common.event_log import JetStreamLog, Stored, merged
from services.history.finding import quoted
from services.history.timeline import WHO

WAITING = 16
"""Pages that wait for who looks at them; the server sends no more to who does not keep up."""


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
            body_of(stored),
        )


def body_of(stored: Stored) -> Any:
    """What an event says, as JSON has it; as text where it is none."""
    try:
        return msgspec.json.decode(stored.body)
    except msgspec.DecodeError:
        return stored.body.decode(errors="replace")


def people_in(stored: Stored) -> set[str]:
    """The people whom an event names."""
    body = body_of(stored)
    return {str(body[name]) for name in WHO if name in body} if isinstance(body, dict) else set()


async def tail(
    log: JetStreamLog,
    streams: Sequence[str],
    since: datetime | None = None,
    wanted: Callable[[Stored], bool] = lambda _: True,
    *,
    started: Callable[[], None] = lambda: None,
) -> AsyncGenerator[list[Stored], None]:
    """What is appended from now on, or since a moment; in lists as it comes, for ever. What was is in order of time.

    `started` is called when nothing that is appended from then on is missed. Raises Unavailable.
    """
    ends = {stream: (await log.end(stream)).sequence for stream in streams}
    started()
    if since is not None:
        after = {stream: await log.sequence_before(stream, since) for stream in streams}
        scans = {stream: log.scan(stream, after[stream], until=end) for stream, end in ends.items()}
        async with aclosing(merged(scans)) as past:
            async for stored in past:
                if wanted(stored):
                    yield [stored]
    pages: asyncio.Queue[list[Stored] | Unavailable] = asyncio.Queue(WAITING)

    async def listen(stream: str) -> None:
        try:
            async with aclosing(log.tail(stream, ends[stream])) as coming:
                async for page in coming:
                    if seen := [stored for stored in page if wanted(stored)]:
                        await pages.put(seen)
        except Unavailable as error:
            await pages.put(error)

    ears = [asyncio.create_task(listen(stream)) for stream in streams]
    try:
        while True:
            page = await pages.get()
            if isinstance(page, Unavailable):
                raise page
            yield page
    finally:
        for ear in ears:
            ear.cancel()
        await asyncio.gather(*ears, return_exceptions=True)
