"""Who listens in this process: what each is sent, what it missed, and what nobody has acknowledged yet."""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import datetime
from itertools import islice
from time import monotonic
from uuid import UUID

import asyncpg
import msgspec
import structlog
from prometheus_client import Counter

from common.clock import now
from common.errors import DomainError, Invalid, TooManyRequests, Unavailable
from common.event_log import EventLog
from common.events import (
    Channel,
    DeliveryGivenUp,
    DeliveryRepeated,
    NotificationKind,
    NotificationRaised,
    NotificationsAcknowledged,
    PreferencesChanged,
)
from common.live import Connections, retry_ms, until_followed
from common.projector import Projected
from services.notification import read_model
from services.notification.domain import ATTEMPTS, Acknowledge, Inboxes, SendAgain, gap_after, inbox_id_of, place_id_of
from services.notification.read_model import Notification

STREAM = "NOTIFICATIONS"

BACKLOG = 256
"""Notifications that may wait for a slow connection; then it is closed, and resumes from its cursor."""

REPLAY = 1_000
"""Notifications at most that a connection is sent of what it has missed; it is to come again for more."""

UNACKNOWLEDGED = REPLAY + BACKLOG
"""Notifications at most that a connection may leave unacknowledged, as they are kept to be sent again."""

ACKNOWLEDGED_TOGETHER, PORTIONS = 2.0, 10
"""Seconds for which acknowledgements are collected, more or less, before the log is told the last of each user; and in
how many portions, as the notifications of others would wait for all of them at once."""

SENT = Counter("boxoffice_notifications_sent_total", "Notifications sent to connections", ["channel", "again"])
UNDELIVERED = Counter(
    "boxoffice_notifications_undelivered_total", "Notifications that were sent as often as they may be", ["channel"]
)
SLOW = Counter("boxoffice_notification_sessions_too_slow_total", "Connections closed as too slow")
NOT_RECOVERED = Counter("boxoffice_notification_sessions_not_recovered_total", "Connections from cursors of other logs")

log = structlog.get_logger()


def pause_after(attempt: int) -> float:
    """Seconds to wait for an acknowledgement of the `attempt`th sending. They grow, whatever the jitter."""
    return gap_after(attempt) * random.uniform(1, 1.5)  # noqa: S311 (jitter)


class Ended(Exception):
    """The connection is to be closed, and why. `retry_ms`: when to connect again, if that is not up to the client."""

    def __init__(self, reason: str, *, too_slow: bool = False, gone: bool = False, retry_ms: int | None = None) -> None:
        """`gone`: there is nobody to be told."""
        super().__init__(reason)
        self.reason = reason
        self.too_slow = too_slow
        self.gone = gone
        self.retry_ms = retry_ms


def stopping() -> Ended:
    """The end of a connection whose process stops."""
    wait = retry_ms()
    return Ended(f"Stopping: connect again in {wait} ms.", retry_ms=wait)


class Sent(msgspec.Struct, frozen=True):
    """A notification on its way to somebody, for the `attempt`th time that is not of their asking."""

    notification: Notification
    attempt: int = 1


class _Unanswered(msgspec.Struct):
    notification: Notification
    attempt: int
    again_at: float
    sent_at: datetime


class Again(msgspec.Struct, frozen=True):
    """The last attempt at a notification on a channel. `wait`: None if it is now, else the seconds to the next."""

    attempt: int
    wait: float | None = None


class Receipts:
    """What has arrived and what is sent again, as the log is told of it."""

    def __init__(self, inboxes: Inboxes, now: Callable[[], datetime] = now) -> None:
        self.now = now
        self._inboxes = inboxes
        self._acknowledged: dict[str, int] = {}
        self._some = asyncio.Event()

    async def send_again(self, user_id: str, channel: Channel, due: list[UUID]) -> dict[UUID, Again]:
        """When each of these is sent for which time; what rests is not among them. Raises Unavailable."""
        command = SendAgain(user_id, channel, due, self.now())
        handled = await self._inboxes.handle(inbox_id_of(user_id), command)
        repeats = [event for event in handled.events if isinstance(event, DeliveryRepeated)]
        again = {each: Again(event.attempt) for event in repeats for each in event.notification_ids}
        for each in due:
            last = handled.state.attempts.get((channel, each))
            if each not in again and last and last.number <= ATTEMPTS:
                wait = (last.next_at - command.at).total_seconds()
                again[each] = Again(last.number, max(0.0, min(wait, gap_after(last.number))))
        given_up = [event for event in handled.events if isinstance(event, DeliveryGivenUp)]
        UNDELIVERED.labels(channel).inc(sum(len(event.notification_ids) for event in given_up))
        return again

    async def acknowledge(self, user_id: str, cursor: int) -> None:
        """All up to `cursor` has arrived. Raises Unavailable."""
        await self._inboxes.handle(place_id_of(user_id), Acknowledge(user_id, cursor, self.now()))

    def acknowledged(self, user_id: str) -> int:
        """What the log is to be told, or 0."""
        return self._acknowledged.get(user_id, 0)

    def acknowledge_soon(self, user_id: str, cursor: int) -> None:
        """The same, with what else is acknowledged soon."""
        self._acknowledged[user_id] = max(cursor, self._acknowledged.get(user_id, 0))
        self._some.set()

    def forget(self) -> None:
        """Tell the log nothing of what was acknowledged up to now: what nobody has acknowledged is sent again."""
        self._acknowledged.clear()

    async def tell_now_and_then(self) -> None:
        """Tell the log what was acknowledged, until cancelled."""
        while True:
            await self._some.wait()
            await asyncio.sleep(ACKNOWLEDGED_TOGETHER / PORTIONS)
            await self.tell(1 + len(self._acknowledged) // PORTIONS)

    async def tell(self, most: int | None = None) -> None:
        """Tell the log what was acknowledged, of `most` users; what it does not take is told the next time."""
        told = [(user_id, self._acknowledged.pop(user_id)) for user_id in list(islice(self._acknowledged, most))]
        if not self._acknowledged:
            self._some.clear()
        outcomes = await asyncio.gather(*(self.acknowledge(*each) for each in told), return_exceptions=True)
        for (user_id, cursor), outcome in zip(told, outcomes, strict=True):
            if isinstance(outcome, DomainError):
                self.acknowledge_soon(user_id, cursor)
            elif isinstance(outcome, Exception):
                log.error("acknowledgement_failed", exc_info=outcome)


class Session:
    """One connection of a user. `recovered`: it misses nothing past `after`, the cursor of `log` that it began from.

    `passed`: once all was taken that `next` gives, nothing up to there is still to be sent; some of it may be muted.
    """

    def __init__(self, receipts: Receipts, user_id: str, channel: Channel, clock: Callable[[], float]) -> None:
        """`clock`: seconds."""
        self.recovered = True
        self.log = ""
        self.after = 0
        self.sent_to = 0
        self.passed = 0
        self._receipts = receipts
        self._user_id = user_id
        self.channel = channel
        self._clock = clock
        self._muted: Collection[NotificationKind] | None = None  # not known yet
        self._queue: deque[Notification] = deque()
        self._room = BACKLOG
        self._unanswered: dict[int, _Unanswered] = {}  # by cursor
        self._again: set[int] = set()  # those of them that another connection has made an attempt at
        self._wake = asyncio.Event()
        self._ended: Ended | None = None

    def offer(self, notification: Notification) -> None:
        """Something new. It is passed over if it is known or not wanted here."""
        if self._ended or notification.cursor <= self.after:
            return  # what comes after the end would hide what did not fit before it
        if notification.kind in (self._muted or ()):
            self.passed = max(self.passed, notification.cursor)
        elif len(self._queue) >= self._room:
            self.end(Ended("Too slow: connect again with your cursor.", too_slow=True))
        elif len(self._unanswered) >= UNACKNOWLEDGED:
            reason = f"{UNACKNOWLEDGED:,} are not acknowledged: acknowledge, and connect again with your cursor."
            self.end(Ended(reason, too_slow=True))
        else:
            self._queue.append(notification)
            self.passed = max(self.passed, notification.cursor)
            self._wake.set()

    def end(self, why: Ended) -> None:
        """Let whoever serves the connection close it."""
        if why.too_slow and not self._ended:
            SLOW.inc()
        self._ended = self._ended or why
        self._wake.set()

    def acknowledged(self, cursor: int) -> None:
        """All up to `cursor` has arrived, here or elsewhere."""
        for known in [known for known in self._unanswered if known <= cursor]:
            self._forget(known)

    def repeated(self, event: DeliveryRepeated) -> None:
        """Another connection of this channel made an attempt: it is one for all, so they are sent here too."""
        ids = set(event.notification_ids)
        for cursor, each in self._unanswered.items():
            if each.notification.id in ids and each.attempt < event.attempt:
                each.attempt, each.again_at = event.attempt, self._clock() + pause_after(event.attempt)
                if event.at > each.sent_at:  # and not before this connection began
                    self._again.add(cursor)
                    self._wake.set()

    def mute(self, muted: Collection[NotificationKind]) -> None:
        """These kinds are not wanted here from now on."""
        self._muted = frozenset(muted)

    def acknowledge(self, cursor: int) -> None:
        """The other side says that it has all up to `cursor`. Raises Invalid for what it was never sent."""
        if cursor > max(self.sent_to, self.after):
            raise Invalid(f"ack: You were sent nothing past {max(self.sent_to, self.after)}", field="ack", got=cursor)
        self.acknowledged(cursor)
        self._receipts.acknowledge_soon(self._user_id, cursor)

    def begin(
        self, after: int, missed: Sequence[Notification], muted: Collection[NotificationKind], *, more: bool = False
    ) -> None:
        """From where it goes on, and what it has missed, which comes before all that was offered meanwhile.

        `muted`: as it was, unless it has changed meanwhile. `more`: it has missed more than that, so it ends after it.
        """
        muted = self._muted = frozenset(muted) if self._muted is None else self._muted
        self.after = after
        known = missed[-1].cursor if missed else after
        newer = [] if more else [each for each in self._queue if each.cursor > known]
        self.passed = known if more else max(known, self.passed)
        self._queue = deque(each for each in (*missed, *newer) if each.kind not in muted)
        self._room = BACKLOG + len(missed)
        if more:
            self.end(Ended("There is more: connect again with your cursor.", too_slow=True))
        if self._queue:
            self._wake.set()

    async def next(self, within: float) -> list[Sent]:
        """What is to be sent now, waiting for it `within` seconds at most. Raises Ended, Unavailable."""
        deadline = self._clock() + within
        while True:
            self._wake.clear()  # before looking: what comes while the log is asked counts
            if self._queue:
                return self._taken()
            if self._again:
                return self._taken_again()
            if self._ended:
                raise self._ended
            if again := await self._due():
                return again
            wake_at = min([deadline, *(each.again_at for each in self._unanswered.values())])
            if self._clock() >= deadline:
                return []
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0, wake_at - self._clock())):
                    await self._wake.wait()

    def _taken(self) -> list[Sent]:
        sent = [Sent(notification) for notification in self._queue]
        self._queue.clear()
        self._room = BACKLOG
        self.sent_to = sent[-1].notification.cursor
        SENT.labels(self.channel, "no").inc(len(sent))
        if self.channel != "poll":  # who asks again itself is sent nothing again
            sent_at = self._receipts.now()
            for each in sent:
                again_at = self._clock() + pause_after(1)
                self._unanswered[each.notification.cursor] = _Unanswered(each.notification, 1, again_at, sent_at)
        return sent

    def _taken_again(self) -> list[Sent]:
        again = [self._unanswered[cursor] for cursor in sorted(self._again)]
        self._again.clear()
        for each in again:
            each.sent_at = self._receipts.now()
        SENT.labels(self.channel, "yes").inc(len(again))
        return [Sent(each.notification, each.attempt) for each in again]

    def _forget(self, cursor: int) -> None:
        self._unanswered.pop(cursor, None)
        self._again.discard(cursor)

    async def _due(self) -> list[Sent]:
        """What nobody has acknowledged for too long: it is on the log that it is sent again, and for which time.

        The log decides: where another connection was quicker, this one waits for the next time.
        """
        due = {each.notification.id: each for each in self._unanswered.values() if each.again_at <= self._clock()}
        if not due:
            return []
        again = await self._receipts.send_again(self._user_id, self.channel, list(due))
        sent: list[Sent] = []
        for notification_id, each in due.items():
            if (last := again.get(notification_id)) is None:
                self._forget(each.notification.cursor)  # it rests in the inbox
            elif last.wait is not None:
                each.again_at = self._clock() + last.wait
            elif each.attempt < last.attempt:  # else the feed has been quicker to tell of it
                each.attempt, each.sent_at = last.attempt, self._receipts.now()
                each.again_at = self._clock() + pause_after(each.attempt)
                sent.append(Sent(each.notification, each.attempt))
        SENT.labels(self.channel, "yes").inc(len(sent))
        return sent


class Feed:
    """Follows the log, and hands what is raised to the connections of this process."""

    name = "notification.feed"

    def __init__(
        self,
        event_log: EventLog,
        receipts: Receipts,
        projected: Projected,
        pool: asyncpg.Pool,
        connections: Connections,
        per_user: int,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`per_user`: connections of one user at most. `clock`: seconds."""
        self.problem: str | None = "starting"
        self._event_log = event_log
        self._receipts = receipts
        self._projected = projected
        self._pool = pool
        self._connections = connections
        self._per_user = per_user
        self._clock = clock
        self._sessions: dict[str, set[Session]] = {}
        self._position = 0
        self._log = ""
        self._started = asyncio.Event()

    async def run(self) -> None:
        """Hand out until cancelled; then tell the log what was acknowledged last."""
        telling = asyncio.create_task(self._receipts.tell_now_and_then())
        try:
            end = await self._event_log.end(STREAM)
            if self._log != end.log:  # connections to the one before may have acknowledged until they ended
                self._receipts.forget()
            self._position, self._log = end.sequence, end.log
            self._started.set()
            self.problem = None
            async with aclosing(self._event_log.follow(STREAM, self._position, limit=BACKLOG // 2)) as batches:
                async for batch in batches:
                    for recorded in batch:
                        self._hand_out(recorded.sequence, recorded.event)
                    self._position = batch[-1].sequence
                    await asyncio.sleep(0)  # they take it, and have room for more
        except Unavailable:
            self._receipts.forget()  # in another log these cursors mean something else
            raise
        finally:
            self._started.clear()
            for session in [session for sessions in self._sessions.values() for session in sessions]:
                session.end(Ended("The log is read anew: connect again with your cursor."))
            telling.cancel()
            await self._receipts.tell()

    def _hand_out(self, sequence: int, event: object) -> None:
        match event:
            case NotificationRaised(user_id=user_id) if sessions := self._sessions.get(user_id):
                notification = Notification.of(sequence, event)
                for session in sessions:
                    session.offer(notification)
            case DeliveryRepeated(user_id=user_id, channel=channel):
                for session in self._sessions.get(user_id, ()):
                    if session.channel == channel:
                        session.repeated(event)
            case NotificationsAcknowledged(user_id=user_id, cursor=cursor):
                for session in self._sessions.get(user_id, ()):
                    session.acknowledged(cursor)
            case PreferencesChanged(user_id=user_id, muted=muted):
                for session in self._sessions.get(user_id, ()):
                    session.mute(muted.get(session.channel, ()))

    @asynccontextmanager
    async def session(
        self, user_id: str, channel: Channel, after: int | None, log: str | None = None
    ) -> AsyncIterator[Session]:
        """A connection of a user from `after` on; by default from what was acknowledged last.

        `log`: of which log `after` is a cursor, if whoever connects can tell. Raises TooManyRequests, Unavailable.
        """
        await until_followed(self._started)
        if len(self._sessions.get(user_id, ())) >= self._per_user:
            raise TooManyRequests(
                f"You have {self._per_user} connections open here, which is all that you may.", retry_after=1
            )
        session = Session(self._receipts, user_id, channel, self._clock)
        session.log = self._log
        with self._connections.opened(lambda: session.end(stopping()), transport=channel):
            sessions = self._sessions.setdefault(user_id, set())
            sessions.add(session)  # from here on it is offered what comes after `position`
            try:
                await self._begin(session, user_id, channel, after, self._position, log)
                yield session
            finally:
                sessions.discard(session)
                if not sessions:
                    self._sessions.pop(user_id, None)

    async def _begin(
        self, session: Session, user_id: str, channel: Channel, after: int | None, position: int, log: str | None
    ) -> None:
        missed: list[Notification] = []
        projected = await self._projected.wait(position)
        async with self._pool.acquire() as connection:
            standing = await read_model.standing(connection, user_id)
            muted = standing.muted.get(channel, ())
            if after is None:
                after = max(standing.acknowledged, self._receipts.acknowledged(user_id))
            if after < position:
                if not projected:
                    raise Unavailable("What you have missed cannot be read yet; connect again with your cursor.")
                missed = await read_model.newer(connection, user_id, after, position, REPLAY + 1)
                while len(missed) > REPLAY and all(each.kind in muted for each in missed[:REPLAY]):
                    past = missed[REPLAY - 1].cursor  # of such a page nothing is sent that one could go on from
                    missed = await read_model.newer(connection, user_id, past, position, REPLAY + 1)
        if log not in (None, session.log) or (
            after > position and after > (await self._event_log.end(STREAM)).sequence
        ):
            session.recovered = False  # a cursor of another log
            NOT_RECOVERED.inc()
            after, missed = position, []
        session.begin(after, missed[:REPLAY], muted, more=len(missed) > REPLAY)

    async def check(self, cursor: int) -> None:
        """Raises Invalid for a cursor that does not exist yet, Unavailable."""
        if cursor > (end := (await self._event_log.end(STREAM)).sequence):
            raise Invalid(f"cursor: There is nothing past {end} yet", field="cursor", got=cursor)

    async def acknowledge(self, user_id: str, cursor: int) -> None:
        """Tell the log now. Raises Invalid, Unavailable."""
        await self.check(cursor)
        await self._receipts.acknowledge(user_id, cursor)
