"""How much is left of each ticket, told to every open page as it changes."""

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing
from uuid import UUID

import asyncpg
import structlog

from common.event_log import EventLog, Recorded
from common.events import OrderCancelled, OrderCreated, TicketCreated, TicketUpdated, TicketWithdrawn
from common.live import PING, PING_SECONDS, Connections, retry_ms, sent_event, until_followed
from common.postgres import POSTGRES_FAILED
from common.projector import Projected
from services.tickets import read_model

TOLD_AGAIN = 0.15
"""Seconds between two tellings of a ticket: a few a second, and what has to wait is still told within 0.2 s."""

SHARE = 0.8
"""Of all connections that may be open, as many as pages take at most: anybody may open those, and people need room."""

log = structlog.get_logger()


def ticket_changed(recorded: Recorded) -> UUID | None:
    """Of which ticket an event changes what buyers see."""
    match recorded.event:
        case TicketCreated() | TicketUpdated() | TicketWithdrawn() | OrderCreated() | OrderCancelled() as event:
            return event.ticket_id
    return None


class Page:
    """An open page: what it has not been told yet, the latest of each ticket. A slow one is told less, not later."""

    def __init__(self, wanted: Collection[UUID]) -> None:
        """`wanted`: the tickets that it shows; none stands for all."""
        self._wanted = frozenset(wanted)
        self._news: dict[UUID, bytes] = {}
        self._wake = asyncio.Event()
        self._over = False

    def tell(self, ticket_id: UUID, told: bytes) -> None:
        """News of a ticket, instead of older ones that are still to be sent."""
        if not self._wanted or ticket_id in self._wanted:
            self._news[ticket_id] = told
            self._wake.set()

    def begin(self, ticket_id: UUID, told: bytes) -> None:
        """How a ticket was when the page was opened, unless there are news of it already."""
        self._news.setdefault(ticket_id, told)
        self._wake.set()

    def end(self) -> None:
        """Nothing more comes."""
        self._over = True
        self._wake.set()

    async def news(self) -> AsyncGenerator[bytes, None]:
        """What is to be sent, until the end; then when to connect again."""
        while not self._over:
            try:
                async with asyncio.timeout(PING_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                yield PING
            self._wake.clear()
            if self._news:
                told, self._news = self._news, {}
                yield b"".join(told.values())
        yield b"retry: %d\n\n" % retry_ms()


class Availability:
    """Follows the log, and tells the open pages of this process what changed, as the read model then has it."""

    name = "tickets.live"

    def __init__(
        self, event_log: EventLog, projected: Mapping[str, Projected], pool: asyncpg.Pool, connections: Connections
    ) -> None:
        """`projected`: of the read model, by the stream that it is made from."""
        self.problem: str | None = None
        self._event_log = event_log
        self._projected = projected
        self._pool = pool
        self._connections = connections
        self._pages: set[Page] = set()
        self._reached: dict[str, int] = {}
        self._started = asyncio.Event()
        self._changed: set[UUID] = set()
        self._told: dict[UUID, float] = {}  # when, by the loop's clock; the oldest first
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Tell until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for stream in self._projected:
                    tasks.create_task(self._follow(stream))
                tasks.create_task(self._tell())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        finally:  # the log is another: pages ask anew how their tickets are
            self._started.clear()
            self._reached.clear()
            for page in self._pages:
                page.end()

    async def events(self, wanted: Collection[UUID]) -> AsyncGenerator[bytes, None]:
        """The events for a page: how its tickets are now, and then what changes. Raises Unavailable."""
        page = Page(wanted)
        with self._connections.opened(page.end, SHARE):
            self._pages.add(page)
            try:
                await until_followed(self._started)
                behind = not await self._projected_all()
                for ticket in await read_model.tickets_of(self._pool, list(wanted)):
                    page.begin(ticket.id, sent_event("ticket", ticket))
                    if behind:
                        self._changed.add(ticket.id)
                self._wake.set()
                yield b"retry: 1000\n\n"
                async with aclosing(page.news()) as told:
                    async for news in told:
                        yield news
            finally:
                self._pages.discard(page)

    async def _projected_all(self) -> bool:
        """Wait until all that was heard of can be read, 2 s at most for each stream; whether it can."""
        reached = list(self._reached.items())
        return all([await self._projected[stream].wait(sequence) for stream, sequence in reached])

    async def _follow(self, stream: str) -> None:
        self._reached[stream] = (await self._event_log.end(stream)).sequence
        if len(self._reached) == len(self._projected):
            self._started.set()
            self.problem = None
        async with aclosing(self._event_log.follow(stream, self._reached[stream])) as batches:
            async for batch in batches:
                self._changed.update(filter(None, map(ticket_changed, batch)))
                self._reached[stream] = batch[-1].sequence
                self._wake.set()

    async def _tell(self) -> None:
        """Tell what changed, each ticket when its time has come."""
        loop = asyncio.get_running_loop()
        while True:
            while self._told and next(iter(self._told.values())) <= loop.time() - TOLD_AGAIN:
                del self._told[next(iter(self._told))]
            due = self._changed - self._told.keys()
            if not due:
                wait = next(iter(self._told.values())) + TOLD_AGAIN - loop.time() if self._changed else None
                try:
                    async with asyncio.timeout(wait):
                        await self._wake.wait()
                except TimeoutError:
                    continue
                self._wake.clear()
                continue
            self._changed -= due
            if self._pages:
                await self._tell_pages(list(due))
            self._told |= dict.fromkeys(due, loop.time())

    async def _tell_pages(self, due: list[UUID]) -> None:
        try:
            behind = not await self._projected_all()
            tickets = await read_model.tickets_of(self._pool, due)
        except POSTGRES_FAILED as error:
            log.warning("live_tickets_wait", error=repr(error))
            self._changed.update(due)
            await asyncio.sleep(0.5)
            return
        if behind:
            self._changed.update(due)  # they are told again
        for ticket in tickets:
            told = sent_event("ticket", ticket)
            for page in self._pages:
                page.tell(ticket.id, told)
