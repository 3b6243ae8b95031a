"""HTTP -> what is in the log, for operators: histories, causes, and what happens now."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, Any

import msgspec
from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromPath, HeaderParameter, QueryParameter
from litestar.response import Stream

from common.aggregate import Decider
from common.auth import RequiresUser, UserRequest, still_let_in
from common.clock import Moment, in_utc, now
from common.errors import DomainError, Invalid, Unavailable
from common.event_log import JetStreamLog
from common.events import events_of, type_of
from common.limits import Limited
from common.live import PING, PING_SECONDS, Connections, event_stream, retry_ms, sent_event
from common.problems import problems
from common.topology import HISTORY
from services.history.causes import Trace, trace
from services.history.finding import Lead, find, leads, streams_of
from services.history.following import Line, Wanted, known_types, tail
from services.history.timeline import SHOWN, History, history_of

OPERATORS = (RequiresUser("events", "operator"), Limited("changes"))

SHARE = 0.1
"""Of the connections that may stay open here, how many may look at events: people who buy come first."""

LONGEST = 30 * 86_400
"""Seconds that a trace may be looked for here; the command line has no limit."""

PATIENCE = 12
"""Seconds that an id is looked for."""

Types = Annotated[list[str] | None, QueryParameter(name="type", max_items=50, description="Only events of this type")]
Service = Annotated[str | None, QueryParameter(max_length=50, description="Only what this service tells")]
About = Annotated[
    str | None, QueryParameter(name="aggregate", max_length=200, description="Only what is of an id, or names it")
]
Person = Annotated[str | None, QueryParameter(name="user", max_length=200, description="Only what names this person")]
Since = Annotated[Moment | None, QueryParameter(description="From then on")]
At = Annotated[int | None, QueryParameter(ge=1, le=2**63 - 1, description="The sequence of the last event that counts")]
AtTime = Annotated[Moment | None, QueryParameter(description="When to stop, instead")]
Last = Annotated[int, QueryParameter(ge=1, le=10 * SHOWN, description="How many steps, from the end")]
Entries = Annotated[
    int | None, QueryParameter(ge=1, le=100_000, description="Of each part of the state at most so many entries")
]
Recent = Annotated[
    int | None,
    QueryParameter(name="last", ge=1, le=SHOWN, description="First the last so many of before, if no `since`"),
]
LastEventId = Annotated[
    Moment | None, HeaderParameter(name="Last-Event-ID", description="The `id` that came last: go on from there")
]
Within = Annotated[int, QueryParameter(ge=1, le=LONGEST, description="Seconds from then on")]


class HistoryDesk(msgspec.Struct, frozen=True):
    """What the doors need."""

    log: JetStreamLog
    deciders: Sequence[Decider[Any, Any, Any]]
    connections: Connections


class HistoryController(Controller):
    """The log, as operators look at it."""

    path = "/api/events"
    tags = ("events",)
    middleware = OPERATORS

    @get("/stream", media_type="text/event-stream", responses=problems(400, 422, 503))
    async def stream(
        self,
        request: UserRequest,
        desk: NamedDependency[HistoryDesk],
        service: Service = None,
        types: Types = None,
        about: About = None,
        person: Person = None,
        since: Since = None,
        recent: Recent = None,
        last_event_id: LastEventId = None,
    ) -> Stream:
        """Server-sent events: an `event` for each that is appended from now on, or `since`.

        With `last` those of before come first, as far as they are among the last events, and then one `begun`.
        Each has the time from which on to go on as its `id`, and so has the beginning; those of the past have none.
        With it as `Last-Event-ID`, which a page sends by itself when it connects again, nothing is lost, whatever
        `since` says; some events may come again, which their `event_id` tells.
        """
        streams = streams_of(service)
        wanted = Wanted(known_types(types or []), about or "", person or "")
        begin = since and in_utc("since", since)
        resume = last_event_id and in_utc("Last-Event-ID", last_event_id)
        return await event_stream(sse(desk, streams, begin, recent, resume, wanted, still_let_in(request)))

    @get("/types", sync_to_thread=False)
    def types(self) -> dict[str, list[str]]:
        """The types of events that there are, by the service whose they are."""
        return {name: sorted(map(type_of, events_of(name))) for name in map(str.lower, HISTORY)}

    @get("/find/{wanted:str}", responses=problems(404, 503))
    async def find(self, desk: NamedDependency[HistoryDesk], wanted: FromPath[str]) -> Sequence[Lead]:
        """What an id is the id of: aggregates with a history, or what one click caused.

        An id that tells its time (UUIDv7) is looked for from then on, any other in all of the log.
        """
        try:
            async with asyncio.timeout(PATIENCE):
                return await leads(desk.log, desk.deciders, wanted)
        except TimeoutError:
            detail = (
                f"It was not found within {PATIENCE} s. `boxoffice events show {wanted}` looks as long as it takes."
            )
            raise Unavailable(detail) from None

    @get("/history/{service:str}/{aggregate_id:str}", responses=problems(400, 404, 422, 503))
    async def history(
        self,
        desk: NamedDependency[HistoryDesk],
        service: FromPath[str],
        aggregate_id: FromPath[str],
        at: At = None,
        at_time: AtTime = None,
        last: Last = SHOWN,
        entries: Entries = None,
    ) -> History:
        """An aggregate event by event, with what each changed, and its state: at the end, or `at` a sequence or time.

        The id of an order is enough: it is the history of its book, with the steps that name the order.
        """
        if at is not None and at_time is not None:
            raise Invalid("at, at_time: Give one of them.", field="at")
        place = await find(desk.log, desk.deciders, aggregate_id, service)
        moment = at_time and in_utc("at_time", at_time) if at is None else at
        # In a thread: the book of a ticket that everybody wants may take seconds, and others share this process.
        how = partial(history_of, at=moment, about=place.about, last=last, entries=entries)
        return await asyncio.to_thread(how, desk.deciders, place.events)

    @get("/trace/{cause_id:str}", responses=problems(400, 404, 422, 503))
    async def trace(
        self,
        desk: NamedDependency[HistoryDesk],
        cause_id: FromPath[str],
        since: Since = None,
        within: Within = 86_400,
    ) -> Sequence[Trace]:
        """Everything that was caused together with this: by a correlation, an event, a request, or what events name.

        It is looked for from the time that the id tells on, or `since`, for `within` seconds.
        """
        return await trace(desk.log, cause_id, since=since and in_utc("since", since), within=timedelta(seconds=within))


async def sse(
    desk: HistoryDesk,
    streams: Sequence[str],
    since: datetime | None,
    last: int | None,
    resume: datetime | None,
    wanted: Wanted,
    still: Callable[[], None],
) -> AsyncGenerator[bytes, None]:
    """Each event as it comes, until the process stops, or `still` raises. Raises Unavailable before the first."""
    ended = asyncio.Event()
    with desk.connections.opened(ended.set, SHARE):
        looks_back = last is not None and since is None and resume is None
        begun = place_line(now()) + sent_event("begun", {}) if looks_back else b""
        begin = now() if since is None and not looks_back else None  # of the past nothing was sent yet
        yield b"retry: %d\n%b\n" % (retry_ms(), place_line(resume or begin))
        try:
            async with aclosing(tail(desk.log, streams, since, wanted, last=last, resume=resume)) as pages:
                coming = asyncio.ensure_future(anext(pages))
                ending = asyncio.create_task(ended.wait())
                try:
                    while not ended.is_set():
                        await asyncio.wait({coming, ending}, timeout=PING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                        still()
                        if coming.done():
                            page = coming.result()
                            place = place_line(page.place)
                            yield (
                                b"".join(place + sent_event("event", Line.of(stored)) for stored in page.events) + begun
                            )
                            begun = b""
                            coming = asyncio.ensure_future(anext(pages))
                        else:
                            yield PING
                finally:
                    ending.cancel()
                    coming.cancel()
                    await asyncio.wait({coming})
        except DomainError as error:
            yield sent_event("ended", {"reason": error.detail})


def place_line(place: datetime | None) -> bytes:
    """The line of a server-sent event that says from where on to go on; none for no place."""
    return b"" if place is None else f"id: {place.isoformat().replace('+00:00', 'Z')}\n".encode()
