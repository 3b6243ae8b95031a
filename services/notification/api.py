"""HTTP and WebSocket -> session: the same notifications with the same cursors, three ways."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any, get_args
from uuid import UUID

import asyncpg
import msgspec
from litestar import Controller, Request, Response, WebSocket, get, post, put, websocket
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.exceptions import WebSocketDisconnect
from litestar.openapi.spec import Schema
from litestar.params import FromPath, HeaderParameter, JSONBody, QueryParameter
from litestar.response import Stream
from msgspec import Meta

from common.assets import Asset
from common.auth import RequiresUser, User, UserRequest, still_let_in
from common.clock import now
from common.errors import DomainError, Unauthenticated
from common.events import Channel, NotificationEvent, NotificationKind
from common.headers import SCRIPTS_POLICY
from common.limits import Limited
from common.live import PING, PING_SECONDS, SLOW_SECONDS, event_stream, sent_event
from common.problems import problems
from common.projector import ReadYourWrites
from services.notification import read_model
from services.notification.domain import (
    Inbox,
    InboxCommand,
    MarkAllRead,
    MarkRead,
    SetPreferences,
    inbox_id_of,
)
from services.notification.feed import Ended, Feed, Sent, Session
from services.notification.read_model import InboxPage, Notification

VisibleInboxes = ReadYourWrites[InboxCommand, Inbox, NotificationEvent]

LAST = 2**53 - 1
"""The largest cursor there may be: as far as JavaScript counts."""

Place = Annotated[int, Meta(ge=0, le=LAST, examples=[1])]
PLACES: dict[str, Any] = {"gt": -1, "le": LAST}  # Litestar 2.25 leaves a `ge` of 0 out of the document
After = Annotated[
    int | None,
    QueryParameter(**PLACES, description="A cursor: what comes after it; by default what was not acknowledged"),
]
Log = Annotated[
    str | None,
    QueryParameter(max_length=64, description="The `log` that came with the cursor: of another one it says no place"),
]
CHANNELS = Schema(enum=list(get_args(Channel)))

TOGETHER = 20
"""Notifications that the other side takes in time, or is too slow: 8 KB, more or less."""

TOO_SLOW, RESTART, NOT_LET_IN = 1013, 1012, 1008
"""Why a WebSocket is closed (IANA): try again later, the service restarts, against the rules."""


class Resumed(msgspec.Struct, frozen=True, tag="resumed"):
    """The first message. Not `recovered`: your cursor is of another log; what came before this one is in the inbox.

    `log`: of which log this and all that follow are cursors. Hand it back beside yours: the log may be replaced.
    """

    recovered: bool
    cursor: int
    log: str


class Told(msgspec.Struct, frozen=True, tag="notification"):
    """A notification. `attempt`: how often it was sent here, as nobody acknowledged it."""

    notification: Notification
    attempt: int


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Nothing has happened for a while, and the connection is still there."""


class Ending(msgspec.Struct, frozen=True, tag="ended"):
    """The last message: why no more comes, and in how many milliseconds to connect again, if that is not up to you."""

    reason: str
    retry_ms: int | None = None


class Wrong(msgspec.Struct, frozen=True, tag="wrong"):
    """What you sent was no acknowledgement, or of what you were never sent."""

    detail: str


class Ack(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All up to this cursor has arrived."""

    ack: Place


class Cursor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A place in the notifications."""

    cursor: Place


class News(msgspec.Struct, frozen=True):
    """What a long-poll found. Ask again with `after` = `cursor`, and `log`, as the log may be replaced meanwhile."""

    items: list[Notification]
    cursor: int
    recovered: bool
    log: str


class Preferences(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which kinds you do not want on which channels. The inbox has all of them."""

    muted: Annotated[
        dict[Channel, list[NotificationKind]],
        Meta(examples=[{"sse": ["order.created"]}], extra_json_schema={"extra": {"property_names": CHANNELS}}),
    ]


class NotificationDesk(msgspec.Struct, frozen=True):
    """What these doors need."""

    inboxes: VisibleInboxes
    feed: Feed
    pool: asyncpg.Pool
    script: Asset


def resumed(session: Session) -> Resumed:
    """How a connection begins."""
    return Resumed(session.recovered, session.after, session.log)


def told(sent: Sent) -> Told:
    return Told(sent.notification, sent.attempt)


_encode = msgspec.json.Encoder().encode
_ack = msgspec.json.Decoder(Ack).decode


@get("/api/notifications/client.js", include_in_schema=False, sync_to_thread=False)
def client(request: Request[Any, Any, State], desk: NamedDependency[NotificationDesk]) -> Response[bytes]:
    """The module that pages listen with."""
    answer = desk.script.answer(request)
    answer.headers["Content-Security-Policy"] = SCRIPTS_POLICY
    return answer


class NotificationController(Controller):
    """What happened to you."""

    path = "/api/notifications"
    tags = ("notifications",)
    middleware = (RequiresUser("notifications"), Limited("changes"))

    @get("/", responses=problems(400, 503))
    async def poll(
        self,
        request: UserRequest,
        desk: NamedDependency[NotificationDesk],
        after: After = None,
        log: Log = None,
        wait: Annotated[int, QueryParameter(ge=0, le=60, description="Seconds to wait for something")] = 0,
    ) -> News:
        """What is new since `after`, oldest first, some at a time; at once if there is any, or it is not `recovered`.

        `after` acknowledges.
        """
        still = still_let_in(request)
        async with desk.feed.session(request.user.id, "poll", after, log) as session:
            if after and session.recovered:
                session.acknowledge(after)
            with suppress(Ended):
                async with ended_when_gone(request, session):
                    sent = await session.next(wait if session.recovered else 0)
                    passed = session.passed  # now: what is raised while the watch ends is not among them
                still()
                items = [each.notification for each in sent]
                return News(items, passed, session.recovered, session.log)
            return News([], session.after, session.recovered, session.log)

    @get("/stream", media_type="text/event-stream", responses=problems(400, 503))
    async def stream(
        self,
        request: UserRequest,
        desk: NamedDependency[NotificationDesk],
        after: After = None,
        log: Log = None,
        last_event_id: Annotated[int | None, HeaderParameter(name="Last-Event-ID", **PLACES)] = None,
    ) -> Stream:
        """Server-sent events: `resumed`, then each `notification` with its cursor as `id`; `ended` says why it is over.

        The same over a WebSocket, which OpenAPI cannot describe, at `/api/notifications/ws` with the same
        parameters: JSON with a `type`, which is `resumed` (`recovered`, `cursor`, `log`), `notification`
        (`notification`, `attempt`), `ping` after 15 s of silence, `wrong` (`detail`) for what you sent, and
        `ended` (`reason`, `retry_ms`) before it is closed: with 1012 as the process stops, with 1008 as what let you
        in was revoked, with 1013 as you are too slow or there is more. Send `{"ack": <cursor>}` for all that has
        arrived. A page, which can set no header, gives the `ticket` of a `POST /api/auth/ticket`, which is good for
        one socket.
        """
        place = last_event_id if last_event_id is not None else after
        return await event_stream(sse(desk.feed, request.user.id, place, log, still_let_in(request)))

    @websocket("/ws")
    async def ws(
        self,
        socket: WebSocket[User, Any, State],
        desk: NamedDependency[NotificationDesk],
        after: After = None,
        log: Log = None,
    ) -> None:
        """JSON: `resumed`, then each `notification`; `ping` in a silence; `{"ack": <cursor>}` from you."""
        async with desk.feed.session(socket.user.id, "websocket", after, log) as session:
            await socket.accept()
            await serve(socket, session, still_let_in(socket))

    @get("/inbox", responses=problems(400, 503))
    async def inbox(
        self,
        request: UserRequest,
        desk: NamedDependency[NotificationDesk],
        limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
        cursor: Annotated[int | None, QueryParameter(**PLACES)] = None,
    ) -> InboxPage:
        """All that you were ever told, newest first, and what became of it."""
        return await read_model.inbox(desk.pool, request.user.id, limit=limit, before=cursor)

    @post("/ack", status_code=204, responses=problems(400, 413, 415, 422, 503))
    async def acknowledge(
        self, data: JSONBody[Cursor], request: UserRequest, desk: NamedDependency[NotificationDesk]
    ) -> None:
        """All up to a cursor has arrived, however it came."""
        await desk.feed.acknowledge(request.user.id, data.cursor)

    @post("/read", status_code=204, responses=problems(400, 413, 415, 422, 503))
    async def read_all(
        self, data: JSONBody[Cursor], request: UserRequest, desk: NamedDependency[NotificationDesk]
    ) -> None:
        """You have read all up to a cursor."""
        user = request.user.id
        await desk.feed.check(data.cursor)
        await desk.inboxes.handle(inbox_id_of(user), MarkAllRead(user, data.cursor, now()))

    @post("/{notification_id:str}/read", status_code=204, responses=problems(400, 404, 503))
    async def read_one(
        self, notification_id: FromPath[UUID], request: UserRequest, desk: NamedDependency[NotificationDesk]
    ) -> None:
        """You have read this one."""
        user = request.user.id
        await desk.inboxes.handle(inbox_id_of(user), MarkRead(user, notification_id, now()))

    @get("/preferences", responses=problems(400, 503))
    async def preferences(self, request: UserRequest, desk: NamedDependency[NotificationDesk]) -> Preferences:
        """What you do not want on which channel."""
        return Preferences((await read_model.standing(desk.pool, request.user.id)).muted)

    @put("/preferences", responses=problems(400, 413, 415, 503))
    async def prefer(
        self, data: JSONBody[Preferences], request: UserRequest, desk: NamedDependency[NotificationDesk]
    ) -> Response[Preferences]:
        """Choose what you do not want on which channel."""
        user = request.user.id
        await desk.inboxes.handle(inbox_id_of(user), SetPreferences(user, data.muted, now()))
        return Response(data)


@asynccontextmanager
async def ended_when_gone(request: UserRequest, session: Session) -> AsyncIterator[None]:
    """End a session when whoever asks has given up, so that it takes no place of another."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        session.end(Ended("The other side is gone."))

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


async def sse(
    feed: Feed, user_id: str, after: int | None, log: str | None, still: Callable[[], None]
) -> AsyncGenerator[bytes, None]:
    """The events of a stream, until the session ends, or `still` raises. Raises Unavailable before the first."""
    async with feed.session(user_id, "sse", after, log) as session:
        try:
            yield sent_event("resumed", resumed(session), session.after)
            while True:
                sent = await session.next(PING_SECONDS)
                still()
                yield (
                    b"".join(sent_event("notification", told(each), each.notification.cursor) for each in sent) or PING
                )
        except Ended as ended:
            retry = b"" if ended.retry_ms is None else b"retry: %d\n" % ended.retry_ms  # as EventSource knows it
            yield retry + sent_event("ended", Ending(ended.reason, ended.retry_ms))
        except DomainError as error:
            yield sent_event("ended", Ending(error.detail))


async def serve(socket: WebSocket[User, Any, State], session: Session, still: Callable[[], None]) -> None:
    """Send and hear until one side ends it, or `still` raises."""
    hearing = asyncio.create_task(hear(socket, session))
    try:
        await send(socket, resumed(session))
        while not hearing.done():
            sent = await session.next(PING_SECONDS)
            still()
            for some in range(0, len(sent), TOGETHER):
                await send(socket, *map(told, sent[some : some + TOGETHER]))
            if not sent:
                await send(socket, Ping())
    except Ended as ended:
        if not ended.gone:
            await close(socket, TOO_SLOW if ended.too_slow else RESTART, Ending(ended.reason, ended.retry_ms))
    except Unauthenticated as error:
        await close(socket, NOT_LET_IN, Ending(error.detail))
    except DomainError as error:
        await close(socket, TOO_SLOW, Ending(error.detail))
    except TimeoutError:
        await socket.close(TOO_SLOW, "You take nothing: connect again with your cursor.")
    except (WebSocketDisconnect, OSError):
        pass  # while it was being sent to
    finally:
        hearing.cancel()
        with suppress(asyncio.CancelledError, WebSocketDisconnect, OSError):
            await hearing


async def send(socket: WebSocket[User, Any, State], *messages: Resumed | Told | Ping | Ending | Wrong) -> None:
    """Raises TimeoutError if the other side does not take them."""
    async with asyncio.timeout(SLOW_SECONDS):
        for message in messages:
            await socket.send_data(_encode(message), mode="text")


async def close(socket: WebSocket[User, Any, State], code: int, ending: Ending) -> None:
    """Say why, and close."""
    with suppress(WebSocketDisconnect, OSError):
        with suppress(TimeoutError):
            await send(socket, ending)
        await socket.close(code, reason(ending.reason))


def reason(text: str) -> str:
    """As much of it as fits into the closing of a WebSocket (RFC 6455, 5.5)."""
    return text.encode()[:123].decode(errors="ignore")


async def hear(socket: WebSocket[User, Any, State], session: Session) -> None:
    """Take acknowledgements until the other side is gone."""
    try:
        while True:
            text = await socket.receive_text()
            try:
                session.acknowledge(_ack(text).ack)
            except (msgspec.MsgspecError, DomainError) as error:
                await send(socket, Wrong(str(error)))
    finally:
        session.end(Ended("The other side is gone.", gone=True))
