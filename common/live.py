"""Connections that stay open: how many there may be, how they end when the process does, and server-sent events."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from math import ceil
from typing import Any, Literal, Self, get_args

import msgspec
import structlog
from litestar.response import Stream
from litestar.response.base import ASGIResponse
from litestar.response.streaming import ASGIStreamingResponse
from litestar.types import Message, Receive, Scope, Send
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from common.errors import Unavailable
from common.telemetry import OPEN

PING_SECONDS = 15.0
"""A comment is sent after so long a silence: proxies cut what is silent for a minute, and a dead client is noticed."""

START_SECONDS = 2.0
"""Whoever comes before the log is followed is let in after so long at most, or refused."""

CLOSE_SECONDS = 2.0

SLOW_SECONDS = 15.0
"""Whoever takes nothing for so long, while there is something to be sent, is closed; and resumes from its cursor."""

Transport = Literal["websocket", "sse", "poll"]
"""How events get to the other side: a WebSocket, server-sent events, or answers that wait until there is one."""

for each in get_args(Transport):
    OPEN.labels(each)  # so that none open is a figure too

PING = b": ping\n\n"

log = structlog.get_logger()

_encode = msgspec.json.Encoder().encode


class Connections:
    """The connections of this process that stay open."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ends: dict[object, Callable[[], None]] = {}
        self._closing = False
        self._none = asyncio.Event()

    @contextmanager
    def opened(self, end: Callable[[], None], share: float = 1, *, transport: Transport = "sse") -> Iterator[None]:
        """Count a connection as long as it is open; `end` is called when the process stops.

        `share`: of all that may be open, how many may be when this one is opened, at most. Raises Unavailable.
        """
        if self._closing:
            raise Unavailable("This server is about to stop; connect again.")
        if len(self._ends) >= (limit := ceil(self._limit * share)):
            raise Unavailable(f"All {limit:,} connections that may stay open here are taken; try again.")
        key = object()
        self._ends[key] = end
        OPEN.labels(transport).inc()
        try:
            yield
        finally:
            OPEN.labels(transport).dec()
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


async def until_followed(started: asyncio.Event) -> None:
    """Wait until the log is followed, so that nothing is missed from then on. Raises Unavailable."""
    if not started.is_set():
        try:
            await asyncio.wait_for(started.wait(), START_SECONDS)
        except TimeoutError:
            raise Unavailable("This server is starting; try again.") from None


def retry_ms() -> int:
    """When to connect again after this process has stopped: each at another time, that not all come at once."""
    return random.randrange(500, 3_500)  # noqa: S311 (jitter)


def sent_event(event: str, data: object, cursor: int | None = None) -> bytes:
    """A server-sent event (WHATWG HTML, 9.2) with JSON in it."""
    head = f"id: {cursor}\nevent: {event}\n" if cursor is not None else f"event: {event}\n"
    return head.encode() + b"data: " + _encode(data) + b"\n\n"


async def event_stream(events: AsyncGenerator[bytes, None]) -> Stream:
    """The response that sends events as they come. nginx and its like are told not to collect them.

    Raises what `events` raise instead of the first: who is refused is told so by the status of the answer.
    """
    first = await anext(events)
    return _EventStream(_Events(first, events))


class _Events:
    """Events of which the first is known. Closing these closes those, also where none was taken."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        self._first: bytes | None = first
        self._rest = rest

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        first, self._first = self._first, None
        return first if first is not None else await anext(self._rest)

    async def aclose(self) -> None:
        await self._rest.aclose()


class _EventStream(Stream):
    """Litestar's, but its events are closed when it ends, however it ends: of one that was cut while it was sending,
    Litestar 2.25 leaves them to the collection of garbage.
    """

    def __init__(self, events: _Events) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events = events

    def to_asgi_response(self, *_: object, **given: Any) -> ASGIResponse:
        answer = ("background", "cookies", "encoded_headers", "is_head_response", "status_code")
        headers = {**(given.get("headers") or {}), **self.headers}
        more = {name: given[name] for name in answer if given.get(name) is not None}
        return _Sending(iterator=self._events, headers=headers, media_type=self.media_type, **more)


class _TakesNothing(Exception):
    """The other side does not read what is sent."""


class _Sending(ASGIStreamingResponse):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(SLOW_SECONDS):
                    await send(message)
            except TimeoutError:
                raise _TakesNothing from None

        async with aclosing(self.iterator):  # type: ignore[type-var]  # _Events
            try:
                await super().__call__(scope, receive, send_in_time)
            except* _TakesNothing:
                log.info("slow_stream_closed", path=scope["path"])


class WebSockets(WebSocketsSansIOProtocol):
    """Those of uvicorn 0.54, but those that take nothing are closed too: it would wait until there is room for it."""

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.close":
            self.writable.set()
            self.loop.call_later(self.close_timeout + SLOW_SECONDS, self.transport.abort)
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            self.handshake_complete = True  # it was refused in order, and is no error to be logged

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.loop.call_later(CLOSE_SECONDS, self.transport.abort)
