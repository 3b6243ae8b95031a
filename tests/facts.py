"""Small numbered facts for tests of the kernel, which does not care what events say; and looks at its state."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from datetime import UTC, datetime
from uuid import UUID

from common.event_log import Draft, EventLog, Recorded
from common.events import Event, ExpirationCompleted
from common.runtime import Platform

STREAM = "EXPIRATION"
AT = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def fact(number: int, version: int = 0) -> ExpirationCompleted:
    """A fact that says nothing but its number."""
    return ExpirationCompleted(UUID(int=number), UUID(int=0), AT, AT, version=version)


def draft(number: int) -> Draft:
    """A fact on its way to the log."""
    return Draft.of(fact(number))


def drafts(numbers: Iterable[int]) -> list[Draft]:
    """Facts of one decision."""
    return [draft(number) for number in numbers]


def number_of(event: Event) -> int:
    """Which fact this is."""
    assert isinstance(event, ExpirationCompleted)
    return event.order_id.int


def numbers(events: Iterable[Recorded]) -> list[int]:
    """Which facts these are."""
    return [number_of(recorded.event) for recorded in events]


async def tell(event_log: EventLog, *told: int) -> None:
    """Append facts, each to a subject of its own, `expiration.f<number>`."""
    for number in told:
        await event_log.append(f"expiration.f{number}", [draft(number)], expected=0)


async def first(events: AsyncGenerator[list[Recorded], None], count: int) -> list[Recorded]:
    """The first `count` events that are followed."""
    taken: list[Recorded] = []
    async with aclosing(events) as batches:
        async for batch in batches:
            taken += batch
            if len(taken) >= count:
                break
    return taken


async def whole(event_log: EventLog, stream: str = STREAM) -> list[Recorded]:
    """All that a stream holds now."""
    end = (await event_log.end(stream)).sequence
    return await first(event_log.follow(stream), end) if end else []


def connected(platform: Platform) -> Callable[[], Awaitable[bool]]:
    """Looks whether the client is connected."""

    async def look() -> bool:
        return platform.client.is_connected

    return look
