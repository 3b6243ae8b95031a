"""What `Aggregate` promises to whoever gives a command: decided on the newest state, once, together with others."""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from common.aggregate import Aggregate, Decider
from common.errors import Conflict, Unavailable
from common.event_log import Draft, EventLog, Recorded
from common.events import ExpirationCompleted
from common.group_commit import BATCH_LIMIT
from common.memory_log import MemoryLog
from common.telemetry import CONFLICTS, Cause, cause
from tests.facts import AT, number_of, numbers


class Tell(msgspec.Struct, frozen=True):
    """Tell facts, unless they were told; refused when that would make more than `at_most`."""

    told: tuple[int, ...]
    at_most: int = 1_000_000


class Break(msgspec.Struct, frozen=True):
    """A command that the rules cannot take."""


State = frozenset[int]
Facts = Aggregate[Tell | Break, State, ExpirationCompleted]


def decide(command: Tell | Break, state: State) -> Sequence[ExpirationCompleted]:
    if isinstance(command, Break):
        raise ZeroDivisionError
    new = [number for number in command.told if number not in state]
    if new and len(state) + len(new) > command.at_most:
        raise Conflict(f"{len(state)} were told", told=len(state))
    return [ExpirationCompleted(UUID(int=number), UUID(int=0), AT, AT) for number in new]


def evolve(state: State, event: ExpirationCompleted) -> State:
    return state | {number_of(event)}


FACTS = Decider[Tell | Break, State, ExpirationCompleted](
    "expiration", ExpirationCompleted, decide, evolve, frozenset()
)
ONE = uuid4()


def tell(*told: int, at_most: int = 1_000_000) -> Tell:
    return Tell(told, at_most)


class GatedLog(MemoryLog):
    """A log whose appends can be held at the gate, and which tells what passed it and how often it was read."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.arrived = asyncio.Event()
        self.appended: list[int] = []
        self.reads = 0
        self.failure: Exception | None = None

    async def append(self, subject: str, drafts: Sequence[Draft], *, expected: int) -> int:
        self.arrived.set()
        await self.gate.wait()
        if self.failure:
            raise self.failure
        sequence = await super().append(subject, drafts, expected=expected)
        self.appended.append(len(drafts))
        return sequence

    async def read(self, subject: str, after: int = 0) -> list[Recorded]:
        self.reads += 1
        return await super().read(subject, after)

    async def held(self, facts: Facts, *commands: Tell | Break) -> list[asyncio.Task[Any]]:
        """Give the first command, and the others while its append is in flight."""
        self.gate.clear()
        self.arrived.clear()
        tasks = [asyncio.create_task(facts.handle(ONE, commands[0]))]
        await self.arrived.wait()
        tasks += [asyncio.create_task(facts.handle(ONE, command)) for command in commands[1:]]
        await asyncio.sleep(0)  # let each of them come as far as the queue
        return tasks


@pytest.fixture
def gated() -> GatedLog:
    return GatedLog()


async def stored(log: EventLog, aggregate_id: UUID = ONE) -> list[int]:
    return numbers(await log.read(f"expiration.{aggregate_id}"))


async def test_a_command_answers_with_its_events_and_what_they_make(any_log: EventLog) -> None:
    facts: Facts = Aggregate(FACTS, any_log)
    handled = await facts.handle(ONE, tell(1, 2))
    assert [number_of(event) for event in handled.events] == [1, 2]
    assert handled.state == {1, 2}
    assert (handled.sequence, handled.version) == (2, 2)
    assert await stored(any_log) == [1, 2]


async def test_events_are_numbered_from_1_within_their_aggregate(any_log: EventLog) -> None:
    facts: Facts = Aggregate(FACTS, any_log)
    other = uuid4()
    await facts.handle(other, tell(100))
    await facts.handle(ONE, tell(1, 2))
    await facts.handle(ONE, tell(3))
    again: Facts = Aggregate(FACTS, any_log)
    assert (await again.handle(ONE, tell(4))).version == 4
    assert [recorded.event.version for recorded in await any_log.read(f"expiration.{ONE}")] == [1, 2, 3, 4]
    assert [recorded.event.version for recorded in await any_log.read(f"expiration.{other}")] == [1]


async def test_a_repeat_makes_no_event_and_answers_the_same(any_log: EventLog) -> None:
    facts: Facts = Aggregate(FACTS, any_log)
    first = await facts.handle(ONE, tell(1, 2))
    for replica in (facts, Aggregate(FACTS, any_log)):
        again = await replica.handle(ONE, tell(1, 2))
        assert not again.events
        assert (again.state, again.sequence, again.version) == (first.state, first.sequence, first.version)
    assert await stored(any_log) == [1, 2]


async def test_what_is_new_is_not_read_first(gated: GatedLog) -> None:
    facts: Facts = Aggregate(FACTS, gated)
    assert (await facts.handle(ONE, tell(1), new=True)).state == {1}
    assert gated.reads == 0
    assert await stored(gated) == [1]


async def test_what_is_taken_for_new_and_is_not_is_decided_on_what_is_there(any_log: EventLog) -> None:
    facts: Facts = Aggregate(FACTS, any_log)
    first = await facts.handle(ONE, tell(1), new=True)
    again = await Aggregate(FACTS, any_log).handle(ONE, tell(1), new=True)
    assert not again.events
    assert (again.state, again.sequence) == (first.state, first.sequence)
    with pytest.raises(Conflict):
        await Aggregate(FACTS, any_log).handle(ONE, tell(2, at_most=1), new=True)
    assert (await Aggregate(FACTS, any_log).handle(ONE, tell(2), new=True)).state == {1, 2}
    assert (await facts.handle(ONE, tell(3), new=True)).version == 3
    assert await stored(any_log) == [1, 2, 3]


async def test_a_refusal_stores_nothing_and_leaves_the_state(any_log: EventLog) -> None:
    facts: Facts = Aggregate(FACTS, any_log)
    await facts.handle(ONE, tell(1))
    with pytest.raises(Conflict) as refusal:
        await facts.handle(ONE, tell(2, 3, at_most=2))
    assert refusal.value.context == {"told": 1}
    assert (await facts.handle(ONE, tell(4))).state == {1, 4}


async def test_each_event_has_the_cause_of_its_own_command(gated: GatedLog) -> None:
    facts: Facts = Aggregate(FACTS, gated)
    gated.gate.clear()
    causes = [Cause(f"conversation {n}", f"request {n}") for n in range(4)]

    async def ask(n: int) -> None:
        cause.set(causes[n])
        await facts.handle(ONE, tell(n))

    async with asyncio.TaskGroup() as group:
        for n in range(4):
            group.create_task(ask(n))
        await gated.arrived.wait()
        gated.gate.set()
    assert [recorded.cause for recorded in await gated.read(f"expiration.{ONE}")] == causes


async def test_what_queues_behind_an_append_goes_as_one_batch(gated: GatedLog) -> None:
    facts: Facts = Aggregate(FACTS, gated)
    tasks = await gated.held(facts, tell(1), tell(2), tell(3, 4), tell(5))
    gated.gate.set()
    handled = await asyncio.gather(*tasks)
    assert gated.appended == [1, 4]
    assert [each.state for each in handled] == [{1}, {1, 2}, {1, 2, 3, 4}, {1, 2, 3, 4, 5}]
    assert [each.version for each in handled] == [1, 2, 4, 5]
    assert [each.sequence for each in handled] == [1, 5, 5, 5]
    assert await stored(gated) == [1, 2, 3, 4, 5]


async def test_a_refusal_or_a_repeat_in_a_batch_is_its_own_commands_affair(gated: GatedLog) -> None:
    facts: Facts = Aggregate(FACTS, gated)
    commands = (tell(1), tell(2), tell(3, at_most=2), tell(2), Break(), tell(4, at_most=3), tell(5, at_most=3))
    tasks = await gated.held(facts, *commands)
    gated.gate.set()
    await asyncio.wait(tasks)
    _, two, refused, repeat, broken, four, late = tasks
    assert two.result().state == repeat.result().state == {1, 2}
    assert not repeat.result().events
    assert str(refused.exception()) == "2 were told"
    assert isinstance(broken.exception(), ZeroDivisionError)
    assert four.result().state == {1, 2, 4}
    assert str(late.exception()) == "3 were told"
    assert gated.appended == [1, 2]
    assert await stored(gated) == [1, 2, 4]


async def test_other_aggregates_do_not_wait(gated: GatedLog) -> None:
    facts: Facts = Aggregate(FACTS, gated)
    others = [uuid4() for _ in range(3)]
    gated.gate.clear()
    tasks = [asyncio.create_task(facts.handle(each, tell(n))) for n, each in enumerate(others)]
    await asyncio.sleep(0)
    await gated.arrived.wait()
    gated.gate.set()
    await asyncio.gather(*tasks)
    assert gated.appended == [1, 1, 1]


async def test_more_commands_than_one_batch_takes_go_in_several(gated: GatedLog) -> None:
    facts: Facts = Aggregate(FACTS, gated)
    count = 2 * BATCH_LIMIT + 500
    tasks = await gated.held(facts, *(tell(n) for n in range(count)))
    gated.gate.set()
    handled = await asyncio.gather(*tasks)
    assert gated.appended == [1, BATCH_LIMIT, BATCH_LIMIT, 499]
    assert [each.version for each in handled] == list(range(1, count + 1))
    assert await stored(gated) == list(range(count))


async def test_more_events_than_one_batch_takes_go_in_several(gated: GatedLog) -> None:
    facts: Facts = Aggregate(FACTS, gated)
    commands = [tell(*range(n * 400, n * 400 + 400)) for n in range(5)]
    tasks = await gated.held(facts, tell(5000), *commands)
    gated.gate.set()
    await asyncio.gather(*tasks)
    assert gated.appended == [1, 800, 800, 400]
    assert await stored(gated) == [5000, *range(2000)]


async def test_a_command_that_makes_too_many_events_fails_alone(gated: GatedLog) -> None:
    facts: Facts = Aggregate(FACTS, gated)
    tasks = await gated.held(facts, tell(9999), tell(9998), tell(*range(BATCH_LIMIT + 1)), tell(9997))
    gated.gate.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(outcome, RuntimeError) for outcome in outcomes] == [False, False, True, False]
    assert await stored(gated) == [9999, 9998, 9997]


async def test_a_conflict_decides_again_on_what_the_other_left(any_log: EventLog) -> None:
    one: Facts = Aggregate(FACTS, any_log)
    other: Facts = Aggregate(FACTS, any_log)
    await one.handle(ONE, tell(1))
    await other.handle(ONE, tell(2))
    conflicts = CONFLICTS.labels("expiration")._value.get()  # noqa: SLF001 (prometheus-client has no other way)
    handled = await one.handle(ONE, tell(2, 3))
    assert CONFLICTS.labels("expiration")._value.get() == conflicts + 1  # noqa: SLF001
    assert handled.state == {1, 2, 3}
    assert (handled.version, handled.sequence) == (3, 3)
    assert [number_of(event) for event in handled.events] == [3]
    with pytest.raises(Conflict):
        await other.handle(ONE, tell(4, at_most=3))
    assert await stored(any_log) == [1, 2, 3]


async def test_a_refusal_on_an_old_state_is_decided_again_on_the_newest(any_log: EventLog) -> None:
    one: Facts = Aggregate(FACTS, any_log)
    other: Facts = Aggregate(FACTS, any_log)
    with pytest.raises(Conflict, match="0 were told"):
        await one.handle(ONE, tell(2, at_most=0))
    await other.handle(ONE, tell(2))
    assert (await one.handle(ONE, tell(2, at_most=0))).state == {2}  # no longer refused: it is a repeat


async def test_a_repeat_on_an_old_state_answers_with_the_newest(any_log: EventLog) -> None:
    one: Facts = Aggregate(FACTS, any_log)
    other: Facts = Aggregate(FACTS, any_log)
    await one.handle(ONE, tell(1))
    await other.handle(ONE, tell(2))
    repeat = await one.handle(ONE, tell(1))
    assert repeat.state == {1, 2}
    assert (repeat.sequence, repeat.version, list(repeat.events)) == (2, 2, [])


async def test_an_append_that_fails_is_told_to_all_that_waited_for_it(gated: GatedLog) -> None:
    facts: Facts = Aggregate(FACTS, gated)
    tasks = await gated.held(facts, tell(1), tell(2), tell(3))
    gated.gate.set()
    await asyncio.gather(*tasks)
    tasks = await gated.held(facts, tell(4), tell(5), tell(6, at_most=3), tell(1))
    gated.failure = Unavailable("the log is away")
    gated.gate.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert outcomes == [gated.failure] * 4
    gated.failure = None
    assert (await facts.handle(ONE, tell(7))).state == {1, 2, 3, 7}
    assert await stored(gated) == [1, 2, 3, 7]


async def test_an_append_that_failed_but_was_stored_is_seen_by_the_next_command() -> None:
    class ForgetfulLog(GatedLog):
        async def append(self, subject: str, drafts: Sequence[Draft], *, expected: int) -> int:
            await super().append(subject, drafts, expected=expected)
            raise Unavailable("it may have been stored")

    log = ForgetfulLog()
    facts: Facts = Aggregate(FACTS, log)
    with pytest.raises(Unavailable):
        await facts.handle(ONE, tell(1))
    assert (await facts.handle(ONE, tell(1))).version == 1
    assert await stored(log) == [1]


async def test_whoever_stops_waiting_does_not_stop_the_others(gated: GatedLog) -> None:
    facts: Facts = Aggregate(FACTS, gated)
    tasks = await gated.held(facts, tell(1), tell(2), tell(3, at_most=1), tell(4))
    for gone in tasks[:3]:
        gone.cancel()
    gated.gate.set()
    assert (await tasks[3]).state == {1, 2, 4}
    assert (await facts.handle(ONE, tell(5))).state == {1, 2, 4, 5}


async def test_states_that_are_dropped_are_read_again(gated: GatedLog) -> None:
    facts: Facts = Aggregate(FACTS, gated, cache=10)
    many = [uuid4() for _ in range(20)]
    for turn in range(3):
        for each in many:
            handled = await facts.handle(each, tell(turn))
            assert (handled.state, handled.version) == (frozenset(range(turn + 1)), turn + 1)
    assert all([await stored(gated, each) == [0, 1, 2] for each in many])


async def test_the_least_recently_used_state_is_dropped_first(gated: GatedLog) -> None:
    facts: Facts = Aggregate(FACTS, gated, cache=6)
    hot, cold, new = uuid4(), uuid4(), uuid4()
    for each in (hot, cold):
        await facts.handle(each, tell(1, 2))  # counts as 3: two events and itself
    await facts.load(hot)
    await facts.handle(new, tell(1))
    reads = gated.reads
    await facts.load(hot)
    assert gated.reads == reads
    assert (await facts.load(cold)).state == {1, 2}
    assert gated.reads == reads + 1


async def test_states_are_kept_by_what_they_weigh(gated: GatedLog) -> None:
    facts: Facts = Aggregate(FACTS, gated, cache=10, weigh=max)
    heavy, light, new = uuid4(), uuid4(), uuid4()
    await facts.handle(heavy, tell(8))
    await facts.handle(light, tell(1, 2))
    reads = gated.reads
    await facts.load(heavy)
    await facts.load(light)
    assert gated.reads == reads
    await facts.handle(new, tell(1), new=True)
    await facts.load(light)
    assert gated.reads == reads
    await facts.load(heavy)
    assert gated.reads == reads + 1


async def test_a_state_larger_than_the_cache_is_still_kept_while_it_is_alone(gated: GatedLog) -> None:
    facts: Facts = Aggregate(FACTS, gated, cache=2)
    await facts.handle(ONE, tell(1, 2, 3, 4, 5))
    reads = gated.reads
    assert (await facts.handle(ONE, tell(6))).version == 6
    assert gated.reads == reads


async def test_two_replicas_under_load_lose_nothing_and_tell_nothing_twice(any_log: EventLog) -> None:
    replicas: list[Facts] = [Aggregate(FACTS, any_log, timeout=30) for _ in range(2)]
    limit = 150

    async def ask(n: int) -> bool:
        try:
            await replicas[n % 2].handle(ONE, tell(n // 2, at_most=limit))  # each fact is asked of both replicas
        except Conflict:
            return False
        return True

    taken = await asyncio.gather(*(ask(n) for n in range(2 * 200)))
    told = await stored(any_log)
    assert len(told) == len(set(told)) == limit
    assert {n // 2 for n, yes in enumerate(taken) if yes} == set(told)
    versions = [recorded.event.version for recorded in await any_log.read(f"expiration.{ONE}")]
    assert versions == list(range(1, limit + 1))


async def test_a_command_that_keeps_losing_is_unavailable_in_the_end() -> None:
    class BusyLog(GatedLog):
        """Somebody else is always first."""

        async def append(self, subject: str, drafts: Sequence[Draft], *, expected: int) -> int:
            await MemoryLog.append(self, subject, [Draft.of(event_of(len(self.appended) + 100))], expected=expected)
            self.appended.append(1)
            return await super().append(subject, drafts, expected=expected)

    log = BusyLog()
    facts: Facts = Aggregate(FACTS, log, timeout=0.05)
    with pytest.raises(Unavailable, match="others"):
        await facts.handle(ONE, tell(1))
    assert 1 not in await stored(log)


def event_of(number: int) -> ExpirationCompleted:
    return ExpirationCompleted(UUID(int=number), UUID(int=0), AT, AT)
