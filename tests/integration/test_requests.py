"""Requests between services over a real NATS: who asks, who answers, and what happens when somebody is not there."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest
from nats.aio.client import Client

from common import errors
from common.errors import Conflict, DomainError, Invalid, Unavailable
from common.requests import KINDS, Answering, Endpoint, Failure, Requester, Responder
from common.runtime import Platform, connect, running
from common.settings import Settings
from common.telemetry import Cause, cause, current_cause
from services.cli.servers import NatsServer
from tests.harness import eventually


class Sum(msgspec.Struct, frozen=True):
    """What is to be added up."""

    numbers: list[int]


class Total(msgspec.Struct, frozen=True):
    """What it comes to, and who says so."""

    total: int
    by: str = ""


class Word(msgspec.Struct, frozen=True):
    """Something that an adder does not understand."""

    numbers: str


ADD = Endpoint("adder", "add", Sum, Total)
SPELL = Endpoint("adder", "add", Word, Total)
CAUSE = Cause("conversation", "event-7", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


async def add(question: Sum) -> Total:
    return Total(sum(question.numbers))


@pytest.fixture
def migrated() -> None:
    """Nothing is migrated yet."""


@pytest.fixture
async def platform(nats: NatsServer) -> AsyncIterator[Platform]:
    """Connected to a NATS with nothing in it."""
    async with connect(Settings(nats_url=nats.url), "test") as platform:
        yield platform


@pytest.fixture
def requests(platform: Platform) -> Requester:
    return Requester(platform.client)


@asynccontextmanager
async def answering(
    client: Client, answer: Callable[[Sum], Awaitable[Total]] = add, **options: Any
) -> AsyncIterator[Responder]:
    """A responder that answers as long as this lasts."""
    responder = Responder("adder", [Answering(ADD, answer)], client, **options)
    async with running([responder]):
        yield responder


async def listening(client: Client, replicas: int = 1) -> None:
    """Return when as many replicas can be asked."""

    async def count() -> int:
        inbox, heard = client.new_inbox(), []

        async def hear(message: Any) -> None:
            if message.data and endpoints(message.data):
                heard.append(message)

        subscription = await client.subscribe(inbox, cb=hear)
        await client.publish("$SRV.INFO.adder", reply=inbox)
        await client.flush()
        await client.flush()  # the first one brought the question, this one brings what was answered
        await subscription.unsubscribe()
        return len(heard)

    await eventually(count, replicas)


def endpoints(info: bytes) -> list[dict[str, Any]]:
    """What a service says of its endpoints."""
    told: list[dict[str, Any]] = msgspec.json.decode(info)["endpoints"]
    return told


async def asked(platform: Platform, subject: str) -> dict[str, Any]:
    """The answer to a plain request, as any tool of NATS makes it."""
    answer: dict[str, Any] = msgspec.json.decode((await platform.client.request(subject, timeout=5)).data)
    return answer


async def test_a_question_is_answered(platform: Platform, requests: Requester) -> None:
    async with answering(platform.client):
        assert await requests.ask(ADD, Sum([1, 2, 3])) == Total(6)


async def test_tools_of_nats_see_who_answers_what_and_how_often(platform: Platform, requests: Requester) -> None:
    async def add_few(question: Sum) -> Total:
        if len(question.numbers) > 2:
            raise Conflict("Too many.")
        return await add(question)

    async with answering(platform.client, add_few):
        await requests.ask(ADD, Sum([1]))
        await requests.ask(ADD, Sum([2]))
        with pytest.raises(Conflict):
            await requests.ask(ADD, Sum([1, 2, 3]))

        ping = await asked(platform, "$SRV.PING")
        assert (ping["type"], ping["name"]) == ("io.nats.micro.v1.ping_response", "adder")
        info = await asked(platform, f"$SRV.INFO.adder.{ping['id']}")
        assert [(told["name"], told["subject"]) for told in info["endpoints"]] == [("add", "requests.adder.add")]
        [stats] = (await asked(platform, "$SRV.STATS.adder"))["endpoints"]
        assert (stats["num_requests"], stats["num_errors"]) == (3, 1)
        assert stats["last_error"] == "Conflict('Too many.')"
        assert stats["processing_time"] >= 3 * stats["average_processing_time"] > 0


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind is not DomainError])
async def test_an_error_is_raised_where_it_was_asked(
    platform: Platform, requests: Requester, kind: type[DomainError]
) -> None:
    async def refuse(_: Sum) -> Total:
        raise kind("Not so.\nNor like this: ü", field="numbers", left=[1, None])

    async with answering(platform.client, refuse):
        with pytest.raises(kind) as raised:
            await requests.ask(ADD, Sum([]))

    assert type(raised.value) is kind
    assert raised.value.detail == "Not so.\nNor like this: ü"
    assert raised.value.context == {"field": "numbers", "left": [1, None]}


def test_every_kind_of_error_has_a_name_on_the_wire() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DomainError)}
    assert len(kinds) > 5
    assert {KINDS[Failure.of(kind("why")).kind] for kind in kinds} == kinds


async def test_an_error_of_a_kind_that_is_not_known_here_is_told_as_unavailable() -> None:
    error = Failure("Cursed", "The numbers are cursed.").error()
    assert isinstance(error, Unavailable)
    assert "cursed" in error.detail


async def test_a_question_that_is_not_understood_is_told_what_is_wrong_with_it(
    platform: Platform, requests: Requester
) -> None:
    async with answering(platform.client):
        with pytest.raises(Invalid, match="numbers: Expected a list"):
            await requests.ask(SPELL, Word("seven"))
        await listening(platform.client)
        reply = await platform.client.request(ADD.subject, b'{"numbers": [1, ', timeout=5)
        assert reply.headers
        assert reply.headers["Nats-Service-Error-Code"] == "Invalid"
        assert reply.headers["Nats-Service-Error"].startswith("the request: Not JSON")


async def test_a_mistake_is_told_as_unavailable_without_its_text(
    platform: Platform, requests: Requester, capfd: pytest.CaptureFixture[str]
) -> None:
    async def stumble(_: Sum) -> Total:
        raise RuntimeError("the password is swordfish")

    async with answering(platform.client, stumble):
        with pytest.raises(Unavailable) as raised:
            await requests.ask(ADD, Sum([]))
    assert "swordfish" not in raised.value.detail
    assert "adder failed to answer add" in raised.value.detail
    told = capfd.readouterr()
    assert "swordfish" in told.out + told.err


async def test_an_answer_that_nats_does_not_take_is_told_as_an_error(platform: Platform, requests: Requester) -> None:
    async def ramble(_: Sum) -> Total:
        return Total(0, "x" * 2_000_000)

    async with answering(platform.client, ramble):
        with pytest.raises(Invalid, match="larger than NATS takes"):
            await requests.ask(ADD, Sum([]))
        with pytest.raises(Invalid, match="larger than NATS takes"):
            await requests.ask(ADD, Sum([1] * 1_000_000))


async def test_who_asks_waits_for_somebody_to_answer(platform: Platform, requests: Requester) -> None:
    asking = asyncio.create_task(requests.ask(ADD, Sum([1, 2])))
    await platform.client.flush()  # by now it was told that nobody is there
    async with answering(platform.client):
        assert await asking == Total(3)


async def test_when_nobody_answers_in_time_it_is_unavailable(platform: Platform, requests: Requester) -> None:
    with pytest.raises(Unavailable, match="Nobody answers for adder"):
        await requests.ask(ADD, Sum([]), within=0.2)

    async def dream(_: Sum) -> Total:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async with answering(platform.client, dream, patience=0):
        await listening(platform.client)
        with pytest.raises(Unavailable, match="adder did not answer add"):
            await requests.ask(ADD, Sum([]), within=0.2)


async def test_the_cause_travels_with_the_question(platform: Platform, requests: Requester) -> None:
    heard: list[Cause] = []

    async def listen(_: Sum) -> Total:
        heard.append(current_cause())
        return Total(0)

    async with answering(platform.client, listen):
        token = cause.set(CAUSE)
        try:
            await requests.ask(ADD, Sum([]))
        finally:
            cause.reset(token)
        await platform.client.request(ADD.subject, b'{"numbers": []}', timeout=5)  # from a program that sends no cause

    assert heard[0] == CAUSE
    assert heard[1].correlation_id == heard[1].causation_id != ""


async def test_questions_are_answered_side_by_side_up_to_a_limit(platform: Platform, requests: Requester) -> None:
    together = asyncio.Barrier(3)  # nobody gets past it alone
    busy = most = 0

    async def count(_: Sum) -> Total:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await together.wait()
        await platform.client.flush()  # time enough for a fourth to come in
        busy -= 1
        return Total(0)

    async with answering(platform.client, count, concurrency=3):
        await asyncio.gather(*(requests.ask(ADD, Sum([n])) for n in range(12)))
    assert most == 3


async def test_replicas_share_the_questions(nats: NatsServer, requests: Requester, platform: Platform) -> None:
    async with AsyncExitStack() as stack:
        for name in ("one", "two"):
            other = await stack.enter_async_context(connect(Settings(nats_url=nats.url), name))

            async def answer(_: Sum, name: str = name) -> Total:
                return Total(0, name)

            await stack.enter_async_context(answering(other.client, answer))
        await listening(platform.client, replicas=2)
        answers = await asyncio.gather(*(requests.ask(ADD, Sum([n])) for n in range(100)))
    assert {answer.by for answer in answers} == {"one", "two"}


class Slow:
    """A replica that holds what it is asked until it is let go."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.go_on = asyncio.Event()

    async def answer(self, _: Sum) -> Total:
        self.began.set()
        await self.go_on.wait()
        return Total(0, "slow")


async def quick(_: Sum) -> Total:
    return Total(0, "quick")


async def test_a_replica_that_stops_finishes_what_it_began_and_leaves_the_rest_to_others(
    nats: NatsServer, platform: Platform, requests: Requester
) -> None:
    slow = Slow()
    async with AsyncExitStack() as stack:
        stopping = await stack.enter_async_context(connect(Settings(nats_url=nats.url), "stopping"))
        worker = asyncio.create_task(
            Responder("adder", [Answering(ADD, slow.answer)], stopping.client, concurrency=1).run()
        )
        asking = [asyncio.create_task(requests.ask(ADD, Sum([n]))) for n in range(20)]
        await asyncio.wait_for(slow.began.wait(), 5)
        await stopping.client.flush()

        await stack.enter_async_context(answering(platform.client, quick))
        await listening(platform.client, replicas=2)
        worker.cancel()
        left = set(asking)
        while len(left) > 1:  # all but the one that runs are asked elsewhere
            answered, left = await asyncio.wait(left, timeout=10, return_when=asyncio.FIRST_COMPLETED)
            assert answered, "nobody answers what had not begun"
            assert {(await answer).by for answer in answered} == {"quick"}

        slow.go_on.set()
        assert (await asyncio.wait_for(left.pop(), 5)).by == "slow"
        with pytest.raises(asyncio.CancelledError):
            await worker


async def test_what_a_stopping_replica_does_not_finish_in_time_is_asked_elsewhere(
    nats: NatsServer, platform: Platform, requests: Requester
) -> None:
    slow = Slow()
    async with connect(Settings(nats_url=nats.url), "stopping") as stopping:
        async with answering(stopping.client, slow.answer, patience=0.05):
            asking = asyncio.create_task(requests.ask(ADD, Sum([])))
            await asyncio.wait_for(slow.began.wait(), 5)
        async with answering(platform.client, quick):
            assert (await asking).by == "quick"


async def test_questions_on_their_way_to_a_replica_that_stops_are_answered(
    nats: NatsServer, platform: Platform, requests: Requester
) -> None:
    async with connect(Settings(nats_url=nats.url), "stopping") as stopping:
        worker = asyncio.create_task(Responder("adder", [Answering(ADD, quick)], stopping.client).run())
        await listening(platform.client)
        asking = [asyncio.create_task(requests.ask(ADD, Sum([n]), within=5)) for n in range(500)]
        await platform.client.flush()  # the server has sent them; nobody has read them yet
        worker.cancel()
        async with answering(platform.client, quick):
            assert {(await answer).by for answer in asking} == {"quick"}
        await asyncio.wait([worker])


async def test_a_responder_that_stopped_is_gone_for_good(platform: Platform, requests: Requester) -> None:
    async with answering(platform.client):
        await requests.ask(ADD, Sum([]))
    with pytest.raises(Unavailable, match="Nobody answers"):
        await requests.ask(ADD, Sum([]), within=0.2)
    assert platform.client.stats["errors_received"] == 0


async def test_who_gives_up_on_a_flush_does_not_make_the_connection_deaf(
    platform: Platform, requests: Requester
) -> None:
    cancelled = False
    async with answering(platform.client):
        for steps in range(1, 6):
            flushing = asyncio.create_task(platform.client.flush())
            for _ in range(steps):
                await asyncio.sleep(0)  # one step of the loop
            cancelled = flushing.cancel() or cancelled
            assert await requests.ask(ADD, Sum([steps]), within=3) == Total(steps)
    assert cancelled, "no flush was under way any more"


async def test_a_restart_of_nats_is_survived_by_who_asks_and_who_answers(
    nats: NatsServer, platform: Platform, requests: Requester
) -> None:
    async with answering(platform.client) as responder:
        await requests.ask(ADD, Sum([]))
        await nats.stop()
        asking = asyncio.create_task(requests.ask(ADD, Sum([1, 2]), within=20))
        await nats.start()
        assert await asking == Total(3)
        assert responder.problem is None
