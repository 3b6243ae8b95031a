"""The event log in memory, for unit tests. It passes the same conformance suite as the one on JetStream."""

import asyncio
from collections.abc import Collection, Sequence

from msgspec.structs import replace

from common.clock import now
from common.errors import Invalid
from common.event_log import SKIPPED, Batches, Draft, Recorded, StreamEnd, WrongSequence, stream_of
from common.events import Event, decode, encode, type_of
from common.group_commit import BATCH_LIMIT


class MemoryLog:
    """Streams as lists. One event loop, one process."""

    def __init__(self) -> None:
        self._created = now()
        self._streams: dict[str, list[Recorded]] = {}
        self._grown = asyncio.Condition()

    @property
    def renewals(self) -> int:
        return 0

    async def append(self, subject: str, drafts: Sequence[Draft], *, expected: int) -> int:
        if not 1 <= len(drafts) <= BATCH_LIMIT:
            raise Invalid(f"One decision may make 1 to {BATCH_LIMIT} events, this one made {len(drafts)}.")
        stream = self._streams.setdefault(stream_of(subject), [])
        on_subject = [event for event in stream if event.subject == subject]
        later = [event for event in on_subject if event.sequence > expected]
        if later and later[0].id == drafts[0].id:
            return later[len(drafts) - 1].sequence
        if later or (on_subject[-1].sequence if on_subject else 0) != expected:
            raise WrongSequence(subject)
        for draft in drafts:
            headers = draft.headers("/" + subject)
            event = decode(type_of(type(draft.event)), encode(draft.event))  # what the wire would make of it
            stream.append(Recorded(subject, len(stream) + 1, event, headers))
        async with self._grown:
            self._grown.notify_all()
        return len(stream)

    async def read(self, subject: str, after: int = 0) -> list[Recorded]:
        stream = self._streams.get(stream_of(subject), [])
        return [event for event in stream if event.subject == subject and event.sequence > after]

    async def follow(
        self, stream: str, after: int = 0, *, limit: int = BATCH_LIMIT, skips: Collection[type[Event]] = ()
    ) -> Batches:
        events = self._streams.setdefault(stream, [])
        while True:
            async with self._grown:
                await self._grown.wait_for(lambda: len(events) > after)  # noqa: B023 (evaluated here, not later)
            batch = events[after : after + limit]
            after += len(batch)
            yield [replace(each, event=SKIPPED) if type(each.event) in skips else each for each in batch]

    async def end(self, stream: str) -> StreamEnd:
        return StreamEnd(self._created, len(self._streams.get(stream, [])))

    async def event_id(self, stream: str, sequence: int) -> str | None:
        events = self._streams.get(stream, [])
        return events[sequence - 1].id if 1 <= sequence <= len(events) else None
