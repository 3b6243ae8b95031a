"""The index of dead letters and what is done about one, on a real log, whatever is on it and whatever becomes of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from common import topology
from common.aggregate import Aggregate
from common.clock import now
from common.errors import Conflict, NotFound, Unavailable
from common.events import EventRedelivered, encode
from common.listener import Subscription
from common.requests import Requester, Responder
from common.requests.redelivery import answering
from common.runtime import Platform, running
from services.history.dead_api import RepairDesk, WantedRedelivery
from services.history.domain import REPAIRS, DropLetter, Repair, letter_id_of
from services.history.following import shown
from services.history.letters import Letters, Wanted
from tests.facts import draft, whole
from tests.harness import eventually
from tests.integration.test_listener import Hear, until

DURABLE = Hear.durable


@asynccontextmanager
async def reading(platform: Platform) -> AsyncIterator[Letters]:
    """The index, as long as it is kept, once it has read what there is."""
    letters = Letters(platform.event_log)
    async with running([letters]):
        await until(lambda: letters.problem is None)
        yield letters


def desk_of(platform: Platform, letters: Letters) -> RepairDesk:
    return RepairDesk(letters, Aggregate(REPAIRS, platform.event_log), platform.event_log, Requester(platform.client))


async def bury(platform: Platform, *errors: str, **headers: str) -> None:
    """Letters of a listener, of events that a service told."""
    for error in errors:
        told = {"dead-listener": DURABLE, "dead-stream": "EXPIRATION", "dead-error": error, **headers}
        await platform.client.jetstream().publish(f"dead.{DURABLE}", b"{}", headers=told)


def numbers(letters: Letters, wanted: Wanted | None = None) -> list[int]:
    return [letter.number for letter in letters.newest_first(wanted or Wanted())]


async def test_there_may_be_none_and_then_they_are_told_as_they_come(streams: Platform) -> None:
    async with reading(streams) as letters:
        assert numbers(letters) == []
        with pytest.raises(NotFound, match=r"There is no dead letter 1\."):
            letters.find(1)
        await bury(streams, "one", "two")
        await until(lambda: numbers(letters) == [2, 1])


async def test_what_is_not_as_a_listener_buries_it_is_told_as_far_as_it_can_be(streams: Platform) -> None:
    js = streams.client.jetstream()
    await js.publish("dead.somebody.else", b"\xff not JSON")
    odd = {"ce-time": "yesterday", "dead-sequence": "-1", "dead-attempts": "²"}
    await js.publish(f"dead.{DURABLE}", b'{"a": 1}', headers=odd)
    await js.publish(f"dead.{DURABLE}", b"")
    async with reading(streams) as letters:
        found = [letters.find(number) for number in (1, 2, 3)]
        assert [letter.listener for letter in found] == ["somebody.else", DURABLE, DURABLE]
        assert {(letter.attempts, letter.sequence, letter.stream) for letter in found} == {(0, 0, "")}
        assert all(letter.appended_at == letter.died_at for letter in found)
        desk = desk_of(streams, letters)
        assert [(await desk.detail(number)).payload for number in (1, 2, 3)] == ["\\xff not JSON", {"a": 1}, ""]
        with pytest.raises(NotFound, match="listener: There is none of that name"):
            await desk.retry(1, "olga")


@pytest.mark.parametrize("body", [b"[" * 100_000, b'"\xed\xa0\x80"', b"1e999", b"\x00"])
def test_whatever_a_payload_is_it_can_be_shown(body: bytes) -> None:
    assert isinstance(shown(body), (str, float, int))


async def test_letters_of_one_error_with_other_ids_are_of_one_kind(streams: Platform) -> None:
    ids = ("01a2050b-4689-708c-9faa-4f63aedc4356", "01a2050b-4689-708c-9faa-4f63aedc4357")
    await bury(streams, *(f"NotFound: There is no order {each} of {ids[0]}." for each in ids), "NotFound: no 7")
    async with reading(streams) as letters:
        kinds = {letters.find(number).kind for number in (1, 2)}
        assert kinds == {"NotFound: There is no order * of *."}
        assert letters.find(3).kind == "NotFound: no 7"
        assert numbers(letters, Wanted(error=kinds.pop())) == [2, 1]
        assert numbers(letters, Wanted(error=ids[1])) == [2]


async def test_a_new_stream_of_dead_letters_begins_with_nothing_done(streams: Platform) -> None:
    await bury(streams, "one", "two")
    async with reading(streams) as letters:
        desk = desk_of(streams, letters)
        before = letters.log
        await desk.drop(2, "olga")
        assert numbers(letters, Wanted(standing="dropped")) == [2]

        await streams.client.jetstream().delete_stream("DEAD")
        await topology.migrate(streams.client)
        await bury(streams, "three", "four", "five")
        await until(lambda: letters.log != before and letters.problem is None)
        await until(lambda: [letter.error for letter in letters.newest_first(Wanted())] == ["five", "four", "three"])
        assert numbers(letters, Wanted(standing="open")) == [3, 2, 1]
        await desk.drop(2, "oscar")
        assert numbers(letters, Wanted(standing="dropped")) == [2]
        assert letters.repair(2).standing == "dropped"
    assert len({each.subject for each in await whole(streams.event_log, "REPAIRS")}) == 2


async def test_what_two_replicas_do_is_seen_by_both(streams: Platform) -> None:
    await bury(streams, *map(str, range(20)))
    async with reading(streams) as one, reading(streams) as other:
        desks = [desk_of(streams, one), desk_of(streams, other)]
        await asyncio.gather(*(desk.drop(number, "olga") for number in range(1, 21) for desk in desks))
        for letters in (one, other):
            await until(lambda: numbers(letters, Wanted(standing="dropped")) == [*range(20, 0, -1)])  # noqa: B023 (it is awaited here)
    assert (await streams.event_log.end("REPAIRS")).sequence == 20


async def test_while_they_are_being_read_nobody_is_told_that_there_are_none(streams: Platform) -> None:
    letters = Letters(streams.event_log)
    with pytest.raises(Unavailable, match="The dead letters cannot be told now: starting"):
        letters.find(1)
    await streams.client.jetstream().delete_stream("DEAD")
    async with running([letters]):
        await until(lambda: letters.problem is not None and "stream not found" in letters.problem)
        with pytest.raises(Unavailable):
            numbers(letters)
        await topology.migrate(streams.client)
        await until(lambda: letters.problem is None)
        assert numbers(letters) == []


@asynccontextmanager
async def hearing(platform: Platform, listener: Hear) -> AsyncIterator[Subscription]:
    subscription = Subscription(listener, platform.client)
    responder = Responder("orders", [answering("orders", [subscription])], platform.client)
    async with running([subscription, responder]):
        yield subscription


async def test_what_was_done_and_could_not_be_recorded_is_told(streams: Platform) -> None:
    await streams.event_log.append("expiration.a", [draft(1)], expected=0)
    listener, wanted = Hear(), WantedRedelivery(DURABLE, "EXPIRATION", 1)
    async with hearing(streams, listener) as subscription:
        await eventually(subscription.settled, 1)
        desk = desk_of(streams, Letters(streams.event_log))
        await streams.client.jetstream().delete_stream("REPAIRS")
        with pytest.raises(Unavailable, match=f"^{DURABLE} has done it, but that could not be recorded: "):
            await desk.once_more(wanted, "olga")
        listener.errors[1] = [ZeroDivisionError("no")]
        with pytest.raises(Unavailable, match=r"failed \(ZeroDivisionError: no\), but that could not be recorded: "):
            await desk.once_more(wanted, "olga")
        assert listener.done == [1, 1]
        await topology.migrate(streams.client)
        await desk.once_more(wanted, "olga")
    (recorded,) = await whole(streams.event_log, "REPAIRS")
    assert isinstance(recorded.event, EventRedelivered)


async def test_a_letter_that_is_dropped_while_it_is_heard_once_more_is_done(streams: Platform) -> None:
    await streams.event_log.append("expiration.a", [draft(1)], expected=0)
    body = encode(draft(1).event)
    headers = {"ce-type": "expiration_completed", "dead-listener": DURABLE, "dead-stream": "EXPIRATION"}
    headers |= {"dead-subject": "expiration.a", "dead-sequence": "1"}
    await streams.client.jetstream().publish(f"dead.{DURABLE}", body, headers=headers)
    listener = Hear()
    async with hearing(streams, listener) as subscription, reading(streams) as letters:
        await eventually(subscription.settled, 1)
        desk, gate = desk_of(streams, letters), listener.hold(1)
        retrying = asyncio.create_task(desk.retry(1, "olga"))
        await until(lambda: len(listener.begun) == 2)
        assert (await desk.drop(1, "oscar")).state == "dropped"
        gate.set()
        assert (await retrying).state == "done"
        assert letters.repair(1).standing == "done"
        with pytest.raises(Conflict, match="is done"):
            await desk.repairs.handle(letter_id_of(letters.log, 1), DropLetter(1, "oscar", now()))
    assert letters.repair(1) == Repair("done", None, 1, None, letters.repair(1).redelivered_at)
