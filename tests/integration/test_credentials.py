"""What is believed at the doors of several processes, with the log that they share."""

import asyncio

from common import topology
from common.auth import User
from common.clock import new_id, now
from common.credentials import IssuedCredentials, fact_id_of, spend
from common.errors import Unauthenticated
from common.event_log import EventLog
from common.events import Revoked
from common.publisher import Publisher
from common.requests import Requester, Responder
from common.runtime import Platform, running
from services.identity.requests import answering
from services.identity.tokens import Issuer, new_signing_key
from tests.harness import eventually

REVOKED = next(each for each in topology.STREAMS if each.name == "REVOKED")


async def test_what_may_be_used_once_is_used_by_one_of_many(any_log: EventLog) -> None:
    async def use(what: str) -> bool:
        try:
            await spend(any_log, "ticket", what)
        except Unauthenticated:
            return False
        return True

    outcomes = await asyncio.gather(*(use(what) for what in ("one", "another") * 20))
    assert outcomes.count(True) == 2
    assert not await use("one")


async def test_a_process_is_ready_although_all_that_was_revoked_is_long_ago(streams: Platform) -> None:
    """The stream drops what is old, and goes on counting."""
    js = streams.client.jetstream()
    await js.update_stream(REVOKED.config(1).evolve(max_age=0.1, duplicate_window=0.1))
    await Publisher[Revoked]("revoked", streams.event_log).publish(new_id(), Revoked("session", "1", now()))

    async def left() -> int:
        return (await js.stream_info("REVOKED")).state.messages

    await eventually(left, 0)
    assert (await streams.event_log.end("REVOKED")).sequence == 1
    credentials = IssuedCredentials(streams.event_log, Requester(streams.client))

    async def problem() -> str | None:
        return credentials.problem

    async with running([credentials]):
        await eventually(problem, None)


async def test_a_ticket_opens_one_socket_whichever_process_it_is_shown_to(streams: Platform) -> None:
    issuer = Issuer(new_signing_key())
    responder = Responder("identity", answering(issuer, None, None, dev=False)[:1], streams.client)  # type: ignore[arg-type]  # of keys only
    processes = [IssuedCredentials(streams.event_log, Requester(streams.client)) for _ in range(2)]

    async def come(process: IssuedCredentials, ticket: str) -> bool:
        try:
            return await process.of_ticket(ticket) == User("ada")
        except Unauthenticated:
            return False

    async with running([responder, *processes]):
        for process in processes:
            await eventually(lambda process=process: settled(process), None)  # type: ignore[misc]  # a lambda
        for _ in range(10):
            ticket = issuer.ticket(User("ada"), now())
            got_in = await asyncio.gather(*(come(process, ticket) for process in processes * 3))
            assert got_in.count(True) == 1


async def settled(process: IssuedCredentials) -> str | None:
    return process.problem


async def test_what_was_revoked_is_heard_by_every_process(streams: Platform) -> None:
    issuer, session = Issuer(new_signing_key()), new_id()
    responder = Responder("identity", answering(issuer, None, None, dev=False)[:1], streams.client)  # type: ignore[arg-type]  # of keys only
    processes = [IssuedCredentials(streams.event_log, Requester(streams.client)) for _ in range(2)]
    token = issuer.access(User("ada", session=session), "", now())

    async def believed() -> list[bool]:
        async def by(process: IssuedCredentials) -> bool:
            try:
                return await process.of_access_token(token) == User("ada", session=session)
            except Unauthenticated:
                return False

        return list(await asyncio.gather(*map(by, processes)))

    async with running([responder, *processes]):
        for process in processes:
            await eventually(lambda process=process: settled(process), None)  # type: ignore[misc]  # a lambda
        assert await believed() == [True, True]
        fact = Revoked("session", str(session), now())
        await Publisher[Revoked]("revoked", streams.event_log).publish(fact_id_of("session", str(session)), fact)
        await eventually(believed, [False, False])
