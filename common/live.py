"""Connections that stay open: how many there may be, how they end when the process does, and server-sent events."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress

import msgspec
from litestar.response import Stream

from common.errors import Unavailable
from common.telemetry import OPEN

PING_SECONDS = 15.0
"""Something is sent after so long a silence: proxies cut what is silent for a minute, and a dead client is noticed."""

CLOSE_SECONDS = 2.0

PING = b": ping\n\n"

_encode = msgspec.json.Encoder().encode


class Connections:
    """The connections of this process that stay open."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ends: dict[object, Callable[[], None]] = {}
        self._closing = False
        self._none = asyncio.Event()

    def admit(self) -> None:
        """Raises Unavailable when no more may be opened."""
        if self._closing:
            raise Unavailable("This server is about to stop; connect again.")
        if len(self._ends) >= self._limit:
            raise Unavailable(f"All {self._limit:,} connections that may stay open here are taken; try again.")

    @contextmanager
    def opened(self, end: Callable[[], None]) -> Iterator[None]:
        """Count a connection as long as it is open; `end` is called when the process stops."""
        key = object()
        self._ends[key] = end
        OPEN.inc()
        try:
            yield
        finally:
            OPEN.dec()
            del self._ends[key]
            if not self._ends:
                self._none.set()

    async def close(self) -> None:
        """Let all of them end, and take no more; those that have not after CLOSE_SECONDS are left to the web server."""
        self._closing = True
        for end in list(self._ends.values()):
            end()
        self._none.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS if self._ends else 0):
                await self._none.wait()


def retry_ms() -> int:
    """When to connect again after this process has stopped: each at another time, that not all come at once."""
    return random.randrange(500, 3_500)  # noqa: S311 (jitter)


def sent_event(event: str, data: object, cursor: int | None = None) -> bytes:
    """A server-sent event (WHATWG HTML, 9.2) with JSON in it."""
    head = f"id: {cursor}\nevent: {event}\n" if cursor is not None else f"event: {event}\n"
    return head.encode() + b"data: " + _encode(data) + b"\n\n"


async def begun(events: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """The same events, once there is the first: what it raises is then told instead of a stream that breaks off."""
    first = await anext(events)

    async def all_of_them() -> AsyncIterator[bytes]:
        async with aclosing(events):
            yield first
            async for event in events:
                yield event

    return all_of_them()


def event_stream(events: AsyncIterator[bytes]) -> Stream:
    """The response that sends events as they come. nginx and its like are told not to collect them."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return Stream(events, media_type="text/event-stream", headers=headers)
