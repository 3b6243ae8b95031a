"""What is sent again until nobody can be hoped for, over the real log and read model, by a clock that tests turn."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import get_args
from uuid import UUID

import asyncpg
import pytest

from common import topology
from common.aggregate import Aggregate
from common.clock import new_id
from common.errors import Unavailable
from common.event_log import JetStreamLog
from common.events import Channel, NotificationKind, NotificationsAcknowledged
from common.live import Connections
from common.projector import Projected, Projector, rebuild
from common.runtime import Platform, running
from services.cli.backup import back_up, restore_log
from services.notification import feed, read_model
from services.notification.domain import (
    ATTEMPTS,
    INBOXES_DECIDER,
    Inboxes,
    Raise,
    SetPreferences,
    inbox_id_of,
    place_id_of,
)
from services.notification.feed import STREAM, Ended, Feed, Receipts
from services.notification.read_model import READ_MODEL, InboxItem
from tests.harness import eventually

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
PER_USER = 3


class Office:
    """A feed, and what is behind it."""

    def __init__(self, log: JetStreamLog, pool: asyncpg.Pool, database_url: str) -> None:
        self.now = 0.0
        self.pool = pool
        self.inboxes: Inboxes = Aggregate(INBOXES_DECIDER, log)
        self.projected = Projected(READ_MODEL, STREAM, log, database_url)
        self.projector = Projector(READ_MODEL, STREAM, log, database_url)
        self.receipts = Receipts(Aggregate(INBOXES_DECIDER, log), lambda: NOON + timedelta(seconds=self.now))
        self.connections = Connections(10)
        self.feed = Feed(log, self.receipts, self.projected, pool, self.connections, PER_USER, lambda: self.now)

    async def raised(self) -> int:
        """Ada is told something; its cursor."""
        command = Raise(new_id(), "ada", "order.created", UUID(int=1), "You hold 2.", {}, NOON)
        return (await self.inboxes.handle(inbox_id_of("ada"), command)).sequence

    async def item(self) -> InboxItem:
        """The newest in Ada's inbox."""
        assert await self.projected.catch_up()
        return (await read_model.inbox(self.pool, "ada", limit=1, before=None)).items[0]


@pytest.fixture
async def office(platform: Platform) -> AsyncIterator[Office]:
    async with platform.pool("notifications") as pool:
        office = Office(platform.event_log, pool, platform.settings.database_url)
        async with running([office.projector, office.projected, office.feed]):
            yield office


async def test_an_inbox_counts_what_is_unread_at_the_moment_of_its_newest(office: Office) -> None:
    async def raise_many() -> None:
        for _ in range(200):
            await office.raised()

    raising, seen = asyncio.create_task(raise_many()), set[tuple[int, int]]()
    while not raising.done():
        page = await read_model.inbox(office.pool, "ada", limit=1_000, before=None)
        seen.add((len(page.items), page.unread))
    await raising
    assert len(seen) > 1
    assert [each for each in seen if each[0] != each[1]] == []


@pytest.mark.parametrize("connects", [1, 4])
async def test_what_nobody_acknowledges_is_attempted_ten_times_however_often_they_connect_and_rests_undelivered(
    office: Office, connects: int
) -> None:
    cursor = await office.raised()
    attempts: list[int] = []
    times: list[float] = []
    for connection in range(connects):
        async with office.feed.session("ada", "websocket", None) as session:
            (asked_for,) = await session.next(10)  # a connection that says no cursor asks for what is unacknowledged
            assert (asked_for.notification.cursor, asked_for.attempt) == (cursor, 1)
            end = ATTEMPTS if connection == connects - 1 else len(attempts) + 3
            for _ in range(20_000):
                if again := await session.next(0):
                    attempts += [sent.attempt for sent in again]
                    times.append(office.now)
                    if len(attempts) + 1 == end and end < ATTEMPTS:
                        break
                office.now += 1
    assert attempts == list(range(2, ATTEMPTS + 1))
    if connects == 1:
        gaps = [after - before for before, after in pairwise(times)]
        assert (gaps, gaps[0] < gaps[-1]) == (sorted(gaps), True)

    async def undelivered() -> tuple[bool, object]:
        item = await office.item()
        return item.undelivered, item.attempts

    rests: tuple[bool, object] = (True, {"websocket": ATTEMPTS})
    await eventually(undelivered, rests)
    async with office.feed.session("ada", "websocket", None) as session:  # who asks gets it, but it is not sent again
        assert len(await session.next(10)) == 1
        for _ in range(1_000):
            office.now += 20
            assert await session.next(0) == []


async def test_what_rests_undelivered_is_delivered_once_it_is_acknowledged(office: Office) -> None:
    cursor = await office.raised()
    async with office.feed.session("ada", "sse", None) as session:
        for _ in range(1_000):
            await session.next(0)
            office.now += 20

    async def undelivered() -> bool:
        return (await office.item()).undelivered

    await eventually(undelivered, True)
    await office.feed.acknowledge("ada", cursor)

    async def standing() -> tuple[bool, bool]:
        item = await office.item()
        return item.undelivered, item.acknowledged

    await eventually(standing, (False, True))


async def test_a_kind_that_is_muted_while_connected_is_sent_no_more_and_again_once_it_is_not(office: Office) -> None:
    async def prefer(*muted: NotificationKind) -> None:
        await office.inboxes.handle(inbox_id_of("ada"), SetPreferences("ada", {"sse": list(muted)}, NOON))

    async with (
        office.feed.session("ada", "sse", 0) as stream,
        office.feed.session("ada", "websocket", 0) as socket,
        office.feed.session("ada", "poll", 0) as poll,
    ):
        await prefer("order.created")
        unheard = await office.raised()
        await prefer()
        heard = await office.raised()
        for session, wanted in ((stream, [heard]), (socket, [unheard, heard]), (poll, [unheard, heard])):
            cursors: list[int] = []
            while cursors[-1:] != [heard]:
                cursors += [sent.notification.cursor for sent in await session.next(10)]
            assert cursors == wanted
    await prefer("order.created")
    assert await office.projected.catch_up()
    async with office.feed.session("ada", "sse", 0) as stream:
        assert await stream.next(0) == []


async def test_what_is_muted_for_those_who_ask_is_passed_over_and_their_cursor_moves_past_it(office: Office) -> None:
    muted: dict[Channel, list[NotificationKind]] = {"poll": ["order.created"]}
    await office.inboxes.handle(inbox_id_of("ada"), SetPreferences("ada", muted, NOON))
    missed = await office.raised()
    async with office.feed.session("ada", "sse", 0) as stream, office.feed.session("ada", "poll", 0) as poll:
        assert [sent.notification.cursor for sent in await stream.next(10)] == [missed]
        assert (await poll.next(0), poll.passed) == ([], missed)
        live = await office.raised()
        assert [sent.notification.cursor for sent in await stream.next(10)] == [live]
        assert (await poll.next(0), poll.passed) == ([], live)


@pytest.mark.parametrize("channel", get_args(Channel))
async def test_who_has_missed_more_than_is_sent_at_once_gets_all_of_it_page_by_page(
    office: Office, monkeypatch: pytest.MonkeyPatch, channel: Channel
) -> None:
    monkeypatch.setattr(feed, "REPLAY", 3)
    raised = [await office.raised() for _ in range(8)]
    cursor, heard = 0, list[int]()
    for page in (3, 3, 2):
        async with office.feed.session("ada", channel, cursor) as session:
            assert (session.recovered, session.after) == (True, cursor)
            live = await office.raised()  # it has to come after what was missed
            raised.append(live)
            sent = [each.notification.cursor for each in await session.next(10)]
            if page == 3:
                assert (sent[-1], session.passed) == (sent[-1], sent[-1])
                with pytest.raises(Ended, match="There is more"):
                    await session.next(10)
                assert len(sent) == 3
            heard, cursor = [*heard, *sent], session.passed
    while heard[-1] < raised[-1]:
        async with office.feed.session("ada", channel, cursor) as session:
            heard += [each.notification.cursor for each in await session.next(10)]
            cursor = session.passed
    assert heard == raised


@pytest.mark.parametrize("channel", get_args(Channel))
async def test_pages_of_what_is_muted_are_passed_over(
    office: Office, monkeypatch: pytest.MonkeyPatch, channel: Channel
) -> None:
    monkeypatch.setattr(feed, "REPLAY", 3)
    await office.inboxes.handle(inbox_id_of("ada"), SetPreferences("ada", {channel: ["order.created"]}, NOON))
    raised = [await office.raised() for _ in range(8)]
    other: Channel = "sse" if channel == "poll" else "poll"
    async with office.feed.session("ada", other, raised[-2]) as session:  # so all of them were followed
        assert [sent.notification.cursor for sent in await session.next(10)] == raised[-1:]
    async with office.feed.session("ada", channel, 0) as session:
        assert (await session.next(0), session.passed, session.after) == ([], raised[-1], 0)


async def test_who_begins_while_the_read_model_is_behind_is_told_to_come_again_and_loses_nothing(
    office: Office,
) -> None:
    async with (
        office.pool.acquire() as connection,
        connection.transaction(),
        office.feed.session("ada", "sse", 0) as before,
    ):
        await connection.execute("lock table notifications in exclusive mode")  # nothing is projected now
        cursor = await office.raised()
        assert [sent.notification.cursor for sent in await before.next(10)] == [cursor]
        with pytest.raises(Unavailable, match="cannot be read yet"):
            async with office.feed.session("ada", "sse", 0):
                pass
    assert await office.projected.catch_up()
    async with office.feed.session("ada", "sse", 0) as session:
        assert [sent.notification.cursor for sent in await session.next(10)] == [cursor]


async def test_a_session_that_cannot_begin_leaves_its_place_free(office: Office) -> None:
    await office.pool.execute("alter table inboxes rename to elsewhere")
    for _ in range(2 * PER_USER):
        with pytest.raises(asyncpg.UndefinedTableError):
            async with office.feed.session("ada", "sse", 0):
                pass
    await office.pool.execute("alter table elsewhere rename to inboxes")
    async with office.feed.session("ada", "sse", 0) as session:
        assert await session.next(0) == []


async def test_when_the_process_stops_all_are_ended_and_nobody_is_let_in(office: Office) -> None:
    async with office.feed.session("ada", "sse", 0) as session:
        ending = asyncio.create_task(office.connections.close())
        with pytest.raises(Ended, match="connect again in"):
            await session.next(10)
    await ending
    with pytest.raises(Unavailable, match="about to stop"):
        async with office.feed.session("ada", "sse", 0):
            pass


async def test_a_log_that_is_replaced_ends_those_who_listen_and_their_cursors_are_of_another(
    office: Office, platform: Platform
) -> None:
    for _ in range(3):
        cursor = await office.raised()
    async with office.feed.session("ada", "sse", cursor) as session:
        assert session.recovered
        old = session.log
        await platform.client.jetstream().delete_stream(STREAM)
        await topology.migrate(platform.client)
        office.inboxes = Aggregate(INBOXES_DECIDER, platform.event_log)
        for _ in range(5):
            await office.raised()
        with pytest.raises(Ended, match="read anew"):
            await session.next(60)
    await rebuild(READ_MODEL, platform.event_log, platform.settings.database_url)
    await eventually(office.projected.catch_up, True, within=60)
    async with office.feed.session("ada", "sse", cursor, old) as session:
        new = session.log
        assert (session.recovered, session.after, new != old) == (False, 5, True)
    async with office.feed.session("ada", "sse", cursor, new) as session:
        assert (session.recovered, len(await session.next(10))) == (True, 2)
    async with office.feed.session("ada", "sse", cursor) as session:
        assert session.recovered, "nobody can tell that it is a cursor of another log"


async def test_what_was_acknowledged_of_a_log_that_is_gone_is_not_acknowledged_of_the_restored_one(
    office: Office, platform: Platform, home: Path
) -> None:
    cursor = await office.raised()
    manifest = await back_up(platform.settings, home / "backup", lambda *_: None)
    lost = await office.raised()
    restoring = asyncio.create_task(
        restore_log(platform.settings, home / "backup", manifest, lambda *_: None, lambda _: None)
    )

    async def gone() -> bool:
        return f"{STREAM}: stream not found" in (office.feed.problem or "")

    await eventually(gone, True)  # a connection that has not closed yet may still acknowledge
    office.receipts.acknowledge_soon("ada", lost)
    await restoring

    async def acknowledged() -> list[int]:
        office.receipts.acknowledge_soon("ada", cursor)
        told = await platform.event_log.read(f"{INBOXES_DECIDER.name}.{place_id_of('ada')}")
        return [each.event.cursor for each in told if isinstance(each.event, NotificationsAcknowledged)]

    await eventually(acknowledged, [cursor])
