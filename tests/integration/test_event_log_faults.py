"""What the log on JetStream promises when writers race, answers are lost and the server dies."""

import asyncio
import os
import random
import shutil
import signal
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, suppress
from pathlib import Path

import msgspec
import pytest

from common import topology
from common.aggregate import Aggregate
from common.clock import new_id
from common.errors import Conflict, Invalid, Unavailable
from common.event_log import Batches, Draft, JetStreamLog, Recorded, Stored, StoredBatches, WrongSequence
from common.events import BookListing, TicketWithdrawn, UndecodableEvent
from common.runtime import Platform, connect
from common.settings import Settings
from common.telemetry import IN_DOUBT
from services.cli.servers import NatsServer
from services.orders.domain import ORDERS, CancelOrder, KeepBook, PlaceOrder
from tests.facts import AT, STREAM, connected, draft, drafts, fact, first, numbers, tell, whole
from tests.harness import Fate, Judge, Proxy, eventually

A = "expiration.a"


def once(fate: Fate, when: Callable[[bytes], bool]) -> tuple[Judge, asyncio.Event]:
    """A judge that lets the first frame like this come to `fate`, and tells when it has."""
    happened = asyncio.Event()

    def judge(frame: bytes) -> Fate:
        if happened.is_set() or not when(frame):
            return "pass"
        happened.set()
        return fate

    return judge, happened


def is_append(frame: bytes) -> bool:
    return frame.startswith(b"HPUB expiration.")


def is_acknowledgement(frame: bytes) -> bool:
    return frame.startswith(b"MSG") and b'"seq":' in frame and b'"stream":"EXPIRATION"' in frame


@pytest.fixture
async def shaky(proxy: Proxy) -> AsyncIterator[JetStreamLog]:
    """The log as seen through the proxy."""
    async with connect(Settings(nats_url=proxy.url), "shaky") as platform:
        yield platform.event_log


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("fate", ["drop", "cut"])
async def test_a_lost_answer_is_found_to_be_a_success(
    proxy: Proxy, shaky: JetStreamLog, streams: Platform, count: int, fate: Fate
) -> None:
    await streams.event_log.append(A, [draft(0)], expected=0)
    proxy.answers, lost = once(fate, is_acknowledgement)
    in_doubt = IN_DOUBT.labels(STREAM)._value.get()  # noqa: SLF001 (prometheus-client has no other way to read it)
    assert await shaky.append(A, drafts(range(1, count + 1)), expected=1) == count + 1
    assert lost.is_set()
    assert IN_DOUBT.labels(STREAM)._value.get() == in_doubt + 1  # noqa: SLF001
    assert numbers(await streams.event_log.read(A)) == list(range(count + 1))


@pytest.mark.parametrize("count", [1, 3])
async def test_a_lost_answer_is_a_success_although_others_went_on_from_there(
    proxy: Proxy, shaky: JetStreamLog, streams: Platform, count: int
) -> None:
    gone_on = asyncio.Event()

    def no_answer_before_others_went_on(frame: bytes) -> Fate:
        if is_acknowledgement(frame):
            stored.set()
        return "pass" if gone_on.is_set() or not is_acknowledgement(frame) else "drop"

    stored = asyncio.Event()
    proxy.answers = no_answer_before_others_went_on
    async with asyncio.TaskGroup() as group:
        ours = group.create_task(shaky.append(A, drafts(range(count)), expected=0))
        await stored.wait()
        await streams.event_log.append(A, drafts([10, 11]), expected=count)
        gone_on.set()
    assert ours.result() == count
    assert numbers(await streams.event_log.read(A)) == [*range(count), 10, 11]


@pytest.mark.parametrize(("count", "fate"), [(1, "drop"), (3, "cut")])
async def test_a_lost_request_is_sent_again(
    proxy: Proxy, shaky: JetStreamLog, streams: Platform, count: int, fate: Fate
) -> None:
    proxy.requests, lost = once(fate, is_append)
    assert await shaky.append(A, drafts(range(count)), expected=0) == count
    assert lost.is_set()
    assert numbers(await whole(streams.event_log)) == list(range(count))


@pytest.mark.parametrize(("count", "theirs"), [(1, 3), (3, 1)])
async def test_a_lost_request_that_others_overtook_is_a_wrong_sequence(
    proxy: Proxy, shaky: JetStreamLog, streams: Platform, count: int, theirs: int
) -> None:
    overtaken = asyncio.Event()
    sent = asyncio.Event()

    def nothing_before_others_won(frame: bytes) -> Fate:
        if is_append(frame):
            sent.set()
            return "pass" if overtaken.is_set() else "drop"
        return "pass"

    proxy.requests = nothing_before_others_won
    ours = asyncio.create_task(shaky.append(A, drafts(range(count)), expected=0))
    await sent.wait()
    await streams.event_log.append(A, drafts(range(10, 10 + theirs)), expected=0)
    overtaken.set()
    with pytest.raises(WrongSequence):
        await ours
    assert numbers(await whole(streams.event_log)) == list(range(10, 10 + theirs))


async def test_an_outcome_that_stays_unknown_is_unavailable_and_says_so(proxy: Proxy, streams: Platform) -> None:
    proxy.answers = lambda frame: "drop" if is_acknowledgement(frame) or b"wrong last sequence" in frame else "pass"
    async with connect(Settings(nats_url=proxy.url), "shaky") as platform:
        impatient = JetStreamLog(platform.client, timeout=0.1)
        with pytest.raises(Unavailable, match="may still have been stored"):
            await impatient.append(A, [draft(1)], expected=0)
    assert numbers(await streams.event_log.read(A)) == [1]


async def test_a_server_that_is_away_is_unavailable_in_time_and_nothing_is_sent_later(
    nats: NatsServer, streams: Platform
) -> None:
    nats.kill()
    await eventually(connected(streams), False)
    impatient = JetStreamLog(streams.client, timeout=0.3)
    for call in (
        impatient.append(A, [draft(1)], expected=0),
        impatient.append(A, drafts([2, 3]), expected=0),
        impatient.read(A),
        impatient.end(STREAM),
        impatient.event_id(STREAM, 1),
    ):
        with pytest.raises(Unavailable) as refusal:
            await call
        assert "may still have been stored" not in refusal.value.detail
    await nats.start()
    await eventually(connected(streams), True)
    await tell(streams.event_log, 4)
    assert numbers(await whole(streams.event_log)) == [4]


@pytest.mark.parametrize("lost", [1, 2, 3, 4])
async def test_a_read_of_which_a_part_is_lost_is_read_again(
    proxy: Proxy, shaky: JetStreamLog, streams: Platform, lost: int
) -> None:
    await streams.event_log.append(A, drafts([1, 2, 3]), expected=0)
    wanted = b"Nats-Sequence: %d\r\n" % lost if lost < 4 else b" 204 "  # the fourth is the end of the answer
    proxy.answers, happened = once("drop", lambda frame: frame.startswith(b"HMSG") and wanted in frame)
    assert numbers(await shaky.read(A)) == [1, 2, 3]
    assert happened.is_set()


@pytest.mark.parametrize("fate", ["drop", "cut"])
async def test_a_follower_that_misses_an_event_goes_back_for_it(
    proxy: Proxy, shaky: JetStreamLog, streams: Platform, fate: Fate
) -> None:
    fifth = b"expiration.f5 "
    proxy.answers, happened = once(fate, lambda frame: frame.startswith(b"HMSG") and fifth in frame)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        follower = group.create_task(first(shaky.follow(STREAM), 9))
        await tell(streams.event_log, *range(1, 10))
    assert happened.is_set()
    assert numbers(follower.result()) == list(range(1, 10))


async def test_of_six_writers_one_wins_each_of_500_races(nats: NatsServer, streams: Platform) -> None:
    async with AsyncExitStack() as stack:
        logs = [
            (await stack.enter_async_context(connect(Settings(nats_url=nats.url), f"racer {n}"))).event_log
            for n in range(6)
        ]

        async def season(subject: str) -> int:
            """50 races for the same subject, from where the one before ended."""
            last = 0
            for race in range(50):
                tries = [drafts(range(1 + (race + n) % 2)) for n in range(6)]
                outcomes = await asyncio.gather(
                    *(log.append(subject, made, expected=last) for log, made in zip(logs, tries, strict=True)),
                    return_exceptions=True,
                )
                [winner] = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, int)]
                assert all(isinstance(outcome, WrongSequence) for n, outcome in enumerate(outcomes) if n != winner)
                stored = await logs[race % 6].read(subject, last)
                assert [recorded.id for recorded in stored] == [each.id for each in tries[winner]]
                assert stored[-1].sequence == outcomes[winner]
                last = stored[-1].sequence
            return len(await logs[0].read(subject))

        stored = await asyncio.gather(*(season(f"expiration.season{n}") for n in range(10)))
    assert (await streams.event_log.end(STREAM)).sequence == sum(stored)


class Attempt(msgspec.Struct):
    """One append, and what came of it: its sequence, or why there is none."""

    subject: str
    expected: int
    drafts: list[Draft]
    outcome: int | type[Exception]


class Load:
    """Writers that contend for a few subjects until they are told to stop, and remember what they were told."""

    def __init__(self, subjects: int = 4) -> None:
        self.attempts: list[Attempt] = []
        self.stopped = False
        self._subjects = subjects
        self._random = random.Random(20)  # noqa: S311 (which subject, how many events)

    def acknowledged(self) -> int:
        """How many appends were, so far."""
        return sum(isinstance(attempt.outcome, int) for attempt in self.attempts)

    async def more(self, count: int, within: float = 30) -> None:
        """Wait until so many more appends were acknowledged."""
        enough = self.acknowledged() + count

        async def look() -> bool:
            return self.acknowledged() >= enough

        await eventually(look, True, within)

    async def write(self, log: JetStreamLog) -> None:
        """One writer. As long as nothing can be read it goes by what it last saw."""
        ends: dict[str, int] = {}
        while not self.stopped:
            subject = f"expiration.s{self._random.randrange(self._subjects)}"
            made = drafts(range(self._random.choice((1, 1, 1, 3))))
            with suppress(Unavailable):
                there = await log.read(subject)
                ends[subject] = there[-1].sequence if there else 0
            attempt = Attempt(subject, ends.get(subject, 0), made, Unavailable)
            try:
                attempt.outcome = await log.append(subject, made, expected=attempt.expected)
            except (WrongSequence, Unavailable) as error:
                attempt.outcome = type(error)
            self.attempts.append(attempt)

    def check(self, stored: list[Recorded]) -> None:
        """Compare what writers were told with what the log holds."""
        ids = Counter(recorded.id for recorded in stored)
        assert ids.total() == len(ids), "an event is stored twice"
        sequences = {recorded.id: recorded.sequence for recorded in stored}
        on_subject: dict[str, list[int]] = defaultdict(lambda: [0])
        for recorded in stored:
            on_subject[recorded.subject].append(recorded.sequence)
        for attempt in self.attempts:
            there = [sequences[each.id] for each in attempt.drafts if each.id in sequences]
            if isinstance(attempt.outcome, int):
                assert there, "an acknowledged event is lost"
                assert there[-1] == attempt.outcome
            elif attempt.outcome is WrongSequence:
                assert not there, "a refused event is stored"
            if there:
                assert len(there) == len(attempt.drafts), "a part of a decision is stored"
                line = on_subject[attempt.subject]
                at = line.index(there[0])
                assert line[at - 1] == attempt.expected, "somebody wrote between the guard and the event"
                assert line[at : at + len(there)] == there, "somebody wrote into a decision"
        made = {each.id for attempt in self.attempts for each in attempt.drafts}
        assert set(sequences) <= made, "an event is stored that nobody made"


async def test_a_server_killed_under_load_leaves_no_outcome_unresolved(nats: NatsServer, streams: Platform) -> None:
    load = Load()
    async with AsyncExitStack() as stack:
        platforms = [
            await stack.enter_async_context(connect(Settings(nats_url=nats.url), f"writer {n}")) for n in range(4)
        ]
        # Some wait for the server to come back, some do not.
        logs = [JetStreamLog(each.client, timeout=timeout) for each in platforms for timeout in (20, 20, 0.1)]
        async with asyncio.TaskGroup() as group:
            writers = [group.create_task(load.write(log)) for log in logs]
            follower = group.create_task(follow_until_told(streams.event_log))
            for _ in range(2):
                await load.more(150)
                os.kill(nats.pid, signal.SIGKILL)
                await asyncio.to_thread(nats.kill)
                await nats.start()
            await load.more(150)
            load.stopped = True
            await asyncio.wait(writers)
            await tell(streams.event_log, 1)  # the last: it tells the follower
    kinds = {attempt.outcome for attempt in load.attempts if not isinstance(attempt.outcome, int)}
    assert kinds == {WrongSequence, Unavailable}
    stored = await whole(streams.event_log)
    load.check(stored[:-1])
    assert follower.result() == [(recorded.sequence, recorded.id) for recorded in stored]


async def follow_until_told(log: JetStreamLog) -> list[tuple[int, str]]:
    """What a follower saw that began before and went on over everything, until fact 1 on its own subject."""
    seen: list[tuple[int, str]] = []
    async with asyncio.timeout(120), aclosing(log.follow(STREAM)) as batches:
        async for batch in batches:
            seen += [(recorded.sequence, recorded.id) for recorded in batch]
            if batch[-1].subject == "expiration.f1":
                break
    return seen


async def test_a_follower_goes_on_after_a_restart_where_it_was(nats: NatsServer, streams: Platform) -> None:
    log = streams.event_log
    async with asyncio.timeout(30), aclosing(log.follow(STREAM)) as batches:
        heard: list[int] = []
        for turn in range(2):
            await tell(log, *range(turn * 5, turn * 5 + 5))
            while len(heard) < turn * 5 + 5:
                heard += numbers(await anext(batches))
            nats.kill()
            await nats.start()
            await eventually(connected(streams), True)
        await tell(log, 10)
        heard += numbers(await anext(batches))
    assert heard == list(range(11))


async def test_a_watcher_sees_all_of_several_streams_in_the_order_of_storing(streams: Platform) -> None:
    log = streams.event_log
    tickets = [Draft.of(TicketWithdrawn(new_id(), "sam", AT, version=1)) for _ in range(3)]
    last = await log.append(A, drafts(range(1000)), expected=0)
    await log.append("tickets.1", tickets[:1], expected=0)
    async with asyncio.timeout(30), aclosing(log.watch({STREAM: 0, "TICKETS": 0})) as bunches:
        seen = [(stored.stream, stored.sequence) for stored in await anext(bunches)]
        assert seen == [*((STREAM, number) for number in range(1, 1001)), ("TICKETS", 1)]
        await log.append("tickets.2", tickets[1:2], expected=0)
        last = await log.append(A, drafts(range(1000, 2000)), expected=last)
        await log.append(A, drafts(range(2000, 2500)), expected=last)
        await log.append("tickets.3", tickets[2:], expected=0)
        later: list[Stored] = []
        while len(later) < 1502:
            later += await anext(bunches)
    assert [each.sequence for each in later if each.stream == STREAM] == list(range(1001, 2501))
    assert [each.sequence for each in later if each.stream == "TICKETS"] == [2, 3]
    assert later[0].stream == "TICKETS", "it was stored first"
    for stored in (later[0], later[-1]):
        assert stored == await log.stored(stored.stream, stored.sequence), "as whoever reads it has it"


@pytest.mark.parametrize("reading", ["follow", "watch"])
async def test_a_follower_does_not_go_on_in_a_log_that_was_replaced(
    nats: NatsServer, streams: Platform, home: Path, reading: str
) -> None:
    log = streams.event_log
    await tell(log, 1, 2, 3)
    following: Batches | StoredBatches = log.follow(STREAM) if reading == "follow" else log.watch({STREAM: 0})
    async with asyncio.timeout(30), aclosing(following) as batches:
        heard = 0
        while heard < 3:
            heard += len(await anext(batches))
        nats.kill()
        shutil.rmtree(home / "nats" / "jetstream")
        await nats.start()
        await eventually(connected(streams), True)
        await topology.migrate(streams.client)
        await tell(log, 11, 12, 13, 14)
        with pytest.raises(Unavailable, match="replaced"):
            await anext(batches)


async def test_an_undecodable_event_is_not_skipped_by_anyone(streams: Platform) -> None:
    log, js = streams.event_log, streams.client.jetstream()
    await log.append(A, drafts([1, 2]), expected=0)
    await js.publish(A, b"{}", headers={"ce-type": "expiration_postponed", "ce-id": "from the future"})
    await log.append(A, [draft(4)], expected=3)
    with pytest.raises(UndecodableEvent, match="expiration_postponed"):
        await log.read(A)
    with pytest.raises(UndecodableEvent, match="expiration_postponed"):
        await log.read(A, 2)
    assert numbers(await log.read(A, 3)) == [4]
    async with asyncio.timeout(20), aclosing(log.follow(STREAM)) as batches:
        heard = 0
        while heard < 2:
            heard += len(await anext(batches))
        with pytest.raises(UndecodableEvent, match="expiration_postponed"):
            await anext(batches)
    assert heard == 2


async def test_what_is_no_event_at_all_is_told_with_its_place(streams: Platform) -> None:
    await streams.client.jetstream().publish(A, b"hello")
    with pytest.raises(UndecodableEvent, match=r"sequence 1 on expiration\.a has no ce-type"):
        await streams.event_log.read(A)


async def test_an_event_larger_than_the_log_takes_is_invalid_and_stores_nothing(streams: Platform) -> None:
    log = streams.event_log
    large = Draft.of(TicketWithdrawn(fact(1).ticket_id, "x" * (streams.client.max_payload + 1), AT))
    small = Draft.of(TicketWithdrawn(fact(1).ticket_id, "sam", AT))
    for made in ([large], [small, large], [large, small], [small, large, small]):
        with pytest.raises(Invalid, match="larger than the log takes"):
            await log.append("tickets.a", made, expected=0)
    assert await log.append("tickets.a", [small, Draft.of(small.event)], expected=0) == 2
    assert (await log.end("TICKETS")).sequence == 2


async def test_a_stream_that_is_missing_is_unavailable_and_tells_how_to_mend_it(nats: NatsServer) -> None:
    async with connect(Settings(nats_url=nats.url), "test") as platform:
        log = JetStreamLog(platform.client, timeout=0.3)
        with pytest.raises(Unavailable, match="boxoffice migrate"):
            await log.end(STREAM)
        with pytest.raises(Unavailable, match="boxoffice migrate"):
            await log.append(A, [draft(1)], expected=0)
        with pytest.raises(Unavailable, match="boxoffice migrate"):
            await log.read(A)


async def test_a_closed_connection_is_unavailable_at_once(streams: Platform) -> None:
    log = streams.event_log
    await tell(log, 1)
    async with aclosing(log.follow(STREAM)) as batches:
        await anext(batches)
        await streams.client.close()
        for call in (log.append(A, [draft(2)], expected=0), log.read(A), log.end(STREAM), anext(batches)):
            with pytest.raises(Unavailable):
                await call


@pytest.mark.parametrize("anew", [False, True])
async def test_an_aggregate_does_not_go_on_from_what_it_knew_of_a_log_that_was_replaced(
    nats: NatsServer, home: Path, streams: Platform, anew: bool
) -> None:
    ticket_id, orders = new_id(), Aggregate(ORDERS, streams.event_log)
    listing = BookListing("Opening night", 2500, "EUR", 2, 2, True, 1)

    def place(buyer: str) -> PlaceOrder:
        return PlaceOrder(new_id(), buyer, 1, AT, AT)

    await orders.handle(ticket_id, KeepBook(ticket_id, listing, AT))
    first = place("ada")
    await orders.handle(ticket_id, first)
    await nats.stop()
    shutil.copytree(home / "nats" / "jetstream", home / "copy")
    await nats.start()
    await eventually(connected(streams), True)
    await orders.handle(ticket_id, CancelOrder(first.order_id, "buyer", AT))  # a restore forgets it
    await nats.stop()
    shutil.rmtree(home / "nats" / "jetstream")
    if not anew:
        shutil.copytree(home / "copy", home / "nats" / "jetstream")
    await nats.start()
    await eventually(connected(streams), True)
    await topology.migrate(streams.client)
    other = Aggregate(ORDERS, streams.event_log)
    if anew:
        await other.handle(ticket_id, KeepBook(ticket_id, listing, AT))
        await other.handle(ticket_id, place("cleo"))
    await other.handle(ticket_id, place("bob"))  # in place of what was forgotten
    with pytest.raises(Conflict, match="sold out"):
        await orders.handle(ticket_id, place("eve"))
