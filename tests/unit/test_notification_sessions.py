"""One connection by a clock that tests turn: what is sent, again and again, and when it rests."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from common.aggregate import Aggregate
from common.auth import User
from common.clock import new_id
from common.errors import Invalid
from common.events import DeliveryGivenUp, DeliveryRepeated, Event
from common.memory_log import MemoryLog
from services.notification.api import NotificationController
from services.notification.domain import ATTEMPTS, INBOXES_DECIDER, Inboxes, Raise, gap_after, inbox_id_of
from services.notification.feed import BACKLOG, UNACKNOWLEDGED, Again, Ended, Receipts, Sent, Session
from services.notification.read_model import Notification

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Desk:
    """A user's session, and the log behind it."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.inboxes: Inboxes = Aggregate(INBOXES_DECIDER, self.log)
        self.clock = Clock()
        self.receipts = Receipts(self.inboxes, lambda: NOON + timedelta(seconds=self.clock.now))
        self.session = self.connected()

    def connected(self) -> Session:
        """Another connection of the user."""
        return Session(self.receipts, "ada", "websocket", self.clock)

    async def raised(self) -> Notification:
        """Something happens; as the session is offered it."""
        command = Raise(new_id(), "ada", "order.created", UUID(int=1), "You hold 2.", {}, NOON)
        handled = await self.inboxes.handle(inbox_id_of("ada"), command)
        told = (command.notification_id, command.kind, command.about, command.text, command.facts, command.at)
        return Notification(handled.sequence, *told)

    async def recorded(self) -> list[Event]:
        return [each.event for each in await self.log.read(f"notifications.{inbox_id_of('ada')}")]


@pytest.fixture
async def desk() -> Desk:
    return Desk()


async def test_what_nobody_acknowledges_is_sent_exactly_ten_times_with_growing_gaps(desk: Desk) -> None:
    desk.session.offer(await desk.raised())
    times: list[float] = []
    for desk.clock.now in range(20_000):
        for sent in await desk.session.next(0):
            times.append(desk.clock.now)
            assert sent.attempt == len(times)
    assert len(times) == ATTEMPTS
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps == sorted(gaps)
    assert gaps[0] < gaps[-1]
    assert isinstance((await desk.recorded())[-1], DeliveryGivenUp)


async def test_what_is_acknowledged_is_not_sent_again(desk: Desk) -> None:
    first, second = await desk.raised(), await desk.raised()
    desk.session.offer(first)
    desk.session.offer(second)
    assert len(await desk.session.next(0)) == 2
    desk.session.acknowledge(first.cursor)
    await desk.receipts.tell()
    desk.session.acknowledged(first.cursor)  # as the feed hears it from the log
    desk.clock.now += 100
    assert [sent.notification for sent in await desk.session.next(0)] == [second]
    desk.session.acknowledged(second.cursor)
    desk.clock.now += 1000
    assert await desk.session.next(0) == []


async def test_attempts_go_on_where_another_connection_left_off(desk: Desk) -> None:
    notification = await desk.raised()
    for attempt in range(2, 4):
        made = await desk.receipts.send_again("ada", "websocket", [notification.id])
        assert made == {notification.id: Again(attempt)}
        soon = await desk.receipts.send_again("ada", "websocket", [notification.id])
        assert soon == {notification.id: Again(attempt, gap_after(attempt))}
        desk.clock.now += gap_after(attempt)
    desk.session.offer(notification)
    await desk.session.next(0)
    desk.clock.now += 100
    assert [sent.attempt for sent in await desk.session.next(0)] == [4]


@pytest.mark.parametrize("seed", range(3))
async def test_all_connections_of_a_channel_share_one_count_and_one_clock_however_often_they_come_back(
    desk: Desk, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 (when connections are lost)
    notification = await desk.raised()
    sessions: list[Session] = []
    firsts = 0
    sent_again: list[tuple[int, int]] = []
    for second in range(9_000):
        desk.clock.now = float(second)
        if len(sessions) < 12 or chance.random() < 0.02:
            sessions = [*sessions[-11:], desk.connected()]
            sessions[-1].begin(0, [notification], ())
        for number, session in enumerate(sessions):
            for sent in await session.next(0):
                firsts += sent.attempt == 1
                if sent.attempt > 1:
                    sent_again.append((sent.attempt, number))
    events = await desk.recorded()
    attempts = [event for event in events if isinstance(event, DeliveryRepeated)]
    assert firsts > 12, "connections have come back"
    assert [event.attempt for event in attempts] == list(range(2, ATTEMPTS + 1))
    assert [attempt for attempt, _ in sent_again] == list(range(2, ATTEMPTS + 1))
    gaps = [(after.at - before.at).total_seconds() for before, after in pairwise(attempts)]
    assert all(gap >= gap_after(before.attempt) for gap, before in zip(gaps, attempts, strict=False))
    assert gaps == sorted(gaps)
    assert isinstance(events[-1], DeliveryGivenUp)


async def test_what_one_connection_sends_again_the_others_of_its_channel_send_too_and_once(desk: Desk) -> None:
    notification = await desk.raised()
    other = desk.connected()
    for session in (desk.session, other):
        session.offer(notification)
        await session.next(0)
    desk.clock.now += 8
    assert [sent.attempt for sent in await desk.session.next(0)] == [2]
    late = desk.connected()
    late.begin(0, [notification], ())
    assert [sent.attempt for sent in await late.next(0)] == [1]
    repeated = (await desk.recorded())[-1]
    assert isinstance(repeated, DeliveryRepeated)
    for session in (desk.session, other, late):
        session.repeated(repeated)  # as the feed hears it from the log
    assert [sent.attempt for sent in await other.next(0)] == [2]
    for session in (desk.session, other, late):  # `late` was sent it after that attempt
        assert await session.next(0) == []
    desk.clock.now += 16
    assert [sent.attempt for sent in await late.next(0)] == [3]


async def test_what_comes_while_the_log_is_asked_is_sent_at_once(desk: Desk) -> None:
    first = await desk.raised()
    desk.session.offer(first)
    await desk.session.next(0)
    for attempt in range(1, ATTEMPTS + 1):
        desk.clock.now += gap_after(attempt) + 8
        await desk.receipts.send_again("ada", "websocket", [first.id])  # so that nothing is left to be sent again
    new = await desk.raised()
    sending = asyncio.create_task(desk.session.next(1_000))
    await asyncio.sleep(0)  # it asks
    assert not sending.done()
    desk.session.offer(new)
    assert [sent.notification for sent in await asyncio.wait_for(sending, 10)] == [new]


async def test_what_was_acknowledged_meanwhile_is_not_sent_again_for_the_attempt_of_another(desk: Desk) -> None:
    notification = await desk.raised()
    desk.session.offer(notification)
    await desk.session.next(0)
    at = NOON + timedelta(seconds=1)
    desk.session.repeated(DeliveryRepeated("ada", "websocket", [notification.id], 2, at))
    desk.session.acknowledged(notification.cursor)
    assert await desk.session.next(0) == []


async def test_what_was_never_sent_cannot_be_acknowledged(desk: Desk) -> None:
    notification = await desk.raised()
    with pytest.raises(Invalid, match="sent nothing past 0"):
        desk.session.acknowledge(notification.cursor)
    desk.session.offer(notification)
    await desk.session.next(0)
    desk.session.acknowledge(notification.cursor)
    with pytest.raises(Invalid, match=f"sent nothing past {notification.cursor}"):
        desk.session.acknowledge(notification.cursor + 1)


async def test_a_connection_that_takes_nothing_is_ended_with_a_reason_and_keeps_what_was_offered(desk: Desk) -> None:
    for _ in range(BACKLOG + 1):
        desk.session.offer(await desk.raised())
    assert len(await desk.session.next(0)) == BACKLOG
    with pytest.raises(Ended, match="Too slow") as ended:
        await desk.session.next(0)
    assert ended.value.too_slow


async def test_what_comes_after_what_did_not_fit_is_not_sent_or_the_cursor_would_pass_it(desk: Desk) -> None:
    offered = [await desk.raised() for _ in range(BACKLOG + 2)]
    for each in offered[:-1]:
        desk.session.offer(each)
    sent = await desk.session.next(0)
    desk.session.offer(offered[-1])  # while those are on their way
    with pytest.raises(Ended):
        sent += await desk.session.next(0)
    assert [each.notification for each in sent] == offered[:BACKLOG]


async def test_what_is_muted_while_a_session_begins_stays_muted(desk: Desk) -> None:
    missed, live = await desk.raised(), await desk.raised()
    desk.session.mute(["order.created"])  # as the feed hears it, while what was muted before is read
    desk.session.begin(0, [missed], ())
    desk.session.offer(live)
    assert await desk.session.next(0) == []


async def test_who_has_missed_many_is_not_too_slow_for_it(desk: Desk) -> None:
    missed = [await desk.raised() for _ in range(2 * BACKLOG)]
    live = await desk.raised()
    desk.session.begin(0, missed, ())
    desk.session.offer(live)
    assert [sent.notification for sent in await desk.session.next(0)] == [*missed, live]
    assert await desk.session.next(0) == []


async def test_acknowledgements_of_many_are_told_in_portions_and_each_once(desk: Desk) -> None:
    for number in range(50):
        desk.receipts.acknowledge_soon(f"user{number}", 1)
        desk.receipts.acknowledge_soon(f"user{number}", 2)
    await desk.receipts.tell(20)
    assert (await desk.log.end("NOTIFICATIONS")).sequence == 20
    assert [desk.receipts.acknowledged(f"user{number}") for number in (19, 20)] == [0, 2]
    await desk.receipts.tell()
    assert (await desk.log.end("NOTIFICATIONS")).sequence == 50


async def test_a_connection_that_acknowledges_nothing_is_ended_and_told_to(desk: Desk) -> None:
    notifications = [await desk.raised() for _ in range(UNACKNOWLEDGED + 1)]
    desk.session.begin(0, notifications[:BACKLOG], ())
    for each in notifications[BACKLOG:-1]:
        await desk.session.next(0)
        desk.session.offer(each)
    assert len(await desk.session.next(0)) == 1
    desk.session.offer(notifications[-1])
    with pytest.raises(Ended, match="acknowledge, and connect again") as ended:
        await desk.session.next(0)
    assert ended.value.too_slow


async def test_a_connection_that_acknowledges_goes_on_for_ever(desk: Desk) -> None:
    for _ in range(UNACKNOWLEDGED + 2):
        notification = await desk.raised()
        desk.session.offer(notification)
        assert len(await desk.session.next(0)) == 1
        desk.session.acknowledged(notification.cursor)


async def test_what_was_missed_comes_before_what_came_meanwhile_and_nothing_twice(desk: Desk) -> None:
    missed = [await desk.raised() for _ in range(3)]
    live = [await desk.raised() for _ in range(2)]
    desk.session.offer(missed[2])  # it came while the others were read
    for each in live:
        desk.session.offer(each)
    desk.session.begin(missed[0].cursor, missed[1:], ())
    told = [sent.notification for sent in await desk.session.next(0)]
    assert told == [*missed[1:], *live]


class Leaving:
    """A request whose watch, once it is over, takes as long as it takes for something more to be raised."""

    user = User("ada")

    def __init__(self, session: Session, late: Notification) -> None:
        self.session = session
        self.late = late
        self.app = SimpleNamespace(state=SimpleNamespace(authenticator=SimpleNamespace(still=lambda _: None)))

    async def receive(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.session.offer(self.late)


async def test_whoever_polls_is_told_no_cursor_of_what_they_were_not_given(desk: Desk) -> None:
    session = Session(desk.receipts, "ada", "poll", desk.clock)
    first, late = await desk.raised(), await desk.raised()
    session.begin(0, [first], [])

    @asynccontextmanager
    async def opened(*_: object) -> AsyncIterator[Session]:
        yield session

    async def next_one(within: float) -> list[Sent]:
        await asyncio.sleep(0)  # as long as it takes until the request is watched
        return await Session.next(session, within)

    session.next = next_one  # type: ignore[method-assign]  # what is looked at is what comes after it
    office: Any = SimpleNamespace(feed=SimpleNamespace(session=opened))
    request: Any = Leaving(session, late)
    poll: Any = NotificationController.poll.fn
    news = await poll(None, request, office)
    assert ([each.cursor for each in news.items], news.cursor) == ([first.cursor], first.cursor)
